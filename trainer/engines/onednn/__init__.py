"""The oneDNN engine: the layers through oneDNN's C API, on NumPy arrays.

See :mod:`trainer.engines.onednn.provider` for its precisions. Needs the package
onednn-cpu-gomp (extra ``cpu``), or a system's libdnnl.so.3.
"""

import functools
import textwrap

import chainer

from trainer.engines import autograd, tryout
from trainer.engines.onednn import library, provider

PRECISIONS = provider.PRECISIONS

#: Tolerated difference from the reference in float32, relative to the array's norm.
TOLERANCE = 1e-4

_layers = autograd.Layers(provider)

conv_bn = _layers.conv_bn
subsample_and_pad = _layers.subsample_and_pad
max_pooling = _layers.max_pooling
average_pooling = _layers.average_pooling
excite = _layers.excite
global_average_pooling = _layers.global_average_pooling
linear = _layers.linear


def unavailable(gpu: int = -1) -> str | None:
    """Return why this engine cannot be used on this CPU, or ``None``.

    Small layers are computed first and compared with the reference.
    """
    why = library.unavailable()
    if why is None:
        return _wrong()
    if 'libgomp' in why:
        return "it needs the system's libgomp.so.1 (libgomp1 in Debian)"
    return f'onednn-cpu-gomp is not installed (extra cpu; {why})'


def precisions() -> tuple[str, ...]:
    """Return the precisions for which this CPU has instructions."""
    return PRECISIONS if library.has_bfloat16() else ('float32',)


@functools.cache
def _wrong():
    """Return what is wrong with the results of small layers, or ``None``."""
    try:
        with chainer.using_config('precision', 'float32'):
            error = max(tryout.error(conv_bn, '@numpy', 8, 8, g, s) for g, s in ((1, 1), (2, 2)))
    except Exception as e:  # the other engines remain
        return f'it failed here ({type(e).__name__}: {textwrap.shorten(str(e), 200)})'
    return None if error < TOLERANCE else f'its results are off by {error:.1e}'
