"""Lornatang/ResNetXt-PyTorch: ``config.py``, ``train.py``, ``dataset.py``.

Its moving average takes 0.99998 of the newest weights and 0.00002 of the average, clearly
swapped by mistake; here it is an average.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='ilsvrc',
    C=32,
    d=4,
    depth=50,
    initialization='pytorch',
    dataset='ilsvrc',
    preprocessing='DataAugmentationImagenetLornatang',
    sampling='full-batches',
    epoch=600,
    batch=128,
    optimizer='torch-momentum',
    momentum=0.9,
    weight_decay=2e-5,
    lr=0.1,
    lr_schedule='cosine',
    lr_period=0.25,
    lr_min=5e-5,
    label_smoothing=0.1,
    ema_decay=0.99998,
)
