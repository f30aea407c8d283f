"""The cuDNN engine: the layers through nvidia-cudnn-frontend, on CuPy's arrays.

``chainer.config.precision`` chooses how: 'float32' (true float32), 'tf32', or
'mixed': feature maps in float16, sums and statistics in float32, parameters and
their gradients in float32. Feature maps keep NHWC memory from the stem to the
classifier. Parameters are Chainer's, and so is the autograd.

What cuDNN has no plan for is computed by :mod:`trainer.engines.cudnn.arrays`, which
also computes everything on NumPy arrays: so the tests hold this engine's wiring
against the reference without a GPU.
"""
import functools
import importlib.util

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import backend

from trainer import engines
from trainer.engines import reference
from trainer.engines.cudnn import arrays, graphs

PRECISIONS = ('float32', 'tf32', 'mixed')

chainer.global_config.precision = 'float32'

# Weights and biases with batch normalisation folded in, by layer, where a predictor
# keeps them; None folds at each call.
chainer.global_config.folded = None

#: How far each precision may be from float32, relative to the array's norm.
TOLERANCES = {'float32': 1e-4, 'tf32': 5e-3, 'mixed': 3e-2}


def _operation(name):
    by_graph, by_arrays = getattr(graphs, name), getattr(arrays, name)

    def compute(first, *args):
        if backend.get_array_module(first) is not np:
            try:
                return by_graph(first, *args, chainer.config.precision)
            except graphs.NotSupported:
                pass
        return by_arrays(first, *args)
    return compute


_conv_forward = _operation('conv_forward')
_conv_backward_data = _operation('conv_backward_data')
_conv_backward_weights = _operation('conv_backward_weights')
_conv_bias = _operation('conv_bias')
_bn_forward = _operation('bn_forward')
_bn_backward = _operation('bn_backward')


def _nhwc(array, dtype):
    """Return ``array`` in a type and in NHWC memory, itself where it is so already."""
    xp = backend.get_array_module(array)
    if array.dtype == dtype and array.transpose(0, 2, 3, 1).flags.c_contiguous:
        return array
    return xp.ascontiguousarray(array.transpose(0, 2, 3, 1).astype(dtype, copy=False)).transpose(
        0, 3, 1, 2)


def _feature_type(x):
    if chainer.config.precision == 'mixed':
        return np.dtype(np.float16)
    return np.promote_types(x.dtype, np.float32)


class _ConvBN(chainer.FunctionNode):
    """relu(bn(conv(x)) + residual) in training: two graphs forward, three backward."""

    def __init__(self, conv, bn, relu):
        self.stride, self.pad, self.groups = conv.stride[0], conv.pad[0], conv.groups
        self.bn = bn
        self.relu = relu

    def forward(self, inputs):
        x, w, gamma, beta, *residual = inputs
        dtype = _feature_type(x)
        self.given = [a.dtype for a in inputs]
        self.precision = chainer.config.precision
        x, self.w = _nhwc(x, dtype), _nhwc(w, dtype)
        residual = _nhwc(residual[0], dtype) if residual else None
        h = _conv_forward(x, self.w, self.stride, self.pad, self.groups)
        y, self.mask, self.mean, self.inv_std = _bn_forward(
            h, gamma, beta, self.bn.avg_mean, self.bn.avg_var, residual, self.relu, self.bn.eps,
            self.bn.decay)
        self.x, self.h = x, h
        self.retain_inputs((2,))
        return y,

    def backward(self, indexes, grad_outputs):
        gy, = grad_outputs
        gamma, = self.get_retained_inputs()
        with chainer.using_config('precision', self.precision):
            gh, ggamma, gbeta, gresidual = _bn_backward(
                _nhwc(gy.array, self.h.dtype), self.mask, self.h, gamma.array, self.mean,
                self.inv_std, 4 in indexes)
            found = {2: ggamma, 3: gbeta, 4: gresidual}
            if 0 in indexes:
                found[0] = _conv_backward_data(gh, self.w, self.x.shape, self.stride, self.pad,
                                               self.groups)
            if 1 in indexes:
                found[1] = _conv_backward_weights(self.x, gh, self.w.shape, self.stride, self.pad,
                                                  self.groups)
        return tuple(chainer.Variable(found[i].astype(self.given[i], copy=False))
                     for i in indexes)


