"""arXiv 1611.05431, section on CIFAR; the preprocessing is Torch7's."""

from trainer.recipes.options import Options

RECIPE = Options(
    network='paper',
    C=8,
    d=64,
    depth=29,
    initialization='torch7',
    preprocessing='DataAugmentationCifarTorch7',
    epoch=300,
    batch=256,
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=5e-4,
    lr=0.1,
    lr_steps=(150, 225),
)
