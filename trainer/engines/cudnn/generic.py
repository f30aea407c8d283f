"""The operations of the cuDNN engine on plain arrays: the definition of its graphs and kernels.

Everything runs on NumPy arrays; the convolutions also run on CuPy arrays, as the fallback where
cuDNN has no plan. Statistics and sums are at least float32, whatever the dtype of the feature
maps. ``precision`` is accepted and ignored.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import chainer
import chainer.functions as F
import numpy as np
from chainer import backend

from trainer.engines import arrays
from trainer.engines.autograd import ADD, ADD_RELU, RELU, RELU_ADD, Running

if TYPE_CHECKING:
    from trainer.types import Array, Shape


def empty(xp: ModuleType, shape: Shape, dtype: np.dtype) -> Array:
    """Return an array (batch, channels, height, width) whose memory is NHWC."""
    n, c, h, w = shape
    return xp.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def _wide(array):
    return np.promote_types(array.dtype, np.float32)


def _channels(array):
    return array.reshape(1, -1, 1, 1)


def parts_of(images: int, parts: int) -> list[slice]:
    """Return the slices of a batch in parts that differ by an image at most
    (:func:`numpy.array_split`)."""
    each, longer = divmod(images, parts)
    ends = [i * each + min(i, longer) for i in range(parts + 1)]
    return [slice(*ends[i : i + 2]) for i in range(parts)]


def _conv(x, w, stride, pad, groups):
    wide = _wide(x)
    x, w = (chainer.Variable(a.astype(wide, copy=False)) for a in (x, w))
    with chainer.using_config('enable_backprop', True):
        return x, w, F.convolution_2d(x, w, None, stride, pad, groups=groups)


def conv_forward(
    x: Array, w: Array, stride: int, pad: int, groups: int, precision: str | None = None
) -> Array:
    """Convolve: (batch, in, height, width) with (out, in / groups, k, k), no bias."""
    return _conv(x, w, stride, pad, groups)[2].array.astype(x.dtype, copy=False)


def _conv_grad(x, w, gy, stride, pad, groups, which):
    *inputs, y = _conv(x, w, stride, pad, groups)
    gy = chainer.Variable(gy.astype(y.dtype, copy=False))
    return chainer.grad([y], [inputs[which]], [gy])[0].array


def conv_backward_data(
    gy: Array,
    w: Array,
    x_shape: Shape,
    stride: int,
    pad: int,
    groups: int,
    addend: Array | None,
    precision: str | None = None,
) -> Array:
    """Return the gradient of the input, in ``gy``'s dtype; ``addend`` is added."""
    xp = backend.get_array_module(gy)
    x = xp.zeros(x_shape, gy.dtype)
    gx = _conv_grad(x, w, gy, stride, pad, groups, 0)
    if addend is not None:
        gx = gx + addend
    return gx.astype(gy.dtype, copy=False)


def conv_backward_weights(
    x: Array,
    gy: Array,
    w_shape: Shape,
    stride: int,
    pad: int,
    groups: int,
    precision: str | None = None,
) -> Array:
    """Return the gradient of :func:`conv_forward`'s weights, at least float32."""
    xp = backend.get_array_module(gy)
    return _conv_grad(x, xp.zeros(w_shape, x.dtype), gy, stride, pad, groups, 1)


def conv_bias(
    x: Array,
    w: Array,
    b: Array,
    stride: int,
    pad: int,
    groups: int,
    residual: Array | None,
    relu: bool,
    relu_first: bool,
    precision: str | None = None,
) -> Array:
    """relu(conv(x, w) + b + residual): inference, batch normalisation folded.

    With ``relu_first`` the residual is added after the ReLU.
    """
    y = _conv(x, w, stride, pad, groups)[2].array + _channels(b)
    if relu and relu_first:
        y = y.clip(0, None)
    if residual is not None:
        y = y + residual
    return (y.clip(0, None) if relu and not relu_first else y).astype(x.dtype, copy=False)


