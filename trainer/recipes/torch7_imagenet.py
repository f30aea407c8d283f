"""facebookresearch/ResNeXt on ImageNet: ``opts.lua``, ``train.lua``, ``datasets/imagenet.lua``.

The network and the batch are those of its README's command. On its 8 GPUs, batch
normalisation saw 32 images at a time, as it does with ``-trb 8``.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='ilsvrc',
    C=32,
    d=4,
    depth=50,
    initialization='torch7',
    dataset='ilsvrc',
    preprocessing='DataAugmentationImagenetTorch7',
    epoch=100,
    batch=256,
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=1e-4,
    lr=0.1,
    lr_schedule='every',
    lr_period=30,
)
