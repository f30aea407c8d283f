"""Names of types that several modules' hints use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import cupy
    import numpy as np
    from PIL import Image

#: What maps and ``run`` functions take and give back.
T = TypeVar('T')
R = TypeVar('R')

#: int or float.
N = TypeVar('N', int, float)

#: An array on the CPU or on a GPU.
Array: TypeAlias = 'np.ndarray | cupy.ndarray'

#: The sizes of an array's axes.
Shape: TypeAlias = tuple[int, ...]

#: An image, as preprocessing takes it: its file, or itself.
Source: TypeAlias = 'str | os.PathLike[str] | Image.Image | np.ndarray'

#: A file's or folder's path.
Path: TypeAlias = str | os.PathLike[str]
