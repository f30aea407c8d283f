"""Work that is captured once as a CUDA graph and then replayed: Python costs nothing then."""

import contextlib

from trainer import cuda
from trainer.engines.cudnn import timing


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
        with timing.untimed():
            return cuda.capture(self.stream, lambda: self.run(function))
