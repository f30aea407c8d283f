"""The provider of :mod:`trainer.engines.autograd` on NumPy arrays; defines what providers compute.

Feature maps are (batch, channels, height, width) in NHWC memory, as ``empty`` and ``nhwc``
return. Statistics and sums are at least float32, whatever the dtype of the feature maps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import chunks, normalization, pool, products
from trainer.engines.autograd import ADD_RELU, Running

if TYPE_CHECKING:
    import chainer

    from trainer.types import Array, Shape

#: Precision -> precision of the classifier, where they differ.
FULL_PRECISION: dict[str, str] = {}


def empty(like: Array, shape: Shape, dtype: np.dtype) -> Array:
    """Return uninitialised feature maps."""
    n, c, h, w = shape
    return pool.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def feature_type(x: Array) -> np.dtype:
    """Return the dtype of feature maps computed from x."""
    return np.promote_types(x.dtype, np.float32)


def nhwc(array: Array, dtype: np.dtype) -> Array:
    """Return an array with a dtype and in NHWC memory, without a copy if possible."""
    if array.dtype == dtype and array.transpose(0, 2, 3, 1).flags.c_contiguous:
        return array
    converted = empty(array, array.shape, dtype)
    converted[...] = array
    return converted


def weights(w: Array, dtype: np.dtype, conv: chainer.Link | None = None) -> Array:
    """Return weights in the form that this provider's convolutions take.

    Args:
        w: (out, in / groups, k, k).
        dtype: dtype of the feature maps.
        conv: The convolution whose parameter they are, if they are a parameter.
    """
    return w


def weights_gradient(gw: Array, dtype: np.dtype, added: bool) -> Array:
    """Return a weight gradient in the parameter's dtype; ``added`` to an existing one or not."""
    return gw.astype(dtype, copy=False)


def add(x: Array, y: Array) -> Array:
    """Return x + y."""
    return x + y


def wide(dtype: np.dtype) -> np.dtype:
    """Return the dtype of sums over a dtype."""
    return np.promote_types(dtype, np.float32)


# Convolutions.


def _inside(x):
    return x.transpose(0, 2, 3, 1).astype(wide(x.dtype), copy=False)


def _outside(y, dtype):
    return nhwc(y.transpose(0, 3, 1, 2), dtype)


def conv_forward(x: Array, w: Array, stride: int, pad: int, groups: int) -> Array:
    """Convolve: (batch, in, height, width) with (out, in / groups, k, k), no bias."""
    w = w.astype(wide(x.dtype), copy=False)
    return _outside(products.forward(_inside(x), w, stride, pad, groups), x.dtype)


def conv_backward_data(
    gy: Array, w: Array, x_shape: Shape, stride: int, pad: int, groups: int, addend: Array | None
) -> Array:
    """Return the gradient of the input, in ``gy``'s dtype; ``addend`` is added."""
    n, c, h, width = x_shape
    w = w.astype(wide(gy.dtype), copy=False)
    gx = products.backward_data(_inside(gy), w, (n, h, width, c), stride, pad, groups)
    if addend is not None:
        gx += addend.transpose(0, 2, 3, 1)
    return _outside(gx, gy.dtype)


def conv_backward_weights(
    x: Array, gy: Array, w_shape: Shape, stride: int, pad: int, groups: int
) -> Array:
    """Return the gradient of :func:`conv_forward`'s weights, at least float32."""
    return products.backward_weights(_inside(x), _inside(gy), w_shape, stride, pad, groups)


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
) -> Array:
    """relu(conv(x, w) + b + residual): inference, batch normalisation folded.

    With ``relu_first`` the residual is added after the ReLU.
    """
    added = None if residual is None else residual.transpose(0, 2, 3, 1)

    def finish(part, images, rows):
        part += b
        for what in ('relu', 'add') if relu_first else ('add', 'relu'):
            if what == 'relu' and relu:
                np.maximum(part, 0, out=part)
            elif what == 'add' and added is not None:
                part += added[images, rows]

    w = w.astype(wide(x.dtype), copy=False)
    return _outside(products.forward(_inside(x), w, stride, pad, groups, finish), x.dtype)


