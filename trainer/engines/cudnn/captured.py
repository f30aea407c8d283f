"""Work that is captured once as a CUDA graph and then replayed: Python costs nothing then."""

import contextlib

import chainer
import numpy as np

from trainer import engines
from trainer.engines import cudnn
from trainer.engines.cudnn import graphs


class Room:
    """A stream, and memory for what captured graphs compute on the way.

    Graphs write there whenever they are replayed, whoever may have that memory then. They
    share it, as they are never replayed at the same time: what one leaves there lasts until
    the next. Nothing else may be there; what is made once and kept is made in
    :func:`trainer.cuda.lasting` memory.

    Attributes:
        stream (cupy.cuda.Stream): The stream.
    """

    def __init__(self):
        import cupy

        self._cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        self._lost = False

    def _allocate(self, size):
        before = self.pool.total_bytes()
        memory = self.pool.malloc(size)
        # It stays where memory is used again, else grows by at least what was asked for.
        if self.pool.total_bytes() != before and self.pool.total_bytes() < before + size:
            self._lost = True
        return memory

    def lost(self):
        """Return whether graphs lost their memory since this was last asked.

        Where a GPU has no more of it, CuPy gives back what it holds. Graphs that were
        captured so far must not be replayed.
        """
        lost, self._lost = self._lost, False
        return lost

    @contextlib.contextmanager
    def entered(self):
        """Compute on the stream: after what the current one was given so far, and before
        what it will be given."""
        before = self._cupy.cuda.get_current_stream()
        self.stream.wait_event(before.record())
        try:
            with self.stream:
                yield
        finally:
            before.wait_event(self.stream.record())

    def run(self, function):
        """Return what a function computes, on the way in the room's memory; in
        :meth:`entered`."""
        with self._cupy.cuda.using_allocator(self._allocate):
            return function()

    def capture(self, function):
        """Return the graph of what a function computes, and what the function returns.

        To be called in :meth:`entered`, after the function was run once: what it makes but
        once (plans, compiled kernels) cannot be captured.
        """
        self.stream.begin_capture()
        try:
            with graphs.untimed():
                found = self.run(function)
        except BaseException:
            with contextlib.suppress(Exception):
                self.stream.end_capture()
            raise
        return self.stream.end_capture(), found


class Predictor(engines.Predictor):
    """The folded network, captured as one CUDA graph for each shape of input.

    The first input of a shape is computed as it comes: timing plans and capturing pay
    from the second on. CuPy arrays give CuPy arrays, without waiting for the result.
    """

    def __init__(self, network, precision, finish=None):
        super().__init__(
            network,
            'cudnn',
            'cuDNN {}, {}'.format(
                graphs.version(), 'float16' if precision == 'mixed' else precision
            ),
            finish,
        )
        self._precision = precision
        self._folded = {}
        self._captured = {}
        self._seen = set()
        self._room = Room()

    def _compute(self, x):
        with (
            chainer.using_config('engine', 'cudnn'),
            chainer.using_config('train', False),
            chainer.using_config('precision', self._precision),
            chainer.using_config('folded', self._folded),
            chainer.no_backprop_mode(),
        ):
            if self.finish is not None:
                x = self.finish(x)
            features = self.network.features(chainer.Variable(x))
            return features.array, self.network.classify(features).array

    def _capture(self, shape, dtype):
        import cupy

        x = cupy.zeros(shape, dtype)
        # The last of many batches is seldom computed.
        rest = any(len(shape) == len(known) and shape[0] < known[0] for known, _ in self._captured)
        with graphs.untimed(rest):
            while True:
                self._room.run(lambda: self._compute(x))
                graph, outputs = self._room.capture(lambda: self._compute(x))
                if not self._room.lost():
                    return graph, x, outputs
                self._captured.clear()

    def _run(self, x, which):
        import cupy

        on_device = isinstance(x, cupy.ndarray)
        if not on_device:
            x = np.ascontiguousarray(x, None if self.finish else np.float32)
        with self._room.entered():
            if self._room.lost():
                self._captured.clear()
            key = x.shape, x.dtype.char
            if key not in self._seen:
                self._seen.add(key)
                there = cupy.asarray(x)
                with graphs.untimed():
                    outputs = self._room.run(lambda: self._compute(there))
            else:
                if key not in self._captured:
                    self._captured[key] = self._capture(x.shape, x.dtype)
                graph, captured_x, outputs = self._captured[key]
                if on_device:
                    captured_x[...] = x
                else:
                    captured_x.set(x)
                graph.launch()
            return outputs[which].copy() if on_device else outputs[which].get()

    def __call__(self, x):
        return self._run(x, 1)

    def features(self, x):
        return self._run(x, 0)

    def refresh(self):
        with self._room.entered(), chainer.using_config('folded', None):
            for layer, kept in self._folded.items():
                for array, new in zip(kept, cudnn.fold(*layer, kept[0].dtype)):
                    array[...] = new
