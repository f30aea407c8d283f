"""Convolutions by oneDNN.

Weights are float32 (out, in / groups, k, k) of any strides; they are reordered to the layout of
each primitive, unless :mod:`trainer.engines.onednn.products` computes. A primitive is built once
for each combination of shapes and types.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from trainer.engines import pool
from trainer.engines.onednn import constants, maps, products
from trainer.engines.onednn.library import Primitive, any_layout, dims, engine, nhwc, vector

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import Shape


def out_shape(x: Shape, w: Shape, stride: int, pad: int) -> tuple[int, int, int, int]:
    """Return the shape of a convolution's output."""
    height, width = ((n + 2 * pad - k) // stride + 1 for n, k in zip(x[2:], w[2:]))
    return x[0], w[0], height, width


def _grouped(shape, groups):
    """Return oneDNN's shape of weights."""
    return tuple(shape) if groups == 1 else (groups, shape[0] // groups, *shape[1:])


def _window(stride, pad):
    return dims((stride, stride)), dims((0, 0)), dims((pad, pad)), dims((pad, pad))


@functools.cache
def _forward(x, w, stride, pad, groups, dtype, bias=False, after=()):
    y = nhwc(out_shape(x, w, stride, pad), dtype)
    x, b = nhwc(x, dtype), vector(w[0]) if bias else None
    primitive = Primitive(
        'convolution_forward',
        engine(),
        constants.TRAINING,
        constants.DIRECT,
        x,
        any_layout(_grouped(w, groups), dtype),
        b,
        y,
        *_window(stride, pad),
        post_ops=maps.post_ops(after, y),
    )
    weights = primitive.memory(constants.OF_WEIGHTS)
    bound = {'x': (constants.SRC, x), 'w': (constants.WEIGHTS, weights), 'y': (constants.DST, y)}
    if bias:
        bound['b'] = constants.BIAS, b
    return primitive.bind(**bound, **maps.bound_post_ops(after, y)), weights


@functools.cache
def _backward_data(x, w, stride, pad, groups, dtype):
    forward, _ = _forward(x, w, stride, pad, groups, dtype)
    y = nhwc(out_shape(x, w, stride, pad), dtype)
    x = nhwc(x, dtype)
    primitive = Primitive(
        'convolution_backward_data',
        engine(),
        constants.DIRECT,
        x,
        any_layout(_grouped(w, groups), dtype),
        y,
        *_window(stride, pad),
        forward.descriptor,
    )
    weights = primitive.memory(constants.OF_WEIGHTS)
    return (
        primitive.bind(
            gy=(constants.DIFF_DST, y), w=(constants.WEIGHTS, weights), gx=(constants.DIFF_SRC, x)
        ),
        weights,
    )


@functools.cache
def _backward_weights(x, w, stride, pad, groups, dtype):
    forward, _ = _forward(x, w, stride, pad, groups, dtype)
    y = nhwc(out_shape(x, w, stride, pad), dtype)
    x = nhwc(x, dtype)
    primitive = Primitive(
        'convolution_backward_weights',
        engine(),
        constants.DIRECT,
        x,
        any_layout(_grouped(w, groups), maps.FLOAT32),
        None,
        y,
        *_window(stride, pad),
        forward.descriptor,
    )
    gradient = primitive.memory(constants.OF_GRADIENT)
    return (
        primitive.bind(
            x=(constants.SRC, x), gy=(constants.DIFF_DST, y), gw=(constants.DIFF_WEIGHTS, gradient)
        ),
        gradient,
    )


def _laid_out(w, groups, descriptor):
    """Return weights in the layout of a primitive."""
    w = w.reshape(_grouped(w.shape, groups))
    found = maps.bytes_for(descriptor)
    maps.reorder(maps.strided(w), descriptor)(x=w, y=found)
    return found


def conv_forward(x: np.ndarray, w: np.ndarray, stride: int, pad: int, groups: int) -> np.ndarray:
    if products.suits(x.shape, w.shape, stride, pad, groups):
        return products.forward(x, w)
    primitive, layout = _forward(x.shape, w.shape, stride, pad, groups, x.dtype)
    y = maps.empty(out_shape(x.shape, w.shape, stride, pad), x.dtype)
    primitive(x=x, w=_laid_out(w, groups, layout), y=y)
    return y


def conv_bias(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    stride: int,
    pad: int,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    relu_first: bool,
) -> np.ndarray:
    after = [
        name
        for name in (('relu', 'add') if relu_first else ('add', 'relu'))
        if (relu if name == 'relu' else residual is not None)
    ]
    primitive, layout = _forward(x.shape, w.shape, stride, pad, groups, x.dtype, True, tuple(after))
    y = maps.empty(out_shape(x.shape, w.shape, stride, pad), x.dtype)
    added = {} if residual is None else {'add': residual}
    primitive(x=x, w=_laid_out(w, groups, layout), b=b, y=y, **added)
    return y


def conv_backward_data(
    gy: np.ndarray,
    w: np.ndarray,
    x_shape: Shape,
    stride: int,
    pad: int,
    groups: int,
    addend: np.ndarray | None,
) -> np.ndarray:
    if products.suits(x_shape, w.shape, stride, pad, groups):
        return products.backward_data(gy, w, x_shape, addend)
    gx = maps.empty(x_shape, gy.dtype)
    if addend is not None and w.shape[2:] == (1, 1) and (stride, pad, groups) == (1, 0, 1):
        # A forward pass with the weights transposed, which can add.
        w = w.transpose(1, 0, 2, 3)
        primitive, layout = _forward(gy.shape, w.shape, 1, 0, 1, gy.dtype, False, ('add',))
        primitive(x=gy, w=_laid_out(w, 1, layout), y=gx, add=addend)
        return gx
    primitive, layout = _backward_data(x_shape, w.shape, stride, pad, groups, gy.dtype)
    primitive(gy=gy, w=_laid_out(w, groups, layout), gx=gx)
    if addend is not None:
        maps.accumulate(gx, addend)
    return gx


def conv_backward_weights(
    x: np.ndarray, gy: np.ndarray, w_shape: Shape, stride: int, pad: int, groups: int
) -> np.ndarray:
    if products.suits(x.shape, w_shape, stride, pad, groups):
        return products.backward_weights(x, gy, w_shape)
    primitive, layout = _backward_weights(x.shape, w_shape, stride, pad, groups, x.dtype)
    found = maps.bytes_for(layout)
    primitive(x=x, gy=gy, gw=found)
    gw = pool.empty(w_shape, maps.FLOAT32)
    grouped = gw.reshape(_grouped(w_shape, groups))
    maps.reorder(layout, maps.strided(grouped))(x=found, y=grouped)
    return gw
