"""The npz layout of the 2017 program: one link per branch, convolutions with biases.

A bias before batch normalisation only shifts the running mean: the network computes the
same without it once the bias is subtracted from ``avg_mean``. Only its share of weight
decay is lost.

The layouts of :mod:`trainer.weights.forms` use the same functions to join and split branches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.types import Path

_BN = ('gamma', 'beta', 'avg_mean', 'avg_var')
_FIRST = 'conv_bn_relu/conv/W'


def is_original(arrays: dict[str, np.ndarray]) -> bool:
    """Return whether arrays have the 2017 program's names."""
    return _FIRST in arrays


class Unit(NamedTuple):
    """A convolution with its batch normalisation, or a classifier, here and in another layout.

    Attributes:
        conv: The convolution here.
        convs: The convolutions in the other layout: several are branches.
        bn: The batch normalisation here, or ``None``.
        bns: The batch normalisations in the other layout.
        axis: Axis along which branches are concatenated: 0, output channels, or 1, input channels.
        bias: Whether the other layout's convolutions have biases.
    """

    conv: str
    convs: list[str]
    bn: str | None
    bns: list[str]
    axis: int = 0
    bias: bool = True


def _pairs(convs, bns):
    """Yield (convolution, batch normalisation) names in the order of the original's files."""
    if len(convs) == len(bns):
        for conv, bn in zip(convs, bns):
            yield conv, bn
    else:
        for conv in convs:
            yield conv, None
        for bn in bns:
            yield None, bn


def keys(units: Iterable[tuple]) -> list[str]:
    """Return the names of the arrays in the original's file, in its order."""
    names = []
    for unit in (Unit(*unit) for unit in units):
        for conv, bn in _pairs(unit.convs, unit.bns):
            if conv is not None:
                names += [conv + '/W', conv + '/b'][: 1 + unit.bias]
            if bn is not None:
                names += [bn + '/' + part for part in _BN + ('N',)]
    return names


def to_here(
    arrays: dict[str, np.ndarray],
    units: Iterable[tuple],
    path: Path,
    network: str,
    fold: bool = True,
) -> dict[str, np.ndarray]:
    """Rename the original's arrays, join its branches, fold its biases.

    Args:
        arrays: The original's arrays; gradients or momentum with ``fold=False``.
        units: From :meth:`Network.original_units` or :func:`trainer.weights.forms.units`.
        path: The file, and ``network`` (str) the expected network, for messages.
        fold: Whether the arrays are weights, whose biases are folded into the running means.

    Returns:
        Arrays under this project's names; running statistics only if given.
    """
    expected = keys(units)
    extra = set(arrays) - set(expected)
    missing = [name for name in expected if name not in arrays] if fold else []
    if extra or missing:
        found = f'has no {missing[0]}' if missing else f'also has {min(extra)}'
        raise InputError(f'{path}: does not fit {network}: it {found}')

    def join(names, part, axis=0):
        parts = [arrays[name + '/' + part] for name in names]
        if any(p.shape != parts[0].shape or p.ndim <= axis for p in parts):
            raise InputError(f'{path}: {names[0]}/{part} and its sister branches differ in shape')
        return np.concatenate(parts, axis)

    here = {}
    for conv, convs, bn, bns, axis, biased in (Unit(*unit) for unit in units):
        here[conv + '/W'] = join(convs, 'W', axis)
        if bn is None:
            here[conv + '/b'] = join(convs, 'b')
            continue
        for part in _BN:
            if bns[0] + '/' + part in arrays:
                here[bn + '/' + part] = join(bns, part)
        if fold:
            here[bn + '/N'] = arrays[bns[0] + '/N']
        if fold and biased:
            bias = join(convs, 'b')
            if bias.shape != here[bn + '/avg_mean'].shape:
                raise InputError(f'{path}: {convs[0]}/b has not the shape of {bns[0]}/avg_mean')
            here[bn + '/avg_mean'] = np.subtract(here[bn + '/avg_mean'], bias, dtype=np.float64)
    return here


def from_here(arrays: dict[str, np.ndarray], units: Iterable[tuple]) -> dict[str, np.ndarray]:
    """Invert :func:`to_here`: split branches, with biases of 0, in the original's order."""
    there = {}
    for conv, convs, bn, bns, axis, biased in (Unit(*unit) for unit in units):
        for name, weight in zip(convs, np.split(arrays[conv + '/W'], len(convs), axis)):
            there[name + '/W'] = weight
        if biased:
            biases = arrays.get(conv + '/b', np.zeros(len(arrays[conv + '/W']), np.float32))
            for name, bias in zip(convs, np.split(biases, len(convs))):
                there[name + '/b'] = bias
        if bn is None:
            continue
        for part in _BN:
            for name, array in zip(bns, np.split(arrays[bn + '/' + part], len(bns))):
                there[name + '/' + part] = array
        for name in bns:
            there[name + '/N'] = arrays[bn + '/N']
    return {name: there[name] for name in keys(units)}


def architecture(arrays: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Determine the network's sizes from the names and shapes of the original's arrays.

    Returns:
        See :meth:`Network.architecture`; ``None`` if the arrays are not the original's.
    """
    if not is_original(arrays):
        return None
    blocks: dict[int, set[int]] = {}
    for name in arrays:
        match = re.match(r'resnext_block_(\d{1,3})_(\d{1,3})/', name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    block_num = [len(blocks[i]) for i in sorted(blocks)]

    def branches(prefix):
        return sum(name.startswith(prefix) and name.endswith('/conv/W') for name in arrays)

    try:
        if 'linear/conv/W' in arrays:
            first = 'resnext_block_1_1/'
            d = len(arrays[first + 'conv_bn_relu1_1/conv/W'])
            return {
                'network': 'original-cifar',
                'category_num': len(arrays['linear/conv/W']),
                'block_num': block_num,
                'C': branches(first + 'conv_bn_relu1_'),
                'd': d,
                'multiplier': len(arrays[first + 'conv_bn_relu3/conv/W']) // d,
            }
        first = 'resnext_block_0_0/'
        C = branches(first + 'conv_group_2/')
        width = len(arrays[first + 'conv_bn_relu_1/conv/W'])
        return {
            'network': 'ilsvrc',
            'category_num': len(arrays['linear/linear/W']),
            'block_num': block_num,
            'C': C,
            'd': width // C,
            'multiplier': len(arrays[first + 'conv_bn_4/conv/W']) / width,
        }
    except (KeyError, TypeError, ZeroDivisionError):
        return None
