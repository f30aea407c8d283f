"""A simulation of CuPy's additional functions; see :mod:`cupy`."""

import cupy
import numpy as np
from cupy._array import _apply, _index, _write


def rsqrt(x, out=None, dtype=None):
    dtype = np.result_type(x.dtype, np.float16) if dtype is None else np.dtype(dtype)
    return _apply(lambda a: (1 / np.sqrt(a.astype(dtype))).astype(dtype), x, out=out)


def scatter_add(a, slices, value):
    index, arrays = _index(slices)
    _write(lambda x, v, *_: np.add.at(x, index, v), a, value, *arrays)


def empty_pinned(shape, dtype=float, order='C'):
    """Return a NumPy array in page-locked memory."""
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    count = int(np.prod(shape))
    buffer = cupy.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype, count).reshape(shape, order=order)


def zeros_pinned(shape, dtype=float, order='C'):
    a = empty_pinned(shape, dtype, order)
    a[...] = 0
    return a
