"""Batch normalisation and pooling by oneDNN, and layers that combine them with convolutions.

These are functions of :mod:`trainer.engines.arrays`, in float32 and bfloat16.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import arrays
from trainer.engines.autograd import ADD_RELU, RELU, RELU_ADD
from trainer.engines.onednn import constants, convolutions, maps
from trainer.engines.onednn.library import Primitive, dims, engine, nhwc, vector

if TYPE_CHECKING:
    from trainer.engines.autograd import Running
    from trainer.types import Shape

# Batch normalisation.


@functools.cache
def _normalization(shape, dtype, eps, relu):
    x, c = nhwc(shape, dtype), vector(shape[1])
    primitive = Primitive(
        'batch_normalization_forward',
        engine(),
        constants.TRAINING,
        x,
        x,
        ctypes.c_float(eps),
        ctypes.c_uint(constants.SCALE_SHIFT | (constants.FUSE_RELU if relu else 0)),
    )
    channels = {
        'mean': constants.MEAN,
        'var': constants.VARIANCE,
        'gamma': constants.GAMMA,
        'beta': constants.BETA,
    }
    workspace = primitive.memory(constants.OF_WORKSPACE) if relu else None
    return (
        primitive.bind(
            x=(constants.SRC, x),
            y=(constants.DST, x),
            **{name: (index, c) for name, index in channels.items()},
            **({'workspace': (constants.WORKSPACE, workspace)} if relu else {}),
        ),
        workspace,
    )


@functools.cache
def _normalization_backward(shape, dtype, eps, relu):
    forward, workspace = _normalization(shape, dtype, eps, relu)
    x, c = nhwc(shape, dtype), vector(shape[1])
    primitive = Primitive(
        'batch_normalization_backward',
        engine(),
        constants.BACKWARD,
        x,
        x,
        x,
        ctypes.c_float(eps),
        ctypes.c_uint(constants.SCALE_SHIFT | (constants.FUSE_RELU if relu else 0)),
        forward.descriptor,
    )
    channels = {
        'mean': constants.MEAN,
        'var': constants.VARIANCE,
        'gamma': constants.GAMMA,
        'ggamma': constants.DIFF_GAMMA,
        'gbeta': constants.DIFF_BETA,
    }
    return primitive.bind(
        x=(constants.SRC, x),
        gy=(constants.DIFF_DST, x),
        gx=(constants.DIFF_SRC, x),
        **{name: (index, c) for name, index in channels.items()},
        **({'workspace': (constants.WORKSPACE, workspace)} if relu else {}),
    )


def normalize(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, relu: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Compute batch normalisation with the batch's statistics, optionally with a ReLU.

    Returns:
        y, mean and variance (channels,), and the ``workspace`` of :func:`normalize_backward`.
    """
    primitive, layout = _normalization(x.shape, x.dtype, eps, relu)
    y = maps.empty(x.shape, x.dtype)
    mean, var = np.empty((2, x.shape[1]), maps.FLOAT32)
    kept = {'workspace': maps.bytes_for(layout)} if relu else {}
    primitive(x=x, y=y, mean=mean, var=var, gamma=gamma, beta=beta, **kept)
    return y, mean, var, kept.get('workspace')


