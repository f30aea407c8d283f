"""The simulated ``cupy.ndarray`` and the functions on it, computed by NumPy.

Results are C-contiguous, as CuPy's ufuncs make them whatever the inputs' layout is; a
NumPy array among the arguments is refused.
"""

import builtins

import numpy as np

from cupy import _device
from cupy._device import submit

_SCALARS = (bool, int, float, complex, np.generic)


def _order_of(order):
    return 'K' if order is None else order.upper()


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.forc, self.fnc, self.owndata = flags.forc, flags.fnc, flags.owndata

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """An array on the simulated device."""

    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order='C'):
        shape = tuple(int(n) for n in shape) if np.iterable(shape) else (int(shape),)
        dtype = np.dtype(dtype)
        if dtype.kind not in 'biufc':
            raise ValueError(f'Unsupported dtype {dtype}')
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if memptr is None:
            memptr = _device.alloc(size)
        if strides is None and order == 'F':
            strides = tuple(int(s) for s in dtype.itemsize * np.cumprod((1,) + shape)[:-1])
        self._data = memptr
        self._host = _device.view(memptr.ptr, shape, dtype, strides)
        self.base = None

    def _view(self, host):
        """Return an array of the same memory, seen as the NumPy view ``host``."""
        view = ndarray.__new__(ndarray)
        view._host = host
        offset = host.__array_interface__['data'][0] - self._data.mem.ptr if host.size else 0
        view._data = _device.MemoryPointer(self._data.mem, offset)
        view.base = self if self.base is None else self.base
        return view

    @property
    def data(self):
        return self._data

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: _Flags(self._host.flags))
    device = property(lambda self: _device.Device(0))
    T = property(lambda self: self._view(self._host.T))

    @shape.setter
    def shape(self, shape):
        self._host = self._host.reshape(shape, copy=False)

    @property
    def __cuda_array_interface__(self):
        return {
            'shape': self.shape,
            'typestr': self.dtype.str,
            'descr': self.dtype.descr,
            'version': 3,
            'strides': None if self.flags.c_contiguous else self.strides,
            'data': (self.data.ptr, False),
            'stream': 1,
        }

    # Views.

    def view(self, dtype=None):
        return self._view(self._host.view() if dtype is None else self._host.view(dtype))

    def transpose(self, *axes):
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, a, b):
        return self._view(self._host.swapaxes(a, b))

    def squeeze(self, axis=None):
        return self._view(self._host.squeeze(axis))

    def reshape(self, *shape, order='C'):
        shape = shape[0] if len(shape) == 1 and np.iterable(shape[0]) else shape
        try:
            return self._view(self._host.reshape(shape, order=order, copy=False))
        except ValueError:
            if order != 'C':
                raise
            self._host.reshape(shape)  # raises if it is impossible
            return self.copy().reshape(shape)

    def ravel(self, order='C'):
        return self.reshape(-1, order=order)

    def flatten(self, order='C'):
        return self.copy().reshape(-1)

    def reduced_view(self):
        return self.ravel() if self.flags.c_contiguous else self

    # Copies.

    def copy(self, order='C'):
        return self.astype(self.dtype, order=order)

    def _like(self, dtype, order):
        """Return an empty array of this shape, and of this layout where the order is 'K'."""
        order, flags = _order_of(order), self._host.flags
        if order == 'A' or order == 'K' and flags.forc:
            order = 'F' if flags.fnc else 'C'
        strides = None
        if order == 'K':
            strides = np.empty_like(
                np.lib.stride_tricks.as_strided(np.empty(0, dtype), self.shape, self.strides),
                order='K',
            ).strides
        return ndarray(self.shape, dtype, None, strides, order)

    def astype(self, dtype, order='K', casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError('casting and subok are not supported yet')
        dtype, flags = np.dtype(dtype), self._host.flags
        if (
            not copy
            and dtype == self.dtype
            and (
                order in ('K', None)
                or order == 'A'
                and flags.forc
                or order == 'C'
                and flags.c_contiguous
                or order == 'F'
                and flags.f_contiguous
            )
        ):
            return self
        new = self._like(dtype, order)
        _assign(new, self)
        return new

    def fill(self, value):
        if isinstance(value, ndarray):
            bool(value == 0)  # CuPy asks, which waits for the device
        else:
            value = np.asarray(value, self.dtype)
        if value.shape != ():
            raise ValueError('non-scalar numpy.ndarray cannot be used for fill')
        _assign(self, value if isinstance(value, ndarray) else value[()])

    def get(self, stream=None, order='C', out=None, blocking=True):
        stream = stream or _device.get_current_stream()
        if out is None:
            out = np.empty(self.shape, self.dtype, 'C' if order == 'A' else order)
        elif not isinstance(out, np.ndarray) or out.dtype != self.dtype:
            raise TypeError(f'{self.dtype} array cannot be obtained')
        elif out.shape != self.shape:
            raise ValueError('Shape mismatch')
        if not self.size:
            return out
        source = self
        if not (
            out.flags.c_contiguous
            and self._host.flags.c_contiguous
            or out.flags.f_contiguous
            and self._host.flags.f_contiguous
        ):
            if not out.flags.forc:
                raise RuntimeError(
                    '`out` cannot be specified when copying to non-contiguous ndarray'
                )
            with stream:
                source = self.copy('C' if out.flags.c_contiguous else 'F')
        source.data.copy_to_host_async(out.ctypes.data, self.nbytes, stream)
        if blocking:
            stream.synchronize()
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError('Only numpy.ndarray can be set to cupy.ndarray')
        if self.dtype != arr.dtype:
            raise TypeError(f'{arr.dtype} array cannot be set to {self.dtype} array')
        if self.shape != arr.shape:
            raise ValueError(f'Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}')
        if not self._host.flags.forc:
            raise RuntimeError('Cannot set to non-contiguous array')
        arr = np.asarray(arr, order='C' if self._host.flags.c_contiguous else 'F')
        self.data.copy_from_host_async(arr.ctypes.data, self.nbytes, stream)

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        return bool(self.get())

    def __repr__(self):
        return repr(self.get())

    __str__ = __repr__

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __deepcopy__(self, memo):
        return self.copy('K')

    def __copy__(self):
        return self.copy('K')

    def __reduce__(self):
        import cupy

        return cupy.array, (self.get(),)

    __hash__ = None

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            'Implicit conversion to a NumPy array is not allowed. Please use `.get()` '
            'to construct a NumPy array explicitly.'
        )

    def __array_ufunc__(self, function, method, *inputs, **kwargs):
        import cupy

        if method != '__call__' or not hasattr(cupy, function.__name__):
            return NotImplemented
        if 'out' in kwargs:
            (kwargs['out'],) = kwargs['out']
        return getattr(cupy, function.__name__)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        import cupy

        found = getattr(cupy, function.__name__, function)
        if found is function or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return found(*args, **kwargs)

    # Indexing.

    def __getitem__(self, index):
        index, arrays = _index(index)
        if not arrays:
            return self._view(self._host[index])
        if any(a.dtype == bool for a in arrays):
            _device._refuse_capture('the size of a boolean selection')
        return _apply(lambda x, *_: x[index], self, *arrays)

    def __setitem__(self, index, value):
        index, arrays = _index(index)
        if arrays:
            _write(lambda x, v, *_: x.__setitem__(index, v), self, value, *arrays)
        elif isinstance(value, ndarray):
            target = self._view(self._host[index])
            # CuPy drops leading dimensions of one.
            while value.ndim > target.ndim and value.shape[0] == 1:
                value = value[0]
            _assign(target, value)
        else:
            self._view(self._host[index]).fill(value)

    def take(self, indices, axis=None, out=None):
        return _apply(lambda x, i: x.take(i, axis), self, indices, out=out)

    # Reductions.

    def argmax(self, axis=None, dtype=None, out=None, keepdims=False):
        return _apply(lambda x: x.argmax(axis, keepdims=keepdims), self, out=out)

    def argmin(self, axis=None, dtype=None, out=None, keepdims=False):
        return _apply(lambda x: x.argmin(axis, keepdims=keepdims), self, out=out)

    def clip(self, min=None, max=None, out=None):
        return _apply(lambda x, a, b: np.clip(x, a, b), self, min, max, out=out)

    def dot(self, other, out=None):
        import cupy

        return cupy.dot(self, other, out)


