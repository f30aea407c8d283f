"""The provider of :mod:`trainer.engines.autograd` that computes on CuPy's arrays.

Convolutions run in cuDNN or in kernels of this project
(:mod:`trainer.engines.cudnn.convolutions`), everything else in kernels of this project
(:mod:`trainer.engines.cudnn.kernels`). :mod:`trainer.engines.cudnn.generic` computes operations
for which cuDNN has no plan, and everything on NumPy arrays, so that tests can compare this module
with the reference without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING

import chainer
import numpy as np
from chainer import backend

from trainer import cuda
from trainer.engines import arrays
from trainer.engines.cudnn import convolutions, generic, graphs, kernels
from trainer.settings import settings

if TYPE_CHECKING:
    import cupy

    from trainer.engines.autograd import Running
    from trainer.types import Array, Shape

PRECISIONS = ('float32', 'tf32', 'mixed')

#: Precisions, and those in which the classifier is computed instead.
FULL_PRECISION = {'mixed': 'tf32'}


def _on_numpy(array):
    return backend.get_array_module(array) is np


@functools.cache
def _warn(what):
    warnings.warn(
        f'cuDNN has no plan for {what}: it is computed as a matrix product, many times slower',
        stacklevel=2,
    )


def _convolution(name):
    by_graph, by_generic = getattr(convolutions, name), getattr(generic, name)

    def compute(first, *args):
        if not _on_numpy(first):
            try:
                return by_graph(first, *args, chainer.config.precision)
            except graphs.NoPlan as e:
                if not settings.fallback:
                    raise
                _warn(str(e))
        return by_generic(first, *args)

    return compute


def _kernel(name):
    by_kernel, by_generic = getattr(kernels, name), getattr(generic, name)

    def compute(first, *args):
        return (by_generic if _on_numpy(first) else by_kernel)(first, *args)

    return compute


_conv_forward = _convolution('conv_forward')
conv_backward_data = _convolution('conv_backward_data')
conv_backward_weights = _convolution('conv_backward_weights')
conv_bias = _convolution('conv_bias')
_statistics = _kernel('statistics')
_normalize = _kernel('normalize')
_normalize_backward = _kernel('bn_backward')
max_pooling = _kernel('max_pooling')
max_pooling_backward = _kernel('max_pooling_backward')
average_pooling = _kernel('average_pooling')
average_pooling_backward = _kernel('average_pooling_backward')
scale = _kernel('scale')
scale_backward = _kernel('scale_backward')
mean_pooling = _kernel('mean_pooling')
mean_pooling_backward = _kernel('mean_pooling_backward')


def _conv_statistics(x, *args, running):
    """Return what :func:`trainer.engines.cudnn.convolutions.conv_statistics` does."""
    parts = settings.parts
    if not _on_numpy(x):
        with contextlib.suppress(graphs.NoPlan):  # _conv_forward falls back and warns
            return convolutions.conv_statistics(x, *args, running, parts, chainer.config.precision)
    h = _conv_forward(x, *args)
    return h, _statistics(h, running, parts), None


def _aligned(array: cupy.ndarray) -> bool:
    return array.data.ptr % 16 == 0


def nhwc(array: Array, dtype: np.dtype) -> Array:
    """Return ``array`` with a dtype and in NHWC memory, without a copy if possible.

    On a GPU the memory is aligned to 16 bytes; slices of a batch may not be.
    """
    if (
        array.dtype == dtype
        and array.transpose(0, 2, 3, 1).flags.c_contiguous
        and (_on_numpy(array) or _aligned(array))
    ):
        return array
    converted = generic.empty(backend.get_array_module(array), array.shape, dtype)
    if _on_numpy(array):
        converted[...] = array
    else:
        cuda.assign(converted, array)
    return converted


def weights(w: Array, dtype: np.dtype, conv: chainer.Link | None = None) -> Array:
    """Return the weights of a convolution in the form of :func:`nhwc`."""
    half = settings.half_weights
    if half is not None and conv in half and dtype == np.float16:
        of, copy = half[conv]
        if of is w:  # not replaced since it was copied
            return copy
    return nhwc(w, dtype)


def feature_type(x: Array) -> np.dtype:
    if chainer.config.precision == 'mixed':
        return np.dtype(np.float16)
    return arrays.feature_type(x)


def empty(like: Array, shape: Shape, dtype: np.dtype) -> Array:
    return generic.empty(backend.get_array_module(like), shape, dtype)


def conv_bn(
    x: Array,
    w: Array,
    stride: int,
    pad: int,
    groups: int,
    running: Running,
    residual: Array | None,
    gamma: Array,
    beta: Array,
    kind: int,
) -> tuple[Array, tuple]:
    h, found, sums = _conv_statistics(x, w, stride, pad, groups, running=running)
    if sums is None:
        mean, inv_std = found
        y, mask = _normalize(h, residual, mean, inv_std, gamma, beta, kind)
    else:
        y, mask, mean, inv_std = kernels.normalize_sums(
            h, residual, sums, running, gamma, beta, kind
        )
    return y, (h, mean, inv_std, mask)


def bn_backward(
    gy: Array, kept: tuple, gamma: Array, beta: Array, kind: int, keep: bool
) -> tuple[Array, Array, Array, Array]:
    h, mean, inv_std, mask = kept
    return _normalize_backward(gy, mask, h, gamma, beta, mean, inv_std, kind, keep)


def weights_gradient(gw: Array, dtype: np.dtype, added: bool) -> Array:
    # Accumulated gradients are summed in float32.
    if settings.half_weights and not added:
        return gw
    return arrays.weights_gradient(gw, dtype, added)


def add(x: Array, y: Array) -> Array:
    """Return x + y."""
    if x.ndim != 4:
        return x + y
    # In the order of memory, which CuPy's threads follow.
    return (x.transpose(0, 2, 3, 1) + y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
