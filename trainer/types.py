"""Types that the hints of several modules use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import cupy
    import numpy as np
    from PIL import Image

#: Argument and result of functions that map and run others.
T = TypeVar('T')
R = TypeVar('R')

#: int or float.
N = TypeVar('N', int, float)

#: An array on the CPU or on a GPU.
Array: TypeAlias = 'np.ndarray | cupy.ndarray'

#: The sizes of an array's axes.
Shape: TypeAlias = tuple[int, ...]

#: An image, as preprocessing takes it: a file or the image itself.
Source: TypeAlias = 'str | os.PathLike[str] | Image.Image | np.ndarray'

#: Path of a file or folder.
Path: TypeAlias = str | os.PathLike[str]

#: Receives a function that writes files, and calls it at once or later.
When: TypeAlias = Callable[[Callable[[], None]], None]
