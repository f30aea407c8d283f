"""The oneDNN engine: the layers through oneDNN's C API, on NumPy arrays.

See :mod:`trainer.engines.onednn.provider` for its precisions. Needs the package
onednn-cpu-gomp (extra ``cpu``), or a system's libdnnl.so.3.
"""

from trainer.engines import autograd
from trainer.engines.onednn import library, provider

PRECISIONS = provider.PRECISIONS

_layers = autograd.Layers(provider)

conv_bn = _layers.conv_bn
subsample_and_pad = _layers.subsample_and_pad
max_pooling = _layers.max_pooling
average_pooling = _layers.average_pooling
excite = _layers.excite
global_average_pooling = _layers.global_average_pooling
linear = _layers.linear


def unavailable(gpu: int = -1) -> str | None:
    """Say why this engine cannot compute here, or return ``None``."""
    why = library.unavailable()
    if why is None:
        return None
    if 'libgomp' in why:
        return "it needs the system's libgomp.so.1 (libgomp1 in Debian)"
    return f'onednn-cpu-gomp is not installed (extra cpu; {why})'


def precisions() -> tuple[str, ...]:
    """Return the precisions that this CPU has instructions for."""
    return PRECISIONS if library.has_bfloat16() else ('float32',)
