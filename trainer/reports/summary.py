"""Summary of a network: layers, output sizes, parameters and multiply-adds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import chainer

from trainer.engines import shapes
from trainer.networks.layers import ConvBN
from trainer.weights import npz

if TYPE_CHECKING:
    from trainer.networks.base import Network

_ROW = '{:13s} {:25s} {:>12s} {:>11s} {:>14s}'


class Layer(NamedTuple):
    """A layer and its cost for one image.

    Attributes:
        path: Path as in npz files: 'stem', 'stage1/block1/reduce', ..., 'fc'.
        filters: Short description of its computation.
        output: Channels, height and width; for the classifier: classes.
        parameters: Number of trained parameters.
        multiply_adds: Multiply-adds of the convolution or classifier; batch normalisation,
            additions and pooling are not counted.
    """

    path: str
    filters: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


class _Outputs(chainer.LinkHook):
    """Records output sizes of convolutions: link -> (channels, height, width)."""

    name = 'Outputs'

    def __init__(self):
        super().__init__()
        self.of = {}

    def forward_postprocess(self, args):
        if isinstance(args.link, ConvBN):
            self.of[args.link] = args.out.shape[1:]


def layers(network: Network, image_size: int | None = None) -> list[Layer]:
    """List the layers of a network.

    Only sizes are computed, by the network's own ``forward``.

    Args:
        network: The network.
        image_size: Height and width of the image in pixels; ``None``: the network's default.

    Returns:
        The layers in the order of computation, with the shortcut last in a block.
    """
    size = image_size or network.image_size
    outputs = _Outputs()
    with chainer.using_config('engine', 'shapes'), outputs:
        x = shapes.zeros((1, 3, size, size))
        pooled = {name: h.shape[1:] for name, h in network.activations(x)}
        network(x)
    found, stem = [], [path for path, _ in network.named_layers() if path.startswith('stem')]
    for path, link in network.named_layers():
        if isinstance(link, ConvBN):
            out, _, k, _ = link.conv.W.shape
            filters = f'{out} of {k}x{k}'
            if link.conv.stride[0] > 1:
                filters += f' /{link.conv.stride[0]}'
            if link.conv.groups > 1:
                filters += f', {link.conv.groups} groups'
            output, weights = outputs.of[link], link.conv.W.size
        else:
            filters, output, weights = 'fully connected', link.W.shape[:1], link.W.size
        if path == 'fc':
            found.append(Layer('features', 'average', pooled['features'], 0, 0))
        area = output[1] * output[2] if len(output) == 3 else 1
        found.append(Layer(path, filters, output, link.count_params(), weights * area))
        if path == stem[-1] and 'pool' in pooled:
            found.append(Layer('pool', 'maximum of 3x3 /2', pooled['pool'], 0, 0))
    return found


def _row(name, filters, of):
    sums = (f'{sum(layer[i] for layer in of):,}' for i in (3, 4))
    maps = [layer.output for layer in of if len(layer.output) == 3] or [of[-1].output]
    return _ROW.format(name, filters, 'x'.join(map(str, maps[-1])), *sums)


def _within(layer):
    """Return the path of a layer in its block."""
    return layer.path.split('/', 2)[2]


def _block_rows(blocks):
    """Return the rows of a stage's blocks (lists of layers); equal blocks are listed once."""
    rows, number = [], 1
    for _, equal in itertools.groupby(
        blocks, lambda block: [(_within(layer),) + layer[1:] for layer in block]
    ):
        alike = list(equal)
        last = number + len(alike) - 1
        name = f'  block{number}' + (f'-{last}' if last > number else '')
        rows.append(_row(name, f'each of {len(alike)}:' if last > number else '', alike[0]))
        for layer in alike[0]:
            rows.append(_row('    ' + _within(layer), layer.filters, [layer]))
        number = last + 1
    return rows


def summary(network: Network, image_size: int | None = None) -> str:
    """Return a table of the layers by stage, with equal blocks listed once; 80 columns.

    Args:
        network, image_size: See :func:`layers`.
    """
    found = layers(network, image_size)
    size = image_size or network.image_size
    lines = [
        f'{npz.describe(network)}: {network.layers} layers',
        f'for images of {size} x {size}; multiply-adds of convolutions and classifier',
        '',
        _ROW.format('layer', 'filters', 'output', 'parameters', 'multiply-adds'),
    ]

    def row(name, filters, of):
        lines.append(_row(name, filters, of))

    for top, below in itertools.groupby(found, lambda layer: layer.path.split('/')[0]):
        of_top = list(below)
        if of_top[0].path == top:
            row(top, of_top[0].filters, of_top)
            continue
        row(top, '', of_top)
        if of_top[0].path.count('/') == 1:  # a stem of several layers
            for layer in of_top:
                row('  ' + layer.path.split('/')[1], layer.filters, [layer])
            continue
        blocks = [
            list(block)
            for _, block in itertools.groupby(of_top, lambda layer: layer.path.split('/')[1])
        ]
        lines += _block_rows(blocks)
    total = [sum(n) for n in zip(*((x.parameters, x.multiply_adds) for x in found))]
    lines += [
        _ROW.format('total', '', '', *map('{:,}'.format, total)),
        '',
        f'{total[0] / 1e6:.1f} M parameters, {total[1] / 1e9:.2f} G multiply-adds',
    ]
    return '\n'.join(line.rstrip() for line in lines)
