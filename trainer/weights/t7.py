"""Torch7's binary files (.t7), read with torchfile, within bounds.

torchfile trusts every length in a file and loads every tensor, including gradients and
buffers. Here tensors and storages have readers of our own, which check that the numbers
exist and note where they are, so that needed ones can be loaded later. Nothing in a file is
executed: torchfile keeps Lua functions as bytes.
"""

import io
import os
import struct
from typing import Any

import numpy as np
import torchfile

from trainer.weights.strided import Damaged, Storage, StridedTensor

# Longest string, most objects and dimensions; beyond them a file is damaged. 152 layers 64x4d
# with separate branches (bottleneck type resnext_B) have 1.2 million objects.
_MAX_STRING = 1 << 20
_MAX_OBJECTS = 2_000_000
_MAX_DIMENSIONS = 8
# Most bytes besides the numbers, mainly strings. Those 152 layers have 19 MB.
_MAX_READ = 1 << 26

# Exceptions that torchfile raises for damaged files.
_DAMAGE = (
    struct.error,
    torchfile.T7ReaderException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class _File:
    """The file that torchfile reads: checks that each read is within bounds."""

    def __init__(self, f):
        self.f = f
        self.size = os.fstat(f.fileno()).st_size
        self._left = _MAX_READ

    def read(self, length):
        if not 0 <= length <= _MAX_STRING:
            raise Damaged(f'it states a length of {length} at byte {self.f.tell()}')
        self._left -= length
        if self._left < 0:
            raise Damaged(f'it has more than {_MAX_READ:,} bytes beside its numbers')
        data = self.f.read(length)
        if len(data) < length:
            raise Damaged('it ends too soon')
        return data


_DTYPES = {
    'Byte': 'u1',
    'Char': 'i1',
    'Short': '<i2',
    'Int': '<i4',
    'Long': '<i8',
    'Half': '<f2',
    'Float': '<f4',
    'Double': '<f8',
}

# torchfile has one global table of readers. Ours have names of their own, so that torchfile.load
# is unchanged for others.
_OURS = b'trainer '
_ours: set[bytes] = set()


def _register(kind, dtype):
    def read_tensor(reader, version):
        dimensions = reader.read_int()
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            raise Damaged(f'a tensor has {dimensions} dimensions')
        shape = reader.read_long_array(dimensions)
        strides = reader.read_long_array(dimensions)
        offset = reader.read_long() - 1
        return StridedTensor(kind, reader.read_obj(), offset, shape, strides)

    def read_storage(reader, version):
        size = reader.read_long()
        position = reader.f.f.tell()
        if not 0 <= size <= (reader.f.size - position) // dtype.itemsize:
            raise Damaged(f'{size} numbers should follow byte {position}')
        reader.f.f.seek(position + size * dtype.itemsize)
        reader.numbers += size
        return Storage(kind, dtype, position, size)

    for name, read in (('Tensor', read_tensor), ('Storage', read_storage)):
        name = (kind + name).encode()
        _ours.add(name)
        torchfile.register_handler(_OURS + name)(read)


for _name, _dtype in _DTYPES.items():
    _register('torch.' + _name, np.dtype(_dtype))
    # CUDA's float tensors are plain torch.CudaTensor.
    _register('torch.Cuda' + _name.replace('Float', ''), np.dtype(_dtype))


class _Reader(torchfile.T7Reader):
    """torchfile's reader, for 8-byte longs on any system, with bounds."""

    def __init__(self, f):
        # With its heuristic for lists, torchfile fails on a list of tensors.
        super().__init__(_File(f), use_list_heuristic=False, force_8bytes_long=True)
        self.numbers = 0
        self._objects_left = _MAX_OBJECTS

    def read_obj(self):
        self._objects_left -= 1
        if self._objects_left < 0:
            raise Damaged(f'it has more than {_MAX_OBJECTS:,} objects')
        return super().read_obj()

    def read_long_array(self, n):
        return self._read(f'<{n}q')  # torchfile's needs Python 2 for 8-byte longs

    def read_string(self, disable_utf8=False):
        string = super().read_string(disable_utf8)
        # disable_utf8 marks the names of classes.
        return _OURS + string if disable_utf8 and string in _ours else string


def parse(f: io.BufferedReader) -> tuple[Any, int]:
    """Read a file, except the numbers of its tensors.

    Args:
        f: The open file.

    Returns:
        The content as torchfile returns it, but with :class:`StridedTensor` and :class:`Storage`
        for arrays, and dicts for tables; and how many numbers all storages have.

    Raises:
        Damaged: The file is not a valid Torch7 file.
    """
    first = f.read(4)
    if first[:2] in (b'3\n', b'4\n'):
        raise Damaged("it is in Torch7's text format; save it there as 'binary'")
    if first[1:] != b'\0\0\0' or first[0] not in (torchfile.TYPE_TABLE, torchfile.TYPE_TORCH):
        raise Damaged('it does not begin as one')
    f.seek(0)
    reader = _Reader(f)
    try:
        root = reader.read_obj()
    except _DAMAGE as e:
        raise Damaged(e if isinstance(e, torchfile.T7ReaderException) else type(e).__name__) from e
    if f.tell() != reader.f.size:
        raise Damaged(f'{reader.f.size - f.tell()} bytes follow its end')
    return root, reader.numbers