def normalize_backward(
    gy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    workspace: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of :func:`normalize` for x, gamma and beta."""
    relu = workspace is not None
    primitive = _normalization_backward(x.shape, x.dtype, eps, relu)
    gx = maps.empty(x.shape, x.dtype)
    ggamma, gbeta = np.empty((2, x.shape[1]), maps.FLOAT32)
    kept = {'workspace': workspace} if relu else {}
    primitive(
        x=x, gy=gy, gx=gx, mean=mean, var=var, gamma=gamma, ggamma=ggamma, gbeta=gbeta, **kept
    )  # fmt: skip
    return gx, ggamma, gbeta


# Pooling.


def _pooling_window(x, y, size, stride, pad):
    right = [(n - 1) * stride + size - m - pad for m, n in zip(x[2:], y[2:])]
    return dims((stride, stride)), dims((size, size)), dims((0, 0)), dims((pad, pad)), dims(right)


@functools.cache
def _max_pooling(x_shape, y_shape, size, stride, pad, dtype):
    x, y = nhwc(x_shape, dtype), nhwc(y_shape, dtype)
    window = _pooling_window(x_shape, y_shape, size, stride, pad)
    forward = Primitive(
        'pooling_forward', engine(), constants.TRAINING, constants.MAX, x, y, *window
    )
    backward = Primitive(
        'pooling_backward', engine(), constants.MAX, x, y, *window, forward.descriptor
    )
    workspace = forward.memory(constants.OF_WORKSPACE)
    return (
        forward.bind(
            x=(constants.SRC, x), y=(constants.DST, y), place=(constants.WORKSPACE, workspace)
        ),
        backward.bind(
            gy=(constants.DIFF_DST, y),
            gx=(constants.DIFF_SRC, x),
            place=(constants.WORKSPACE, workspace),
        ),
        workspace,
    )


def max_pooling(
    x: np.ndarray, y_shape: Shape, size: int, stride: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    forward, _, layout = _max_pooling(x.shape, y_shape, size, stride, pad, x.dtype)
    y, place = maps.empty(y_shape, x.dtype), maps.bytes_for(layout)
    forward(x=x, y=y, place=place)
    return y, place


def max_pooling_backward(
    gy: np.ndarray, place: np.ndarray, x_shape: Shape, size: int, stride: int, pad: int
) -> np.ndarray:
    _, backward, _ = _max_pooling(x_shape, gy.shape, size, stride, pad, gy.dtype)
    gx = maps.empty(x_shape, gy.dtype)
    backward(gy=gy, gx=gx, place=place)
    return gx


@functools.cache
def _average_pooling(x_shape, dtype):
    n, c, h, w = x_shape
    x, y = nhwc(x_shape, dtype), nhwc((n, c, -(-h // 2), -(-w // 2)), dtype)
    two, none = dims((2, 2)), dims((0, 0))
    window = two, two, none, none, dims((h % 2, w % 2))
    kind = constants.MEAN_OF_VALID
    forward = Primitive('pooling_forward', engine(), constants.TRAINING, kind, x, y, *window)
    backward = Primitive('pooling_backward', engine(), kind, x, y, *window, forward.descriptor)
    return (
        forward.bind(x=(constants.SRC, x), y=(constants.DST, y)),
        backward.bind(gy=(constants.DIFF_DST, y), gx=(constants.DIFF_SRC, x)),
    )


def average_pooling(x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    y = maps.empty((n, c, -(-h // 2), -(-w // 2)), x.dtype)
    _average_pooling(x.shape, x.dtype)[0](x=x, y=y)
    return y


def average_pooling_backward(gy: np.ndarray, x_shape: Shape) -> np.ndarray:
    gx = maps.empty(x_shape, gy.dtype)
    _average_pooling(x_shape, gy.dtype)[1](gy=gy, gx=gx)
    return gx


# Squeeze and excitation.


def scale(x: np.ndarray, weights: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return maps.multiply(x, weights[:, :, None, None], x.dtype, residual)


def scale_backward(
    gy: np.ndarray, y: np.ndarray, x: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    masked = maps.relu_backward(gy, y)
    products = maps.multiply(masked, x, maps.FLOAT32)
    sums = arrays.sum_pooling(products)
    return maps.multiply(masked, weights[:, :, None, None], x.dtype), sums, masked


# Layers.


def conv_bn(
    x: np.ndarray,
    w: np.ndarray,
    stride: int,
    pad: int,
    groups: int,
    running: Running,
    residual: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    kind: int,
) -> tuple[np.ndarray, tuple]:
    h = convolutions.conv_forward(x, w, stride, pad, groups)
    y, mean, var, workspace = normalize(h, gamma, beta, running.eps, kind in (RELU, RELU_ADD))
    arrays.average(running, mean, var, h.size // len(mean))
    if residual is not None:
        maps.accumulate(y, residual, kind == ADD_RELU)
    output = y if kind == ADD_RELU else None
    return y, (h, mean, var, running.eps, workspace, output)


def bn_backward(
    gy: np.ndarray, kept: tuple, gamma: np.ndarray, beta: np.ndarray, kind: int, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    h, mean, var, eps, workspace, output = kept
    if output is not None:
        gy = maps.relu_backward(gy, output)
    return *normalize_backward(gy, h, gamma, mean, var, eps, workspace), gy


def mean_pooling(x: np.ndarray) -> np.ndarray:
    return arrays.mean_pooling(maps.convert(x, maps.FLOAT32))


def mean_pooling_backward(gy: np.ndarray, x_shape: Shape, dtype: np.dtype) -> np.ndarray:
    gx = maps.empty(x_shape, dtype)
    gx[...] = maps.convert(gy / np.float32(x_shape[2] * x_shape[3]), dtype)
    return gx
