"""The convolutions of the cuDNN engine as cuDNN graphs, by nvidia-cudnn-frontend.

Feature maps are CuPy arrays (batch, channels, height, width) whose memory is NHWC;
weights likewise. Each function computes what the one of its name in
:mod:`trainer.engines.cudnn.arrays` computes. A graph is built once for each
combination of shapes; its plan is chosen by time among the heuristics' first few,
and the choice kept on disk, for each GPU and version of cuDNN. :class:`NotSupported`
is raised where cuDNN has no plan; the caller then computes with arrays.
"""

import contextlib
import functools
import os
import sys

import chainer
import numpy as np

from trainer import files
from trainer.engines.cudnn import kernels
from trainer.engines.cudnn.arrays import empty

# How many plans are timed for each graph, once. 1 takes the best one known so far, or the
# first that runs: for shapes that are seldom computed timing is not worth its time, and while
# a CUDA graph is captured it is not possible.
chainer.global_config.plans = 6

#: Runs that are timed.
REPEATED = 10

#: Workspace that a plan may ask for, in bytes.
WORKSPACE = 1 << 28


def untimed(when=True):
    """Return a context manager in which no plans are timed, if ``when`` is true."""
    return chainer.using_config('plans', 1 if when else chainer.config.plans)


class NotSupported(Exception):
    """cuDNN has no plan for this."""


def _cudnn():
    import cudnn

    return cudnn


def version():
    """Return cuDNN's version, such as '9.19.0'."""
    number = _cudnn().backend_version()
    return f'{number // 10000}.{number // 100 % 100}.{number % 100}'


@functools.cache
def _handle(device):
    return _cudnn().create_handle()


def dims(shape):
    """Return (dim, stride) of an NHWC tensor, as graphs want them."""
    n, c, h, w = shape
    return [n, c, h, w], [h * w * c, 1, w * c, c]


class Graph:
    """A cuDNN graph under construction, then its chosen plan.

    Args:
        key (tuple): What the graph is, for the file of choices.
        precision (str): 'float32' (no TF32), 'tf32' or 'mixed'.
        device_property: cuDNN's description of a GPU that is not there, for tests.
    """

    def __init__(self, key, precision, device_property=None):
        cudnn = self.cudnn = _cudnn()
        self.key = f'{precision} {key}'
        self.precision = precision
        self.graph = cudnn.pygraph(
            io_data_type=cudnn.data_type.HALF if precision == 'mixed' else cudnn.data_type.FLOAT,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            device_property=device_property,
        )
        self.tensors = []
        self.plan = None
        self.timed = False

    def _type(self, dtype):
        types = self.cudnn.data_type
        return {'e': types.HALF, 'f': types.FLOAT}[np.dtype(dtype).char]

    def input(self, shape, dtype):
        dim, stride = dims(shape)
        tensor = self.graph.tensor(dim=dim, stride=stride, data_type=self._type(dtype))
        self.tensors.append(tensor)
        return tensor

    def channels(self, n):
        """An input of one float32 for each channel."""
        return self.input((1, n, 1, 1), np.float32)

    def output(self, tensor, shape, dtype):
        # Left unset, sizes and strides would be guessed.
        dim, stride = dims(shape)
        tensor.set_output(True).set_data_type(self._type(dtype)).set_dim(dim).set_stride(stride)
        self.tensors.append(tensor)
        return tensor

    def virtual(self, tensor, shape):
        """Fix the layout of a tensor that stays inside the graph."""
        dim, stride = dims(shape)
        tensor.set_data_type(self.cudnn.data_type.FLOAT).set_dim(dim).set_stride(stride)
        return tensor

    def finish(self):
        """Have cuDNN check the graph and find plans."""
        cudnn, graph = self.cudnn, self.graph
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            if self.precision == 'float32':
                notes = cudnn.numerical_note
                graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
            graph.deselect_workspace_greater_than(WORKSPACE)
            graph.check_support()
        except (RuntimeError, ValueError, cudnn.cudnnGraphNotSupportedError) as e:
            raise NotSupported(str(e)) from e
        return self

    def _pack(self, arrays):
        return {t: a.data.ptr for t, a in zip(self.tensors, arrays, strict=True)}

    def __call__(self, *arrays):
        """Compute. Arrays are in the order in which inputs and outputs were declared."""
        import cupy

        handle = _handle(cupy.cuda.Device().id)
        pack = self._pack(arrays)
        if self.plan is None or not self.timed and chainer.config.plans > 1:
            self.timed = chainer.config.plans > 1
            self.plan = self._choose(pack, handle)
        index, size = self.plan
        self._execute(pack, handle, index, size)

    def _execute(self, pack, handle, index, size):
        import cupy

        self.cudnn.set_stream(handle, cupy.cuda.get_current_stream().ptr)
        # Too small a workspace is an illegal access, not an error.
        workspace = cupy.cuda.alloc(max(size, 1))
        self.graph.execute_plan_at_index(pack, workspace.ptr, index, handle=handle)

    def _choose(self, pack, handle):
        choices = _choices()
        known = choices.get(self.key)
        plans = chainer.config.plans
        if known is None and plans > 1:
            _say_once()
        found = []
        for index in range(self.graph.get_execution_plan_count()):
            name = self.graph.get_plan_name_at_index(index)
            if known is not None and name != known:
                continue
            if len(found) == plans:
                break
            # Some plans fail when built or run.
            with contextlib.suppress(RuntimeError, self.cudnn.cudnnGraphNotSupportedError):
                self.graph.build_plan_at_index(index)
                size = self.graph.get_workspace_size_plan_at_index(index)
                run = functools.partial(self._execute, pack, handle, index, size)
                if known is not None or plans == 1:
                    run()
                    return index, size
                found.append((_time(run), index, size, name))
        if not found:
            if known is not None:  # by another version of this list
                choices.pop(self.key)
                return self._choose(pack, handle)
            raise NotSupported('no plan runs')
        _, index, size, name = min(found)
        choices[self.key] = name
        _keep(choices)
        return index, size


