"""Convolutions on NumPy's arrays, as matrix products on pieces that stay in the CPU's cache.

Feature maps are (batch, height, width, channels), weights (out, in / groups, k, k). Narrow groups
are merged, with zero weights in between. Pieces depend only on the shapes, so results repeat bit
for bit with any number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import chunks, pool

if TYPE_CHECKING:
    from trainer.types import Array, Shape

# Matrix products with fewer channels run at a fraction of the speed.
_CHANNELS = 32

# Values in the matrix of a piece's windows: 2 MiB in float32.
_MATRIX = 1 << 19

# Fewest pixels of a piece, as BLAS copies the weights for each piece.
_LEAST = 256

# Most parts of a product, the fewest rows of each, and its fewest multiplications (0.1 ms).
_PARTS, _ROWS, _WORK = 16, 512, 1 << 22


def _merge(w, groups):
    """Merge groups, with zeros between them, until they are wide enough.

    Returns:
        tuple: The weights (groups, out, in, k, k), and the number of groups in each.
    """
    out, channels = len(w) // groups, w.shape[1]
    most = max(1, min(groups, _CHANNELS // channels))
    joined = next(n for n in range(most, 0, -1) if groups % n == 0)
    if joined == 1:
        return w.reshape(groups, out, *w.shape[1:]), 1
    w = w.reshape(groups // joined, joined, out, *w.shape[1:])
    merged = np.zeros((len(w), joined, out, joined, *w.shape[3:]), w.dtype)
    for i in range(joined):
        merged[:, i, :, i] = w[:, i]
    return merged.reshape(len(w), joined * out, joined * channels, *w.shape[4:]), joined


def _split(gw, joined, groups):
    """Return the gradient of :func:`_merge`'s weights."""
    merged, out, channels, *k = gw.shape
    gw = gw.reshape(merged, joined, out // joined, joined, channels // joined, *k)
    own = np.stack([gw[:, i, :, i] for i in range(joined)], axis=1)
    return own.reshape(groups * out // joined, channels // joined, *k)


class _Windows:
    """The windows of a convolution over feature maps.

    Args:
        x (array): (batch, height, width, channels).
        w (array): Weights as :func:`_merge` returns them.

    Attributes:
        shape: (batch, out height, out width).
        width: Columns of a group's matrix: k * k * channels / groups.
    """

    def __init__(self, x, w, stride, pad):
        self.x, self.stride, self.pad = x, stride, pad
        groups, self.out, _, self.k, k = w.shape
        self.groups, self.channels = groups, x.shape[3] // groups
        self.width = k * k * self.channels
        self.shape = len(x), *((n + 2 * pad - k) // stride + 1 for n in x.shape[1:3])

    def pieces(self):
        """Return (slice of the batch, slice of output rows) of pieces."""
        rows = math.prod(self.shape)
        work = rows * self.width * self.out * self.groups
        pixels = -(-rows // max(1, min(rows // _ROWS, _PARTS, work // _WORK)))
        if self.k > 1:
            pixels = max(min(pixels, _MATRIX // self.width), _LEAST)
        return list(chunks.of_images(*self.shape, pixels))

    def matrices(self, images, rows):
        """Yield the matrix (pixels, :attr:`width`) of each group for a piece."""
        k, stride, pad = self.k, self.stride, self.pad
        n, height, width, channels = self.x.shape
        top, bottom = rows.start * stride - pad, (rows.stop - 1) * stride - pad + k
        part = self.x[images, max(top, 0) : min(bottom, height)]
        if pad:
            padded = np.zeros((len(part), bottom - top, width + 2 * pad, channels), part.dtype)
            first = max(-top, 0)
            padded[:, first : first + part.shape[1], pad : pad + width] = part
            part = padded
        part = np.ascontiguousarray(part)
        image, row, column, value = part.strides
        # (images, rows, columns, k, k, channels); as_strided takes 30 times as long.
        views = np.ndarray(
            (len(part), rows.stop - rows.start, self.shape[2], k, k, channels),
            part.dtype,
            part,
            strides=(image, row * stride, column * stride, row, column, value),
        )
        for group in range(self.groups):
            own = views[..., group * self.channels : (group + 1) * self.channels]
            yield own.reshape(-1, self.width)


def forward(
    x: Array,
    w: Array,
    stride: int,
    pad: int,
    groups: int,
    finish: Callable[[Array, slice, slice], None] | None = None,
) -> Array:
    """Convolve.

    Args:
        finish: Called with each piece of the result while it is in the cache, its slice of the
            batch and its slice of rows; changes the piece in place.
    """
    w, _ = _merge(w, groups)
    groups, out, _ = w.shape[:3]
    matrices = w.transpose(0, 1, 3, 4, 2).reshape(groups, out, -1)
    windows = _Windows(x, w, stride, pad)
    y = pool.empty((*windows.shape, groups * out), x.dtype)

    def compute(piece):
        part = y[piece]
        flat = part.reshape(-1, groups * out)
        for group, matrix in enumerate(windows.matrices(*piece)):
            np.matmul(matrix, matrices[group].T, out=flat[:, group * out : (group + 1) * out])
        if finish is not None:
            finish(part, *piece)

    chunks.run(compute, windows.pieces())
    return y


def backward_data(gy: Array, w: Array, shape: Shape, stride: int, pad: int, groups: int) -> Array:
    """Return the gradient for maps (batch, height, width, channels) of a shape."""
    k = w.shape[2]
    if stride == 1:
        w = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
        return forward(gy, w.reshape(-1, *w.shape[2:]), 1, k - 1 - pad, groups)
    w, _ = _merge(w, groups)
    groups, out, channels = w.shape[:3]
    matrices = w.transpose(0, 1, 3, 4, 2).reshape(groups, out, -1)
    n, h, width, c = shape
    gx = pool.empty((n, h + 2 * pad, width + 2 * pad, c), gy.dtype)
    batch, height, wide, _ = gy.shape

    def add(images, rows):
        for group in range(groups):
            part = gy[images, rows, :, group * out : (group + 1) * out]
            windows = (part.reshape(-1, out) @ matrices[group]).reshape(
                *part.shape[:3], k, k, channels
            )
            own = slice(group * channels, (group + 1) * channels)
            for i, j in np.ndindex(k, k):
                first = rows.start * stride + i
                gx[
                    images,
                    first : first + part.shape[1] * stride : stride,
                    j : j + wide * stride : stride,
                    own,
                ] += windows[..., i, j, :]

    def compute(parts):
        images = None
        for images, rows in parts:
            if rows.start == 0:
                gx[images] = 0
            add(images, rows)

    # The windows of one image overlap.
    pieces = chunks.of_images(batch, height, wide, _MATRIX // (k * k * channels))
    by_image = itertools.groupby(pieces, lambda piece: piece[0].start)
    chunks.run(compute, [list(parts) for _, parts in by_image])
    return gx[:, pad : pad + h, pad : pad + width]


def backward_weights(
    x: Array, gy: Array, w_shape: Shape, stride: int, pad: int, groups: int
) -> Array:
    k = w_shape[2]
    merged, joined = _merge(np.zeros(w_shape, x.dtype), groups)
    merged_groups, out, channels = merged.shape[:3]
    windows = _Windows(x, merged, stride, pad)
    pieces = windows.pieces()
    # Number of partial sums, limited by the time of the additions.
    parts = min(max(2, math.prod(windows.shape) // (2 * _ROWS)), _PARTS // 2, len(pieces))

    def compute(part):
        gw = pool.empty((merged_groups, out, windows.width), x.dtype)
        for n, (images, rows) in enumerate(pieces[part::parts]):
            rest = gy[images, rows].reshape(-1, merged_groups * out)
            for group, matrix in enumerate(windows.matrices(images, rows)):
                transposed = rest[:, group * out : (group + 1) * out].T
                if n:
                    gw[group] += transposed @ matrix
                else:
                    np.matmul(transposed, matrix, out=gw[group])
        return gw

    gw, *others = chunks.run(compute, range(parts))
    for other in others:
        gw += other
    gw = gw.reshape(merged_groups, out, k, k, channels).transpose(0, 1, 4, 2, 3)
    return _split(gw, joined, groups)
