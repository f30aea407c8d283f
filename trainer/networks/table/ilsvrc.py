"""The paper's networks for ImageNet."""

from trainer.networks.table import Entry

ENTRY = Entry(
    name='ilsvrc',
    kind='ilsvrc',
    cls_path='resnext_ilsvrc:ResNext',
    title='ImageNet',
    sizes={'C': 32, 'd': 4, 'depth': 50, 'shortcut': 'B'},
    further_sizes=('block_num', 'multi'),
)