def _time(run):
    """Return the milliseconds of a few runs.

    They are replayed as a CUDA graph, as in a training step: launched one by one, what is
    small would take as long as Python does.
    """
    import cupy

    run()
    device, stream = cupy.cuda.Device(), cupy.cuda.get_current_stream()
    own = stream.ptr == cupy.cuda.Stream.null.ptr  # which cannot be captured
    if own:
        stream = cupy.cuda.Stream(non_blocking=True)
    device.synchronize()
    with stream:
        stream.begin_capture()
        try:
            for _ in range(REPEATED):
                run()
        except BaseException:
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        graph = stream.end_capture()
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        graph.launch()
        begin.record()
        graph.launch()
        end.record()
    device.synchronize()
    if own:  # memory is kept for each stream
        cupy.get_default_memory_pool().free_all_blocks(stream)
    return cupy.cuda.get_elapsed_time(begin, end)


# What is computed in which of several ways in this process: key -> (name, whether they were
# timed).
_ways = {}


def _by_time(key, ways, changed=()):
    """Compute in the fastest of several ways, name -> function; remember which that is.

    ``changed`` are arrays that they change.
    """
    time = chainer.config.plans > 1
    name, timed = _ways.get(key) or (_choices().get(key), True)
    if name in ways and (timed or not time):
        with contextlib.suppress(NotSupported):  # it was chosen on another machine
            return ways[name]()
    name = _fastest(key, ways, changed)
    _ways[key] = name, time
    return ways[name]()


def _fastest(key, ways, changed):
    found = []
    before = [array.copy() for array in changed]
    for name, way in ways.items():
        with contextlib.suppress(NotSupported):
            if chainer.config.plans == 1:
                way()
                found.append((0.0, name))
                break
            found.append((_time(way), name))
    for array, kept in zip(changed, before):
        array[...] = kept
    if not found:
        raise NotSupported('in no way')
    name = min(found)[1]
    if chainer.config.plans > 1:
        choices = _choices()
        choices[key] = name
        _keep(choices)
    return name


