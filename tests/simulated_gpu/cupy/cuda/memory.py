"""Names that CuPy has here too."""
from cupy._device import MemoryPointer, MemoryPool, OutOfMemoryError, alloc  # noqa: F401
