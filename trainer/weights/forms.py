"""npz layouts of the paper's figure 3 (a) and (b): each branch of a block has its own arrays.

A network computes form C, whose convolution with C groups combines the branches. So
``reduce`` and ``grouped`` of a block are split along their output channels into
``branch1/reduce``, ..., each with its batch normalisation. In form B one ``expand`` takes
the branches' concatenated channels; in form A each branch has its own (split along the
input channels), and the batch normalisation ``expand/bn`` follows their sum. All other
arrays are as in :mod:`trainer.weights.npz`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.networks.layers import ConvBN
from trainer.weights.layout_2017 import Unit

if TYPE_CHECKING:
    import numpy as np

    from trainer.networks.base import Network

FORMS = ('form-a', 'form-b')


def form_of(arrays: dict[str, np.ndarray]) -> str | None:
    """Return which of :data:`FORMS` arrays have, or ``None``."""
    branch = 'stage1/block1/branch1/'
    if branch + 'grouped/conv/W' not in arrays:
        return None
    return 'form-a' if branch + 'expand/conv/W' in arrays else 'form-b'


def units(network: Network, form: str) -> list[Unit]:
    """Return the names that a form gives to the parts of a network.

    Args:
        network: The network.
        form: One of :data:`FORMS`.

    Returns:
        The parts, in the order of computation.
    """
    layers = dict(network.named_layers())
    found = []
    for path, link in layers.items():
        if not isinstance(link, ConvBN):
            found.append(Unit(path, [path], None, []))
            continue
        block, _, part = path.rpartition('/')
        paths, bns, axis = [path], [path], 0
        if part in ('reduce', 'grouped', 'expand'):
            C = layers[block + '/grouped'].conv.groups
            branches = [f'{block}/branch{k}/{part}' for k in range(1, C + 1)]
            if part != 'expand':
                paths = bns = branches
            elif form == 'form-a':
                paths, axis = branches, 1
        found.append(
            Unit(
                path + '/conv',
                [p + '/conv' for p in paths],
                path + '/bn',
                [p + '/bn' for p in bns],
                axis,
                False,
            )
        )
    return found
