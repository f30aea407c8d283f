"""A memory pool for feature maps.

The system zeroes new pages, which takes longer than most operations on them; reused memory
avoids that.
"""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from trainer.types import Shape

_ALIGNMENT = 64  # bytes: a cache line, and AVX-512's width

# Size classes per power of two. The excess is never touched, so it costs no physical memory.
_STEPS = 8

# Size -> free blocks. append and pop are atomic, as blocks return whenever Python collects them.
_free: dict[int, list[np.ndarray]] = collections.defaultdict(list)


class _Block:
    """Memory that returns to the pool when the last array on it is freed."""

    def __init__(self, memory, home, shape, dtype):
        self._memory, self._home = memory, home
        start = memory.__array_interface__['data'][0]
        self.__array_interface__ = {
            'shape': shape,
            'typestr': dtype.str,
            'data': (start + -start % _ALIGNMENT, False),
            'version': 3,
        }

    def __del__(self):
        self._home.append(self._memory)


def empty(shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
    """Return an uninitialised array, as :func:`numpy.empty` does."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize + _ALIGNMENT
    step = max(1 << size.bit_length() - 1, 4096) // _STEPS
    size = -(-size // step) * step
    home = _free[size]
    try:
        memory = home.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Block(memory, home, tuple(shape), dtype))
