"""Inference on a CPU by the engine numpy."""

import numpy as np

from trainer.errors import InputError
from trainer.inference.predictors.reference import ByNetwork

ON_GPU = False


def predictor(network, precision='float32', finish=None):
    """As :func:`trainer.inference.predictors.reference.predictor`."""
    if precision != 'float32':
        raise InputError(f'precision {precision}: the engine numpy has float32')
    return ByNetwork(network, 'numpy', f'NumPy {np.__version__}', precision, finish)
