"""Tensors in Torch7's and PyTorch's files: strided views of storages, checked for bounds."""

import io
from typing import NamedTuple

import numpy as np


class Damaged(Exception):
    """The file is damaged."""


class Storage(NamedTuple):
    """Numbers in a file: the format's name of their type, dtype, first byte, count."""

    kind: str
    dtype: np.dtype
    position: int
    size: int


class StridedTensor(NamedTuple):
    """A strided view of a storage; offset and strides count numbers, not bytes."""

    kind: str
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __hash__(self) -> int:
        return object.__hash__(self)  # it may be a key of a Lua table, whatever its fields hold

    def extent(self) -> tuple[int, int]:
        """Check the tensor; return (first, last + 1) of its numbers in the storage.

        Its numbers must be distinct: a view of few numbers cannot pass for many weights.
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
        """Read the numbers, in the file's precision."""
        first, end = self.extent()
        dtype = self.storage.dtype
        numbers = np.empty(end - first, dtype)
        f.seek(self.storage.position + first * dtype.itemsize)
        if f.readinto(numbers.data.cast('B')) < numbers.nbytes:
            raise Damaged('it ends too soon')
        # The stride of an axis of length 1 is meaningless, and could be any number.
        return np.lib.stride_tricks.as_strided(
            numbers,
            self.shape,
            [
                stride * dtype.itemsize if length > 1 else 0
                for length, stride in zip(self.shape, self.strides)
            ],
        )
