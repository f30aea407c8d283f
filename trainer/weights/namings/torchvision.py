"""torchvision's names (``resnext50_32x4d``), which timm and Lornatang/ResNetXt-PyTorch share."""
from trainer.weights.namings import Naming


def _block(stage, block):
    here = 'layer{}.{}.'.format(stage + 1, block)
    parts = {part: (here + 'conv{}'.format(n), here + 'bn{}'.format(n))
             for n, part in enumerate(('reduce', 'grouped', 'expand'), 1)}
    return dict(parts, shortcut=(here + 'downsample.0', here + 'downsample.1'))


NAMINGS = [Naming('torchvision', 'ilsvrc', ('conv1', 'bn1'), _block, lambda stages: 'fc')]