# Batch normalisation.


def average(running: Running, mean: Array, var: Array, n: int) -> None:
    """Update running statistics in place from a batch with ``n`` values per channel."""
    unbiased = (var + running.eps_in_average) * (n / max(n - 1, 1))
    for kept, value in ((running.mean, mean), (running.var, unbiased)):
        kept *= running.decay
        kept += (1 - running.decay) * value


def _rows(x):
    """Return feature maps as a matrix (pixels, channels)."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


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
    """Compute convolution, batch normalisation with batch statistics, and what follows it.

    Args:
        running: Updated in place; the variance's share is unbiased.
        kind: :data:`PLAIN`; :data:`RELU`; :data:`ADD`, the residual is added; :data:`ADD_RELU`,
            followed by a ReLU; :data:`RELU_ADD`, preceded by a ReLU.

    Returns:
        y, and what :func:`bn_backward` takes as ``kept``.
    """
    h = conv_forward(x, w, stride, pad, groups)
    y = empty(h, h.shape, h.dtype)
    added = None if residual is None else _rows(residual)
    mean, var, kept = normalization.forward(
        _rows(h), gamma, beta, running.eps, kind, added, _rows(y)
    )
    average(running, mean, var, h.size // len(mean))
    return y, kept


def bn_backward(
    gy: Array, kept: tuple, gamma: Array, beta: Array, kind: int, keep: bool
) -> tuple[Array, Array, Array, Array]:
    """Gradients of :func:`conv_bn` for the convolution's output, gamma, beta and the residual.

    Args:
        keep: Whether the residual's gradient is needed.
    """
    gh = empty(gy, gy.shape, gy.dtype)
    masked = empty(gy, gy.shape, gy.dtype) if keep and kind == ADD_RELU else None
    ggamma, gbeta = normalization.backward(
        _rows(gy), kept, gamma, kind, _rows(gh), None if masked is None else _rows(masked)
    )
    return gh, ggamma, gbeta, gy if masked is None else masked


# Pooling.


def _padded(x, y_shape, size, stride, pad, value):
    n, c, h, w = x.shape
    rows, columns = ((out - 1) * stride + size for out in y_shape[2:])
    padded = np.full((n, max(rows, h + 2 * pad), max(columns, w + 2 * pad), c), value, x.dtype)
    return padded, padded[:, pad : pad + h, pad : pad + w]


def _shifted(padded, y_shape, size, stride):
    """Yield, for each position in the window, (batch, out height, out width, channels)."""
    height, width = ((n - 1) * stride + 1 for n in y_shape[2:])
    for i, j in np.ndindex(size, size):
        yield padded[:, i : i + height : stride, j : j + width : stride]


def max_pooling(x: Array, y_shape: Shape, size: int, stride: int, pad: int) -> tuple[Array, Array]:
    """Return the maximum of each window, and its position for :func:`max_pooling_backward`."""
    padded, inner = _padded(x, y_shape, size, stride, pad, -np.inf)
    inner[...] = x.transpose(0, 2, 3, 1)
    places = _shifted(padded, y_shape, size, stride)
    y = next(places).copy()
    place = np.zeros(y.shape, np.uint8)
    for number, values in enumerate(places, 1):
        greater = values > y
        np.copyto(y, values, where=greater)
        place[greater] = number
    return y.transpose(0, 3, 1, 2), place


def max_pooling_backward(
    gy: Array, place: Array, x_shape: Shape, size: int, stride: int, pad: int
) -> Array:
    """Return the gradient of :func:`max_pooling`; of equal values the first gets it."""
    gx = empty(gy, x_shape, gy.dtype)
    padded, inner = _padded(gx, gy.shape, size, stride, pad, 0)
    for number, values in enumerate(_shifted(padded, gy.shape, size, stride)):
        values += gy.transpose(0, 2, 3, 1) * (place == number)
    gx.transpose(0, 2, 3, 1)[...] = inner
    return gx


def average_pooling(x: Array) -> Array:
    """Return the mean of each 2x2 window, stride 2; padding does not count."""
    n, c, h, w = x.shape
    dtype = wide(x.dtype)
    y = empty(x, (n, c, -(-h // 2), -(-w // 2)), x.dtype)
    outside, inside = (a.transpose(0, 2, 3, 1) for a in (y, x))

    def compute(piece):
        top = inside[piece, ::2].astype(dtype)
        top[:, : h // 2] += inside[piece, 1::2]
        top[:, : h // 2] *= dtype.type(0.5)
        mean = top[:, :, ::2].copy()
        mean[:, :, : w // 2] += top[:, :, 1::2]
        mean[:, :, : w // 2] *= dtype.type(0.5)
        outside[piece] = mean

    chunks.run(compute, chunks.pieces(n, h * w * c))
    return y


def average_pooling_backward(gy: Array, x_shape: Shape) -> Array:
    """Gradient of :func:`average_pooling`."""
    gx = empty(gy, x_shape, gy.dtype)
    h, w = x_shape[2:]
    outside, inside = (a.transpose(0, 2, 3, 1) for a in (gx, gy))

    def compute(piece):
        each = inside[piece].astype(wide(gy.dtype))
        each[:, : h // 2] *= each.dtype.type(0.5)
        each[:, :, : w // 2] *= each.dtype.type(0.5)
        for i, j in np.ndindex(2, 2):
            target = outside[piece, i::2, j::2]
            target[...] = each[:, : target.shape[1], : target.shape[2]]

    chunks.run(compute, chunks.pieces(len(gy), math.prod(x_shape[1:])))
    return gx


def _images(x):
    """Return feature maps as (batch, pixels, channels)."""
    n, c, h, w = x.shape
    return x.transpose(0, 2, 3, 1).reshape(n, h * w, c)


def sum_pooling(x: Array) -> Array:
    """Sum over height and width, float32 at least: (batch, channels)."""
    images, dtype = _images(x), wide(x.dtype)
    pieces = chunks.pieces(len(images), images[0].size)
    return np.concatenate(chunks.run(lambda i: images[i].sum(axis=1, dtype=dtype), pieces))


def mean_pooling(x: Array) -> Array:
    """Mean over height and width, float32 at least: (batch, channels, 1, 1)."""
    sums = sum_pooling(x)
    return (sums / sums.dtype.type(x.shape[2] * x.shape[3]))[:, :, None, None]


def mean_pooling_backward(gy: Array, x_shape: Shape, dtype: np.dtype) -> Array:
    """Gradient of :func:`mean_pooling`, of type ``dtype``."""
    gx = empty(gy, x_shape, dtype)
    gx[...] = gy / gy.dtype.type(x_shape[2] * x_shape[3])
    return gx


# Squeeze and excitation.


def scale(x: Array, weights: Array, residual: Array) -> Array:
    """relu(x * weights + residual), weights (batch, channels) of each image's channels."""
    y = empty(x, x.shape, x.dtype)
    images, added, result = map(_images, (x, residual, y))

    def compute(piece):
        v = images[piece] * weights[piece, None]
        v += added[piece]
        result[piece] = np.maximum(v, 0, out=v)

    chunks.run(compute, chunks.pieces(len(images), images[0].size))
    return y


def scale_backward(gy: Array, y: Array, x: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Gradients of :func:`scale` for x, weights and residual."""
    gx, masked = (empty(gy, gy.shape, gy.dtype) for _ in range(2))
    gradient, output, images, for_x, for_residual = map(_images, (gy, y, x, gx, masked))
    sums = np.empty(weights.shape, wide(gy.dtype))

    def compute(piece):
        g = gradient[piece] * (output[piece] > 0)
        for_residual[piece] = g
        for_x[piece] = g * weights[piece, None]
        np.sum(g * images[piece], axis=1, dtype=sums.dtype, out=sums[piece])

    chunks.run(compute, chunks.pieces(len(images), images[0].size))
    return gx, sums, masked
