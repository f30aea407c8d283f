"""Memory of a captured graph, planned from a rehearsal.

CuPy's pool keeps blocks of the sizes that were once needed, of which a tenth or more is never in
use at the same time. What a graph allocates is the same each time, so a place in one block can be
found for everything in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cupy

#: Smallest size that is planned, in bytes; smaller arrays come from the pool.
LARGE = 1 << 20

#: CuPy's alignment of memory, in bytes.
_ALIGNMENT = 512


def plan(sizes: Sequence[int], freed: Sequence[int | None]) -> tuple[list[int | None], int]:
    """Place blocks in one block, such that none overlaps another that exists at the same time.

    The largest are placed first, each in the smallest gap that it fits in.

    Args:
        sizes: Sizes of the blocks, in the order of their allocation.
        freed: For each block, the index of the first block that is allocated after it was freed;
            ``None``: it is not freed, and gets no place.

    Returns:
        Offsets, and the size of the whole.
    """
    offsets: list[int | None] = [None] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first block, block after the last
    whole = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        until = freed[i]
        if until is None:
            continue
        size, free, gap = sizes[i], 0, None
        for begin, end in sorted(
            (b, e) for b, e, first, last in placed if first < until and i < last
        ):
            if begin - free >= size and (gap is None or begin - free < gap[1]):
                gap = free, begin - free
            free = max(free, end)
        offset = free if gap is None else gap[0]
        offsets[i] = offset
        placed.append((offset, offset + size, i, until))
        whole = max(whole, offset + size)
    return offsets, whole


class _Owner:
    """Owner of memory for :class:`cupy.cuda.UnownedMemory`, which says when it is freed."""

    def __init__(self, memory, on_free):
        self._memory, self._on_free = memory, on_free

    def __del__(self):
        self._on_free()


def _pointer(memory, offset, size, on_free):
    import cupy

    owner = _Owner(memory, on_free)
    address = memory.ptr + offset
    return cupy.cuda.MemoryPointer(
        cupy.cuda.UnownedMemory(address, size, owner, memory.device_id), 0
    )


def _rounded(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Recording:
    """Allocates from a pool, and records the large blocks.

    Args:
        malloc: Allocates from the pool.

    Attributes:
        sizes, freed: See :func:`plan`.
    """

    def __init__(self, malloc: Callable[[int], cupy.cuda.MemoryPointer]) -> None:
        self._malloc = malloc
        self._ended = False
        self.sizes: list[int] = []
        self.freed: list[int | None] = []

    def allocate(self, size: int) -> cupy.cuda.MemoryPointer:
        i = len(self.sizes)
        memory = self._malloc(size)
        self.sizes.append(_rounded(size))
        self.freed.append(None)
        return _pointer(memory, 0, size, lambda: self._free(i))

    def _free(self, i):
        if not self._ended:
            self.freed[i] = len(self.sizes)

    def end(self) -> None:
        """End the recording: blocks that are freed later get no place."""
        self._ended = True


class Arena:
    """Allocates again what was recorded, from one block of a pool.

    Args:
        recording: The recording.
        malloc: Allocates from the pool.
    """

    def __init__(
        self, recording: Recording, malloc: Callable[[int], cupy.cuda.MemoryPointer]
    ) -> None:
        self._sizes = recording.sizes
        self._offsets, whole = plan(recording.sizes, recording.freed)
        self._memory = malloc(whole)
        self._next = 0
        self._used: dict[int, tuple[int, int]] = {}

    def allocate(self, size: int) -> cupy.cuda.MemoryPointer | None:
        """Return the place of the next block; ``None`` if it has none, or is not as recorded."""
        i, rounded = self._next, _rounded(size)
        self._next += 1
        if i >= len(self._sizes) or self._sizes[i] != rounded:
            self._next = len(self._sizes)  # the order is another one from here on
            return None
        offset = self._offsets[i]
        if offset is None:
            return None
        # A block in a reference cycle may be freed later than in the rehearsal.
        if any(offset < end and begin < offset + rounded for begin, end in self._used.values()):
            return None
        self._used[i] = offset, offset + rounded
        return _pointer(self._memory, offset, size, lambda: self._used.pop(i))
