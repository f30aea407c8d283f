"""facebookresearch/ResNeXt on CIFAR: ``opts.lua``, ``train.lua``, ``datasets/cifar10.lua``.

The network and the weight decay are those of the command for CIFAR-10 in its README, which
also says to halve the learning rate with the batch. On the 8 GPUs of that command, batch
normalisation saw 16 images at a time, as it does with ``-trb 8``.
"""

from trainer.recipes.options import Options

RECIPE = Options(
    network='paper',
    C=16,
    d=64,
    depth=29,
    initialization='torch7',
    preprocessing='DataAugmentationCifarTorch7',
    epoch=300,
    batch=128,
    batch_scaling='lr',
    optimizer='torch-nesterov',
    momentum=0.9,
    weight_decay=5e-4,
    lr=0.1,
    lr_steps=(0.49, 0.74),  # epoch / epochs > 0.49 and > 0.74 there: half and three quarters
)