def _reduction(name):
    def method(self, axis=None, dtype=None, out=None, keepdims=False):
        def compute(x):
            # CuPy sums float16 in float32.
            wide = np.float32 if x.dtype == np.float16 and name in ('sum', 'prod') else dtype
            kwargs = {} if dtype is None and wide is None else {'dtype': wide}
            y = getattr(x, name)(axis=axis, keepdims=keepdims, **kwargs)
            return y.astype(dtype or x.dtype) if wide is not dtype else y

        return _apply(compute, self, out=out)

    method.__name__ = name
    return method


def _plain_reduction(name):
    def method(self, axis=None, out=None, keepdims=False):
        return _apply(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), self, out=out)

    method.__name__ = name
    return method


def _deviation(name):
    def method(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return _apply(
            lambda x: getattr(x, name)(axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims),
            self,
            out=out,
        )

    return method


for _name in ('sum', 'mean', 'prod'):
    setattr(ndarray, _name, _reduction(_name))
for _name in ('max', 'min', 'any', 'all'):
    setattr(ndarray, _name, _plain_reduction(_name))
for _name in ('var', 'std'):
    setattr(ndarray, _name, _deviation(_name))


# How everything is computed.


def host(x):
    """Return what a closure may hold of an argument: NumPy's view of an array's memory."""
    if isinstance(x, ndarray):
        return x._host
    if x is None or isinstance(x, _SCALARS):
        return x
    raise TypeError(f'Unsupported type {type(x)}')


def pointers(args):
    return [x.data.ptr for x in args if isinstance(x, ndarray) and x.size]


def _apply(function, *args, out=None):
    """Compute ``function`` of arrays and scalars into a new array, or ``out``."""
    hosts = [host(x) for x in args]
    with np.errstate(all='ignore'):
        # Under capture this is a trial on whatever the memory holds, for shape and type.
        result = np.asarray(function(*hosts))
    if out is None:
        out = ndarray(result.shape, result.dtype)
    elif not isinstance(out, ndarray):
        raise TypeError('Output arguments type must be cupy.ndarray')
    elif out.shape != result.shape:
        raise ValueError('Out shape is mismatched')
    elif not np.can_cast(result.dtype, out.dtype, 'same_kind'):
        raise TypeError(
            f"output (typecode '{result.dtype.char}') could not be coerced to provided output "
            'parameter '
            f'(typecode \'{out.dtype.char}\') according to the casting rule "same_kind"'
        )
    target, capturing = out._host, _device.get_current_stream().is_capturing()

    def work():
        with np.errstate(all='ignore'):
            np.copyto(target, function(*hosts) if capturing else result, 'unsafe')

    submit(work, pointers(args), pointers([out]))
    return out


def _write(function, target, *args):
    """Run ``function`` that changes ``target`` in place."""
    hosts = [host(x) for x in (target,) + args]

    def work():
        with np.errstate(all='ignore'):
            function(*hosts)

    submit(work, pointers(args), pointers([target]))


def _assign(target, value):
    np.broadcast_shapes(target.shape, np.shape(host(value)))
    _write(lambda t, v: np.copyto(t, v, 'unsafe'), target, value)


def _index(index):
    """Return (index for NumPy as a tuple, the device arrays in it)."""
    parts, arrays = [], []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (list, np.ndarray)):
            import cupy

            part = cupy.array(part)  # a transfer, which a capture does not allow
        if isinstance(part, ndarray):
            arrays.append(part)
            part = part._host
        elif not (part is None or part is Ellipsis or isinstance(part, (slice, int, np.integer))):
            raise IndexError(f'Unsupported index {part!r}')
        parts.append(part)
    if not arrays and not builtins.any(part is Ellipsis for part in parts):
        parts.append(...)  # so that NumPy gives a view and no scalar
    return tuple(parts), arrays


