"""A simulation of CuPy 14 on the CPU, for the tests: what it computes, never how fast.

It shows wiring and arithmetic: which arrays a program gives to which kernels, what CuPy
refuses, what lives how long, and what is ordered before what. It says nothing of what
only real hardware shows. It is stricter than a GPU, which computes on with races, with
memory that nobody wrote and with memory that somebody else has been given. Names that it
does not have raise; add them as they are needed, with CuPy's own behaviour.

    PYTHONPATH=tests/simulated_gpu python -m pytest -m gpu tests

The programs run on it too (``PYTHONPATH=tests/simulated_gpu python main.py -g 0 --quick``).
It needs Linux and g++ 12. Compiled kernels are kept in the temporary folder.
"""

import functools

import numpy as np
from numpy import (  # noqa: F401
    bool_,
    dtype,
    float16,
    float32,
    float64,
    inf,
    int8,
    int16,
    int32,
    int64,
    nan,
    newaxis,
    pi,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)

from cupy import _array, _device, cuda
from cupy._array import _apply, _write, ndarray, ufunc  # noqa: F401
from cupy._kernels import ElementwiseKernel, RawKernel, RawModule, ReductionKernel  # noqa: F401

__version__ = '14.2.0'

for _name in [
    'absolute',
    'add',
    'arctan2',
    'bitwise_and',
    'bitwise_or',
    'bitwise_xor',
    'ceil',
    'cos',
    'divide',
    'equal',
    'exp',
    'expm1',
    'floor',
    'floor_divide',
    'fmax',
    'fmin',
    'greater',
    'greater_equal',
    'invert',
    'isfinite',
    'isinf',
    'isnan',
    'left_shift',
    'less',
    'less_equal',
    'log',
    'log1p',
    'log2',
    'logical_and',
    'logical_not',
    'logical_or',
    'maximum',
    'minimum',
    'multiply',
    'negative',
    'not_equal',
    'positive',
    'power',
    'reciprocal',
    'remainder',
    'rint',
    'right_shift',
    'sign',
    'sin',
    'sqrt',
    'square',
    'subtract',
    'tan',
    'tanh',
    'true_divide',
]:
    globals()[_name] = ufunc(getattr(np, _name), _name)
abs = absolute  # noqa: A001, F821


def is_available():
    return cuda.is_available()


def get_default_memory_pool():
    return _device.default_pool


_pinned_pool = cuda.PinnedMemoryPool()


def get_default_pinned_memory_pool():
    return _pinned_pool


def get_array_module(*args):
    import cupy

    return cupy if _any_array(args) else np


def _any_array(args):
    return bool([a for a in args if isinstance(a, ndarray)])


# Making arrays.


def empty(shape, dtype=float, order='C'):
    return ndarray(shape, dtype, order=order)


def zeros(shape, dtype=float, order='C'):
    a = ndarray(shape, dtype, order=order)
    if a.size:
        a.data.memset_async(0, a.nbytes)
    return a


def full(shape, fill_value, dtype=None, order='C'):
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    a = ndarray(shape, dtype, order=order)
    a.fill(fill_value)
    return a


def ones(shape, dtype=float, order='C'):
    return full(shape, 1, dtype, order)


def empty_like(prototype, dtype=None, order='K', subok=None, shape=None):
    if not isinstance(prototype, ndarray):
        raise TypeError(f'{type(prototype)} is no cupy.ndarray')
    dtype = prototype.dtype if dtype is None else np.dtype(dtype)
    return ndarray(shape, dtype) if shape is not None else prototype._like(dtype, order)


def zeros_like(a, dtype=None, order='K', subok=None, shape=None):
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a, dtype=None, order='K', subok=None, shape=None):
    return full_like(a, 1, dtype, order, subok, shape)


def full_like(a, fill_value, dtype=None, order='K', subok=None, shape=None):
    a = empty_like(a, dtype, order, subok, shape)
    a.fill(fill_value)
    return a


def array(obj, dtype=None, copy=True, order='K', subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        a = obj.astype(obj.dtype if dtype is None else dtype, order, copy=bool(copy))
    elif isinstance(obj, (list, tuple)) and obj and _any_array(obj):
        a = stack(list(obj))
        a = a if dtype is None else a.astype(dtype, copy=False)
    else:
        order = _array._order_of(order)
        if order in 'KA':
            order = 'F' if isinstance(obj, np.ndarray) and obj.flags.fnc else 'C'
        on_host = np.array(obj, dtype, copy=None, order=order)
        a = ndarray(on_host.shape, on_host.dtype, order=order)
        if on_host.ndim == 0:
            a.fill(on_host)
        elif on_host.size:
            a.set(on_host)
        if blocking:
            _device.get_current_stream().synchronize()
    while a.ndim < ndmin:
        a = a[None]
    return a


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy, order, blocking=blocking)


