"""Inference on a CPU by the engine numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import InputError
from trainer.inference.predictors.reference import ByNetwork

if TYPE_CHECKING:
    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network
    from trainer.types import Array

ON_GPU = False


def predictor(
    network: Network, precision: str = 'float32', finish: Callable[[Array], Array] | None = None
) -> Predictor:
    """As :func:`trainer.inference.predictors.reference.predictor`."""
    if precision != 'float32':
        raise InputError(f'precision {precision}: the engine numpy has float32')
    return ByNetwork(network, 'numpy', f'NumPy {np.__version__}', precision, finish)
