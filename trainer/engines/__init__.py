"""Engines compute the layers; the networks are defined once, in :mod:`trainer.networks`.

An engine is a module here with the functions of :mod:`trainer.engines.reference`,
which says what each must compute. Every other engine is tested against it.
"""

import importlib

import chainer

from trainer.errors import InputError

chainer.global_config.engine = 'reference'

# How an engine computes that has several precisions.
chainer.global_config.precision = 'float32'


def current():
    """Return the engine module that ``chainer.config.engine`` names.

    Choose another for a while with ``chainer.using_config('engine', name)``.
    """
    return importlib.import_module('trainer.engines.' + chainer.config.engine)


def choose(gpu, precision=None, training=False):
    """Choose the engine for the layers, by device and precision.

    Args:
        gpu (int): Number of the GPU; below 0 is the CPU.
        precision (str): 'float32', 'tf32' or 'mixed'; ``None``: 'mixed' for training by
            cuDNN, else 'float32'.
        training (bool): What it is for.

    Returns:
        tuple of str: The engine, the precision, and why it is not cuDNN on a GPU (or ``None``).

    Raises:
        trainer.errors.InputError: Only cuDNN has the precision, and it cannot be used.
    """
    if gpu >= 0:
        from trainer.engines import cudnn

        why = cudnn.unavailable(gpu)
        if why is None:
            return 'cudnn', precision or ('mixed' if training else 'float32'), None
        why = f'cuDNN is not used: {why}'
    else:
        why = None
    if precision not in (None, 'float32'):
        raise InputError(
            '--precision {}: {}; leave it out for float32'.format(
                precision, why or 'it is for GPUs (-g)'
            )
        )
    return 'reference', 'float32', why