def statistics(x: Array, running: Running, parts: int = 1) -> tuple[Array, Array]:
    """Statistics of each channel; ``running`` is updated in place.

    Args:
        x: (batch, channels, height, width).
        running: The variance's share is unbiased.
        parts: The batch is split in so many (:func:`numpy.array_split`), one after another.

    Returns:
        Mean and 1 / sqrt(variance + eps), (parts, channels).
    """
    wide = _wide(x)
    found = []
    for of_part in parts_of(len(x), parts):
        part = x[of_part]
        mean = part.mean(axis=(0, 2, 3), dtype=wide)
        var = part.astype(wide, copy=False).var(axis=(0, 2, 3))
        arrays.average(running, mean, var, part.size // mean.size)
        found.append((mean, 1 / (var + wide.type(running.eps)) ** wide.type(0.5)))
    means, inv_stds = zip(*found)
    return np.stack(means), np.stack(inv_stds)


def _of_images(vectors, images):
    """Return (images, channels, 1, 1) of each image's part, from vectors (parts, channels)."""
    sizes = [part.stop - part.start for part in parts_of(images, len(vectors))]
    return np.repeat(vectors, sizes, axis=0)[:, :, None, None]


def normalize(
    x: Array,
    residual: Array | None,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    beta: Array,
    kind: int,
) -> tuple[Array, Array | None]:
    """Normalise x by its statistics, then add and apply a ReLU as ``kind`` says.

    Args:
        mean, inv_std: (parts, channels).
        kind: :data:`PLAIN`; :data:`RELU`; :data:`ADD`, the residual is added; :data:`ADD_RELU`,
            followed by a ReLU; :data:`RELU_ADD`, preceded by a ReLU.

    Returns:
        y, and the mask for :func:`bn_backward`.
    """
    mean, scale = (_of_images(v, len(x)) for v in (mean, inv_std * gamma))
    y = (x - mean) * scale + _channels(beta)
    if kind == RELU_ADD:
        mask = y > 0
        y = y * mask + residual
    else:
        if kind in (ADD, ADD_RELU):
            y = y + residual
        mask = y > 0 if kind in (RELU, ADD_RELU) else None
        y = y if mask is None else y * mask
    return y.astype(x.dtype, copy=False), mask


def bn_backward(
    gy: Array,
    mask: Array | None,
    x: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    inv_std: Array,
    kind: int,
    keep: bool,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of :func:`normalize`, through the statistics as well.

    Args:
        mean, inv_std: (parts, channels).
        keep: Whether the residual's gradient is wanted.

    Returns:
        For x, gamma, beta, and the residual.
    """
    g = gy if mask is None else gy * mask
    wide = _wide(x)
    x_hat = (x - _of_images(mean, len(x))) * _of_images(inv_std, len(x))
    parts = parts_of(len(x), len(mean))
    of_beta, of_gamma = (
        np.stack([a[part].sum(axis=(0, 2, 3), dtype=wide) for part in parts])
        for a in (g, g * x_hat)
    )
    n = np.array([[x[part, 0].size] for part in parts], wide)
    shared = x_hat * _of_images(of_gamma / n, len(x)) + _of_images(of_beta / n, len(x))
    gx = _of_images(gamma * inv_std, len(x)) * (g - shared)
    return (
        gx.astype(x.dtype, copy=False),
        of_gamma.sum(axis=0),
        of_beta.sum(axis=0),
        g if kind == ADD_RELU else gy,
    )


def max_pooling(
    x: np.ndarray, y_shape: Shape, size: int, stride: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of each window, and its position for :func:`max_pooling_backward`."""
    n, c, h, w = x.shape
    rows, columns = ((out - 1) * stride + size for out in y_shape[2:])
    padded = np.full((n, c, max(rows, h + 2 * pad), max(columns, w + 2 * pad)), -np.inf, x.dtype)
    padded[:, :, pad : pad + h, pad : pad + w] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    windows = windows[:, :, : rows - size + 1 : stride, : columns - size + 1 : stride]
    windows = windows.reshape(y_shape + (size * size,))
    place = windows.argmax(axis=-1)
    return np.take_along_axis(windows, place[..., None], -1)[..., 0], place.astype(np.uint8)


def max_pooling_backward(
    gy: np.ndarray, place: np.ndarray, x_shape: Shape, size: int, stride: int, pad: int
) -> np.ndarray:
    """Return the gradient of :func:`max_pooling`; of equal values the first gets it."""
    n, c, h, w = x_shape
    rows, columns = ((out - 1) * stride + size for out in gy.shape[2:])
    gx = np.zeros((n, c, max(rows, h + 2 * pad), max(columns, w + 2 * pad)), gy.dtype)
    image, channel, y, x = np.ix_(*map(np.arange, gy.shape))
    np.add.at(gx, (image, channel, y * stride + place // size, x * stride + place % size), gy)
    return gx[:, :, pad : pad + h, pad : pad + w]


average_pooling = arrays.average_pooling
average_pooling_backward = arrays.average_pooling_backward


def scale(x: Array, weights: Array, residual: Array | None) -> Array:
    """relu(x * weights + residual), weights (batch, channels) of each image's channels."""
    return (x * weights[:, :, None, None] + residual).clip(0, None).astype(x.dtype, copy=False)


def scale_backward(gy: Array, y: Array, x: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Gradients of :func:`scale` for x, weights and residual."""
    masked = gy * (y > 0)
    gweights = (masked * x.astype(_wide(x), copy=False)).sum(axis=(2, 3), dtype=_wide(x))
    return (masked * weights[:, :, None, None]).astype(x.dtype, copy=False), gweights, masked


def mean_pooling(x: Array) -> Array:
    """Return the mean over height and width, at least float32: (batch, channels, 1, 1)."""
    return x.mean(axis=(2, 3), dtype=_wide(x), keepdims=True)


def mean_pooling_backward(gy: Array, x_shape: Shape, dtype: np.dtype) -> Array:
    """Gradient of :func:`mean_pooling`, of type ``dtype``."""
    gx = gy / gy.dtype.type(x_shape[2] * x_shape[3])
    return np.broadcast_to(gx, x_shape).astype(dtype)


def accumulate(x: Array, y: Array) -> None:
    """Add y to x, in place."""
    x += y