class _ToFloat32(chainer.FunctionNode):
    """Global average pooling, summed in float32: (batch, channels, 1, 1)."""

    def forward(self, inputs):
        x, = inputs
        self.shape, self.dtype = x.shape, x.dtype
        wide = np.promote_types(x.dtype, np.float32)
        return x.mean(axis=(2, 3), dtype=wide, keepdims=True),

    def backward(self, indexes, grad_outputs):
        gy = grad_outputs[0].array
        area = self.shape[2] * self.shape[3]
        gx = graphs.empty(backend.get_array_module(gy), self.shape, self.dtype)
        gx[...] = gy / gy.dtype.type(area)
        return chainer.Variable(gx),


class _SubsampleAndPad(chainer.FunctionNode):
    """Every ``stride``-th pixel, then zero channels."""

    def __init__(self, stride, out_channels):
        self.stride = stride
        self.out_channels = out_channels

    def forward(self, inputs):
        x, = inputs
        self.shape = x.shape
        kept = x[:, :, ::self.stride, ::self.stride]
        y = graphs.empty(backend.get_array_module(x),
                         (len(x), self.out_channels) + kept.shape[2:], x.dtype)
        y[:, x.shape[1]:] = 0
        y[:, :x.shape[1]] = kept
        return y,

    def backward(self, indexes, grad_outputs):
        gy = grad_outputs[0].array
        gx = graphs.empty(backend.get_array_module(gy), self.shape, gy.dtype)
        gx[...] = 0
        gx[:, :, ::self.stride, ::self.stride] = gy[:, :self.shape[1]]
        return chainer.Variable(gx),


# What an engine has: see trainer.engines.reference.


def conv_bn(x, conv, bn, relu, residual=None):
    if not chainer.config.train:
        return _conv_bn_inference(x, conv, bn, relu, residual)
    inputs = (x, conv.W, bn.gamma, bn.beta) + (() if residual is None else (residual,))
    return _ConvBN(conv, bn, relu).apply(inputs)[0]


def _conv_bn_inference(x, conv, bn, relu, residual):
    x = chainer.as_variable(x)
    if chainer.config.enable_backprop:
        # Gradients through fixed statistics are rare; the reference has them.
        x = F.cast(x, conv.W.dtype)
        residual = residual if residual is None else F.cast(residual, conv.W.dtype)
        return reference.conv_bn(x, conv, bn, relu, residual)
    dtype = _feature_type(x)
    w, b = _fold(conv, bn, dtype)
    y = _conv_bias(_nhwc(x.array, dtype), w, b, conv.stride[0], conv.pad[0], conv.groups,
                   None if residual is None else _nhwc(residual.array, dtype), relu)
    return chainer.Variable(y)


def _fold(conv, bn, dtype):
    """Return NHWC weights and float32 biases of a convolution with its normalisation."""
    kept = chainer.config.folded
    if kept is not None and id(conv) in kept:
        return kept[id(conv)]
    scale = bn.gamma.array / (bn.avg_var + bn.eps) ** .5
    w = _nhwc(conv.W.array * scale.reshape(-1, 1, 1, 1), dtype)
    b = (bn.beta.array - bn.avg_mean * scale).astype(np.promote_types(dtype, np.float32))
    if kept is not None:
        kept[id(conv)] = w, b
    return w, b


def add(x, y):
    return x + y


def subsample_and_pad(x, stride, out_channels):
    if stride == 1 and x.shape[1] == out_channels:
        return x
    return _SubsampleAndPad(stride, out_channels).apply((x,))[0]


def max_pooling(x, ksize, stride, pad, round_up):
    return F.max_pooling_2d(x, ksize, stride, pad, cover_all=round_up)


def global_average_pooling(x):
    return _ToFloat32().apply((x,))[0]


