"""cuDNN through its Python frontend, and the GPUs for which graphs are built."""

import functools
import typing
from types import ModuleType


@functools.cache
def frontend() -> ModuleType:
    """Return the module of nvidia-cudnn-frontend.

    Loads libcudart and NVRTC first, from wherever they are installed: the system's loader does
    not find them among Python's packages, and without NVRTC's builtins cuDNN has no plans that
    are compiled at run time.

    Raises:
        cuda.pathfinder.DynamicLibNotFoundError: A library is not installed.
    """
    from cuda import pathfinder

    for name in ('cudart', 'nvrtc'):
        pathfinder.load_nvidia_dynamic_lib(name)
    import cudnn

    return cudnn


def version() -> str:
    """Return cuDNN's version, such as '9.19.0'."""
    number = frontend().backend_version()
    return f'{number // 10000}.{number // 100 % 100}.{number % 100}'


class Device(typing.NamedTuple):
    """A target GPU of graphs.

    Attributes:
        sm_version: Compute capability, 90 for Hopper.
        handle: cuDNN handle, shared by all its graphs.
        properties: cuDNN's description of an absent GPU: graphs can be planned but not run.
    """

    sm_version: int
    handle: int | None = None
    properties: object = None


@functools.cache
def _device(number):
    import cupy

    return Device(int(cupy.cuda.Device(number).compute_capability), frontend().create_handle())


def device() -> Device:
    """Return the current GPU."""
    import cupy

    return _device(cupy.cuda.Device().id)
