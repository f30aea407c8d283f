"""The paper's networks for ImageNet with squeeze-and-excitation (arXiv 1709.01507)."""

import dataclasses

from trainer.networks.table import ilsvrc

ENTRY = dataclasses.replace(
    ilsvrc.ENTRY, name='ilsvrc_se', title='ImageNet SE-ResNeXt', variant={'se_reduction': 16}
)