def linear(x, fc):
    # A hundredth of the network's work; float32 already, after the pooling.
    if not chainer.config.train and not chainer.config.enable_backprop and (
            chainer.config.folded is not None):
        # A 1x1 convolution: cuBLAS cannot be captured in a CUDA graph.
        w = _nhwc(fc.W.array[:, :, None, None], np.float32)
        with chainer.using_config('precision', 'float32'):
            y = _conv_bias(_nhwc(x.array, np.float32), w, fc.b.array, 1, 0, 1, None, False)
        return chainer.Variable(y.reshape(len(y), -1))
    return reference.linear(F.cast(x, fc.W.dtype), fc)


# Whether it can be used.


@functools.lru_cache(maxsize=None)
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
                {'cudnn': 'nvidia-cudnn-frontend'}.get(name, name))
    try:
        import cudnn
        cudnn.backend_version()
        with chainer.get_device('@cupy:{}'.format(gpu)).device:
            for precision in PRECISIONS:
                error = _try_out(precision)
                if not error < TOLERANCES[precision]:
                    return 'its {} results are off by {:.1e}'.format(precision, error)
    except Exception as e:  # whatever goes wrong with a driver, the reference remains
        return 'it failed here ({}: {})'.format(type(e).__name__, ' '.join(str(e).split())[:80])
    return None


def _try_out(precision):
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
    for device in ('@numpy', '@cupy:{}'.format(_current_gpu())):
        device = chainer.get_device(device)
        layer.to_device(device)
        layer.cleargrads()
        inputs = [chainer.Variable(device.send(a)) for a in (x, residual)]
        with chainer.using_config('precision', precision), chainer.using_config('train', True):
            # Without a ReLU, whose flips say nothing of the arithmetic.
            y = conv_bn(inputs[0], layer.conv, layer.bn, False, inputs[1])
            y.grad = device.send(gy).astype(y.dtype)
            y.backward()
        found = [y.array] + [i.grad for i in inputs] + [p.grad for _, p in sorted(
            layer.namedparams())]
        results.append([chainer.get_device('@numpy').send(a).astype(np.float64) for a in found])
    return max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(*results))


def _current_gpu():
    import cupy
    return cupy.cuda.Device().id


class _Predictor(engines.Predictor):
    """The folded network, captured as one CUDA graph for each shape of input."""

    def __init__(self, network, precision):
        import cupy
        super().__init__(network, 'cudnn', 'cuDNN {}, {}'.format(
            graphs.version(), 'float16' if precision == 'mixed' else precision))
        self._cupy = cupy
        self._precision = precision
        self._folded = {}
        self._captured = {}
        # What a graph reads and writes must not be given to anyone else.
        self._pool = cupy.cuda.MemoryPool()
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def _compute(self, x):
        with chainer.using_config('engine', 'cudnn'), chainer.using_config('train', False), \
                chainer.using_config('precision', self._precision), \
                chainer.using_config('folded', self._folded), chainer.no_backprop_mode():
            features = self.network.features(chainer.Variable(x))
            return features.array, self.network.classify(features).array

    def _capture(self, shape):
        cupy = self._cupy
        with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            x = cupy.zeros(shape, np.float32)
            self._compute(x)  # chooses plans, folds weights, takes the memory
            self._stream.begin_capture()
            try:
                outputs = self._compute(x)
            finally:
                graph = self._stream.end_capture()
            return graph, x, outputs

    def _run(self, x):
        if x.shape not in self._captured:
            self._captured[x.shape] = self._capture(x.shape)
        graph, captured_x, outputs = self._captured[x.shape]
        with self._stream:
            captured_x.set(np.ascontiguousarray(x, np.float32), self._stream)
            graph.launch(self._stream)
            results = [a.get(self._stream) for a in outputs]
            self._stream.synchronize()
        return results

    def __call__(self, x):
        return self._run(x)[1]

    def features(self, x):
        return self._run(x)[0]


def predictor(network, precision='float32'):
    """Make a network on a GPU ready for inference; later changes of its weights do not show.

    Args:
        network (trainer.networks.base.Network): The network.
        precision (str): 'float32', 'tf32' or 'mixed' (float16).
    """
    return _Predictor(network, precision)
