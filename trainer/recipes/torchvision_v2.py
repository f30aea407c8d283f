"""torchvision's newer weights (IMAGENET1K_V2): ``references/classification``, and the command of
its issue 5935 (ResNeXt-101 64x4d, 83.246 %).

There each of eight GPUs has 128 images of a batch, so that batch normalisation and mixing see 128
images at a time; here that is one of 8 chunks. The decay of the average is adjusted to batch,
epochs and steps, as in ``train.py``. Weight decay applies to the classifier's bias, but not to
batch normalisation.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='ilsvrc',
    C=32,
    d=4,
    depth=50,
    initialization='pytorch',
    dataset='ilsvrc',
    preprocessing='DataAugmentationImagenetTorchvision',
    sampling='full-batches',
    auto_augment='ta_wide',
    mixup=0.2,
    cutmix=1.0,
    reprob=0.1,
    repeated_augmentation=4,
    epoch=600,
    batch=1024,
    train_batch_divide=8,
    test_batch_divide=8,
    optimizer='torch-momentum',
    momentum=0.9,
    weight_decay=2e-5,
    norm_weight_decay=0.0,
    lr=0.5,
    lr_schedule='cosine',
    warmup=5,
    warmup_by='epoch',
    label_smoothing=0.1,
    ema_decay=1 - 2e-5 * 1024 * 32 / 600,
    ema_steps=32,
)
