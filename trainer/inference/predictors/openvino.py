"""Inference on the CPU by OpenVINO: the network's ONNX graph, compiled in memory.

Needs the packages openvino and onnx (extra ``cpu``), and for 8-bit integers nncf (``int8``).
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer import extras
from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.weights import onnx

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Array, Path

ON_GPU = False

# OpenVINO's names. By default it computes in bfloat16 where the CPU has it.
_PRECISIONS = {'float32': 'f32', 'bfloat16': 'bf16', 'int8': None}


def available() -> bool:
    """Return whether OpenVINO and onnx are installed."""
    return all(importlib.util.find_spec(name) for name in ('openvino', 'onnx'))


class _OpenVinoPredictor(Predictor):
    def __init__(self, network, precision, calibration):
        extra = 'int8' if precision == 'int8' else 'cpu'
        openvino = extras.need('openvino', 'the engine openvino', extra)
        extras.need('onnx', 'the engine openvino', extra)
        if precision not in _PRECISIONS:
            raise InputError(
                'precision {}: openvino has {}'.format(precision, ' and '.join(_PRECISIONS))
            )
        self._core = openvino.Core()
        self._has_bfloat16 = 'BF16' in self._core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
        if precision == 'bfloat16' and not self._has_bfloat16:
            raise InputError(
                'precision bfloat16: this CPU has no instructions for it; leave the precision out'
            )
        super().__init__(
            network,
            'openvino',
            'OpenVINO {}, {}'.format(openvino.__version__.split('-')[0], precision),
        )
        self._precision, self._calibration = precision, calibration
        self._turn = threading.Lock()  # a request computes one thing at a time
        self.refresh()

    def refresh(self):
        # Any batch and image size: graphs compiled for one are no faster.
        if self._precision == 'int8':
            from trainer.inference import quantization  # which needs nncf, and predictors

            model = quantization.quantized(self.network, self._calibration)
        else:
            graph = onnx.build(self.network, features=True)
            model = self._core.read_model(graph.SerializeToString())
        # Layers that are not quantised are computed in the fastest precision.
        hint = _PRECISIONS[self._precision] or ('bf16' if self._has_bfloat16 else 'f32')
        request = self._core.compile_model(
            model, 'CPU', {'INFERENCE_PRECISION_HINT': hint, 'PERFORMANCE_HINT': 'LATENCY'}
        ).create_infer_request()
        with self._turn:
            self._request = request

    def _compute(self, x, output):
        with self._turn:
            self._request.infer({'x': np.ascontiguousarray(x, np.float32)}, share_inputs=True)
            return np.array(self._request.get_tensor(output).data)

    def __call__(self, x):
        return self._compute(x, 'scores')

    def features(self, x):
        return self._compute(x, 'features')


def predictor(
    network: Network,
    precision: str = 'float32',
    finish: Callable[[Array], Array] | None = None,
    calibration: Path | Sequence[np.ndarray] | None = None,
) -> Predictor:
    """Compile a network for inference on the CPU.

    Args:
        network: The network; later changes of its weights have an effect after ``refresh()``.
        precision: 'float32', 'bfloat16' where the CPU has it, or 'int8'.
        finish: Not used on a CPU.
        calibration: For 'int8': see :func:`trainer.inference.quantization.quantized`.

    Returns:
        The predictor, for images and batches of any size.

    Raises:
        trainer.errors.InputError: OpenVINO is missing, or the CPU lacks the precision.
    """
    return _OpenVinoPredictor(network, precision, calibration)
