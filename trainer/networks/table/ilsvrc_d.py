"""The paper's networks for ImageNet with ResNet-D's stem and shortcuts (arXiv 1812.01187)."""

import dataclasses

from trainer.networks.table import ilsvrc

ENTRY = dataclasses.replace(
    ilsvrc.ENTRY,
    name='ilsvrc_d',
    title='ImageNet ResNeXt-D',
    variant={'deep_stem': [32, 32], 'average_shortcut': True},
)
