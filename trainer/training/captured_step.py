"""The training step as one CUDA graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import chainer
import chainer.links as L
import numpy as np

from trainer import cuda
from trainer.networks import layers
from trainer.networks.base import Network
from trainer.settings import settings
from trainer.training.step import Step
from trainer.transforms import mixing

if TYPE_CHECKING:
    from trainer.engines.cudnn.captured import Room
    from trainer.engines.cudnn.parameters import GpuUpdate

#: Values of a batch's images up to which its chunks are computed together: 341 images of CIFAR.
#: Larger chunks occupy a GPU by themselves, and together need much memory.
TOGETHER = 1 << 20


class _Captured:
    """The buffers and graphs of a step for batches of one shape.

    Attributes:
        chunks: Number of chunks that are computed one after another.
        parts: Number of chunks that each of them is made of, which are computed together.
        batch: x, t, and the rows of :mod:`trainer.transforms.mixing` or ``None``.
        totals: float64 (2,): sum of the losses, number of correct images.
        table (cupy.ndarray): See :class:`trainer.engines.cudnn.parameters.GpuUpdate`.
        sums: :class:`trainer.engines.cudnn.parameters.GradientSums`, or ``None`` of one chunk.
        graphs (list): One graph, or two between which processes exchange gradients;
            ``None`` before it is captured.
        gradients (list): The gradients that the processes exchange.
    """

    def __init__(self, batch, chunks, parts, table, sums):
        import cupy

        self.chunks, self.parts = chunks, parts
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

    The chunks of a small batch (:data:`TOGETHER`) are computed together: convolutions are of the
    batch, normalisations of each chunk.

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
        ours = sum(isinstance(link, layers.ConvBN) for link in self.network.links())
        normalizing = sum(isinstance(link, L.BatchNormalization) for link in self.network.links())
        self._together = ours == normalizing

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
        captured = self._given(key, x, t, rows)
        reason = None
        if not first and captured.graphs is None:
            reason = self._capture(captured, images)
        if captured.graphs is None:
            if not self._compute(captured, images):
                del self._captured[key]
                captured = self._given(key, x, t, rows)
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

    def _given(self, key, x, t, rows):
        """Return the buffers for batches of a shape, with this batch in them."""
        with self._room.entered():
            captured = self._captured.get(key)
            if captured is None:
                captured = self._captured[key] = self._buffers(x, t, rows)
            if rows is not None and captured.parts > 1:
                rows = mixing.joined(rows, captured.parts)
            self._upload((x, t, rows), captured.batch, self._room.stream)
        return captured

    def _buffers(self, x, t, rows):
        from trainer.engines.cudnn.parameters import GradientSums

        chunks, parts = self._number_of_chunks(t), 1
        if self._together and chunks > 1 and self._values(x) <= TOGETHER:
            chunks, parts = 1, chunks
        sums = GradientSums(self._params, chunks) if chunks > 1 else None
        return _Captured((x, t, rows), chunks, parts, self._update.table(), sums)

    def _values(self, x):
        """Return the number of values of a batch's images."""
        one = x[:1]
        if self._finish is not None:
            one = self._finish(self.device.send(one))
        return one.size * len(x)

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
        with settings.using(half_weights=half_weights, parts=captured.parts):
            scores = self._scores(*captured.batch, images, captured.chunks)
            for chunk, scored in enumerate(scores):
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
        """Run the update eagerly.

        Returns:
            Whether there is enough memory to compute the chunks together; if not, nothing has
            changed.
        """
        import cupy

        from trainer.engines.cudnn.timing import progress, untimed

        # Timing does not pay for the short last batch of an epoch.
        rest = any(
            len(captured.batch[1]) < len(other.batch[1]) for other in self._captured.values()
        )
        before = [array.copy() for *_, array in self._statistics]
        try:
            with self._room.entered(), untimed(rest), progress():
                self._room.run(lambda: self._gradients(captured, images))
        except cupy.cuda.memory.OutOfMemoryError:
            if captured.parts == 1:
                raise
            self._together = False
        if captured.parts > 1 and not self._together:  # the exception's frames are gone
            self.network.cleargrads()
            for (*_, array), kept in zip(self._statistics, before):
                array[...] = kept
            return False
        self.group.mean_gradients(self.network)
        with self._room.entered():
            self._update.fill(captured.table)
            self._update(captured.table)
        self.network.cleargrads()  # replay overwrites their memory
        return True

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
