"""Inference on the CPU by ONNX Runtime: the network's ONNX graph, in memory.

Needs the packages onnxruntime and onnx (extra ``onnxruntime``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from trainer import extras
from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.weights import onnx

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Array

ON_GPU = False

_EXTRA = 'onnxruntime'


def available() -> bool:
    """Return whether ONNX Runtime and onnx are installed."""
    return all(importlib.util.find_spec(name) for name in ('onnxruntime', 'onnx'))


class _OnnxRuntimePredictor(Predictor):
    def __init__(self, network, precision):
        onnxruntime = extras.need('onnxruntime', 'the engine onnxruntime', _EXTRA)
        extras.need('onnx', 'the engine onnxruntime', _EXTRA)
        if precision != 'float32':
            raise InputError(f'precision {precision}: onnxruntime has float32')
        super().__init__(network, 'onnxruntime', f'ONNX Runtime {onnxruntime.__version__}, float32')
        self.refresh()

    def refresh(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: its warnings are not for users
        self._session = onnxruntime.InferenceSession(
            onnx.build(self.network, features=True).SerializeToString(),
            options,
            providers=['CPUExecutionProvider'],
        )

    def _compute(self, x, output):
        return self._session.run([output], {'x': np.ascontiguousarray(x, np.float32)})[0]

    def __call__(self, x):
        return self._compute(x, 'scores')

    def features(self, x):
        return self._compute(x, 'features')


def predictor(
    network: Network, precision: str = 'float32', finish: Callable[[Array], Array] | None = None
) -> Predictor:
    """Prepare a network for inference on the CPU.

    Args:
        network: The network; later changes of its weights have an effect after ``refresh()``.
        precision: 'float32'.
        finish: Not used on a CPU.

    Returns:
        The predictor, for images and batches of any size.

    Raises:
        trainer.errors.InputError: ONNX Runtime is missing, or the precision is not float32.
    """
    return _OnnxRuntimePredictor(network, precision)
