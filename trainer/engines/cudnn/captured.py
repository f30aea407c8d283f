"""Work that is captured once as a CUDA graph and then replayed without Python's overhead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trainer import cuda
from trainer.engines.cudnn import arena, timing

if TYPE_CHECKING:
    import cupy

    from trainer.types import R


class Room:
    """A stream, and a memory pool for the intermediate results of captured graphs.

    Replay overwrites this pool even if its blocks were reassigned. The graphs share the pool
    because they never replay at the same time: results last until the next replay. Nothing
    else may be allocated here; arrays that outlive a replay are allocated in
    :func:`trainer.cuda.lasting`.

    Attributes:
        stream: The stream.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self.stream: cupy.cuda.Stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        self._lost = self._rehearsed = False
        #: What places large blocks: a recording in a rehearsal, an arena in the capture behind it.
        self._places: arena.Recording | arena.Arena | None = None

    def _malloc(self, size):
        before = self.pool.total_bytes()
        memory = self.pool.malloc(size)
        # The total is unchanged if a block is reused, and grows by at least `size` otherwise;
        # anything else means that CuPy freed blocks.
        if self.pool.total_bytes() != before and self.pool.total_bytes() < before + size:
            self._lost = True
        return memory

    def _allocate(self, size):
        if self._places is not None and size >= arena.LARGE:
            memory = self._places.allocate(size)
            if memory is not None:
                return memory
        return self._malloc(size)

    def lost(self) -> bool:
        """Return whether the pool has freed blocks since the last call.

        CuPy frees cached blocks when the GPU runs out of memory. Graphs captured before that
        must not be replayed.
        """
        lost, self._lost = self._lost, False
        return lost

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make this stream current; its work is ordered after the work already queued on the
        previous stream and before the work queued there later."""
        before = self._cupy.cuda.get_current_stream()
        self.stream.wait_event(before.record())
        try:
            with self.stream:
                yield
        finally:
            before.wait_event(self.stream.record())

    def run(self, function: Callable[[], R]) -> R:
        """Call a function with allocations from this pool. Call it in :meth:`entered`."""
        with self._cupy.cuda.using_allocator(self._allocate):
            return function()

    def rehearse(self, function: Callable[[], object]) -> None:
        """Plan the memory of the first graph, which is captured next.

        What timing and the first run left in the pools is freed. Nothing is done from the second
        call on, as graphs use free blocks.

        Args:
            function: See :meth:`capture`. What it leaves behind gets no place in the plan.
        """
        if self._rehearsed:
            return
        recording = self._places = arena.Recording(self._malloc)
        try:
            with timing.untimed():
                cuda.capture(self.stream, lambda: self.run(function))  # not launched
        finally:
            self._places = None
            recording.end()
        self._rehearsed = True
        for pool in (self.pool, self._cupy.get_default_memory_pool()):
            pool.free_all_blocks()
        with contextlib.suppress(self._cupy.cuda.memory.OutOfMemoryError):
            self._places = arena.Arena(recording, self._malloc)
        self._lost = False

    def capture(self, function: Callable[[], R]) -> tuple[cupy.cuda.Graph, R]:
        """Return the CUDA graph of a function, and what the function returned.

        Call it in :meth:`entered`, after the function has run once: building plans and
        compiling kernels cannot be captured.
        """
        try:
            with timing.untimed():
                return cuda.capture(self.stream, lambda: self.run(function))
        finally:
            self._places = None  # the block returns to the pool
