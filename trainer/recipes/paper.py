"""arXiv 1611.05431 on ImageNet, with the preprocessing of its predecessor, 1512.03385.

The paper states batch, momentum, weight decay and learning rate. Its networks were trained with
Torch7 (``torch7_imagenet``), from which Nesterov's momentum and the epochs 31, 61 and 91 are.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='ilsvrc',
    C=32,
    d=4,
    depth=50,
    initialization='torch7',
    dataset='ilsvrc',
    preprocessing='DataAugmentationImagenetPaper',
    epoch=100,
    batch=256,
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=1e-4,
    lr=0.1,
    lr_steps=(30, 60, 90),  # epochs 31, 61 and 91 are the first with the new rates
)
