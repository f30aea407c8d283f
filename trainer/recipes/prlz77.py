"""prlz77/ResNeXt.pytorch: ``train.py``. Its README gives 0.05 as the learning rate."""

from trainer.recipes.options import Options

RECIPE = Options(
    network='paper',
    C=8,
    d=64,
    widen_factor=4,
    depth=29,
    initialization='prlz77',
    preprocessing='DataAugmentationCifarPrlz77',
    epoch=300,
    batch=128,
    batch_scaling='epochs',
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=5e-4,
    lr=0.1,
    lr_steps=(150, 225),
)
