"""The convolutions of the cuDNN engine, each in the fastest of several ways.

The ways are one or several graphs of cuDNN (:mod:`trainer.engines.cudnn.graphs`), and the kernels
of :mod:`trainer.engines.cudnn.grouped`. Functions compute the same as those of the same name in
:mod:`trainer.engines.cudnn.generic`.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import numpy as np

from trainer import cuda
from trainer.engines.cudnn import generic, graphs, grouped, kernels, timing

if TYPE_CHECKING:
    import cupy

    from trainer.engines.autograd import Running
    from trainer.types import Shape

#: Most groups that are computed by a graph each.
FEW_GROUPS = 8

#: Channels in 16 bytes of float16.
PACK = 8

#: Input and output channels from which fused graphs are taken untimed. On an H200 they were the
#: fastest way for all 92 such shapes that were timed, in float16; timing takes a second a shape.
WIDE = 64


def _fused(x, w):
    return x.dtype.char == 'e' and min(w.shape[:2]) >= WIDE


def _first_supported(*ways):
    """Compute in the first of several ways for which cuDNN has a plan."""
    *others, last = ways
    for way in others:
        with contextlib.suppress(graphs.NoPlan):
            return way()
    return last()


def _like(array, shape, dtype=None):
    import cupy

    return generic.empty(cupy, shape, dtype or array.dtype)


def _is_narrow(x, groups):
    """Return whether x, such as images, has fewer channels than cuDNN's tensor cores take."""
    return x.dtype.char == 'e' and groups == 1 and x.shape[1] < PACK


def _padded(array):
    """Return a map, or weights, with zeros up to :data:`PACK` channels (axis 1)."""
    padded = _like(array, (array.shape[0], PACK, *array.shape[2:]))
    channels = array.shape[1]
    cuda.assign(padded[:, :channels], array)
    padded.transpose(0, 2, 3, 1)[..., channels:] = 0  # in the order of memory
    return padded


def _own(own, what, x, w_shape, window, ways):
    """Compute in the fastest of several ways; ``own`` is tried first if it is supported."""
    stride, pad, groups, precision = window
    if grouped.supports(w_shape, stride, pad, groups, x.dtype):
        ways = {'own kernel': own, **ways}
    if len(ways) == 1:
        return next(iter(ways.values()))()
    return timing.by_time(f'{precision} {what} {x.shape} {w_shape} {stride} {pad}', ways)


def _forward(x, w, stride, pad, precision):
    y = _like(x, graphs.out_shape(x.shape, w.shape, stride, pad))
    graphs.conv_forward(x.shape, w.shape, stride, pad, False, x.dtype.char, precision)(x, w, y)
    return y


def conv_forward(
    x: cupy.ndarray, w: cupy.ndarray, stride: int, pad: int, groups: int, precision: str
) -> cupy.ndarray:
    ways = {'cuDNN': lambda: _forward(x, w, stride, pad, precision)}
    if _is_narrow(x, groups):
        ways['padded'] = lambda: _forward(_padded(x), _padded(w), stride, pad, precision)
    window = stride, pad, groups, precision
    return _own(lambda: grouped.conv_forward(x, w, stride), 'forward', x, w.shape, window, ways)


