"""Plain Chainer functions, on any device and in any precision: the definition of the layers.

All feature maps are (batch, channels, height, width).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer
import chainer.functions as F

if TYPE_CHECKING:
    import chainer.links as L


def conv_bn(
    x: chainer.Variable,
    conv: L.Convolution2D,
    bn: L.BatchNormalization,
    relu: bool,
    residual: chainer.Variable | None = None,
    relu_first: bool = False,
    eps_in_average: float = 0.0,
) -> chainer.Variable:
    """Compute relu(bn(conv(x)) + residual); ReLU and addition are optional.

    Args:
        x: Input feature map.
        conv: The convolution, without a bias.
        bn: Its batch normalisation; it follows ``chainer.config.train``.
        relu: Whether there is a ReLU.
        residual: Added before the ReLU.
        relu_first: Whether it is added after the ReLU instead.
        eps_in_average: Added to the batch's variance before it updates the running variance.
    """
    h = bn(conv(x))
    if eps_in_average and chainer.config.train:
        n = h.size // h.shape[1]
        bn.avg_var += (1 - bn.decay) * eps_in_average * n / max(n - 1, 1)
    if relu and relu_first:
        h = F.relu(h)
    if residual is not None:
        h = h + residual
    return F.relu(h) if relu and not relu_first else h


def subsample_and_pad(x: chainer.Variable, stride: int, out_channels: int) -> chainer.Variable:
    """Keep every ``stride``-th pixel and append zero channels up to ``out_channels``."""
    if stride > 1:
        x = F.average_pooling_2d(x, 1, stride, 0)
    missing = out_channels - x.shape[1]
    if missing:
        zeros = x.xp.zeros((x.shape[0], missing) + x.shape[2:], x.dtype)
        x = F.concat((x, zeros), axis=1)
    return x


def max_pooling(
    x: chainer.Variable, ksize: int, stride: int, pad: int, round_up: bool
) -> chainer.Variable:
    """Max pooling; with ``round_up`` a last, partial window counts."""
    return F.max_pooling_2d(x, ksize, stride, pad, cover_all=round_up)


def average_pooling(x: chainer.Variable) -> chainer.Variable:
    """Mean of each 2x2 window, stride 2; padding does not count."""
    for axis in (2, 3):
        if x.shape[axis] % 2:  # the mean of a value with itself is that value
            last = F.get_item(x, (slice(None),) * axis + (slice(-1, None),))
            x = F.concat((x, last), axis)
    return F.average_pooling_2d(x, 2, 2)


def excite(
    x: chainer.Variable, down: L.Linear, up: L.Linear, residual: chainer.Variable
) -> chainer.Variable:
    """relu(x * sigmoid(up(relu(down(mean(x))))) + residual): squeeze and excitation.

    Args:
        x: Feature map.
        down: The first fully connected layer.
        up: The second.
        residual: Of x's shape.
    """
    weights = F.sigmoid(up(F.relu(down(F.average(x, (2, 3))))))
    return F.relu(x * F.broadcast_to(weights[:, :, None, None], x.shape) + residual)


def global_average_pooling(x: chainer.Variable) -> chainer.Variable:
    """Mean over height and width: (batch, channels, 1, 1)."""
    return F.average_pooling_2d(x, x.shape[2:])


def linear(x: chainer.Variable, fc: L.Linear) -> chainer.Variable:
    """The classifier: (batch, channels, 1, 1) to (batch, classes)."""
    return fc(x)


def unavailable(gpu: int) -> str | None:
    """Return why this engine cannot compute on a GPU (negative: the CPU), or ``None``."""


def precisions() -> tuple[str, ...]:
    """Return the supported precisions."""
    return ('float32',)
