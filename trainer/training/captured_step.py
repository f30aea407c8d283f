"""The training step as one CUDA graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from trainer import cuda
from trainer.networks.base import Network
from trainer.settings import settings
from trainer.training.step import Step

if TYPE_CHECKING:
    from trainer.engines.cudnn.captured import Room
    from trainer.engines.cudnn.parameters import GpuUpdate


class _Captured:
    """The buffers and graphs of a step for batches of one shape.

    Attributes:
        batch: x, t, and the rows of :mod:`trainer.transforms.mixing` or ``None``.
        totals: float64 (2,): sum of the losses, number of correct images.
        table (cupy.ndarray): See :class:`trainer.engines.cudnn.parameters.GpuUpdate`.
        sums: :class:`trainer.engines.cudnn.parameters.GradientSums`, or ``None`` of one chunk.
        graphs (list): One graph, or two between which processes exchange gradients;
            ``None`` before it is captured.
        gradients (list): The gradients that the processes exchange.
    """

    def __init__(self, batch, table, sums):
        import cupy

        self.batch = [None if array is None else cuda.empty_like(array) for array in batch]
        self.totals = cupy.empty(2, np.float64)
        self.table, self.sums = table, sums
        self.graphs = self.gradients = None


class CapturedStep(Step):
    """A :class:`~trainer.training.step.Step` that is captured once and then replayed.

    Forward, loss, backward, update and loss scaling form one CUDA graph per batch shape (two
    under MPI, which exchanges gradients between them). The first batch of a shape runs eagerly,
    the second is captured. Batch, rates and loss scale are in device memory; a batch is uploaded
    while the previous step is still running.

    Steps that cannot be captured (other optimizers than MomentumSGD and TorchSGD, layers that
    need cuBLAS) run eagerly, with one warning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room: Room | None = None
        self._reason: str | None = None
        self.forget()

    def forget(self) -> None:
        self._update: GpuUpdate | None = None
        self._captured: dict[tuple, _Captured] = {}

    def settle(self) -> None:
        if self._update is not None:
            self._update.settle()

    def __call__(self, x: np.ndarray, t: np.ndarray, rows: np.ndarray | None = None) -> tuple:
        if self._reason is None and len(t):
            from trainer.engines.cudnn.parameters import NoFusedUpdate

            try:
                return self._replay(x, t, rows)
            except NoFusedUpdate as e:
                self._give_up(str(e))
        # Under MPI a process may have no image of a batch.
        self.settle()
        self.forget()
        return super().__call__(x, t, rows)

    def _give_up(self, reason):
        self._reason = reason
        warnings.warn(f'the training step is not captured as a CUDA graph: {reason}', stacklevel=3)

    def _begin(self):
        from trainer.engines.cudnn.captured import Room
        from trainer.engines.cudnn.parameters import GpuUpdate, HalfWeights

        if self._room is None:
            self._room = Room()
            self._upload = _Upload()
        self._update = GpuUpdate(self.optimizer)
        self._half = HalfWeights(self.network) if chainer.config.precision == 'mixed' else None
        self._params = list(self.network.params())
        self._arrays = [p.array for p in self._params]
        self._statistics = [
            (link, name, getattr(link, name))
            for link in self.network.links()
            for name in link._persistent
            if np.ndim(getattr(link, name))
        ]

    def _moved(self):
        """Return whether arrays that the graphs point to have been replaced."""
        return any(p.array is not a for p, a in zip(self._params, self._arrays)) or any(
            getattr(link, name) is not a for link, name, a in self._statistics
        )

    def _replay(self, x, t, rows):
        if self._update is not None and self._moved():
            self.settle()
            self.forget()
        if self._update is None:
            self._begin()
        if self._room.lost():
            self._captured.clear()
        images = round(*self.group.sum(len(t)))
        key = x.shape, x.dtype.char, rows is None, images
        first = key not in self._captured
        with self._room.entered():
            self._update.prepare()
            if first:
                sums = self._sums(self._number_of_chunks(t))
                self._captured[key] = _Captured((x, t, rows), self._update.table(), sums)
            captured = self._captured[key]
            self._upload((x, t, rows), captured.batch, self._room.stream)
        reason = None
        if not first and captured.graphs is None:
            reason = self._capture(captured, images)
        if captured.graphs is None:
            self._compute(captured, images)
        else:
            self._launch(captured)
        with self._room.entered():
            totals = captured.totals / images
        if reason is not None:
            self._give_up(reason)
        if self.group.size > 1:
            totals = self.group.sum(*totals.get())
        return totals[0], totals[1], images

    def _sums(self, chunks):
        from trainer.engines.cudnn.parameters import GradientSums

        return GradientSums(self._params, chunks) if chunks > 1 else None

    def _backward(self, y, labels, mixed, counted, share, totals):
        """Compute the gradients of a chunk, and add its loss and accuracy to the totals."""
        from trainer.engines.cudnn import loss_kernels

        if mixed is None and self._loss is Network.calc_loss:  # a kernel for twenty
            y.grad = loss_kernels.cross_entropy(y.array, labels, self._update.scale, share, totals)
            last = y
        else:
            last = self._loss_of(y, labels, mixed)
            last.grad = (self._update.scale * share).astype(last.dtype)
            loss_kernels.tally(y.array, counted, last.array, totals)
        last.backward()
        last.unchain_backward()

    def _gradients(self, captured, images):
        self.network.cleargrads()
        captured.totals.fill(0)
        half_weights = None
        if self._half is not None:
            self._half()
            half_weights = self._half.of
        with settings.using(half_weights=half_weights):
            for chunk, scored in enumerate(self._scores(*captured.batch, images)):
                self._backward(*scored, captured.totals)
                if captured.sums is not None:
                    captured.sums.add(chunk)
        if captured.sums is not None:
            captured.sums.give()
        if self.group.size > 1:  # float32 is exchanged
            for param in self._params:
                if param.grad is not None:
                    param.grad = param.grad.astype(param.dtype, copy=False)

    def _compute(self, captured, images):
        """Run the update eagerly."""
        from trainer.engines.cudnn.timing import untimed

        # Timing does not pay for the short last batch of an epoch.
        rest = any(
            len(captured.batch[1]) < len(other.batch[1]) for other in self._captured.values()
        )
        with self._room.entered(), untimed(rest):
            self._room.run(lambda: self._gradients(captured, images))
        self.group.mean_gradients(self.network)
        with self._room.entered():
            self._update.fill(captured.table)
            self._update(captured.table)
        self.network.cleargrads()  # replay overwrites their memory

    def _capture(self, captured, images):
        """Capture the update; return the reason if that is impossible, else ``None``."""

        def gradients():
            self._gradients(captured, images)

        def update():
            self._update(captured.table)

        def both():
            gradients()
            update()

        def rehearsed():
            both()
            self.network.cleargrads()

        try:
            with self._room.entered():
                self._room.rehearse(rehearsed)
                captured.graphs = [
                    self._room.capture(part)[0]
                    for part in ((gradients, update) if self.group.size > 1 else (both,))
                ]
                self._update.fill(captured.table)
                if captured.sums is not None:
                    captured.sums.fill()
            if self.group.size > 1:
                captured.gradients = [param.grad for param in self._params]
            self.network.cleargrads()
            if self._room.lost():
                self._captured.clear()
                captured.graphs = None
        # cuBLAS, CuPy and CUDA all refuse some operations during capture.
        except RuntimeError as e:
            return str(e)
        return None

    def _launch(self, captured):
        first, *second = captured.graphs
        with self._room.entered():
            first.launch()
        if second:
            for param, gradient in zip(self._params, captured.gradients):
                param.grad = gradient
            self.group.mean_gradients(self.network)
            with self._room.entered():
                second[0].launch()