asanyarray = asarray


def ascontiguousarray(a, dtype=None):
    return array(a, dtype, None, 'C', ndmin=1)


def asnumpy(a, stream=None, order='C', out=None, *, blocking=True):
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a)


def copy(a, order='K'):
    return a.copy(order)


def copyto(dst, src, casting='same_kind', where=None):
    if not np.can_cast(getattr(src, 'dtype', dst.dtype), dst.dtype, casting):
        raise TypeError(f'Cannot cast {src.dtype} to {dst.dtype}')
    if where is None:
        _write(lambda t, v: np.copyto(t, v, 'unsafe'), dst, src)
    else:
        _write(lambda t, v, w: np.copyto(t, v, 'unsafe', w), dst, src, where)


def arange(start, stop=None, step=1, dtype=None):
    return _apply(lambda: np.arange(*((0, start) if stop is None else (start, stop)), step, dtype))


# Shapes.


def reshape(a, shape, order='C'):
    return a.reshape(shape, order=order)


def ravel(a, order='C'):
    return a.ravel(order)


def transpose(a, axes=None):
    return a.transpose(axes)


def _view_function(name):
    def function(a, *args, **kwargs):
        return a._view(getattr(np, name)(_array.host(a), *args, **kwargs))

    function.__name__ = name
    return function


broadcast_to, expand_dims, moveaxis, rollaxis, squeeze, swapaxes, flip = map(
    _view_function,
    ('broadcast_to', 'expand_dims', 'moveaxis', 'rollaxis', 'squeeze', 'swapaxes', 'flip'),
)


def concatenate(tup, axis=0, out=None, *, dtype=None, casting='same_kind'):
    return _apply(lambda *a: np.concatenate(a, axis, dtype=dtype, casting=casting), *tup, out=out)


def stack(tup, axis=0, out=None, *, dtype=None, casting='same_kind'):
    return _apply(lambda *a: np.stack(a, axis, dtype=dtype, casting=casting), *tup, out=out)


def split(ary, indices_or_sections, axis=0):
    return [ary._view(a) for a in np.split(_array.host(ary), indices_or_sections, axis)]


def array_split(ary, indices_or_sections, axis=0):
    return [ary._view(a) for a in np.array_split(_array.host(ary), indices_or_sections, axis)]


def take(a, indices, axis=None, out=None):
    return a.take(indices, axis, out)


def where(condition, x=None, y=None):
    if x is None:
        _device._refuse_capture('the size of where(condition)')
        return tuple(
            _apply(lambda c, i=i: np.nonzero(c)[i], condition) for i in range(condition.ndim)
        )
    return _apply(np.where, condition, x, y)


# Numbers.


def _method_function(name):
    def function(a, *args, **kwargs):
        if not isinstance(a, ndarray):
            raise TypeError(f'Unsupported type {type(a)}')
        return getattr(a, name)(*args, **kwargs)

    function.__name__ = name
    return function


sum, mean, prod, max, min, any, all, var, std, argmax, argmin, clip = map(  # noqa: A001
    _method_function,
    ('sum', 'mean', 'prod', 'max', 'min', 'any', 'all', 'var', 'std', 'argmax', 'argmin', 'clip'),
)
amax, amin = max, min


def ndim(a):
    return a.ndim


def _by_cublas(function, *args, out=None):
    if _device.get_current_stream().is_capturing():
        raise NotImplementedError(
            'calling cuBLAS API during stream capture is currently unsupported'
        )
    for a in args:
        if not isinstance(a, ndarray):
            raise TypeError(f'Unsupported type {type(a)}')

    def compute(*hosts):
        dtype = np.result_type(*hosts)
        if dtype == np.float16:  # summed in float32
            return function(*(h.astype(np.float32) for h in hosts)).astype(dtype)
        return function(*hosts)

    return _apply(compute, *args, out=out)


def dot(a, b, out=None):
    return _by_cublas(np.dot, a, b, out=out)


def matmul(a, b, out=None):
    return _by_cublas(np.matmul, a, b, out=out)


def tensordot(a, b, axes=2):
    return _by_cublas(lambda x, y: np.tensordot(x, y, axes), a, b)


def einsum(subscripts, *operands):
    return _by_cublas(lambda *x: np.einsum(subscripts, *x, optimize=True), *operands)


# Functions of functions.


def fuse(*args, **kwargs):
    """Fused functions compute what they compute unfused."""
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0]
    return lambda function: function


_memos = []


def memoize(for_each_device=False):
    def decorator(function):
        memo = functools.lru_cache(maxsize=None)(function)
        _memos.append(memo)
        return functools.wraps(function)(lambda *args, **kwargs: memo(*args, **kwargs))

    return decorator


def clear_memo():
    for memo in _memos:
        memo.cache_clear()
