"""oneDNN's C API by ctypes: the library, memory descriptors, primitives.

It uses libdnnl.so.3 of the package onednn-cpu-gomp, which needs the system's libgomp.so.1, or
else of the system. Names and numbers are those of dnnl.h and dnnl_types.h of oneDNN 3.2.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from trainer.engines import pool
from trainer.engines.onednn import constants

if TYPE_CHECKING:
    from trainer.types import Shape

_PACKAGE = 'onednn-cpu-gomp'
_LIBRARY = 'libdnnl.so.3'

# dnnl_types.h.
_UNIMPLEMENTED = 3
_CPU_ENGINE = 1
_IN_ORDER = 1
_ANY_LAYOUT = 1
_USER_SCRATCHPAD = 1
_AVX512, _AVX512_BFLOAT16 = 0x27, 0xE7

#: NumPy has no bfloat16, so arrays of it are uint16.
BFLOAT16 = np.dtype(np.uint16)
_TYPES = {np.dtype(np.float32): 3, BFLOAT16: 2, np.dtype(np.uint8): 6}


class NotSupported(Exception):
    """oneDNN cannot compute this."""


def _path():
    """Return the path of the package's library, or the name of a system library."""
    try:
        found = importlib.metadata.files(_PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        return _LIBRARY
    return next((str(f.locate()) for f in found if f.name == _LIBRARY), _LIBRARY)


@functools.cache
def _library():
    return ctypes.CDLL(_path())


@functools.cache
def unavailable() -> str | None:
    """Return why the library cannot be loaded here, or ``None``."""
    try:
        _library()
    except OSError as e:
        return str(e)
    return None


class _Version(ctypes.Structure):
    _fields_ = [('major', ctypes.c_int), ('minor', ctypes.c_int), ('patch', ctypes.c_int)]


@functools.cache
def version() -> str:
    """Return the library's version, as text."""
    get = _library().dnnl_version
    get.restype = ctypes.POINTER(_Version)
    found = get().contents
    return f'{found.major}.{found.minor}.{found.patch}'


def _has(instructions):
    return _library().dnnl_get_effective_cpu_isa() & instructions == instructions


def computes_bfloat16() -> bool:
    """Return whether oneDNN can compute in bfloat16 here, even if slowly."""
    return _has(_AVX512)


def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 that oneDNN uses."""
    return _has(_AVX512_BFLOAT16)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C API.

    Raises:
        NotSupported: oneDNN does not implement this.
        RuntimeError: The call failed.
    """
    status = getattr(_library(), name)(*arguments)
    if status == _UNIMPLEMENTED:
        raise NotSupported(name)
    if status:
        raise RuntimeError(f'oneDNN: {name} failed with status {status}')


class Handle(ctypes.c_void_p):
    """A handle of the library; hashable, for caches."""

    __hash__ = object.__hash__


def create(name: str, *arguments: object) -> Handle:
    """Call a function that creates an object; return its handle."""
    handle = Handle()
    call(name, ctypes.byref(handle), *arguments)
    return handle


@functools.cache
def engine() -> Handle:
    return create('dnnl_engine_create', ctypes.c_int(_CPU_ENGINE), ctypes.c_size_t(0))


@functools.cache
def _stream():
    return create('dnnl_stream_create', engine(), ctypes.c_uint(_IN_ORDER))


def dims(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Return a dnnl_dims_t."""
    return (ctypes.c_int64 * 12)(*values)


@functools.cache
def strided(shape: Shape, dtype: np.dtype, strides: tuple[int, ...]) -> Handle:
    """Describe memory by its strides, in values."""
    return create(
        'dnnl_memory_desc_create_with_strides',
        ctypes.c_int(len(shape)),
        dims(shape),
        ctypes.c_int(_TYPES[dtype]),
        dims(strides),
    )


@functools.cache
def any_layout(shape: Shape, dtype: np.dtype) -> Handle:
    """Describe memory in a layout that the primitive chooses."""
    return create(
        'dnnl_memory_desc_create_with_tag',
        ctypes.c_int(len(shape)),
        dims(shape),
        ctypes.c_int(_TYPES[dtype]),
        ctypes.c_int(_ANY_LAYOUT),
    )


def nhwc(shape: Shape, dtype: np.dtype) -> Handle:
    """Describe feature maps (batch, channels, height, width) whose memory is NHWC."""
    n, c, h, w = shape
    return strided(shape, dtype, (h * w * c, 1, w * c, c))


def vector(size: int) -> Handle:
    """Describe a float32 vector."""
    return strided((size,), np.dtype(np.float32), (1,))


def bytes_of(descriptor: Handle) -> int:
    """Return the size of a descriptor's memory in bytes."""
    size = _library().dnnl_memory_desc_get_size
    size.restype = ctypes.c_size_t
    return size(descriptor)


class _Argument(ctypes.Structure):
    _fields_ = [('index', ctypes.c_int), ('memory', ctypes.c_void_p)]


def attributes(post_ops: Handle | None = None) -> Handle:
    """Return the attributes of a primitive, with a scratchpad that the caller provides."""
    attributes = create('dnnl_primitive_attr_create')
    call('dnnl_primitive_attr_set_scratchpad_mode', attributes, ctypes.c_int(_USER_SCRATCHPAD))
    if post_ops is not None:
        call('dnnl_primitive_attr_set_post_ops', attributes, post_ops)
    return attributes


class Primitive:
    """A primitive, which can be called with arrays repeatedly.

    Args:
        kind: Its descriptor is created by ``dnnl_<kind>_primitive_desc_create``.
        arguments: Arguments of that function after the first two, except the attributes.
        post_ops: Its post-ops (``dnnl_post_ops_t``), if any.
    """

    # One primitive at a time, as there is one stream and one scratchpad.
    _lock = threading.Lock()
    _scratchpad: np.ndarray | None = None

    def __init__(self, kind: str, *arguments: object, post_ops: Handle | None = None) -> None:
        attr = attributes(post_ops)
        self.descriptor = create(f'dnnl_{kind}_primitive_desc_create', *arguments, attr)
        self._primitive = create('dnnl_primitive_create', self.descriptor)
        self._scratch = bytes_of(self.memory(constants.OF_SCRATCHPAD))
        self._bound: dict[str, Handle] = {}

    def memory(self, query: int, index: int = 0) -> Handle:
        """Return the descriptor that the primitive has chosen for a memory."""
        get = _library().dnnl_primitive_desc_query_md
        get.restype = ctypes.c_void_p
        return Handle(get(self.descriptor, ctypes.c_int(query), ctypes.c_int(index)))

    def bind(self, **descriptors: tuple[int, Handle]) -> Self:
        """Name the arguments of :meth:`__call__`: name=(index of the argument, descriptor)."""
        if self._scratch:
            descriptors['scratchpad'] = constants.SCRATCHPAD, self.memory(constants.OF_SCRATCHPAD)
        self._arguments = (_Argument * len(descriptors))()
        for argument, (name, (index, descriptor)) in zip(self._arguments, descriptors.items()):
            memory = create('dnnl_memory_create', descriptor, engine(), None)
            argument.index, argument.memory = index, memory
            self._bound[name] = memory
        return self

    def __call__(self, **arrays: np.ndarray) -> None:
        """Compute. The memory of arrays must match the descriptors."""
        library = _library()
        with self._lock:
            if self._scratch:
                scratchpad = Primitive._scratchpad
                if scratchpad is None or scratchpad.nbytes < self._scratch:
                    scratchpad = Primitive._scratchpad = pool.empty((self._scratch,), np.uint8)
                arrays['scratchpad'] = scratchpad
            for name, array in arrays.items():
                library.dnnl_memory_set_data_handle(
                    self._bound[name], ctypes.c_void_p(array.__array_interface__['data'][0])
                )
            call(
                'dnnl_primitive_execute',
                self._primitive,
                _stream(),
                ctypes.c_int(len(self._arguments)),
                self._arguments,
            )
