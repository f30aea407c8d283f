"""Work that is captured once as a CUDA graph and then replayed: Python costs nothing then."""
import contextlib

import chainer
import numpy as np

from trainer import engines
from trainer.engines import cudnn
from trainer.engines.cudnn import graphs
from trainer.networks.layers import ConvBN


class Room:
    """A stream and memory of its own for what is captured.

    Memory that a graph reads and writes must not be given to anyone else. Graphs of one
    room are never replayed at the same time, and share the memory of what they compute on
    the way; what is to last from one replay to the next must be kept by someone.
    """

    def __init__(self):
        import cupy
        self._cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()

    @contextlib.contextmanager
    def entered(self):
        """Compute on the stream: after what the current one was given so far, and before
        what it will be given."""
        before = self._cupy.cuda.get_current_stream()
        self.stream.wait_event(before.record())
        try:
            with self._cupy.cuda.using_allocator(self.pool.malloc), self.stream:
                yield
        finally:
            before.wait_event(self.stream.record())

    def capture(self, function):
        """Return the graph of what a function computes, and what the function returns.

        To be called in the room, after the function was run there once: what it makes but
        once (plans, compiled kernels) cannot be captured.
        """
        self.stream.begin_capture()
        try:
            found = function()
        except BaseException:
            with contextlib.suppress(Exception):
                self.stream.end_capture()
            raise
        return self.stream.end_capture(), found


class Predictor(engines.Predictor):
    """The folded network, captured as one CUDA graph for each shape of input.

    CuPy arrays give CuPy arrays, without waiting for the result.
    """

    def __init__(self, network, precision, finish=None):
        super().__init__(network, 'cudnn', 'cuDNN {}, {}'.format(
            graphs.version(), 'float16' if precision == 'mixed' else precision), finish)
        self._precision = precision
        self._folded = {}
        self._captured = {}
        self._room = Room()

    def _compute(self, x):
        with chainer.using_config('engine', 'cudnn'), chainer.using_config('train', False), \
                chainer.using_config('precision', self._precision), \
                chainer.using_config('folded', self._folded), chainer.no_backprop_mode():
            if self.finish is not None:
                x = self.finish(x)
            features = self.network.features(chainer.Variable(x))
            return features.array, self.network.classify(features).array

    def _capture(self, shape, dtype):
        import cupy
        x = cupy.zeros(shape, dtype)
        self._compute(x)  # chooses plans, folds weights, takes the memory
        graph, outputs = self._room.capture(lambda: self._compute(x))
        return graph, x, outputs

    def _run(self, x, which):
        import cupy
        on_device = isinstance(x, cupy.ndarray)
        if not on_device:
            x = np.ascontiguousarray(x, None if self.finish else np.float32)
        with self._room.entered():
            key = x.shape, x.dtype.char
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
            for link in self.network.links():
                if isinstance(link, ConvBN) and id(link.conv) in self._folded:
                    kept = self._folded[id(link.conv)]
                    for array, new in zip(kept, cudnn.fold(link.conv, link.bn, kept[0].dtype)):
                        array[...] = new
