"""The paper's networks for ImageNet as SE-ResNeXt with ResNet-D's stem and shortcuts."""

import dataclasses

from trainer.networks.table import ilsvrc

ENTRY = dataclasses.replace(
    ilsvrc.ENTRY,
    name='ilsvrc_se_d',
    title='ImageNet SE-ResNeXt-D',
    variant={'deep_stem': [32, 32], 'average_shortcut': True, 'se_reduction': 16},
)
