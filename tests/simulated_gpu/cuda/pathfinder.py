"""A simulation of cuda.pathfinder, for the tests; see :mod:`cupy`."""

#: The libraries that were loaded, which the simulated frontend looks for.
loaded = set()


class DynamicLibNotFoundError(RuntimeError):
    """There is no such library."""


def load_nvidia_dynamic_lib(libname):
    if libname not in ('cudart', 'nvrtc', 'cublas'):
        raise DynamicLibNotFoundError(f'"{libname}" is not simulated')
    loaded.add(libname)
