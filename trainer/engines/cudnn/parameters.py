"""Fused kernels over all parameters: the optimizer's update with loss scaling, and the
conversion of weights to float16.

Everything that changes between updates (rates, loss scale, a table of the addresses of
parameters, gradients and states) is in device memory, so the update can be captured in a CUDA
graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer import cuda
from trainer.engines import update
from trainer.engines.cudnn import generic
from trainer.engines.update import NoFusedUpdate

if TYPE_CHECKING:
    import cupy

_launch = cuda.kernels(__file__, 'parameters.cu')

_THREADS = 256

#: Values of a parameter per block.
_PART = 1 << 13

#: The structures of parameters.cu.
_OF_PART = [(name, np.int32) for name in ('begin', 'count', 'inner', 'area')]
ENTRY = np.dtype(
    [
        ('param', np.uintp),
        ('grad', np.uintp),
        ('state', np.uintp),
        *_OF_PART,
        ('rate', np.float32),
        ('half', np.int32),
        ('group', np.int32),
        ('', np.int32),  # to a multiple of what a pointer takes
    ]
)
SUM = np.dtype(
    [('grad', np.uintp), ('sum', np.uintp), *_OF_PART, ('half', np.int32), ('', np.int32)]
)
COPY = np.dtype([('from', np.uintp), ('to', np.uintp), *_OF_PART])


def _parts(params, dtype):
    """Return a table with one entry per block, and views of the entries of each parameter."""
    begins = [np.arange(0, param.size, _PART) for param in params]
    table = np.zeros(sum(map(len, begins)), dtype)
    each = np.split(table, np.cumsum([len(begin) for begin in begins])[:-1])
    for param, begin, entries in zip(params, begins, each):
        entries['begin'], entries['area'] = begin, 1
        entries['count'] = np.minimum(param.size - begin, _PART)
    return table, each


class GpuUpdate(update.Update):
    """The fused update of an optimizer; see the module."""

    def __init__(self, optimizer: chainer.Optimizer) -> None:
        import cupy

        super().__init__(optimizer)
        self._entries = len(_parts(self.params, ENTRY)[0])
        self._given: tuple[float, ...] | None = None
        self._rates = cupy.empty(2 + len(self.decays()), np.float32)
        self._clip = cupy.ones(1, np.float32)
        self._squares = cupy.empty(self._entries, np.float64) if self.clip else None
        self._overflow = cupy.zeros(1, np.uint32)
        self._scale = cupy.asarray(
            np.array(
                [optimizer._loss_scale or 1, getattr(optimizer, '_loss_scaling_isnan_ever', False)],
                np.float64,
            )
        )
        self._done = 0

    @property
    def scale(self) -> cupy.ndarray:
        """The loss scale, a float64 array () on the device."""
        return self._scale[0]

    def table(self) -> cupy.ndarray:
        """Return uninitialised device memory for a table."""
        import cupy

        return cupy.empty(self._entries * ENTRY.itemsize, np.uint8)

    def fill(self, table: cupy.ndarray) -> None:
        """Write the current addresses and layouts to a table.

        Raises:
            NoFusedUpdate: A gradient has an unsupported memory layout.
        """
        entries, each = _parts(self.params, ENTRY)
        for param, own in zip(self.params, each):
            own['param'] = param.array.data.ptr
            if param.grad is not None:  # otherwise nothing depends on it
                own['grad'] = param.grad.data.ptr
                own['half'] = param.grad.dtype == np.float16
                own['inner'], own['area'] = _layout(param.grad)
            own['state'] = param.update_rule.state[self.state].data.ptr
            own['rate'] = self.factor(param)
            own['group'] = self.group(param)
        table.set(entries.view(np.uint8))

    def prepare(self) -> None:
        """Copy the optimizer's rates to the device."""
        optimizer = self.optimizer
        rates = optimizer.lr, optimizer.momentum, *self.decays()
        if rates != self._given:
            for i, rate in enumerate(rates):
                self._rates[i : i + 1].fill(rate)
            self._given = rates
        self._done += 1

    def __call__(self, table: cupy.ndarray) -> None:
        """Update; can be captured."""
        optimizer = self.optimizer
        adapts = optimizer._loss_scaling_is_dynamic
        if adapts:
            _launch('find_overflow', self._entries, _THREADS, table, self._overflow)
        if self.clip is not None:
            _launch('squares', self._entries, _THREADS, table, self._squares)
            _launch(
                'clip',
                1,
                _THREADS,
                self._squares,
                np.int32(self._entries),
                np.float64(self.clip.threshold),
                self._scale,
                self._clip,
            )
        _launch(
            'update',
            self._entries,
            _THREADS,
            table,
            self._rates,
            self._scale,
            self._clip,
            self._overflow,
            np.int32(self.kind),
        )
        if adapts:
            _launch(
                'adapt',
                1,
                1,
                self._scale,
                self._overflow,
                np.float64(optimizer._loss_scaling_multiplier),
                np.float64(optimizer._loss_scale_max),
            )

    def settle(self) -> None:
        """Copy counters and loss scale back to the optimizer."""
        optimizer = self.optimizer
        optimizer.t += self._done
        for param in self.params:
            param.update_rule.t += self._done
        self._done = 0
        if optimizer._loss_scaling_is_dynamic:
            scale, ever = self._scale.get().tolist()
            optimizer._loss_scale, optimizer._loss_scaling_isnan_ever = scale, bool(ever)


