"""Tests an engine on this machine: computes small layers and compares them with the reference."""

from collections.abc import Callable

import chainer
import chainer.links as L
import numpy as np

from trainer.engines import reference


def error(
    conv_bn: Callable,
    device: str,
    channels: int,
    out_channels: int,
    groups: int = 1,
    stride: int = 1,
) -> float:
    """Return the error of a 3x3 convolution with batch normalisation and a residual.

    Forward and backward, in training; the precision is that of ``chainer.config``.

    Args:
        conv_bn: The function to compare with :func:`trainer.engines.reference.conv_bn` in float32
            on the CPU.
        device: Chainer's name of the device that computes.
        channels, out_channels, groups, stride: Sizes of the convolution.

    Returns:
        The largest difference of an output or gradient, relative to its norm.
    """
    rng = np.random.default_rng(0)
    layer = chainer.Chain()
    with layer.init_scope():
        layer.conv = L.Convolution2D(
            channels, out_channels, 3, stride, 1, nobias=True, groups=groups
        )
        layer.bn = L.BatchNormalization(out_channels)
    layer.conv.W.array[...] = rng.standard_normal(layer.conv.W.shape) / 8
    x = rng.standard_normal((4, channels, 9, 7)).astype(np.float32)
    size = (5, 4) if stride == 2 else (9, 7)
    residual, gy = rng.standard_normal((2, 4, out_channels, *size)).astype(np.float32)
    golden = _compute(reference.conv_bn, layer, '@numpy', x, residual, gy)
    found = _compute(conv_bn, layer, device, x, residual, gy)
    return float(max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(golden, found)))


def _compute(conv_bn, layer, device, x, residual, gy):
    """Return the output and all gradients, in float64."""
    device = chainer.get_device(device)
    layer.to_device(device)
    layer.cleargrads()
    inputs = [chainer.Variable(device.send(a)) for a in (x, residual)]
    with chainer.using_config('train', True):
        # Without a ReLU, as rounding near 0 would flip its gradient.
        y = conv_bn(inputs[0], layer.conv, layer.bn, False, inputs[1])
        y.grad = device.send(gy).astype(y.dtype)
        y.backward()
    found = [y.array, *(i.grad for i in inputs), *(p.grad for _, p in sorted(layer.namedparams()))]
    return [chainer.get_device('@numpy').send(a).astype(np.float64) for a in found]
