"""The cuDNN engine: the layers through nvidia-cudnn-frontend, on CuPy's arrays.

``chainer.config.precision`` chooses how: 'float32' (true float32), 'tf32', or
'mixed': feature maps in float16, sums and statistics in float32, parameters and
their gradients in float32. Feature maps keep NHWC memory from the stem to the
classifier. Parameters are Chainer's, and so is the autograd.

cuDNN computes the convolutions (:mod:`trainer.engines.cudnn.graphs`), and kernels of our
own what surrounds them (:mod:`trainer.engines.cudnn.kernels`). What cuDNN has no plan for
is computed by :mod:`trainer.engines.cudnn.arrays`, which also computes everything on NumPy
arrays: so the tests hold this engine's wiring against the reference without a GPU.
"""

import contextlib
import functools
import importlib.util
import textwrap
import warnings

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import backend
from chainer.utils.conv import get_conv_outsize

from trainer import cuda
from trainer.engines import reference
from trainer.engines.cudnn import arrays, graphs, kernels, library, timing

PRECISIONS = ('float32', 'tf32', 'mixed')

chainer.global_config.precision = 'float32'

# Layers (convolution, batch normalisation) and their weights and biases with the one folded
# into the other, where a predictor keeps them; None folds at each call.
chainer.global_config.folded = None

# Weights that are converted already (trainer.engines.cudnn.parameters.HalfWeights), for as
# long as they do not change; None converts them at each call. The gradients of such weights
# are float16 where cuDNN makes them so, which trainer.engines.cudnn.parameters.Update reads.
chainer.global_config.converted = None

# Whether what cuDNN has no plan for is computed by arrays, with a warning; else NotSupported
# is raised.
chainer.global_config.fallback = True

#: How far each precision may be from float32, relative to the array's norm.
TOLERANCES = {'float32': 1e-4, 'tf32': 5e-3, 'mixed': 3e-2}


def _on_numpy(array):
    return backend.get_array_module(array) is np


@functools.cache
def _warn(what):
    warnings.warn(
        f'cuDNN has no plan for {what}: it is computed as a matrix product, many times slower',
        stacklevel=2,
    )


def _convolution(name):
    by_graph, by_arrays = getattr(graphs, name), getattr(arrays, name)

    def compute(first, *args):
        if not _on_numpy(first):
            try:
                return by_graph(first, *args, chainer.config.precision)
            except graphs.NotSupported as e:
                if not chainer.config.fallback:
                    raise
                _warn(str(e))
        return by_arrays(first, *args)

    return compute


def _kernel(name):
    by_kernel, by_arrays = getattr(kernels, name), getattr(arrays, name)

    def compute(first, *args):
        return (by_arrays if _on_numpy(first) else by_kernel)(first, *args)

    return compute


_conv_forward = _convolution('conv_forward')
_conv_backward_data = _convolution('conv_backward_data')
_conv_backward_weights = _convolution('conv_backward_weights')
_conv_bias = _convolution('conv_bias')
_statistics = _kernel('statistics')
_normalize = _kernel('normalize')
_bn_backward = _kernel('bn_backward')
_max_pooling = _kernel('max_pooling')
_max_pooling_backward = _kernel('max_pooling_backward')
_mean_pooling = _kernel('mean_pooling')
_mean_pooling_backward = _kernel('mean_pooling_backward')


def _conv_statistics(x, *args, running):
    """Return a convolution's output and its statistics; see arrays."""
    if not _on_numpy(x):
        with contextlib.suppress(graphs.NotSupported):  # nor has the convolution by itself
            return graphs.conv_statistics(x, *args, running, chainer.config.precision)
    h = _conv_forward(x, *args)
    return (h, *_statistics(h, running))


def _nhwc(array, dtype):
    """Return ``array`` in a type and in NHWC memory, itself where it is so already."""
    if array.dtype == dtype and array.transpose(0, 2, 3, 1).flags.c_contiguous:
        return array
    converted = arrays.empty(backend.get_array_module(array), array.shape, dtype)
    converted[...] = array
    return converted


