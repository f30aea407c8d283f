"""cuDNN by its Python frontend, and the GPUs that graphs are made for."""

import functools
import typing


@functools.cache
def frontend():
    """Return the module of nvidia-cudnn-frontend.

    What it and cuDNN load of CUDA is loaded before, wherever it is installed: beside Python's
    packages the system's loader does not find libcudart, nor NVRTC 13.0 its own builtins,
    without which cuDNN has none of the plans that it compiles at run time.

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
    """A GPU that graphs are made for.

    Attributes:
        sm_version: Compute capability, 90 for Hopper.
        handle: The handle of cuDNN that all its graphs share.
        properties: cuDNN's description of a GPU that is not there: graphs are then planned,
            and none can run.
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
