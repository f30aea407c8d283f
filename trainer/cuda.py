"""CUDA C in ``.cu`` files beside the modules that use it, compiled by CuPy on first use.

The files include nothing, so no CUDA toolkit is needed; ``cuda.cuh`` is prepended to each.
They use only what a C++ compiler for the CPU understands, given definitions of CUDA's names,
so that the tests can run them on machines without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import cupy

    from trainer.types import Array, R


def lasting() -> AbstractContextManager[None]:
    """Return a context manager that allocates from CuPy's default pool.

    Arrays made in it stay valid after a CUDA graph is captured; what the captured work
    allocates belongs to the graph (:class:`trainer.engines.cudnn.captured.Room`).
    """
    import cupy

    return cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc)


def empty_like(array: Array) -> cupy.ndarray:
    """Return an uninitialised CuPy array of the shape, type and memory layout of an array.

    Args:
        array: A NumPy array must be C-contiguous.
    """
    import cupy

    if isinstance(array, cupy.ndarray):
        return cupy.empty_like(array)
    return cupy.empty(array.shape, array.dtype)


def assign(target: cupy.ndarray, source: cupy.ndarray) -> None:
    """Copy an array to another of its shape, in the order of the target's memory.

    CuPy follows the order of the axes, which is many times slower in NHWC memory.
    """
    order = sorted(range(target.ndim), key=lambda axis: -target.strides[axis])
    target.transpose(order)[...] = source.transpose(order)


def capture(stream: cupy.cuda.Stream, function: Callable[[], R]) -> tuple[cupy.cuda.Graph, R]:
    """Return the CUDA graph of what a function computes, and what the function returns.

    Args:
        stream: The current stream, not the null stream.
        function: Has run once before: building plans and compiling kernels cannot be captured.

    Raises:
        RuntimeError: The function does something that CUDA cannot capture.
    """
    stream.begin_capture()
    try:
        found = function()
    except BaseException:
        with contextlib.suppress(Exception):
            stream.end_capture()
        raise
    return stream.end_capture(), found


def source(*paths: str, **defined: int) -> str:
    """Return the source that is compiled for ``.cu`` files, concatenated.

    Args:
        paths: The files; ``cuda.cuh`` comes first.
        defined: Macros, by name.
    """
    parts = [f'#define {name} {value}\n' for name, value in defined.items()]
    for path in (os.path.splitext(os.path.abspath(__file__))[0] + '.cuh', *paths):
        with open(path) as f:
            parts.append(f'#line 1 "{os.path.basename(path)}"\n{f.read()}')
    return ''.join(parts)


@functools.cache
def _module(*paths, **defined):
    import cupy

    return cupy.RawModule(code=source(*paths, **defined), options=('--std=c++17',))


@functools.cache
def kernels(module_file: str, *names: str, **defined: int) -> Callable[..., None]:
    """Return a function that launches kernels of ``.cu`` files on the current stream.

    Args:
        module_file: The ``__file__`` of the module that the files lie beside.
        names: The files' names, such as 'bn.cu', compiled as one source.
        defined: Macros, by name.

    Returns:
        ``launch(kernel, grid, threads, *args, shared=0)``: name of the kernel; blocks (int or
        tuple) and threads of a block; arrays and NumPy scalars of the types that the kernel
        declares, ``None`` for a null pointer; bytes of dynamic shared memory.
    """
    folder = os.path.dirname(os.path.abspath(module_file))
    paths = [os.path.join(folder, name) for name in names]

    def launch(kernel, grid, threads, *args, shared=0):
        args = tuple(np.uintp(0) if a is None else a for a in args)
        function = _module(*paths, **defined).get_function(kernel)
        if shared > 48 << 10:  # more must be requested
            function.max_dynamic_shared_size_bytes = shared
        function(
            grid if isinstance(grid, tuple) else (int(grid),),
            (int(threads),),
            args,
            shared_mem=shared,
        )

    return launch
