"""Feature maps for oneDNN: memory, copies, and elementwise operations.

Feature maps are (batch, channels, height, width) in NHWC memory, float32 or bfloat16, which is
stored as uint16 (:data:`BFLOAT16`).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import pool
from trainer.engines.onednn import constants, library
from trainer.engines.onednn.library import Primitive, engine, nhwc

if TYPE_CHECKING:
    from trainer.engines.onednn.library import Handle
    from trainer.types import Shape

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = library.BFLOAT16

_ZERO = ctypes.c_float(0)


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Return uninitialised feature maps."""
    n, c, h, w = shape
    return pool.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def bytes_for(descriptor: Handle) -> np.ndarray:
    return pool.empty((library.bytes_of(descriptor),), np.uint8)


# Copies, with conversion of type and layout.


@functools.cache
def reorder(source: Handle, target: Handle) -> Primitive:
    return Primitive('reorder', source, engine(), target, engine()).bind(
        x=(constants.SRC, source), y=(constants.DST, target)
    )


def strided(array: np.ndarray) -> Handle:
    return library.strided(
        array.shape, array.dtype, tuple(s // array.itemsize for s in array.strides)
    )


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copy an array to another of the same shape, with any types and strides."""
    reorder(strided(source), strided(target))(x=source, y=target)


def convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return feature maps with a dtype and in NHWC memory, without a copy if possible."""
    if array.dtype == dtype and array.transpose(0, 2, 3, 1).flags.c_contiguous:
        return array
    converted = empty(array.shape, dtype)
    copy(converted, array)
    return converted


# Elementwise operations.


@functools.cache
def _add(shape, dtype, after):
    x = nhwc(shape, dtype)
    return Primitive('binary', engine(), constants.ADD, x, x, x, post_ops=post_ops(after, x)).bind(
        x=(constants.SRC, x), other=(constants.SRC_1, x), y=(constants.DST, x)
    )


def accumulate(x: np.ndarray, other: np.ndarray, relu: bool = False) -> None:
    """Add to x in place, then optionally apply a ReLU."""
    _add(x.shape, x.dtype, ('relu',) if relu else ())(x=x, other=other, y=x)


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x + y for float32 arrays in any layout."""
    if x.dtype == FLOAT32:
        return x + y
    found = empty(x.shape, x.dtype)
    _add(x.shape, x.dtype, ())(x=x, other=y, y=found)
    return found


@functools.cache
def _multiply(shape, dtype, other_shape, other_dtype, result, after):
    x, other, y = nhwc(shape, dtype), nhwc(other_shape, other_dtype), nhwc(shape, result)
    added = nhwc(shape, dtype)
    return Primitive(
        'binary', engine(), constants.MULTIPLY, x, other, y, post_ops=post_ops(after, added)
    ).bind(
        x=(constants.SRC, x),
        other=(constants.SRC_1, other),
        y=(constants.DST, y),
        **bound_post_ops(after, added),
    )


def multiply(
    x: np.ndarray, other: np.ndarray, dtype: np.dtype, residual: np.ndarray | None = None
) -> np.ndarray:
    """Return x * other with a dtype; with a residual, relu(x * other + residual) with x's dtype.

    ``other`` may be (batch, channels, 1, 1).
    """
    after = () if residual is None else ('add', 'relu')
    y = empty(x.shape, dtype)
    primitive = _multiply(x.shape, x.dtype, other.shape, other.dtype, dtype, after)
    primitive(x=x, other=other, y=y, **({'add': residual} if after else {}))
    return y


@functools.cache
def _relu_backward(shape, dtype):
    y = nhwc(shape, dtype)
    forward = Primitive(
        'eltwise_forward',
        engine(),
        constants.TRAINING,
        constants.RELU_BY_OUTPUT,
        y,
        y,
        _ZERO,
        _ZERO,
    )
    return Primitive(
        'eltwise_backward',
        engine(),
        constants.RELU_BY_OUTPUT,
        y,
        y,
        y,
        _ZERO,
        _ZERO,
        forward.descriptor,
    ).bind(y=(constants.DST, y), gy=(constants.DIFF_DST, y), gx=(constants.DIFF_SRC, y))


def relu_backward(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the gradient of a ReLU, given its output."""
    gx = empty(y.shape, y.dtype)
    _relu_backward(y.shape, y.dtype)(y=y, gy=gy, gx=gx)
    return gx


# Post-ops.


def post_ops(names: Iterable[str], descriptor: Handle) -> Handle:
    """Return post-ops of a primitive: 'relu', and 'add' of an array of its output's shape."""
    found = library.create('dnnl_post_ops_create')
    for name in names:
        if name == 'relu':
            library.call('dnnl_post_ops_append_eltwise', found, constants.RELU, _ZERO, _ZERO)
        else:
            library.call('dnnl_post_ops_append_binary', found, constants.ADD, descriptor)
    return found


def bound_post_ops(names: Iterable[str], descriptor: Handle) -> dict[str, tuple[int, Handle]]:
    return {
        name: (constants.POST_OP * (i + 1) | constants.SRC_1, descriptor)
        for i, name in enumerate(names)
        if name == 'add'
    }