def _layout(grad):
    """Return (channels, pixels) of an NHWC gradient, or (1, 1) of a contiguous one."""
    if grad.flags.c_contiguous:
        return 1, 1
    if grad.ndim == 4 and grad.transpose(0, 2, 3, 1).flags.c_contiguous:
        return grad.shape[1], grad.shape[2] * grad.shape[3]
    raise NoFusedUpdate("a gradient's memory")


class GradientSums:
    """Sums of the gradients of a batch's chunks, in float32: a kernel for each chunk.

    Args:
        params: All parameters of a network.
        chunks: Number of chunks.
    """

    def __init__(self, params: list[chainer.Parameter], chunks: int) -> None:
        import cupy

        self._params = params
        size = len(_parts(params, SUM)[0]) * SUM.itemsize
        self._tables = [cupy.empty(size, np.uint8) for _ in range(chunks)]
        self._entries: list[np.ndarray] = [np.empty(0, SUM)] * chunks
        self._sums: list[cupy.ndarray | None] = []

    def add(self, chunk: int) -> None:
        """Add the gradients of a chunk, numbered from 0, and clear them.

        If it is captured, call :meth:`fill` before the graph is launched.

        Raises:
            NoFusedUpdate: A gradient has an unsupported memory layout.
        """
        import cupy

        if chunk == 0:
            self._sums = [
                None if p.grad is None else cupy.empty_like(p.grad, np.float32)
                for p in self._params
            ]
        pairs = [(p, s) for p, s in zip(self._params, self._sums) if s is not None]
        entries, each = _parts([param for param, _ in pairs], SUM)
        for (param, total), own in zip(pairs, each):
            if _layout(param.grad) != _layout(total):
                raise NoFusedUpdate("a gradient's memory")
            own['grad'], own['sum'] = param.grad.data.ptr, total.data.ptr
            own['half'] = param.grad.dtype == np.float16
        self._entries[chunk] = entries
        if not cupy.cuda.get_current_stream().is_capturing():
            self._fill(chunk)
        _launch('add_gradients', len(entries), _THREADS, self._tables[chunk], np.int32(chunk == 0))
        for param in self._params:
            param.cleargrad()

    def _fill(self, chunk):
        entries = self._entries[chunk].view(np.uint8)
        self._tables[chunk][: len(entries)].set(entries)

    def fill(self) -> None:
        """Copy to the device the addresses that the last calls of :meth:`add` used."""
        for chunk in range(len(self._tables)):
            self._fill(chunk)

    def give(self) -> None:
        """Set the sums as the parameters' gradients."""
        for param, total in zip(self._params, self._sums):
            param.grad = total
        self._sums = []


class HalfWeights:
    """Float16 copies, in NHWC memory, of the weights of convolutions.

    Args:
        network: A network on a GPU.

    Attributes:
        of: Convolution -> (its weights, their copy), for
            :attr:`trainer.settings.Settings.half_weights`.
    """

    def __init__(self, network: chainer.Link) -> None:
        import cupy

        convs = [link for link in network.links() if isinstance(link, chainer.links.Convolution2D)]
        table, each = _parts([conv.W for conv in convs], COPY)
        self.of: dict[chainer.Link, tuple[cupy.ndarray, cupy.ndarray]] = {}
        with cuda.lasting():
            for conv, own in zip(convs, each):
                weights = conv.W.array
                converted: cupy.ndarray = generic.empty(cupy, weights.shape, np.dtype(np.float16))
                self.of[conv] = weights, converted
                own['from'], own['to'] = weights.data.ptr, converted.data.ptr
                own['inner'], own['area'] = _layout(converted)
            self._table = cupy.asarray(table.view(np.uint8))
        self._entries = len(table)

    def __call__(self) -> None:
        """Convert all weights; can be captured."""
        _launch('convert', self._entries, _THREADS, self._table)
