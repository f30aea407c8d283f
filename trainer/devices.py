"""CPU and GPUs, as ``-g`` names them."""

import chainer
from chainer.backends import cuda

from trainer.errors import InputError


def get(gpu: int) -> chainer.backend.Device:
    """Return Chainer's device for a GPU number; below 0 is the CPU.

    Raises:
        trainer.errors.InputError: There is no CuPy or no such GPU.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    try:
        import cupy
    except ImportError as e:
        raise InputError(
            f'-g {gpu}: CuPy cannot be imported ({e}); install it with "uv sync --inexact --extra '
            'cuda13" or "pip install .[cuda13]", or leave -g out to compute on the CPU'
        ) from e
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise InputError(
            '-g {}: no GPU can be used here ({}); leave -g out to compute on the CPU'.format(
                gpu, str(e).split(':')[-1].strip()
            )
        ) from e
    if gpu >= count:
        raise InputError(
            '-g {}: this machine has {} GPU{}, numbered from 0'.format(
                gpu, count, '' if count == 1 else 's'
            )
        )
    if not cuda.available:
        raise InputError(
            f'-g {gpu}: Chainer cannot use CuPy ({cuda._resolution_error}); leave -g out to '
            'compute on the CPU'
        )
    return chainer.get_device(f'@cupy:{gpu}')
