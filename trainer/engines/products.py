"""Convolutions on NumPy's arrays, as matrix products on pieces that stay in the CPU's cache.

Maps are (batch, height, width, channels), weights (out, in / groups, k, k). Narrow groups are
computed after several of them became one with weights of zero in between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines import chunks

if TYPE_CHECKING:
    from trainer.types import Array, Shape

# Matrix products with fewer channels than this run at a fraction of the speed.
_CHANNELS = 32


def _merge(w, groups):
    """Join groups, with zeros between them, until they are wide enough.

    Returns:
        tuple: The weights (groups, out, in, k, k), and of how many groups each is made.
    """
    out, channels = len(w) // groups, w.shape[1]
    most = max(1, min(groups, _CHANNELS // channels))
    joined = next(n for n in range(most, 0, -1) if groups % n == 0)
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
    """The windows of a convolution over feature maps, as matrices of some rows at a time.

    Args:
        x (array): (batch, height, width, channels).
    """

    def __init__(self, x, k, stride, pad):
        if pad:
            n, h, w, c = x.shape
            padded = np.zeros((n, h + 2 * pad, w + 2 * pad, c), x.dtype)
            padded[:, pad : pad + h, pad : pad + w] = x
            x = padded
        views = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))
        # (batch, out height, out width, k, k, channels)
        self.views = views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
        self.shape = self.views.shape[:3]

    def pieces(self, channels):
        """Yield slices of batch and of height, with the matrix of their windows' channels."""
        for images, rows in chunks.of_images(
            *self.shape, math.prod(self.views.shape[3:5]) * channels
        ):
            yield images, rows, self.views[images, rows]


def _matrix(window, group, channels):
    """Return windows' channels of one group as a matrix (pixels, k k channels)."""
    part = window[..., group * channels : (group + 1) * channels]
    return part.reshape(math.prod(part.shape[:3]), -1)


def _is_product(k, pad, groups):
    return (k, pad, groups) == (1, 0, 1)


def forward(x: Array, w: Array, stride: int, pad: int, groups: int) -> Array:
    k = w.shape[2]
    if _is_product(k, pad, groups):
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[3]) @ w[:, :, 0, 0].T).reshape(*x.shape[:3], len(w))
    w, _ = _merge(w, groups)
    groups, out, channels = w.shape[:3]
    matrices = w.transpose(0, 3, 4, 2, 1).reshape(groups, -1, out)
    windows = _Windows(x, k, stride, pad)
    y = np.empty((*windows.shape, groups * out), x.dtype)
    for images, rows, window in windows.pieces(channels):
        part = y[images, rows].reshape(-1, groups * out)
        for group in range(groups):
            part[:, group * out : (group + 1) * out] = (
                _matrix(window, group, channels) @ matrices[group]
            )
    return y


def backward_data(gy: Array, w: Array, shape: Shape, stride: int, pad: int, groups: int) -> Array:
    """Return the gradient for maps (batch, height, width, channels) of a shape."""
    k = w.shape[2]
    if _is_product(k, pad, groups):
        gx = (gy.reshape(-1, len(w)) @ w[:, :, 0, 0]).reshape(*gy.shape[:3], -1)
        if stride == 1:
            return gx
        full = np.zeros(shape, gx.dtype)
        full[:, ::stride, ::stride] = gx
        return full
    if stride == 1:
        w = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
        return forward(gy, w.reshape(-1, *w.shape[2:]), 1, k - 1 - pad, groups)
    w, _ = _merge(w, groups)
    groups, out, channels = w.shape[:3]
    matrices = w.transpose(0, 1, 3, 4, 2).reshape(groups, out, -1)
    n, h, width, c = shape
    gx = np.zeros((n, h + 2 * pad, width + 2 * pad, c), gy.dtype)
    batch, height, wide, _ = gy.shape
    for images, rows in chunks.of_images(batch, height, wide, k * k * channels):
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
    return gx[:, pad : pad + h, pad : pad + width]


def backward_weights(
    x: Array, gy: Array, w_shape: Shape, stride: int, pad: int, groups: int
) -> Array:
    k = w_shape[2]
    if _is_product(k, pad, groups):
        x = x[:, ::stride, ::stride]
        gw = gy.reshape(-1, w_shape[0]).T @ x.reshape(-1, w_shape[1])
        return gw.reshape(w_shape)
    merged, joined = _merge(np.zeros(w_shape, x.dtype), groups)
    merged_groups, out, channels = merged.shape[:3]
    gw = np.zeros((merged_groups, out, k * k * channels), x.dtype)
    for images, rows, window in _Windows(x, k, stride, pad).pieces(channels):
        part = gy[images, rows].reshape(-1, merged_groups * out)
        for group in range(merged_groups):
            gw[group] += part[:, group * out : (group + 1) * out].T @ _matrix(
                window, group, channels
            )
    gw = gw.reshape(merged_groups, out, k, k, channels).transpose(0, 1, 4, 2, 3)
    return _split(gw, joined, groups)
