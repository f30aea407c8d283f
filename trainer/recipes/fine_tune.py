"""Trained weights on a few hundred own images, in minutes on a CPU (``--retrain``).

It trains the last stage (it freezes the stages before it of an ImageNet network) and a new
classifier, the latter ten times as fast. The preprocessing is that of the model. The values are
from experience with this program, not from a source. It is the default of ``--retrain`` with
``--dataset folder``.
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
