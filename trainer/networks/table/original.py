"""The 2017 program's network for CIFAR."""

from trainer.networks.table import Entry

ENTRY = Entry(
    name='original',
    kind='original-cifar',
    cls_path='resnext:ResNext',
    title='2017 CIFAR',
    sizes={'C': 2, 'd': 64, 'multi': 4, 'block_num': (3, 3, 3), 'shortcut': 'A'},
    further_sizes=('depth',),
)
