"""arXiv 1611.05431 on ImageNet, with the preprocessing of its predecessor, 1512.03385.

The paper gives batch, momentum, weight decay and learning rate. It was trained with
Torch7 (``torch7_imagenet``), whence Nesterov's momentum and the epochs 31, 61 and 91.
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
    lr_steps=(30, 60, 90),  # so that epochs 31, 61 and 91 are the first of the new rates
)