class _Upload:
    """Uploads batches while the device computes.

    Two page-locked buffers alternate: one is filled while the other is being transferred.
    """

    def __init__(self):
        import cupy

        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._sent = [cupy.cuda.Event(), cupy.cuda.Event()]
        self._read = cupy.cuda.Event()
        self._size = self._turn = 0

    def _make_room(self, size):
        import cupy
        import cupyx

        if size > self._size:
            self._stream.synchronize()
            self._read.synchronize()
            self._host = [cupyx.empty_pinned(size, np.uint8) for _ in range(2)]
            self._device = cupy.empty(size, np.uint8)
            self._size = size

    def __call__(self, sources, targets, stream):
        """Copy NumPy arrays to arrays on the device, in the order of a stream.

        Arrays that are on the device already are copied there; ``None`` is skipped.
        """
        sources, targets = zip(*(pair for pair in zip(sources, targets) if pair[0] is not None))
        places, size = [], 0
        for source in sources:
            places.append(size)
            size += -(-source.nbytes // 512) * 512
        if isinstance(sources[0], np.ndarray):
            self._make_room(size)
            self._turn ^= 1
            host, sent = self._host[self._turn], self._sent[self._turn]
            sent.synchronize()
            for place, source in zip(places, sources):
                host[place : place + source.nbytes].view(source.dtype).reshape(source.shape)[
                    ...
                ] = source
            self._stream.wait_event(self._read)
            self._device[:size].set(host[:size], stream=self._stream)
            sent.record(self._stream)
            stream.wait_event(sent)
            sources = [
                self._device[place : place + source.nbytes].view(source.dtype).reshape(source.shape)
                for place, source in zip(places, sources)
            ]
        for source, target in zip(sources, targets):
            cuda.assign(target, source)
        self._read.record(stream)
