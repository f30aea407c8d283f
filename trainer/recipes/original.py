"""nutszebra/resnext: ``main.py`` and ``nutszebra_optimizer.py`` (OptimizerResNext)."""

from trainer.recipes.options import Options

RECIPE = Options(
    network='original',
    C=2,
    d=64,
    multi=4,
    block_num=(3, 3, 3),
    preprocessing='DataAugmentationCifar10NormalizeSmall',
    epoch=300,
    batch=256,
    train_batch_divide=4,
    test_batch_divide=4,
    optimizer='momentum',
    momentum=0.9,
    weight_decay=5e-4,
    lr=0.1,
    lr_steps=(150, 225),
)
