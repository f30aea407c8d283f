"""torchvision's names (``resnext50_32x4d``), which timm and Lornatang/ResNetXt-PyTorch share.

Variants are timm's (``timm/models/resnet.py``): ``seresnext50_32x4d``, ``resnext50d_32x4d``.
"""

from trainer.weights.namings import Naming, Variants


def _block(stage, block):
    here = f'layer{stage + 1}.{block}.'
    parts = {
        part: (here + f'conv{n}', here + f'bn{n}')
        for n, part in enumerate(('reduce', 'grouped', 'expand'), 1)
    }
    return dict(parts, shortcut=(here + 'downsample.0', here + 'downsample.1'))


def _average_shortcut(stage, block):
    here = f'layer{stage + 1}.{block}.downsample.'
    return here + '1', here + '2'


def _se(stage, block):
    here = f'layer{stage + 1}.{block}.se.'
    return here + 'fc1', here + 'fc2'


_DEEP_STEM = [('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1')]

NAMINGS = [
    Naming(
        'torchvision',
        'ilsvrc',
        ('conv1', 'bn1'),
        _block,
        lambda stages: 'fc',
        variants=Variants('timm', _DEEP_STEM, _average_shortcut, _se),
    )
]
