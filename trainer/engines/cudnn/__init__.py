"""The cuDNN engine: the layers through nvidia-cudnn-frontend, on CuPy's arrays.

``chainer.config.precision`` is 'float32' (true float32), 'tf32', or 'mixed': feature maps in
float16; sums, statistics, parameters and their gradients in float32. See
:mod:`trainer.engines.cudnn.provider` for the libraries and kernels that compute.
"""

import functools
import importlib.util
import textwrap

import chainer

from trainer.engines import autograd, tryout
from trainer.engines.cudnn import library, provider, timing
from trainer.settings import settings

PRECISIONS = provider.PRECISIONS

#: Tolerated difference of each precision from float32, relative to the array's norm.
TOLERANCES = {'float32': 1e-4, 'tf32': 5e-3, 'mixed': 3e-2}


_layers = autograd.Layers(provider)

conv_bn = _layers.conv_bn
subsample_and_pad = _layers.subsample_and_pad
max_pooling = _layers.max_pooling
average_pooling = _layers.average_pooling
excite = _layers.excite
global_average_pooling = _layers.global_average_pooling
linear = _layers.linear
fold = _layers.fold


@functools.cache
def unavailable(gpu: int) -> str | None:
    """Return why this engine cannot be used on a GPU, or ``None``.

    Small layers are computed forward and backward in each precision and compared with the
    reference, so that no network is trained with kernels that fail on this machine.

    Args:
        gpu: Number of the GPU.
    """
    for name in ('cupy', 'cudnn'):
        if importlib.util.find_spec(name) is None:
            return '{} is not installed (extra cuda13)'.format(
                {'cudnn': 'nvidia-cudnn-frontend'}.get(name, name)
            )
    try:
        library.version()
        with chainer.get_device(f'@cupy:{gpu}').device:
            for precision in PRECISIONS:
                error = _try_out(precision, gpu)
                if not error < TOLERANCES[precision]:
                    return f'its {precision} results are off by {error:.1e}'
    except Exception as e:  # drivers fail in many ways; the reference remains
        return f'it failed here ({type(e).__name__}: {textwrap.shorten(str(e), 200)})'
    return None


def precisions() -> tuple[str, ...]:
    return PRECISIONS


#: Layers that are tested: channels, output channels, groups, stride. The first is computed by
#: cuDNN, the others by the kernels of grouped convolutions.
_TRIED = ((16, 32, 4, 2), (64, 64, 16, 1), (64, 64, 4, 1), (64, 64, 2, 2))


def _try_out(precision, gpu):
    """Return the greatest relative error of some grouped layers, forward and backward."""
    with (
        chainer.using_config('precision', precision),
        settings.using(fallback=False),
        timing.untimed(),
    ):
        return max(tryout.error(conv_bn, f'@cupy:{gpu}', *layer) for layer in _TRIED)
