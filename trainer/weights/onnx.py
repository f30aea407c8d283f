"""ONNX graphs of networks, for other runtimes. They are written, not read.

Needs the package onnx, an extra.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer import extras, files
from trainer.networks import layers
from trainer.weights import description, formats

if TYPE_CHECKING:
    import onnx

    from trainer.networks.base import Network
    from trainer.types import Path

#: Version of the operator set; ONNX 1.12 and later can read it.
OPSET = 17
_IR_VERSION = 8


class _Graph:
    """Nodes and weights, in the order of computation."""

    def __init__(self, onnx, fold, group_width=1):
        self._onnx = onnx
        self._fold = fold
        self._group_width = group_width
        self.nodes, self.weights = [], []

    def node(self, op, inputs, name, **attributes):
        """Add a node and return the name of its output."""
        self.nodes.append(self._onnx.helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, name, array):
        """Add a constant and return its name."""
        array = np.asarray(chainer.backends.cuda.to_cpu(array), order='C')
        self.weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def conv_bn(self, link, name, h, residual=None, relu=None):
        """Add a :class:`ConvBN <trainer.networks.layers.ConvBN>`."""
        conv, bn = link.conv, link.bn
        w = chainer.backends.cuda.to_cpu(conv.W.array)
        w, groups = merge_groups(w, conv.groups, self._group_width)
        size = {
            'kernel_shape': conv.W.shape[2:],
            'strides': conv.stride,
            'pads': conv.pad * 2,
            'group': groups,
        }
        if self._fold:
            gamma, beta, mean, var = (
                chainer.backends.cuda.to_cpu(a).astype(np.float64)
                for a in (bn.gamma.array, bn.beta.array, bn.avg_mean, bn.avg_var)
            )
            scale = gamma / np.sqrt(var + bn.eps)
            w = (w * scale[:, None, None, None]).astype(np.float32)
            bias = self.weight(name + '/conv/b', (beta - mean * scale).astype(np.float32))
            h = self.node(
                'Conv', [h, self.weight(name + '/conv/W', w), bias], name + '/conv', **size
            )
        else:
            h = self.node('Conv', [h, self.weight(name + '/conv/W', w)], name + '/conv', **size)
            h = self.node(
                'BatchNormalization',
                [h]
                + [
                    self.weight(f'{name}/bn/{part}', array)
                    for part, array in (
                        ('gamma', bn.gamma.array),
                        ('beta', bn.beta.array),
                        ('avg_mean', bn.avg_mean),
                        ('avg_var', bn.avg_var),
                    )
                ],
                name + '/bn',
                epsilon=bn.eps,
            )
        if residual is not None:
            h = self.node('Add', [h, residual], name + '/add')
        if link.relu if relu is None else relu:
            h = self.node('Relu', [h], name + '/relu')
        return h

    def block(self, block, name, h):
        """Add a :class:`Bottleneck <trainer.networks.layers.Bottleneck>`."""
        if block.shortcut is not None:
            pooled = self._average_pooling(name + '/pool', h) if block.averages else h
            residual = self.conv_bn(block.shortcut, name + '/shortcut', pooled)
        else:
            residual = self._subsample_and_pad(block, name + '/shortcut', h)
        h = self.conv_bn(block.reduce, name + '/reduce', h)
        h = self.conv_bn(block.grouped, name + '/grouped', h)
        if block.se is not None:
            h = self.conv_bn(block.expand, name + '/expand', h)
            return self._excite(block.se, name + '/se', h, residual)
        if block.relu_after_add:
            return self.conv_bn(block.expand, name + '/expand', h, residual)
        return self.node(
            'Add', [self.conv_bn(block.expand, name + '/expand', h), residual], name + '/add'
        )

    def _average_pooling(self, name, h):
        return self.node(
            'AveragePool',
            [h],
            name,
            kernel_shape=[2, 2],
            strides=[2, 2],
            ceil_mode=1,
            count_include_pad=0,
        )

    def _excite(self, se, name, h, residual):
        weights = self.node('GlobalAveragePool', [h], name + '/mean')
        for fc, activation in ((se.down, 'Relu'), (se.up, 'Sigmoid')):
            path = f'{name}/{fc.name}'
            w = self.weight(path + '/W', fc.W.array[:, :, None, None])
            weights = self.node('Conv', [weights, w, self.weight(path + '/b', fc.b.array)], path)
            weights = self.node(activation, [weights], f'{path}/{activation.lower()}')
        h = self.node('Add', [self.node('Mul', [h, weights], name + '/scale'), residual], name)
        return self.node('Relu', [h], name + '/relu')

    def _subsample_and_pad(self, block, name, h):
        if block.stride > 1:
            h = self.node(
                'AveragePool',
                [h],
                name + '/subsample',
                kernel_shape=[1, 1],
                strides=[block.stride] * 2,
            )
        missing = block.out_channels - block.reduce.conv.W.shape[1]
        if missing:
            pads = self.weight(name + '/pads', np.array([0] * 5 + [missing, 0, 0], np.int64))
            h = self.node('Pad', [h, pads], name + '/pad')
        return h


def merge_groups(w: np.ndarray, groups: int, width: int) -> tuple[np.ndarray, int]:
    """Merge groups of a convolution into fewer, wider groups, which compute the same.

    Args:
        w: Weights (out channels, in channels of a group, height, width).
        groups: Number of groups.
        width: Wanted input channels per group; groups are merged in pairs up to this width.

    Returns:
        The weights, with zeros between former groups, and the number of groups.
    """
    channels, merged = w.shape[1], 1
    while groups % (2 * merged) == 0 and 2 * merged * channels <= width:
        merged *= 2
    if merged == 1:
        return w, groups
    wide = np.zeros((groups, len(w) // groups, merged, *w.shape[1:]), w.dtype)
    group = np.arange(groups)
    wide[group, :, group % merged] = w.reshape(groups, -1, *w.shape[1:])
    return wide.reshape(len(w), merged * channels, *w.shape[2:]), groups // merged


def _add_network(graph, network):
    """Add the nodes of a network, from 'x' to 'features' and 'scores'."""
    h = 'x'
    for path, link in network.named_layers():
        if path.split('/')[0] == 'stem':
            h = graph.conv_bn(link, path, h)
    if network.round_up_pooling is not None:
        h = graph.node(
            'MaxPool',
            [h],
            'pool',
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[network.pool_pad] * 4,
            ceil_mode=int(network.round_up_pooling),
        )
    for i in range(1, len(network.stages) + 1):
        stage = network[f'stage{i}']
        for block in stage.children():
            h = graph.block(block, f'stage{i}/{block.name}', h)
    h = graph.node('GlobalAveragePool', [h], 'features')
    if isinstance(network.fc, layers.ConvBN):
        h = graph.node('Flatten', [graph.conv_bn(network.fc, 'fc', h)], 'scores')
    else:
        h = graph.node(
            'Gemm',
            [
                graph.node('Flatten', [h], 'flat'),
                graph.weight('fc/W', network.fc.W.array),
                graph.weight('fc/b', network.fc.b.array),
            ],
            'scores',
            transB=1,
        )


def build(
    network: Network, fold: bool = True, features: bool = False, group_width: int = 1
) -> onnx.NetworkProto:
    """Return the graph of a network in evaluation mode.

    Input ``x``: preprocessed images, float32 (batch, 3, height, width), of any batch and size.
    Output ``scores``: float32 (batch, classes), before softmax.

    Args:
        network: The network.
        fold: Whether to fold batch normalisation into the convolutions, instead of keeping it as
            nodes of its own.
        features: Whether the classifier's input is an output as well, ``features``: (batch,
            channels, 1, 1).
        group_width: Groups of fewer channels are merged (:func:`merge_groups`).

    Returns:
        The graph; its metadata has the description of npz files, ``architecture``, as JSON.

    Raises:
        trainer.errors.InputError: The package onnx is missing.
    """
    onnx = extras.need('onnx', 'ONNX')
    helper = onnx.helper
    graph = _Graph(onnx, fold, group_width)
    _add_network(graph, network)
    floats = onnx.TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info('scores', floats, ['batch', network.category_num])]
    if features:
        outputs.append(
            helper.make_tensor_value_info(
                'features', floats, ['batch', network.stages[-1].out_channels, 1, 1]
            )
        )
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.name,
            [helper.make_tensor_value_info('x', floats, ['batch', 3, 'height', 'width'])],
            outputs,
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=_IR_VERSION,
        producer_name='resnext-chainer',
    )
    helper.set_model_props(model, {'architecture': json.dumps(description.of(network))})
    return model


def save(path: Path, network: Network, fold: bool = True) -> None:
    """Write the graph of a network as ONNX, checked by onnx.checker.

    Args:
        path: The file, with any suffix. It appears whole or not at all.
        network, fold: See :func:`build`.

    Raises:
        trainer.errors.InputError: The package onnx is missing.
    """
    model = build(network, fold)
    import onnx

    onnx.checker.check_model(model, full_check=True)
    with files.replacing(path) as unfinished, open(unfinished, 'wb') as f:
        f.write(model.SerializeToString())


FORMAT = formats.Format('onnx', ('.onnx',), write=save, write_options=('fold',))
