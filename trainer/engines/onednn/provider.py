"""The provider of :mod:`trainer.engines.autograd` that computes with oneDNN.

``chainer.config.precision`` is 'float32' or 'bfloat16': feature maps and the weights of
convolutions in bfloat16; sums, statistics, parameters and their gradients in float32. NumPy
computes in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer

from trainer.engines import arrays
from trainer.engines.onednn import convolutions, layers, maps

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import Shape

PRECISIONS = ('float32', 'bfloat16')

#: Precisions, and those in which the classifier is computed instead.
FULL_PRECISION = {'bfloat16': 'float32'}

_TYPES = (maps.FLOAT32, maps.BFLOAT16)


def empty(like: np.ndarray, shape: Shape, dtype: np.dtype) -> np.ndarray:
    return maps.empty(shape, dtype)


def feature_type(x: np.ndarray) -> np.dtype:
    # After pooling, bfloat16 would gain no time, and make the loss inaccurate.
    pooled = x.shape[2:] == (1, 1) and x.dtype == maps.FLOAT32
    if chainer.config.precision == 'bfloat16' and not pooled:
        return maps.BFLOAT16
    return arrays.feature_type(x)


def nhwc(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if min(array.strides, default=0) < 0:  # mirrored, which oneDNN cannot describe
        array = array.copy()
    known = array.dtype in _TYPES and dtype in _TYPES
    return maps.convert(array, dtype) if known else arrays.nhwc(array, dtype)


weights = arrays.weights
weights_gradient = arrays.weights_gradient


def _of(module, name):
    by_onednn, by_numpy = getattr(module, name), getattr(arrays, name)

    def compute(first, *args):
        return (by_onednn if first.dtype in _TYPES else by_numpy)(first, *args)

    return compute


conv_bn = _of(layers, 'conv_bn')
bn_backward = _of(layers, 'bn_backward')
conv_backward_data = _of(convolutions, 'conv_backward_data')
conv_backward_weights = _of(convolutions, 'conv_backward_weights')
conv_bias = _of(convolutions, 'conv_bias')
max_pooling = _of(layers, 'max_pooling')
max_pooling_backward = _of(layers, 'max_pooling_backward')
average_pooling = _of(layers, 'average_pooling')
average_pooling_backward = _of(layers, 'average_pooling_backward')
mean_pooling = _of(layers, 'mean_pooling')
mean_pooling_backward = _of(layers, 'mean_pooling_backward')
scale = _of(layers, 'scale')
scale_backward = _of(layers, 'scale_backward')
add = _of(maps, 'add')
