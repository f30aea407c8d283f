"""torchvision's names (``resnext50_32x4d``), which timm and Lornatang/ResNetXt-PyTorch share."""

from trainer.weights.namings import Naming


def _block(stage, block):
    here = f'layer{stage + 1}.{block}.'
    parts = {
        part: (here + f'conv{n}', here + f'bn{n}')
        for n, part in enumerate(('reduce', 'grouped', 'expand'), 1)
    }
    return dict(parts, shortcut=(here + 'downsample.0', here + 'downsample.1'))


NAMINGS = [Naming('torchvision', 'ilsvrc', ('conv1', 'bn1'), _block, lambda stages: 'fc')]
