"""Chainer functions of the layers, forward and backward, on top of a provider of array operations.

Feature maps are arrays (batch, channels, height, width) in NHWC memory, from the stem to the
classifier. Parameters and the computational graph are Chainer's. A provider is a module with the
functions of :mod:`trainer.engines.arrays`, which documents them.
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import chainer
import chainer.functions as F
import numpy as np
from chainer import backend
from chainer.utils.conv import get_conv_outsize

from trainer import cuda
from trainer.engines import reference
from trainer.settings import settings

if TYPE_CHECKING:
    import chainer.links as L

    from trainer.types import Array

#: What follows a batch normalisation.
PLAIN, RELU, ADD, ADD_RELU, RELU_ADD = range(5)


class Running(NamedTuple):
    """Running statistics of a batch normalisation.

    Attributes:
        mean, var: (channels,).
        eps: Added to the variance.
        decay: Share of the statistics that is kept at each update.
        eps_in_average: Share of eps in the running variance
            (:func:`trainer.engines.reference.conv_bn`).
    """

    mean: Array
    var: Array
    eps: float
    decay: float
    eps_in_average: float


def _give(node, gradient):
    """Return a gradient as a variable of its node's dtype.

    Chainer rejects another dtype: such a gradient is set on the parameter, and the result is
    ``None``.
    """
    if gradient.dtype == node.dtype:
        return chainer.Variable(gradient)
    node.get_variable()._set_grad_without_check(gradient)
    return None


def _there(node, gradient):
    """Return the array of a gradient, wherever :func:`_give` put it, or ``None``."""
    if gradient is None and node.creator_node is None:
        gradient = node.get_variable().grad_var
    return None if gradient is None else gradient.array


class _Function(chainer.FunctionNode):
    """A function that accumulates gradients into existing gradients of its inputs.

    :meth:`gradients` returns arrays. Its last argument maps each input to its existing gradient
    or ``None``; inputs in :attr:`adds` add that themselves.
    """

    #: Indices of the inputs whose existing gradient :meth:`gradients` adds.
    adds: tuple[int, ...] = ()

    def __init__(self, provider):
        self.provider = provider
        self.precision = chainer.config.precision

    def gradients(self, indexes, gy, there):
        raise NotImplementedError

    def backward_accumulate(self, indexes, grad_outputs, grad_inputs):
        there = {i: _there(self.inputs[i], g) for i, g in zip(indexes, grad_inputs)}
        with chainer.using_config('precision', self.precision):
            found = self.gradients(indexes, grad_outputs[0].array, there)
            for i in indexes:
                if there[i] is not None and i not in self.adds:
                    found[i] = self.provider.add(found[i], there[i])
                if settings.complete is not None and self.inputs[i].creator_node is None:
                    settings.complete(self.inputs[i], found[i])
            return tuple(_give(self.inputs[i], found[i]) for i in indexes)


class _ConvBN(_Function):
    """Convolution, batch normalisation and what follows it, in training."""

    adds = (0,)

    def __init__(self, provider, conv, bn, kind, eps_in_average):
        super().__init__(provider)
        self.conv = conv
        self.window = conv.stride[0], conv.pad[0], conv.groups
        self.kind = kind
        self.running = Running(bn.avg_mean, bn.avg_var, bn.eps, bn.decay, eps_in_average)

    def forward(self, inputs):
        x, w, gamma, beta, *residual = inputs
        dtype = self.provider.feature_type(x)
        self.given = [a.dtype for a in inputs]
        self.x, self.w = self.provider.nhwc(x, dtype), self.provider.weights(w, dtype, self.conv)
        residual = self.provider.nhwc(residual[0], dtype) if residual else None
        y, self.kept = self.provider.conv_bn(
            self.x, self.w, *self.window, self.running, residual, gamma, beta, self.kind
        )
        self.retain_inputs((2, 3))
        return (y,)

    def gradients(self, indexes, gy, there):
        gamma, beta = (v.array for v in self.get_retained_inputs())
        x, kept, provider = self.x, self.kept, self.provider
        if kept is None:
            raise RuntimeError('backward was called before; call forward again')
        # Their memory is needed for the rest of the backward pass.
        self.x = self.kept = None
        gh, *found = provider.bn_backward(
            provider.nhwc(gy, x.dtype), kept, gamma, beta, self.kind, 4 in indexes
        )
        found = dict(zip((2, 3, 4), found))
        del kept, gy
        if 0 in indexes:
            addend = None if there[0] is None else provider.nhwc(there[0], x.dtype)
            found[0] = provider.conv_backward_data(gh, self.w, x.shape, *self.window, addend)
        if 1 in indexes:
            gw = provider.conv_backward_weights(x, gh, self.w.shape, *self.window)
            found[1] = provider.weights_gradient(gw, self.given[1], there[1] is not None)
        for i in {0, 4}.intersection(indexes):
            found[i] = provider.nhwc(found[i], self.given[i])
        return found


class _MaxPooling(_Function):
    def __init__(self, provider, ksize, stride, pad, round_up):
        super().__init__(provider)
        self.window = ksize, stride, pad
        self.round_up = round_up

    def forward(self, inputs):
        x = self.provider.nhwc(inputs[0], inputs[0].dtype)
        self.shape = x.shape
        size = tuple(
            get_conv_outsize(n, *self.window, cover_all=self.round_up) for n in x.shape[2:]
        )
        y, self.place = self.provider.max_pooling(x, x.shape[:2] + size, *self.window)
        return (y,)

    def gradients(self, indexes, gy, there):
        gy = self.provider.nhwc(gy, gy.dtype)
        return {0: self.provider.max_pooling_backward(gy, self.place, self.shape, *self.window)}


class _AveragePooling(_Function):
    def forward(self, inputs):
        x = self.provider.nhwc(inputs[0], inputs[0].dtype)
        self.shape = x.shape
        return (self.provider.average_pooling(x),)

    def gradients(self, indexes, gy, there):
        gy = self.provider.nhwc(gy, gy.dtype)
        return {0: self.provider.average_pooling_backward(gy, self.shape)}


class _Scale(_Function):
    """relu(x * sigmoid(scores) + residual), of scores (batch, channels) in float32 at least."""

    def forward(self, inputs):
        x, scores, residual = inputs
        provider = self.provider
        dtype = provider.feature_type(x)
        self.given = [a.dtype for a in inputs]
        self.x = provider.nhwc(x, dtype)
        xp = backend.get_array_module(scores)
        self.scale = 1 / (1 + xp.exp(-scores.clip(-80, None)))  # e^88 is too large for float32
        self.y = provider.scale(self.x, self.scale, provider.nhwc(residual, dtype))
        return (self.y,)

    def gradients(self, indexes, gy, there):
        gy = self.provider.nhwc(gy, self.x.dtype)
        gx, gscale, masked = self.provider.scale_backward(gy, self.y, self.x, self.scale)
        gscores = gscale * (self.scale * (1 - self.scale))
        return {
            0: self.provider.nhwc(gx, self.given[0]),
            1: gscores.astype(self.given[1], copy=False),
            2: self.provider.nhwc(masked, self.given[2]),
        }


class _MeanPooling(_Function):
    def forward(self, inputs):
        x = self.provider.nhwc(inputs[0], inputs[0].dtype)
        self.shape, self.dtype = x.shape, x.dtype
        return (self.provider.mean_pooling(x),)

    def gradients(self, indexes, gy, there):
        return {0: self.provider.mean_pooling_backward(gy, self.shape, self.dtype)}


class _SubsampleAndPad(_Function):
    """Every ``stride``-th pixel, then zero channels.

    Elements are handled in the order of memory: CuPy's threads, which follow the order of the axes,
    would otherwise be a pixel apart from each other.
    """

    def __init__(self, provider, stride, out_channels):
        super().__init__(provider)
        self.stride = stride
        self.out_channels = out_channels

    def forward(self, inputs):
        (x,) = inputs
        self.shape = x.shape
        kept = x.transpose(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
        y = self.provider.empty(x, (len(x), self.out_channels) + kept.shape[1:3], x.dtype)
        pixels = y.transpose(0, 2, 3, 1)
        pixels[..., x.shape[1] :] = 0
        pixels[..., : x.shape[1]] = kept
        return (y,)

    def gradients(self, indexes, gy, there):
        gx = self.provider.empty(gy, self.shape, gy.dtype)
        pixels = gx.transpose(0, 2, 3, 1)
        if self.stride > 1:
            pixels[...] = 0
        given = gy.transpose(0, 2, 3, 1)[..., : self.shape[1]]
        pixels[:, :: self.stride, :: self.stride] = given
        return {0: gx}


class _Linear(_Function):
    """A fully connected layer as a 1x1 convolution, in float32 at least, optionally with a ReLU."""

    def __init__(self, provider, relu=False):
        super().__init__(provider)
        self.relu = relu
        # Lower precision would gain no time here, and make the loss inaccurate.
        self.precision = provider.FULL_PRECISION.get(self.precision, self.precision)

    def forward(self, inputs):
        x, w, b = inputs
        provider = self.provider
        with chainer.using_config('precision', self.precision):
            self.x, self.w = provider.nhwc(x, w.dtype), provider.nhwc(w[:, :, None, None], w.dtype)
            y = provider.conv_bias(self.x, self.w, b, 1, 0, 1, None, self.relu, False)
        y = y.reshape(len(y), -1)
        self.mask = y > 0 if self.relu else None
        return (y,)

    def gradients(self, indexes, gy, there):
        provider = self.provider
        gy = gy if self.mask is None else gy * self.mask
        gy = provider.nhwc(gy[:, :, None, None], gy.dtype)
        found = {2: gy.sum(axis=(0, 2, 3))}
        if 0 in indexes:
            found[0] = provider.conv_backward_data(gy, self.w, self.x.shape, 1, 0, 1, None)
        if 1 in indexes:
            gw = provider.conv_backward_weights(self.x, gy, self.w.shape, 1, 0, 1)
            found[1] = gw.reshape(self.w.shape[:2])
        return found


class Layers:
    """An engine's functions (:mod:`trainer.engines.reference`), computed by a provider.

    Args:
        provider: See the module.
    """

    def __init__(self, provider: ModuleType) -> None:
        self.provider = provider

    def conv_bn(
        self,
        x: chainer.Variable,
        conv: L.Convolution2D,
        bn: L.BatchNormalization,
        relu: bool,
        residual: chainer.Variable | None = None,
        relu_first: bool = False,
        eps_in_average: float = 0.0,
    ) -> chainer.Variable:
        if not chainer.config.train:
            return self._inference(x, conv, bn, relu, residual, relu_first)
        added = () if residual is None else (residual,)
        if residual is None:
            kind = RELU if relu else PLAIN
        else:
            kind = ADD if not relu else RELU_ADD if relu_first else ADD_RELU
        function = _ConvBN(self.provider, conv, bn, kind, eps_in_average)
        return function.apply((x, conv.W, bn.gamma, bn.beta, *added))[0]

    def _inference(self, x, conv, bn, relu, residual, relu_first):
        x = chainer.as_variable(x)
        if chainer.config.enable_backprop:
            # Gradients through fixed statistics are rare; the reference has them.
            x = F.cast(x, conv.W.dtype)
            residual = residual if residual is None else F.cast(residual, conv.W.dtype)
            return reference.conv_bn(x, conv, bn, relu, residual, relu_first)
        provider = self.provider
        dtype = provider.feature_type(x.array)
        w, b = self.fold(conv, bn, dtype)
        y = provider.conv_bias(
            provider.nhwc(x.array, dtype),
            w,
            b,
            conv.stride[0],
            conv.pad[0],
            conv.groups,
            None if residual is None else provider.nhwc(residual.array, dtype),
            relu,
            relu_first,
        )
        return chainer.Variable(y, requires_grad=False)

    def fold(
        self, conv: L.Convolution2D, bn: L.BatchNormalization, dtype: np.dtype
    ) -> tuple[Array, Array]:
        """Return weights and float32 biases of a convolution with its normalisation."""
        kept = settings.folded
        if kept is not None and (conv, bn) in kept:
            return kept[conv, bn]
        on_numpy = backend.get_array_module(bn.avg_mean) is np
        with contextlib.nullcontext() if kept is None or on_numpy else cuda.lasting():
            scale = bn.gamma.array / (bn.avg_var + bn.eps) ** 0.5
            w = self.provider.weights(conv.W.array * scale.reshape(-1, 1, 1, 1), dtype)
            b = (bn.beta.array - bn.avg_mean * scale).astype(np.promote_types(dtype, np.float32))
        if kept is not None:
            kept[conv, bn] = w, b
        return w, b

    def subsample_and_pad(
        self, x: chainer.Variable, stride: int, out_channels: int
    ) -> chainer.Variable:
        if stride == 1 and x.shape[1] == out_channels:
            return x
        return _SubsampleAndPad(self.provider, stride, out_channels).apply((x,))[0]

    def max_pooling(
        self, x: chainer.Variable, ksize: int, stride: int, pad: int, round_up: bool
    ) -> chainer.Variable:
        return _MaxPooling(self.provider, ksize, stride, pad, round_up).apply((x,))[0]

    def average_pooling(self, x: chainer.Variable) -> chainer.Variable:
        return _AveragePooling(self.provider).apply((x,))[0]

    def excite(
        self, x: chainer.Variable, down: L.Linear, up: L.Linear, residual: chainer.Variable
    ) -> chainer.Variable:
        h = self.global_average_pooling(x)
        for fc, relu in ((down, True), (up, False)):
            h = F.cast(h, fc.W.dtype).reshape((*h.shape[:2], 1, 1))
            h = _Linear(self.provider, relu).apply((h, fc.W, fc.b))[0]
        return _Scale(self.provider).apply((x, h, residual))[0]

    def global_average_pooling(self, x: chainer.Variable) -> chainer.Variable:
        return _MeanPooling(self.provider).apply((x,))[0]

    def linear(self, x: chainer.Variable, fc: L.Linear) -> chainer.Variable:
        return _Linear(self.provider).apply((F.cast(x, fc.W.dtype), fc.W, fc.b))[0]