def conv_with_sums(
    x: cupy.ndarray,
    w: cupy.ndarray,
    stride: int,
    pad: int,
    groups: int,
    precision: str,
    parts: int = 1,
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Compute :func:`conv_forward`, part by part; return its result, and the sums of each
    channel's values and of their squares, float32 (parts, channels).

    Raises:
        NoPlan: Also if a part is not where cuDNN requires it, at a multiple of 16 bytes.
    """
    import cupy

    y = _like(x, graphs.out_shape(x.shape, w.shape, stride, pad))
    sums = [cupy.empty((parts, len(w)), np.float32) for _ in range(2)]
    for i, part in enumerate(generic.parts_of(len(x), parts)):
        arrays = x[part], y[part], *(a[i] for a in sums)
        if any(array.data.ptr % 16 for array in arrays):
            raise graphs.NoPlan(f'sums of {parts} parts of {x.shape}')
        graph = graphs.conv_forward(
            arrays[0].shape, w.shape, stride, pad, True, x.dtype.char, precision
        )
        graph(arrays[0], w, *arrays[1:])
    return y, *sums


def conv_statistics(
    x: cupy.ndarray,
    w: cupy.ndarray,
    stride: int,
    pad: int,
    groups: int,
    running: Running,
    parts: int,
    precision: str,
) -> tuple[cupy.ndarray, tuple | None, tuple | None]:
    """Compute :func:`conv_forward` and what its normalisation needs.

    Args:
        parts: The batch is split in so many, each with statistics of its own.

    Returns:
        Its result; its statistics (:func:`trainer.engines.cudnn.generic.statistics`), or ``None``;
        the sums for :func:`trainer.engines.cudnn.kernels.normalize_sums`, or ``None``.
    """
    window = stride, pad, groups, precision

    def from_sums(convert=lambda array: array):
        y, *sums = conv_with_sums(convert(x), convert(w), *window, parts)
        return y, None, sums

    def from_own_sums():
        y, *sums = grouped.conv_with_sums(x, w, stride)
        return y, None, [a[None] for a in sums]

    def then_read():
        y = conv_forward(x, w, *window)
        return y, kernels.statistics(y, running, parts), None

    if groups == 1 and w.shape[2] == 1 and _fused(x, w):
        return _first_supported(from_sums, then_read)
    # In float32, sums of squares would lose precision; and cuDNN has no plan for groups.
    ways = {'two steps': then_read}
    if x.dtype.char == 'e' and groups == 1:
        ways = {'one graph': from_sums, **ways}
        if _is_narrow(x, groups):
            ways['padded'] = lambda: from_sums(_padded)
    elif parts == 1 and grouped.supports(w.shape, stride, pad, groups, x.dtype):
        ways = {'own kernel': from_own_sums, **ways}
    else:
        return then_read()
    key = f'{precision} {x.shape} {w.shape} {stride} {pad} statistics'
    if parts > 1:
        key += f' of {parts} parts'
    return timing.by_time(key, ways, (running.mean, running.var))


def _of_each_group(array, groups, axis):
    """Return each group's part of a map's channels (axis 1) or of weights (axis 0)."""
    size = array.shape[axis] // groups
    parts = (slice(i * size, (i + 1) * size) for i in range(groups))
    return [array[part] if axis == 0 else array[:, part] for part in parts]


def _compute_groups(build, maps, stride, pad, groups, precision):
    """Compute in a graph for each group.

    Args:
        build: A builder of :mod:`trainer.engines.cudnn.graphs` for the arrays of a group.
        maps: Pairs of an array, in the order of the builder, and the axis of its groups.
    """
    channels = tuple(array.shape[1] for array, axis in maps if axis == 1)
    dtype = maps[0][0].dtype.char
    for group in zip(*(_of_each_group(array, groups, axis) for array, axis in maps), strict=True):
        shapes = (part.shape for part in group)
        build(*shapes, stride, pad, channels, dtype, precision)(*group)


def _by_group(groups, gy, x_shape, w_shape, stride, pad):
    """Return whether gradients may be computed group by group: of a few groups, too wide for the
    project's kernels, whose parts begin at multiples of 16 bytes, which cuDNN requires."""
    if not 1 < groups <= FEW_GROUPS or grouped.supports(w_shape, stride, pad, groups, gy.dtype):
        return False
    sizes = gy.shape[1], x_shape[1], math.prod(w_shape)
    return all(size // groups * gy.itemsize % 16 == 0 for size in sizes)


def _turned(w, groups):
    """Return the weights, in NHWC memory, with which a convolution of stride 1 computes the data
    gradient of another: inputs and outputs of each group swapped, rows and columns reversed."""
    out, width, *window = w.shape
    turned = _like(w, (width * groups, out // groups, *window))
    parts = w.reshape(groups, out // groups, width, *window)[..., ::-1, ::-1]
    turned.reshape(groups, width, out // groups, *window)[...] = parts.transpose(0, 2, 1, 3, 4)
    return turned


def _data_gradient(gy, w, x_shape, stride, pad, precision, *addend):
    gx = _like(gy, x_shape)
    graph = graphs.conv_backward_data(
        gy.shape, w.shape, x_shape, stride, pad, bool(addend), gy.dtype.char, precision
    )
    graph(gy, w, *addend, gx)
    return gx


def _data_gradient_as_convolution(gy, w, pad, groups, precision):
    return _forward(gy, _turned(w, groups), 1, pad, precision)


def _data_gradient_by_group(gy, w, x_shape, stride, pad, groups, precision):
    gx = _like(gy, x_shape)
    maps = (gy, 1), (w, 0), (gx, 1)
    _compute_groups(graphs.group_backward_data, maps, stride, pad, groups, precision)
    return gx


def _weight_gradient(x, gy, w_shape, stride, pad, out, precision):
    gw = _like(x, w_shape, out)
    graph = graphs.conv_backward_weights(
        x.shape, gy.shape, w_shape, stride, pad, out, x.dtype.char, precision
    )
    graph(x, gy, gw)
    return gw


def _padded_weight_gradient(x, gy, w_shape, stride, pad, precision):
    out, channels, *window = w_shape
    wide = _weight_gradient(_padded(x), gy, (out, PACK, *window), stride, pad, 'e', precision)
    gw = _like(x, w_shape)
    cuda.assign(gw, wide[:, :channels])
    return gw


def _weight_gradient_by_group(x, gy, w_shape, stride, pad, groups, precision):
    gw = _like(x, w_shape)
    maps = (x, 1), (gy, 1), (gw, 0)
    _compute_groups(graphs.group_backward_weights, maps, stride, pad, groups, precision)
    return gw


def conv_backward_data(
    gy: cupy.ndarray,
    w: cupy.ndarray,
    x_shape: Shape,
    stride: int,
    pad: int,
    groups: int,
    addend: cupy.ndarray | None,
    precision: str,
) -> cupy.ndarray:
    def compute(*addend):
        return _data_gradient(gy, w, x_shape, stride, pad, precision, *addend)

    def alone():
        ways = {'cuDNN': compute}
        # cuDNN's grouped data gradients take three to six times as long as its convolutions.
        if groups > 1 and stride == 1 and all(k == 2 * pad + 1 for k in w.shape[2:]):
            ways['turned weights'] = lambda: _data_gradient_as_convolution(
                gy, w, pad, groups, precision
            )
        if _by_group(groups, gy, x_shape, w.shape, stride, pad):
            ways['group by group'] = lambda: _data_gradient_by_group(
                gy, w, x_shape, stride, pad, groups, precision
            )
        return _own(
            lambda: grouped.conv_backward_data(gy, w, x_shape, stride),
            f'data gradient {x_shape}',
            gy,
            w.shape,
            (stride, pad, groups, precision),
            ways,
        )

    def then_add():
        gx = alone()
        kernels.accumulate(gx, addend)
        return gx

    if addend is None:
        return alone()
    if groups == 1 and _fused(gy, w):
        return _first_supported(lambda: compute(addend), then_add)
    return timing.by_time(
        f'{precision} {gy.shape} {w.shape} {x_shape} {stride} added',
        {'one graph': lambda: compute(addend), 'two steps': then_add},
    )


def conv_backward_weights(
    x: cupy.ndarray,
    gy: cupy.ndarray,
    w_shape: Shape,
    stride: int,
    pad: int,
    groups: int,
    precision: str,
) -> cupy.ndarray:
    """As in generic; of float16 inputs it is float16, unless cuDNN has no plan for that.

    Of 42 shapes timed on an H200 none was faster in float32, which also takes the update longer
    to read.
    """
    window = stride, pad
    if x.dtype.char == 'f':
        return _weight_gradient(x, gy, w_shape, *window, 'f', precision)

    def in_float16():  # summed in float32, rounded once
        return _first_supported(
            lambda: _weight_gradient(x, gy, w_shape, *window, 'e', precision),
            lambda: _weight_gradient(x, gy, w_shape, *window, 'f', precision),
        )

    ways = {'cuDNN': in_float16}
    if _is_narrow(x, groups):
        ways['padded'] = lambda: _padded_weight_gradient(x, gy, w_shape, *window, precision)
    if _by_group(groups, gy, x.shape, w_shape, stride, pad):
        ways['group by group'] = lambda: _weight_gradient_by_group(
            x, gy, w_shape, stride, pad, groups, precision
        )
    return _own(
        lambda: grouped.conv_backward_weights(x, gy, w_shape, stride),
        f'weights {gy.shape}',
        x,
        w_shape,
        (*window, groups, precision),
        ways,
    )


def conv_bias(
    x: cupy.ndarray,
    w: cupy.ndarray,
    b: cupy.ndarray,
    stride: int,
    pad: int,
    groups: int,
    residual: cupy.ndarray | None,
    relu: bool,
    relu_first: bool,
    precision: str,
) -> cupy.ndarray:
    def by_graph():
        y = _like(x, graphs.out_shape(x.shape, w.shape, stride, pad))
        graph = graphs.conv_bias(
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

    def two_steps():
        y = conv_forward(x, w, stride, pad, groups, precision)
        return kernels.add_bias(y, b, relu)

    if residual is not None:
        return by_graph()
    if _fused(x, w):
        ways = {'cuDNN': lambda: _first_supported(by_graph, two_steps)}
    else:  # cuDNN's plans with bias and ReLU are slow for the stem, which has few channels
        ways = {'cuDNN': by_graph, 'two steps': two_steps}
    return _own(
        lambda: grouped.conv_bias(x, w, b, stride, relu),
        f'with bias {relu}',
        x,
        w.shape,
        (stride, pad, groups, precision),
        ways,
    )
