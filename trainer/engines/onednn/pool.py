"""Memory for feature maps that is used again.

New memory from the system is cleared by it first, which costs a step more than most of what
is computed there.
"""

import collections

import numpy as np

_ALIGNMENT = 64  # bytes: a cache line, and AVX-512's width

# Sizes are rounded up to so many for each power of two: what is rounded up is never touched.
_STEPS = 8

# Size -> memory that nobody uses. Appending and taking are atomic: blocks come back whenever
# Python collects them.
_free = collections.defaultdict(list)


class _Block:
    """Memory that goes back to the pool with the last array that is in it."""

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


def empty(shape, dtype):
    """Return an array of any content, as :func:`numpy.empty` does."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize + _ALIGNMENT
    step = max(1 << size.bit_length() - 1, 4096) // _STEPS
    size = -(-size // step) * step
    home = _free[size]
    try:
        memory = home.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Block(memory, home, tuple(shape), dtype))
