"""Inference on a CPU by oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer import engines
from trainer.engines.onednn import library
from trainer.inference.predictors.reference import ByNetwork

if TYPE_CHECKING:
    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network
    from trainer.types import Array

ON_GPU = False


def predictor(
    network: Network, precision: str = 'float32', finish: Callable[[Array], Array] | None = None
) -> Predictor:
    """Return the predictor, in float32 or, where the CPU has it, bfloat16.

    Raises:
        trainer.errors.InputError: oneDNN is missing, or the CPU lacks the precision.
    """
    engine, precision, _ = engines.choose(-1, precision, engine='onednn')
    return ByNetwork(network, engine, f'oneDNN {library.version()}', precision, finish)
