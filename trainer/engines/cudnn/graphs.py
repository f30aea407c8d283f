"""cuDNN graphs of the convolutions, by nvidia-cudnn-frontend.

Feature maps are CuPy arrays (batch, channels, height, width) whose memory is NHWC;
weights likewise. A graph is built once for each GPU and combination of shapes; its plan is
chosen by time among the heuristics' first few (:mod:`trainer.engines.cudnn.timing`).
:class:`NoPlan` is raised where cuDNN has no plan. All other errors, such as a missing
library, propagate.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from trainer.engines.cudnn import library, timing
from trainer.engines.cudnn.timing import NoPlan
from trainer.settings import settings

if TYPE_CHECKING:
    import cudnn
    import cupy
    import numpy.typing as npt

    from trainer.types import Shape

#: Largest workspace of a plan, in bytes.
WORKSPACE = 1 << 28

#: Plans tried for each graph that cuDNN compiles at run time, up to 1.5 s each.
COMPILED = 3


def dims(shape: Shape, channels: int | None = None) -> tuple[list[int], list[int]]:
    """Return (dim, stride) of an NHWC tensor, as graphs want them.

    Args:
        shape: (batch, channels, height, width).
        channels: Channels of the whole map, if the tensor is a slice of its channels.
    """
    n, c, h, w = shape
    pixel = channels or c
    return [n, c, h, w], [h * w * pixel, 1, w * pixel, pixel]


class Graph:
    """A cuDNN graph under construction, then its chosen plan.

    Args:
        key: Operation and shapes; the key in the cache of choices.
        precision: 'float32' (no TF32), 'tf32' or 'mixed'.
        device: The target GPU.
    """

    tensors: list[cudnn.tensor]

    def __init__(self, key: tuple, precision: str, device: library.Device) -> None:
        cudnn = self.cudnn = library.frontend()
        self.key = f'{precision} {key}'
        self.precision = precision
        self.device = device
        self.graph = cudnn.pygraph(
            io_data_type=cudnn.data_type.HALF if precision == 'mixed' else cudnn.data_type.FLOAT,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=device.handle,
            sm_version=device.sm_version,
            device_property=device.properties,
        )
        self.tensors = []
        self.plan: tuple[int, int] | None = None
        self.refused: str | None = None
        self.timed = False

    def _type(self, dtype):
        types = self.cudnn.data_type
        return {'e': types.HALF, 'f': types.FLOAT}[np.dtype(dtype).char]

    def input(
        self, shape: Shape, dtype: npt.DTypeLike, channels: int | None = None
    ) -> cudnn.tensor:
        dim, stride = dims(shape, channels)
        tensor = self.graph.tensor(dim=dim, stride=stride, data_type=self._type(dtype))
        self.tensors.append(tensor)
        return tensor

    def channels(self, n: int) -> cudnn.tensor:
        """Declare a float32 input (1, n, 1, 1)."""
        return self.input((1, n, 1, 1), np.float32)

    def output(
        self, tensor: cudnn.tensor, shape: Shape, dtype: npt.DTypeLike, channels: int | None = None
    ) -> cudnn.tensor:
        # cuDNN guesses NHWC strides for outputs that have none.
        dim, stride = dims(shape, channels)
        tensor.set_output(True).set_data_type(self._type(dtype)).set_dim(dim).set_stride(stride)
        self.tensors.append(tensor)
        return tensor

    def virtual(self, tensor: cudnn.tensor, shape: Shape) -> cudnn.tensor:
        """Set the layout of an intermediate tensor."""
        dim, stride = dims(shape)
        tensor.set_data_type(self.cudnn.data_type.FLOAT).set_dim(dim).set_stride(stride)
        return tensor

    def _not_supported(self, reason):
        first = reason.partition('\n')[0]  # messages of cuDNN's engines follow
        return NoPlan(f'{self.key} ({textwrap.shorten(first, 200)})')

    def finish(self) -> Graph:
        """Validate the graph and query its plans.

        Raises:
            NoPlan: cuDNN has no plan.
            RuntimeError: A library failed.
            ValueError: The graph is invalid.
        """
        cudnn, graph = self.cudnn, self.graph
        graph.validate()
        try:
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            if self.precision == 'float32':
                notes = cudnn.numerical_note
                graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
            graph.deselect_workspace_greater_than(WORKSPACE)
            graph.check_support()
        except cudnn.cudnnGraphNotSupportedError as e:
            raise self._not_supported(str(e)) from e
        return self

    def __call__(self, *arrays: cupy.ndarray) -> None:
        """Compute on arrays, given in the order in which tensors were declared."""
        if self.refused is not None:
            raise NoPlan(self.refused)
        pack = {t: a.data.ptr for t, a in zip(self.tensors, arrays, strict=True)}
        timed = settings.plans > 1
        if self.plan is None or timed and not self.timed:
            try:
                self.plan, self.timed = self._choose(pack, timed), timed
            except NoPlan as e:
                self.refused = str(e)
                raise
        self._execute(pack, *self.plan)

    def _execute(self, pack, index, size):
        import cupy

        handle = self.device.handle
        self.cudnn.set_stream(handle, cupy.cuda.get_current_stream().ptr)
        # cuDNN does not check the size; a workspace that is too small causes an illegal access.
        workspace = cupy.cuda.alloc(max(size, 1))
        self.graph.execute_plan_at_index(pack, workspace.ptr, index, handle=handle)

    def _choose(self, pack, timed):
        """Return a plan: its index and the size of its workspace."""
        known = timing.choices().get(self.key)
        if known is not None:
            with contextlib.suppress(NoPlan):  # not a plan of this version
                return next(self._running(pack, known))[0]
            timing.forget(self.key)
        if timed:
            timing.say_once()
        running = itertools.islice(self._running(pack), settings.plans if timed else None)
        plan = timing.fastest(self.key, running, timed)
        if timed:
            timing.keep(self.key, self.graph.get_plan_name_at_index(plan[0]))
        return plan

    def _running(self, pack, only=None):
        """Run each plan once; yield those that work, as (plan, function).

        Plans can fail when they are built or run; those are skipped.
        """
        graph, compiled, runs, why = self.graph, 0, False, 'no plan'
        at_run_time = self.cudnn.behavior_note.RUNTIME_COMPILATION
        for index in range(graph.get_execution_plan_count()):
            if only not in (None, graph.get_plan_name_at_index(index)):
                continue
            compiles = at_run_time in graph.get_behavior_notes_for_plan_at_index(index)
            if compiles and compiled == COMPILED:
                continue
            try:
                graph.build_plan_at_index(index)
                plan = index, graph.get_workspace_size_plan_at_index(index)
                self._execute(pack, *plan)
            except (RuntimeError, self.cudnn.cudnnGraphNotSupportedError) as e:
                why = str(e)
                continue
            runs, compiled = True, compiled + compiles
            yield plan, functools.partial(self._execute, pack, *plan)
        if not runs:
            raise self._not_supported(why)


# Builders. Shapes are tuples; each combination of arguments is built once.


def out_shape(x: Shape, w: Shape, stride: int, pad: int) -> tuple[int, int, int, int]:
    """Return the shape of a convolution's output."""
    size = [(n + 2 * pad - k) // stride + 1 for n, k in zip(x[2:], w[2:])]
    return x[0], w[0], size[0], size[1]


def _conv_arguments(stride, pad):
    return {'padding': [pad, pad], 'stride': [stride, stride], 'dilation': [1, 1]}


def build_conv_forward(
    x: Shape,
    w: Shape,
    stride: int,
    pad: int,
    summed: bool,
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
    g = Graph(('conv_forward', x, w, stride, pad, summed), precision, device)
    y = g.graph.conv_fprop(
        image=g.input(x, dtype), weight=g.input(w, dtype), **_conv_arguments(stride, pad)
    )
    sums = g.graph.genstats(input=y) if summed else ()
    g.output(y, out_shape(x, w, stride, pad), dtype)
    for tensor in sums:
        g.output(tensor, (1, w[0], 1, 1), np.float32)
    return g.finish()


def build_conv_backward_data(
    gy: Shape,
    w: Shape,
    x: Shape,
    stride: int,
    pad: int,
    added: bool,
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
    g = Graph(('conv_backward_data', gy, w, x, stride, pad, added), precision, device)
    gx = g.graph.conv_dgrad(
        loss=g.input(gy, dtype), filter=g.input(w, dtype), **_conv_arguments(stride, pad)
    )
    if added:
        g.virtual(gx, x)
        gx = g.graph.add(a=gx, b=g.input(x, dtype))
    g.output(gx, x, dtype)
    return g.finish()


def build_group_backward_data(
    gy: Shape,
    w: Shape,
    x: Shape,
    stride: int,
    pad: int,
    channels: tuple[int, int],
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
    """The data gradient of one group; ``channels`` are those of the whole maps (gy, x)."""
    g = Graph(('group_backward_data', gy, w, x, stride, pad, channels), precision, device)
    gx = g.graph.conv_dgrad(
        loss=g.input(gy, dtype, channels[0]),
        filter=g.input(w, dtype),
        **_conv_arguments(stride, pad),
    )
    g.output(gx, x, dtype, channels[1])
    return g.finish()


def build_conv_backward_weights(
    x: Shape,
    gy: Shape,
    w: Shape,
    stride: int,
    pad: int,
    out: str,
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
    g = Graph(('conv_backward_weights', x, gy, w, stride, pad, out), precision, device)
    return _finish_weights(g, x, gy, w, stride, pad, dtype, out)


def _finish_weights(g, x, gy, w, stride, pad, dtype, out, channels=(None, None)):
    gw = g.graph.conv_wgrad(
        image=g.input(x, dtype, channels[0]),
        loss=g.input(gy, dtype, channels[1]),
        **_conv_arguments(stride, pad),
    )
    g.output(gw, w, out)
    return g.finish()


def build_group_backward_weights(
    x: Shape,
    gy: Shape,
    w: Shape,
    stride: int,
    pad: int,
    channels: tuple[int, int],
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
    """The weight gradient of one group; ``channels`` are those of the whole maps (x, gy)."""
    g = Graph(('group_backward_weights', x, gy, w, stride, pad, channels), precision, device)
    return _finish_weights(g, x, gy, w, stride, pad, dtype, dtype, channels)


def build_conv_bias(
    x: Shape,
    w: Shape,
    stride: int,
    pad: int,
    residual: bool,
    relu: bool,
    relu_first: bool,
    dtype: str,
    precision: str,
    device: library.Device,
) -> Graph:
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
    """Cache a builder by its arguments and GPU, unsupported graphs included."""

    @functools.cache
    def attempt(*key):
        try:
            return build(*key)
        except NoPlan as e:
            return str(e)  # caching the exception would keep its frames' arrays alive

    def get(*key):
        graph = attempt(*key, library.device())
        if isinstance(graph, str):
            raise NoPlan(graph)
        return graph

    return get


conv_forward = _once(build_conv_forward)
conv_backward_data = _once(build_conv_backward_data)
group_backward_data = _once(build_group_backward_data)
conv_backward_weights = _once(build_conv_backward_weights)
group_backward_weights = _once(build_group_backward_weights)
conv_bias = _once(build_conv_bias)