def _choices_path():
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    folder = chainer.dataset.get_dataset_directory('resnext')
    return os.path.join(
        folder, 'cudnn_{}_{}.json'.format(properties['name'].decode().replace(' ', '_'), version())
    )


@functools.cache
def _say_once():
    print(
        'timing what cuDNN offers for these shapes, once for this GPU: a minute or more; the '
        f'choice goes to\n{_choices_path()}',
        file=sys.stderr,
        flush=True,
    )


@functools.cache
def _choices():
    """Return the plans that were chosen before: key of the graph -> name of the plan."""
    try:
        choices = files.read_json(_choices_path())
        return choices if isinstance(choices, dict) else {}
    except (OSError, ValueError):
        return {}


def _keep(choices):
    with contextlib.suppress(OSError):  # a choice that cannot be kept is made again
        files.save_json(_choices_path(), choices)


# The graphs. Shapes are tuples; each builder is called once for each combination.


def out_shape(x, w, stride, pad):
    """Return the shape of a convolution's output."""
    size = [(n + 2 * pad - k) // stride + 1 for n, k in zip(x[2:], w[2:])]
    return x[0], w[0], size[0], size[1]


def _conv_arguments(stride, pad):
    return {'padding': [pad, pad], 'stride': [stride, stride], 'dilation': [1, 1]}


def build_conv_forward(x, w, stride, pad, summed, dtype, precision, device=None):
    g = Graph(('conv_forward', x, w, stride, pad, summed), precision, device)
    y = g.graph.conv_fprop(
        image=g.input(x, dtype), weight=g.input(w, dtype), **_conv_arguments(stride, pad)
    )
    sums = g.graph.genstats(input=y) if summed else ()
    g.output(y, out_shape(x, w, stride, pad), dtype)
    for tensor in sums:
        g.output(tensor, (1, w[0], 1, 1), np.float32)
    return g.finish()


def build_conv_backward_data(gy, w, x, stride, pad, added, dtype, precision, device=None):
    g = Graph(('conv_backward_data', gy, w, x, stride, pad, added), precision, device)
    gx = g.graph.conv_dgrad(
        loss=g.input(gy, dtype), filter=g.input(w, dtype), **_conv_arguments(stride, pad)
    )
    if added:
        g.virtual(gx, x)
        gx = g.graph.add(a=gx, b=g.input(x, dtype))
    g.output(gx, x, dtype)
    return g.finish()


def build_conv_backward_weights(x, gy, w, stride, pad, out, dtype, precision, device=None):
    g = Graph(('conv_backward_weights', x, gy, w, stride, pad, out), precision, device)
    gw = g.graph.conv_wgrad(
        image=g.input(x, dtype), loss=g.input(gy, dtype), **_conv_arguments(stride, pad)
    )
    g.output(gw, w, out)
    return g.finish()


def build_conv_bias(x, w, stride, pad, residual, relu, relu_first, dtype, precision, device=None):
    """relu(conv(x, w) + b + residual): inference, batch normalisation folded."""
    g = Graph(('conv_bias', x, w, stride, pad, residual, relu, relu_first), precision, device)
    y_shape = out_shape(x, w, stride, pad)
    last = g.graph.conv_fprop(
        image=g.input(x, dtype), weight=g.input(w, dtype), **_conv_arguments(stride, pad)
    )
    g.virtual(last, y_shape)
    last = g.graph.bias(input=last, bias=g.channels(w[0]))
    for what in ('relu', 'add') if relu_first else ('add', 'relu'):
        if what == 'add' and residual:
            g.virtual(last, y_shape)
            last = g.graph.add(a=last, b=g.input(y_shape, dtype))
        elif what == 'relu' and relu:
            g.virtual(last, y_shape)
            last = g.graph.relu(input=last)
    g.output(last, y_shape, dtype)
    return g.finish()


def _once(build):
    """Build each graph once; remember too what is not supported."""

    @functools.cache
    def attempt(*key):
        try:
            return build(*key)
        except NotSupported as e:
            return str(e)  # the exception itself would keep callers' arrays

    def get(*key):
        graph = attempt(*key)
        if isinstance(graph, str):
            raise NotSupported(graph)
        return graph

    return get


_conv_forward = _once(build_conv_forward)
_conv_backward_data = _once(build_conv_backward_data)
_conv_backward_weights = _once(build_conv_backward_weights)
_conv_bias = _once(build_conv_bias)


# The operations.


def _like(array, shape, dtype=None):
    import cupy

    return empty(cupy, shape, dtype or array.dtype)


def conv_forward(x, w, stride, pad, groups, precision):
    y = _like(x, out_shape(x.shape, w.shape, stride, pad))
    _conv_forward(x.shape, w.shape, stride, pad, False, x.dtype.char, precision)(x, w, y)
    return y


def conv_with_sums(x, w, stride, pad, groups, precision):
    """Return what :func:`conv_forward` does, and the sums of each channel's values and of
    their squares, float32 (channels,)."""
    import cupy

    y = _like(x, out_shape(x.shape, w.shape, stride, pad))
    total, square = (cupy.empty(len(w), np.float32) for _ in range(2))
    _conv_forward(x.shape, w.shape, stride, pad, True, x.dtype.char, precision)(
        x, w, y, total, square
    )
    return y, total, square


def conv_statistics(x, w, stride, pad, groups, running, precision):
    """Return what :func:`conv_forward` does, and its statistics
    (:func:`trainer.engines.cudnn.arrays.statistics`)."""
    # float32 deserves sums that squares do not cancel in; cuDNN has no plan for groups.
    if x.dtype.char != 'e' or groups > 1:
        raise NotSupported('in one graph')

    def from_sums():
        y, total, square = conv_with_sums(x, w, stride, pad, groups, precision)
        return (y, *kernels.statistics_of_sums(total, square, y.size // len(total), running))

    def then_read():
        y = conv_forward(x, w, stride, pad, groups, precision)
        return (y, *kernels.statistics(y, running))

    return _by_time(
        f'{precision} {x.shape} {w.shape} {stride} {pad} statistics',
        {'one graph': from_sums, 'two steps': then_read},
        (running.mean, running.var),
    )


def conv_backward_data(gy, w, x_shape, stride, pad, groups, addend, precision):
    gx = _like(gy, x_shape)

    def compute(*addend):
        graph = _conv_backward_data(
            gy.shape, w.shape, x_shape, stride, pad, bool(addend), gy.dtype.char, precision
        )
        graph(gy, w, *addend, gx)

    def then_add():
        compute()
        kernels.accumulate(gx, addend)

    if addend is None:
        compute()
    else:
        _by_time(
            f'{precision} {gy.shape} {w.shape} {x_shape} {stride} added',
            {'one graph': lambda: compute(addend), 'two steps': then_add},
        )
    return gx


def conv_backward_weights(x, gy, w_shape, stride, pad, groups, precision):
    """As in arrays, but of float16 inputs in float16 where that is faster or all there is."""

    def compute(out):
        gw = _like(x, w_shape, out)
        _conv_backward_weights(
            x.shape, gy.shape, w_shape, stride, pad, out, x.dtype.char, precision
        )(x, gy, gw)
        return gw

    if x.dtype.char == 'f':
        return compute('f')
    # Summed in float32 both ways; the second rounds once.
    return _by_time(
        f'{precision} {x.shape} {gy.shape} {w_shape} weights',
        {'float32': lambda: compute('f'), 'float16': lambda: compute('e')},
    )


def conv_bias(x, w, b, stride, pad, groups, residual, relu, relu_first, precision):
    y = _like(x, out_shape(x.shape, w.shape, stride, pad))
    graph = _conv_bias(
        x.shape,
        w.shape,
        stride,
        pad,
        residual is not None,
        relu,
        relu and relu_first and residual is not None,
        x.dtype.char,
        precision,
    )
    graph(*(a for a in (x, w, b, residual, y) if a is not None))
    return y
