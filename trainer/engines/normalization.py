"""Batch normalisation on NumPy arrays, and what follows it, on pieces that stay in the CPU's cache.

Feature maps are matrices (pixels, channels). NumPy's loops are slow on short rows, so several
pixels make one row, and vectors (channels,) are repeated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import chunks
from trainer.engines.autograd import ADD, ADD_RELU, PLAIN, RELU, RELU_ADD

if TYPE_CHECKING:
    from trainer.types import Array

# Values in a row at most, unless there are more channels.
_ROW = 1024


class _Rows:
    """Return how many pixels make a row of feature maps (pixels, channels)."""

    def __init__(self, x):
        pixels, self.channels = x.shape
        most = max(1, _ROW // self.channels)
        self.pixels = math.gcd(pixels, 1 << (most.bit_length() - 1))
        self.each = chunks.pieces(pixels // self.pixels, self.pixels * self.channels)

    def of(self, x):
        return None if x is None else x.reshape(-1, self.pixels * self.channels)

    def repeated(self, vector):
        return np.tile(vector, self.pixels)

    def sums(self, row):
        """Return the sums per channel from the sums of a row's values."""
        return row.reshape(self.pixels, self.channels).sum(axis=0)


def _sum(x):
    """Sum over the first axis; several times as fast as NumPy's."""
    return np.ones(len(x), x.dtype) @ x


def _moments(x, shape):
    """Return the mean and the variance of each channel, in float64."""

    def of(piece):
        part = x[piece]
        count = len(part) * shape.pixels
        mean = shape.sums(_sum(part)) / part.dtype.type(count)
        part = part - shape.repeated(mean)
        return count, mean, shape.sums(np.einsum('ij,ij->j', part, part))

    counts, means, squares = zip(*chunks.run(of, shape.each))
    counts = np.array(counts, np.float64)[:, None]
    means = np.array(means, np.float64)
    n = counts.sum()
    mean = (counts * means).sum(axis=0) / n
    square = np.sum(squares, axis=0, dtype=np.float64)
    square += (counts * (means - mean) ** 2).sum(axis=0)
    return mean, square / n


def forward(
    h: Array, gamma: Array, beta: Array, eps: float, kind: int, residual: Array | None, y: Array
) -> tuple[Array, Array, tuple]:
    """Write to y the result of :func:`trainer.engines.arrays.conv_bn`, from a convolution's output.

    Returns:
        Mean and variance (channels,), float64, and what :func:`backward` takes as ``kept``.
    """
    shape = _Rows(h)
    rows, added, result = map(shape.of, (h, residual, y))
    mean, var = _moments(rows, shape)
    inv_std = 1 / np.sqrt(var + eps)
    scale = inv_std * gamma
    centre, scale, shift = (
        shape.repeated(v.astype(h.dtype)) for v in (mean, scale, beta - mean * scale)
    )
    mask = np.empty(rows.shape, bool) if kind == RELU_ADD else None

    def normalize(piece):
        v = result[piece]
        np.multiply(rows[piece], scale, out=v)
        v += shift
        if kind in (ADD, ADD_RELU):
            v += added[piece]
        if kind in (RELU, ADD_RELU, RELU_ADD):
            positive = v > 0
            v *= positive  # NaN stays NaN
        if kind == RELU_ADD:
            mask[piece] = positive
            v += added[piece]

    chunks.run(normalize, shape.each)
    mask = result if kind in (RELU, ADD_RELU) else mask
    return mean, var, (rows, mean, centre, inv_std, mask, shape)


def backward(
    gy: Array, kept: tuple, gamma: Array, kind: int, gh: Array, masked: Array | None
) -> tuple[Array, Array]:
    """Write the gradient of :func:`forward`'s input to gh, that before the ReLU to ``masked``.

    Returns:
        The gradients of gamma and beta.
    """
    h, mean, centre, inv_std, mask, shape = kept
    gy, gh, masked = map(shape.of, (gy, gh, masked))
    inside = gh if masked is None else masked

    def reduce(piece):
        g = gy[piece]
        if kind not in (PLAIN, ADD):
            g = np.multiply(g, mask[piece] > 0, out=inside[piece])
        centred = h[piece] - centre
        return np.einsum('ij,ij->j', centred, g), _sum(g)

    by_piece = chunks.run(reduce, shape.each)
    products, gbeta = (
        shape.sums(np.sum(parts, axis=0, dtype=np.float64)) for parts in zip(*by_piece)
    )
    ggamma = products * inv_std
    n = h.size / shape.channels
    # gh = gamma inv_std (g - gbeta / n - x_hat ggamma / n), x_hat = (h - mean) inv_std
    of_g = gamma * inv_std
    of_h = -of_g * inv_std * ggamma / n
    shift = -of_g * gbeta / n - of_h * mean
    of_g, of_h, shift = (shape.repeated(v.astype(h.dtype)) for v in (of_g, of_h, shift))
    source = gy if kind in (PLAIN, ADD) else inside

    def compute(piece):
        part = h[piece] * of_h
        part += shift
        result = gh[piece]
        np.multiply(source[piece], of_g, out=result)
        result += part

    chunks.run(compute, shape.each)
    return ggamma.astype(h.dtype), gbeta.astype(h.dtype)
