"""An engine that computes only the sizes of feature maps.

Its feature maps are zeros that take no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer
import numpy as np
from chainer.utils.conv import get_conv_outsize

if TYPE_CHECKING:
    import chainer.links as L

    from trainer.types import Shape


def zeros(shape: Shape) -> chainer.Variable:
    """Return a feature map of any size."""
    return chainer.Variable(np.broadcast_to(np.float32(0), shape), requires_grad=False)


def conv_bn(
    x: chainer.Variable,
    conv: L.Convolution2D,
    bn: L.BatchNormalization,
    relu: bool,
    residual: chainer.Variable | None = None,
    relu_first: bool = False,
    eps_in_average: float = 0.0,
) -> chainer.Variable:
    out, channels, kh, kw = conv.W.shape
    (sy, sx), (py, px) = conv.stride, conv.pad
    n, given, h, w = x.shape
    if given != channels * conv.groups:
        raise ValueError(f'{given} channels where {channels * conv.groups} belong')
    y = zeros((n, out, get_conv_outsize(h, kh, sy, py), get_conv_outsize(w, kw, sx, px)))
    if residual is not None and residual.shape != y.shape:
        raise ValueError(f'{residual.shape} is added to {y.shape}')
    return y


def subsample_and_pad(x: chainer.Variable, stride: int, out_channels: int) -> chainer.Variable:
    n, channels, h, w = x.shape
    if channels > out_channels:
        raise ValueError(f'{channels} channels become {out_channels}')
    return zeros(
        (n, out_channels, get_conv_outsize(h, 1, stride, 0), get_conv_outsize(w, 1, stride, 0))
    )


def max_pooling(
    x: chainer.Variable, ksize: int, stride: int, pad: int, round_up: bool
) -> chainer.Variable:
    n, channels, h, w = x.shape
    return zeros(
        (
            n,
            channels,
            get_conv_outsize(h, ksize, stride, pad, round_up),
            get_conv_outsize(w, ksize, stride, pad, round_up),
        )
    )


def average_pooling(x: chainer.Variable) -> chainer.Variable:
    n, channels, h, w = x.shape
    return zeros((n, channels, -(-h // 2), -(-w // 2)))


def excite(
    x: chainer.Variable, down: L.Linear, up: L.Linear, residual: chainer.Variable
) -> chainer.Variable:
    linear(global_average_pooling(x), down)
    if up.W.shape != down.W.shape[::-1] or residual.shape != x.shape:
        raise ValueError(f'{up.W.shape} behind {down.W.shape}, {residual.shape} to {x.shape}')
    return zeros(x.shape)


def global_average_pooling(x: chainer.Variable) -> chainer.Variable:
    return zeros(x.shape[:2] + (1, 1))


def linear(x: chainer.Variable, fc: L.Linear) -> chainer.Variable:
    if x.size != x.shape[0] * fc.W.shape[1]:
        raise ValueError(f'{x.shape} where {fc.W.shape[1]} channels belong')
    return zeros((x.shape[0], fc.W.shape[0]))
