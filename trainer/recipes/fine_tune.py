"""A few hundred images of one's own, in minutes on a CPU, from trained weights (``--retrain``).

What is trained: the last stage (the recipe names those before it of an ImageNet network), and a
new classifier, ten times as fast. The preprocessing is the model's. By experience with this
program, not from a source; the default of ``--retrain`` with ``--dataset folder``.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='ilsvrc',
    C=32,
    d=4,
    depth=50,
    dataset='folder',
    preprocessing='DataAugmentationNormalizeBigger',
    auto_augment='ta_wide',
    epoch=15,
    batch=16,
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=1e-4,
    lr=0.01,
    lr_schedule='cosine',
    warmup=1,
    label_smoothing=0.1,
    reset_classifier=True,
    freeze=('stem', 'stage1', 'stage2', 'stage3'),
    head_lr=10.0,
)
