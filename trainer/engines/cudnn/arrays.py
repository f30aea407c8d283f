"""The operations of the cuDNN engine on plain arrays, NumPy's or CuPy's.

They say what the graphs of :mod:`trainer.engines.cudnn.graphs` compute, and compute
it where cuDNN has no plan: statistics and sums in float32 at least, whatever the
type of the feature maps. ``precision`` is accepted and ignored.
"""
import chainer
import chainer.functions as F
import numpy as np
from chainer import backend


def _wide(array):
    return np.promote_types(array.dtype, np.float32)


def _channels(array):
    return array.reshape(1, -1, 1, 1)


def _conv(x, w, stride, pad, groups):
    wide = _wide(x)
    x, w = (chainer.Variable(a.astype(wide, copy=False)) for a in (x, w))
    with chainer.using_config('enable_backprop', True):
        return x, w, F.convolution_2d(x, w, None, stride, pad, groups=groups)


def conv_forward(x, w, stride, pad, groups, precision=None):
    """Convolve: (batch, in, height, width) with (out, in / groups, k, k), no bias."""
    return _conv(x, w, stride, pad, groups)[2].array.astype(x.dtype, copy=False)


def _conv_grad(x, w, gy, stride, pad, groups, which):
    *inputs, y = _conv(x, w, stride, pad, groups)
    gy = chainer.Variable(gy.astype(y.dtype, copy=False))
    return chainer.grad([y], [inputs[which]], [gy])[0].array


def conv_backward_data(gy, w, x_shape, stride, pad, groups, precision=None):
    """Gradient for the input of :func:`conv_forward`, in ``gy``'s type."""
    xp = backend.get_array_module(gy)
    x = xp.zeros(x_shape, gy.dtype)
    return _conv_grad(x, w, gy, stride, pad, groups, 0).astype(gy.dtype, copy=False)


def conv_backward_weights(x, gy, w_shape, stride, pad, groups, precision=None):
    """Gradient for the weights of :func:`conv_forward`, float32 at least."""
    xp = backend.get_array_module(gy)
    return _conv_grad(x, xp.zeros(w_shape, x.dtype), gy, stride, pad, groups, 1)


def conv_bias(x, w, b, stride, pad, groups, residual, relu, precision=None):
    """relu(conv(x, w) + b + residual): inference, batch normalisation folded."""
    y = _conv(x, w, stride, pad, groups)[2].array + _channels(b)
    if residual is not None:
        y = y + residual
    return (y.clip(0, None) if relu else y).astype(x.dtype, copy=False)


def bn_forward(x, gamma, beta, avg_mean, avg_var, residual, relu, eps, decay, precision=None):
    """relu(batch normalisation of x + residual), with the batch's statistics.

    ``avg_mean`` and ``avg_var`` are updated in place; the variance's share is unbiased.

    Returns:
        tuple: y, mask (bool, where the ReLU let pass; ``None`` without one), the
        batch's mean and 1 / sqrt(variance + eps), one for each channel.
    """
    wide = _wide(x)
    mean = x.mean(axis=(0, 2, 3), dtype=wide)
    var = x.astype(wide, copy=False).var(axis=(0, 2, 3))
    inv_std = 1 / (var + wide.type(eps)) ** wide.type(.5)
    n = x.size // gamma.size
    for average, value in ((avg_mean, mean), (avg_var, var * (n / max(n - 1, 1)))):
        average *= decay
        average += (1 - decay) * value
    y = (x - _channels(mean)) * _channels(inv_std * gamma) + _channels(beta)
    if residual is not None:
        y = y + residual
    mask = y > 0 if relu else None
    if relu:
        y = y * mask
    return y.astype(x.dtype, copy=False), mask, mean, inv_std


def bn_backward(gy, mask, x, gamma, mean, inv_std, keep, precision=None):
    """Gradients of :func:`bn_forward`.

    Returns:
        tuple: for x, gamma and beta, and ``gy`` where the ReLU let pass, which is the
        residual's (``keep`` says whether it is wanted).
    """
    if mask is not None:
        gy = gy * mask
    wide = _wide(x)
    x_hat = (x - _channels(mean)) * _channels(inv_std)
    gbeta = gy.sum(axis=(0, 2, 3), dtype=wide)
    ggamma = (gy * x_hat).sum(axis=(0, 2, 3), dtype=wide)
    n = x.size // gamma.size
    gx = _channels(gamma * inv_std) * (
        gy - (x_hat * _channels(ggamma) + _channels(gbeta)) / wide.type(n))
    return gx.astype(x.dtype, copy=False), ggamma, gbeta, gy