def _weights(w, dtype):
    """As :func:`_nhwc`, of a convolution's weights."""
    converted = chainer.config.converted or {}
    if dtype == np.float16 and id(w) in converted:
        return converted[id(w)][1]
    return _nhwc(w, dtype)


def _feature_type(x):
    if chainer.config.precision == 'mixed':
        return np.dtype(np.float16)
    return np.promote_types(x.dtype, np.float32)


def _give(node, gradient):
    """Return a gradient as Chainer takes it: of the type of its variable.

    One of another type is left at the variable, a parameter.
    """
    if gradient.dtype == node.dtype:
        return chainer.Variable(gradient)
    node.get_variable()._set_grad_without_check(gradient)
    return None


def _there(node, gradient):
    """Return the array of a gradient, or what :func:`_give` left in its place, or ``None``."""
    if gradient is None and node.creator_node is None:
        gradient = node.get_variable().grad_var
    return None if gradient is None else gradient.array


class _Function(chainer.FunctionNode):
    """A function whose gradients are added to those that its inputs have already.

    :meth:`gradients` returns them as arrays; the last argument has, for each input, the
    array that is there, or ``None``, and what is in :attr:`adds` adds it by itself.
    """

    #: Indices of inputs.
    adds = ()

    def gradients(self, indexes, gy, there):
        raise NotImplementedError

    def backward_accumulate(self, indexes, grad_outputs, grad_inputs):
        there = {i: _there(self.inputs[i], g) for i, g in zip(indexes, grad_inputs)}
        found = self.gradients(indexes, grad_outputs[0].array, there)
        return tuple(
            _give(
                self.inputs[i],
                found[i] if there[i] is None or i in self.adds else found[i] + there[i],
            )
            for i in indexes
        )


class _ConvBN(_Function):
    """Convolution, batch normalisation and what comes behind it, in training."""

    adds = (0,)

    def __init__(self, conv, bn, kind, eps_in_average):
        self.stride, self.pad, self.groups = conv.stride[0], conv.pad[0], conv.groups
        self.kind = kind
        self.running = arrays.Running(bn.avg_mean, bn.avg_var, bn.eps, bn.decay, eps_in_average)

    def forward(self, inputs):
        x, w, gamma, beta, *residual = inputs
        dtype = _feature_type(x)
        self.given = [a.dtype for a in inputs]
        self.precision = chainer.config.precision
        x, self.w = _nhwc(x, dtype), _weights(w, dtype)
        residual = _nhwc(residual[0], dtype) if residual else None
        h, self.mean, self.inv_std = _conv_statistics(
            x, self.w, self.stride, self.pad, self.groups, running=self.running
        )
        y, self.mask = _normalize(h, residual, self.mean, self.inv_std, gamma, beta, self.kind)
        self.x, self.h = x, h
        self.retain_inputs((2, 3))
        return (y,)

    def gradients(self, indexes, gy, there):
        gamma, beta = (v.array for v in self.get_retained_inputs())
        x, h = self.x, self.h
        if h is None:
            raise RuntimeError('backward was called before; call forward again')
        # Their memory is wanted while the rest of the network is computed backward.
        self.x = self.h = None
        with chainer.using_config('precision', self.precision):
            gh, ggamma, gbeta, gresidual = _bn_backward(
                _nhwc(gy, h.dtype),
                self.mask,
                h,
                gamma,
                beta,
                self.mean,
                self.inv_std,
                self.kind,
                4 in indexes,
            )
            found = {2: ggamma, 3: gbeta, 4: gresidual}
            del h, gy
            if 0 in indexes:
                found[0] = _conv_backward_data(
                    gh,
                    self.w,
                    x.shape,
                    self.stride,
                    self.pad,
                    self.groups,
                    None if there[0] is None else _nhwc(there[0], x.dtype),
                )
            if 1 in indexes:
                found[1] = _conv_backward_weights(
                    x, gh, self.w.shape, self.stride, self.pad, self.groups
                )
        # Not what is added to a gradient that is there already: sums are in float32.
        as_made = {1} if chainer.config.converted and there.get(1) is None else ()
        return {
            i: found[i] if i in as_made else found[i].astype(self.given[i], copy=False)
            for i in indexes
        }


