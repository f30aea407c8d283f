"""Engines compute the layers; the networks are defined once, in :mod:`trainer.networks`.

An engine is a module in this package with the functions of :mod:`trainer.engines.reference`,
which defines what they compute; tests hold every other engine against it. ``unavailable`` and
``precisions`` report what it supports on a device.
"""

import importlib
from types import ModuleType

from trainer.errors import InputError


def current() -> ModuleType:
    """Return the engine module that ``chainer.config.engine`` names.

    Switch temporarily with ``chainer.using_config('engine', name)``.
    """
    import chainer

    from trainer import settings  # noqa: F401  the default

    return importlib.import_module('trainer.engines.' + chainer.config.engine)


#: All precisions; an engine supports some of them.
PRECISIONS = ('float32', 'tf32', 'mixed', 'bfloat16')

#: Engines on a CPU and on a GPU, the fastest first.
ON_CPU = ('onednn', 'numpy', 'reference')
ON_GPU = ('cudnn', 'reference')


def choose(
    gpu: int, precision: str | None = None, training: bool = False, engine: str | None = None
) -> tuple[str, str, str | None]:
    """Choose the engine for the layers, by device and precision.

    Args:
        gpu: Number of the GPU; below 0 is the CPU.
        precision: One that the engine has; ``None``: 'mixed' for training by cuDNN, else
            'float32'.
        training: Whether the engine is for training.
        engine: One of :data:`ON_CPU` or :data:`ON_GPU`; ``None``: the fastest available.

    Returns:
        Engine, precision, and why no faster engine was chosen (or ``None``).

    Raises:
        trainer.errors.InputError: The engine or the precision is not available.
    """
    there = ON_GPU if gpu >= 0 else ON_CPU
    if engine not in (None, *there):
        raise InputError(
            f'`engine` {engine}: on a {"GPU" if gpu >= 0 else "CPU"} there are {", ".join(there)}'
        )
    why = None
    for name in there if engine is None else (engine,):
        module = importlib.import_module(f'trainer.engines.{name}')
        reason = module.unavailable(gpu)
        if reason is None:
            break
        why = f'{name} is not used: {reason}'
    else:
        raise InputError(f'`engine` {engine}: {reason}')
    if precision not in (None, *module.precisions()):
        has = f'{name} has {", ".join(module.precisions())} here'
        raise InputError(f'`precision` {precision}: {"; ".join(filter(None, (why, has)))}')
    usual = 'mixed' if training and 'mixed' in module.precisions() else 'float32'
    return name, precision or usual, why
