"""Tensors in files: strided views of storages, as Torch7 and PyTorch write them, within bounds."""

import io
from typing import NamedTuple

import numpy as np


class Damaged(Exception):
    """The file is not what it should be."""


class Storage(NamedTuple):
    """Numbers in the file: the format's name of their type, dtype, first byte, count."""

    kind: str
    dtype: np.dtype
    position: int
    size: int


class StridedTensor(NamedTuple):
    """A strided view of a storage; offset and strides count numbers."""

    kind: str
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __hash__(self) -> int:
        return object.__hash__(self)  # a key of Lua's, whatever its fields hold

    def extent(self) -> tuple[int, int]:
        """Return (first, last + 1) of its numbers in the storage; checks all that it states.

        Its numbers must be distinct: no view of a few can pass for many weights.
        """
        if not isinstance(self.storage, Storage) or self.storage.kind != self.kind:
            raise Damaged('a tensor has no storage of its type')
        last = self.offset
        for length, stride in sorted(zip(self.shape, self.strides), key=lambda axis: axis[1]):
            if length < 1 or (length > 1 and stride <= last - self.offset):
                raise Damaged(f'a tensor of shape {self.shape} has strides {self.strides}')
            last += (length - 1) * stride
        if not self.shape or not 0 <= self.offset <= last < self.storage.size:
            raise Damaged(f'a tensor of shape {self.shape} runs past its storage')
        return self.offset, last + 1

    def load(self, f: io.BufferedIOBase) -> np.ndarray:
        """Read its numbers, in the file's precision."""
        first, end = self.extent()
        dtype = self.storage.dtype
        numbers = np.empty(end - first, dtype)
        f.seek(self.storage.position + first * dtype.itemsize)
        if f.readinto(numbers.data.cast('B')) < numbers.nbytes:
            raise Damaged('it ends too soon')
        # The stride of a single number means nothing, and could be anything.
        return np.lib.stride_tricks.as_strided(
            numbers,
            self.shape,
            [
                stride * dtype.itemsize if length > 1 else 0
                for length, stride in zip(self.shape, self.strides)
            ],
        )