class _MaxPooling(_Function):
    def __init__(self, ksize, stride, pad, round_up):
        self.window = ksize, stride, pad
        self.round_up = round_up

    def forward(self, inputs):
        x = _nhwc(inputs[0], inputs[0].dtype)
        self.shape = x.shape
        size = tuple(
            get_conv_outsize(n, *self.window, cover_all=self.round_up) for n in x.shape[2:]
        )
        y, self.place = _max_pooling(x, x.shape[:2] + size, *self.window)
        return (y,)

    def gradients(self, indexes, gy, there):
        return {0: _max_pooling_backward(_nhwc(gy, gy.dtype), self.place, self.shape, *self.window)}


class _MeanPooling(_Function):
    def forward(self, inputs):
        x = _nhwc(inputs[0], inputs[0].dtype)
        self.shape, self.dtype = x.shape, x.dtype
        return (_mean_pooling(x),)

    def gradients(self, indexes, gy, there):
        return {0: _mean_pooling_backward(gy, self.shape, self.dtype)}


class _SubsampleAndPad(_Function):
    """Every ``stride``-th pixel, then zero channels."""

    def __init__(self, stride, out_channels):
        self.stride = stride
        self.out_channels = out_channels

    def forward(self, inputs):
        (x,) = inputs
        self.shape = x.shape
        kept = x[:, :, :: self.stride, :: self.stride]
        y = arrays.empty(
            backend.get_array_module(x), (len(x), self.out_channels) + kept.shape[2:], x.dtype
        )
        y[:, x.shape[1] :] = 0
        y[:, : x.shape[1]] = kept
        return (y,)

    def gradients(self, indexes, gy, there):
        gx = arrays.empty(backend.get_array_module(gy), self.shape, gy.dtype)
        gx[...] = 0
        gx[:, :, :: self.stride, :: self.stride] = gy[:, : self.shape[1]]
        return {0: gx}


class _Linear(_Function):
    """The classifier as a 1x1 convolution, on float32: cuBLAS cannot be captured."""

    def forward(self, inputs):
        x, w, b = inputs
        # float16 would gain nothing here, and lose what the loss is made of.
        self.precision = {'mixed': 'tf32'}.get(chainer.config.precision, chainer.config.precision)
        self.x, self.w = _nhwc(x, w.dtype), _nhwc(w[:, :, None, None], w.dtype)
        with chainer.using_config('precision', self.precision):
            y = _conv_bias(self.x, self.w, b, 1, 0, 1, None, False, False)
        return (y.reshape(len(y), -1),)

    def gradients(self, indexes, gy, there):
        gy = _nhwc(gy[:, :, None, None], gy.dtype)
        found = {2: gy.sum(axis=(0, 2, 3))}
        with chainer.using_config('precision', self.precision):
            if 0 in indexes:
                found[0] = _conv_backward_data(gy, self.w, self.x.shape, 1, 0, 1, None)
            if 1 in indexes:
                found[1] = _conv_backward_weights(self.x, gy, self.w.shape, 1, 0, 1).reshape(
                    self.w.shape[:2]
                )
        return found


# What an engine has: see trainer.engines.reference.


def conv_bn(x, conv, bn, relu, residual=None, relu_first=False, eps_in_average=0.0):
    if not chainer.config.train:
        return _conv_bn_inference(x, conv, bn, relu, residual, relu_first)
    if residual is None:
        kind, inputs = arrays.RELU if relu else arrays.PLAIN, ()
    else:
        kind = arrays.ADD if not relu else arrays.RELU_ADD if relu_first else arrays.ADD_RELU
        inputs = (residual,)
    return _ConvBN(conv, bn, kind, eps_in_average).apply((x, conv.W, bn.gamma, bn.beta) + inputs)[0]


def _conv_bn_inference(x, conv, bn, relu, residual, relu_first):
    x = chainer.as_variable(x)
    if chainer.config.enable_backprop:
        # Gradients through fixed statistics are rare; the reference has them.
        x = F.cast(x, conv.W.dtype)
        residual = residual if residual is None else F.cast(residual, conv.W.dtype)
        return reference.conv_bn(x, conv, bn, relu, residual, relu_first)
    dtype = _feature_type(x)
    w, b = fold(conv, bn, dtype)
    residual = None if residual is None else _nhwc(residual.array, dtype)
    y = _conv_bias(
        _nhwc(x.array, dtype),
        w,
        b,
        conv.stride[0],
        conv.pad[0],
        conv.groups,
        residual,
        relu,
        relu_first,
    )
    return chainer.Variable(y)


