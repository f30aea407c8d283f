"""Names that CuPy has here too."""
from cupy._device import Event, Stream, get_current_stream, get_elapsed_time  # noqa: F401
