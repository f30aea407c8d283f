"""The names of prlz77/ResNeXt.pytorch, whose networks are for CIFAR."""

from trainer.weights.namings import Naming


def _block(stage, block):
    here = 'stage_{0}.stage_{0}_bottleneck_{1}.'.format(stage + 1, block)
    return {
        'reduce': (here + 'conv_reduce', here + 'bn_reduce'),
        'grouped': (here + 'conv_conv', here + 'bn'),
        'expand': (here + 'conv_expand', here + 'bn_expand'),
        'shortcut': (here + 'shortcut.shortcut_conv', here + 'shortcut.shortcut_bn'),
    }


NAMINGS = [
    Naming(
        'prlz77',
        'paper-cifar',
        ('conv_1_3x3', 'bn_1'),
        _block,
        lambda stages: 'classifier',
        preprocessing='DataAugmentationCifarPrlz77',
    )
]
