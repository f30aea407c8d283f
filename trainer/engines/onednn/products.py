"""1x1 convolutions as matrix products by oneDNN.

A convolution primitive wants its weights in a layout of its own: they are reordered for the forward
pass and for each gradient. A product takes and gives them as they are, which is faster if there are
many weights for few pixels.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from trainer.engines import pool
from trainer.engines.onednn import constants, maps
from trainer.engines.onednn.library import Primitive, engine, strided

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import Shape

# Weights per pixel from which products are faster: ResNeXt-50's last two stages at batch 8.
_WEIGHTS = 64


def suits(x: Shape, w: Shape, stride: int, pad: int, groups: int) -> bool:
    """Return whether to compute a convolution as a product.

    Args:
        x: Shape of the input, (batch, channels, height, width).
        w: Shape of the weights, (out, in / groups, k, k).
    """
    if (*w[2:], stride, pad, groups) != (1, 1, 1, 0, 1):
        return False
    return w[0] * w[1] >= _WEIGHTS * _pixels(x)


def _pixels(shape):
    return math.prod(shape) // shape[1]


@functools.cache
def _product(m, k, n, dtype, result, a_transposed, b_transposed, after=()):
    """Return the primitive of d = a b, with a of (m, k) and b of (k, n)."""
    a = strided((m, k), dtype, (1, m) if a_transposed else (k, 1))
    b = strided((k, n), dtype, (1, k) if b_transposed else (n, 1))
    d = strided((m, n), result, (n, 1))
    post_ops = maps.post_ops(after, d)
    return Primitive('matmul', engine(), a, b, None, d, post_ops=post_ops).bind(
        a=(constants.SRC, a),
        b=(constants.WEIGHTS, b),
        d=(constants.DST, d),
        **maps.bound_post_ops(after, d),
    )


def forward(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Convolve; see :func:`trainer.engines.arrays.conv_forward`."""
    out, channels = w.shape[:2]
    y = maps.empty((len(x), out, *x.shape[2:]), x.dtype)
    product = _product(_pixels(x.shape), channels, out, x.dtype, x.dtype, False, True)
    product(a=x, b=maps.convert(w, x.dtype), d=y)
    return y


def backward_data(
    gy: np.ndarray, w: np.ndarray, x_shape: Shape, addend: np.ndarray | None
) -> np.ndarray:
    """Return the gradient of the input; ``addend`` is added."""
    gx = maps.empty(x_shape, gy.dtype)
    added = {} if addend is None else {'add': addend}
    out, channels = w.shape[:2]
    product = _product(
        _pixels(gy.shape), out, channels, gy.dtype, gy.dtype, False, False, tuple(added)
    )
    product(a=gy, b=maps.convert(w, gy.dtype), d=gx, **added)
    return gx


def backward_weights(x: np.ndarray, gy: np.ndarray, w_shape: Shape) -> np.ndarray:
    """Return the gradient of the weights, float32."""
    out, channels = w_shape[:2]
    gw = pool.empty(w_shape, maps.FLOAT32)
    pixels = _pixels(x.shape)
    _product(out, pixels, channels, x.dtype, maps.FLOAT32, True, False)(a=gy, b=x, d=gw)
    return gw