def fold(conv, bn, dtype):
    """Return NHWC weights and float32 biases of a convolution with its normalisation."""
    kept = chainer.config.folded
    if kept is not None and (conv, bn) in kept:
        return kept[conv, bn]
    with contextlib.nullcontext() if kept is None or _on_numpy(bn.avg_mean) else cuda.lasting():
        scale = bn.gamma.array / (bn.avg_var + bn.eps) ** 0.5
        w = _nhwc(conv.W.array * scale.reshape(-1, 1, 1, 1), dtype)
        b = (bn.beta.array - bn.avg_mean * scale).astype(np.promote_types(dtype, np.float32))
    if kept is not None:
        kept[conv, bn] = w, b
    return w, b


def subsample_and_pad(x, stride, out_channels):
    if stride == 1 and x.shape[1] == out_channels:
        return x
    return _SubsampleAndPad(stride, out_channels).apply((x,))[0]


def max_pooling(x, ksize, stride, pad, round_up):
    return _MaxPooling(ksize, stride, pad, round_up).apply((x,))[0]


def global_average_pooling(x):
    return _MeanPooling().apply((x,))[0]


def linear(x, fc):
    return _Linear().apply((F.cast(x, fc.W.dtype), fc.W, fc.b))[0]


# Whether it can be used.


@functools.cache
def unavailable(gpu):
    """Say why this engine cannot compute on a GPU, or return ``None``.

    It computes a small layer forward and backward, in each precision, and compares:
    nothing is trained by kernels that were not seen to work here.

    Args:
        gpu (int): Number of the GPU.
    """
    for name in ('cupy', 'cudnn'):
        if importlib.util.find_spec(name) is None:
            return '{} is not installed (extra cuda13)'.format(
                {'cudnn': 'nvidia-cudnn-frontend'}.get(name, name)
            )
    try:
        library.version()
        with chainer.get_device(f'@cupy:{gpu}').device:
            for precision in PRECISIONS:
                error = _try_out(precision, gpu)
                if not error < TOLERANCES[precision]:
                    return f'its {precision} results are off by {error:.1e}'
    except Exception as e:  # whatever goes wrong with a driver, the reference remains
        return f'it failed here ({type(e).__name__}: {textwrap.shorten(str(e), 200)})'
    return None


def precisions():
    return PRECISIONS


def _try_out(precision, gpu):
    """Return the greatest relative error of a grouped layer, forward and backward."""
    rng = np.random.default_rng(0)
    layer = chainer.Chain()
    with layer.init_scope():
        layer.conv = L.Convolution2D(16, 32, 3, 2, 1, nobias=True, groups=4)
        layer.bn = L.BatchNormalization(32)
    x = rng.standard_normal((4, 16, 9, 7)).astype(np.float32)
    residual = rng.standard_normal((4, 32, 5, 4)).astype(np.float32)
    gy = rng.standard_normal((4, 32, 5, 4)).astype(np.float32)
    results = []
    for device in ('@numpy', f'@cupy:{gpu}'):
        device = chainer.get_device(device)
        layer.to_device(device)
        layer.cleargrads()
        inputs = [chainer.Variable(device.send(a)) for a in (x, residual)]
        with (
            chainer.using_config('precision', precision),
            chainer.using_config('train', True),
            chainer.using_config('fallback', False),
            timing.untimed(),
        ):
            # Without a ReLU, whose flips say nothing of the arithmetic.
            y = conv_bn(inputs[0], layer.conv, layer.bn, False, inputs[1])
            y.grad = device.send(gy).astype(y.dtype)
            y.backward()
        found = (
            [y.array] + [i.grad for i in inputs] + [p.grad for _, p in sorted(layer.namedparams())]
        )
        results.append([chainer.get_device('@numpy').send(a).astype(np.float64) for a in found])
    return max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(*results))
