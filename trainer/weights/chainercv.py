"""The npz layout of chainercv's SE-ResNeXt (``chainercv/links/model/senet/se_resnext.py``).

Its networks are Caffe's: max pooling rounds up and has no padding. Their batch normalisation
has Chainer's eps, 2e-5.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.transforms.geometry import Geometry

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import Path

#: Preprocessing of its images: only the mean of the channels is subtracted
#: (``examples/classification/eval_imagenet.py``, ``se_resnext.py``).
GEOMETRY = Geometry(
    224,
    224 / 256,
    'bilinear',
    (123.15163084 / 255, 115.90288257 / 255, 103.0626238 / 255),
    (1 / 255,) * 3,
)

_STEM = 'conv1/conv/W'
_PARTS = {
    'conv1': 'reduce',
    'conv2': 'grouped',
    'conv3': 'expand',
    'se': 'se',
    'residual_conv': 'shortcut',
}
_BLOCK = re.compile(r'res(\d)/(a|b\d{1,3})/(conv[123]|se|residual_conv)/(.+)')


def is_chainercv(arrays: dict[str, np.ndarray]) -> bool:
    """Return whether arrays have the names of chainercv's residual networks."""
    return _STEM in arrays and 'res2/a/conv2/conv/W' in arrays


def _here(name):
    """Return this project's name of an array of chainercv, or ``None``."""
    for there, ours in (('conv1/', 'stem/'), ('fc6/', 'fc/')):
        if name.startswith(there):
            return ours + name.removeprefix(there)
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    stage, block, part, rest = match.groups()
    number = 1 if block == 'a' else int(block[1:]) + 1
    return f'stage{int(stage) - 1}/block{number}/{_PARTS[part]}/{rest}'


def to_here(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Rename chainercv's arrays.

    Raises:
        trainer.errors.InputError: An array does not belong to a network.
    """
    names = {name: _here(name) for name in arrays}
    strange = next((name for name, ours in names.items() if ours is None), None)
    if strange is not None:
        raise InputError(f"{path}: has the names of chainercv's networks, but also {strange}")
    return {names[name]: array for name, array in arrays.items()}


def architecture(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Any] | None:
    """Determine the network's sizes from the names and shapes of chainercv's arrays.

    Returns:
        See :meth:`Network.architecture`; ``None`` if the arrays are not chainercv's.

    Raises:
        trainer.errors.InputError: The network is not SE-ResNeXt.
    """
    if not is_chainercv(arrays):
        return None
    blocks: dict[int, set[str]] = {}
    for name in arrays:
        match = _BLOCK.fullmatch(name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(match[2])
    try:
        stages = []
        for i in sorted(blocks):
            grouped, expand = (arrays[f'res{i}/a/conv{n}/conv/W'].shape for n in (2, 3))
            groups = grouped[0] // grouped[1]
            if groups == 1:
                # stride_first: its SE-ResNet has the stride in the first convolution.
                raise InputError(
                    f"{path}: a ResNet of chainercv's; a file does not tell where its strides "
                    'are; SE-ResNeXt files are read'
                )
            stages.append([len(blocks[i]), grouped[0], groups, expand[0], min(2, i - 1), 'first'])
        se = arrays.get('res2/a/se/down/W')
        return {
            'network': 'ilsvrc',
            'category_num': len(arrays['fc6/W']),
            'stages': stages,
            'stem_width': len(arrays[_STEM]),
            'eps': 2e-5,
            'round_up_pooling': True,
            'pool_pad': 0,
            'se_reduction': None if se is None else se.shape[1] // se.shape[0],
            'geometry': GEOMETRY.as_json(),
        }
    except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError):
        return None