class ufunc:
    """An elementwise function."""

    def __init__(self, function, name=None):
        self.__name__ = name or function.__name__
        self._function = function

    def __call__(self, *args, out=None, dtype=None, casting='same_kind'):
        nin = self._function.nin
        if len(args) == nin + 1 and out is None:
            args, out = args[:nin], args[nin]
        if len(args) != nin:
            raise TypeError(f'Wrong number of arguments for {self.__name__}')
        kwargs = {} if dtype is None else {'dtype': dtype, 'casting': casting}
        return _apply(lambda *x: self._function(*x, **kwargs), *args, out=out)


def _operators():
    unary = {'neg': 'negative', 'abs': 'absolute', 'invert': 'invert', 'pos': 'positive'}
    binary = {
        'add': 'add',
        'sub': 'subtract',
        'mul': 'multiply',
        'truediv': 'true_divide',
        'floordiv': 'floor_divide',
        'mod': 'remainder',
        'pow': 'power',
        'lshift': 'left_shift',
        'rshift': 'right_shift',
        'and': 'bitwise_and',
        'or': 'bitwise_or',
        'xor': 'bitwise_xor',
    }
    compare = {
        'lt': 'less',
        'le': 'less_equal',
        'gt': 'greater',
        'ge': 'greater_equal',
        'eq': 'equal',
        'ne': 'not_equal',
    }

    def operator(name, reverse=False, inplace=False):
        function = ufunc(getattr(np, name), name)

        def method(self, *others):
            args = (self,) + others
            if others and not isinstance(others[0], (ndarray, np.ndarray) + _SCALARS):
                return NotImplemented
            return function(*(args[::-1] if reverse else args), out=self if inplace else None)

        return method

    for short, name in {**unary, **binary, **compare}.items():
        setattr(ndarray, f'__{short}__', operator(name))
    for short, name in binary.items():
        setattr(ndarray, f'__r{short}__', operator(name, reverse=True))
        setattr(ndarray, f'__i{short}__', operator(name, inplace=True))
    ndarray.__matmul__ = lambda self, other: __import__('cupy').matmul(self, other)


_operators()
