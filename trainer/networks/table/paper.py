"""The paper's networks for CIFAR."""

from trainer.networks.table import Entry

ENTRY = Entry(
    name='paper',
    kind='paper-cifar',
    cls_path='resnext:PaperResNext',
    title='CIFAR',
    sizes={'C': 8, 'd': 64, 'widen_factor': 4, 'depth': 29, 'shortcut': 'B'},
    further_sizes=('block_num',),
)
