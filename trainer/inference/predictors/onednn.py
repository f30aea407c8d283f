"""Inference on a CPU by the engine onednn."""

from trainer import engines
from trainer.engines.onednn import library
from trainer.inference.predictors.reference import ByNetwork

ON_GPU = False


def predictor(network, precision='float32', finish=None):
    """In float32, or in bfloat16 where the CPU has it.

    Raises:
        trainer.errors.InputError: oneDNN is missing, or the CPU has not the precision.
    """
    engine, precision, _ = engines.choose(-1, precision, engine='onednn')
    return ByNetwork(network, engine, f'oneDNN {library.version()}', precision, finish)
