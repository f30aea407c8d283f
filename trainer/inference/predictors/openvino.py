"""Inference on the CPU by OpenVINO: the network's ONNX graph, compiled in memory.

Needs the packages openvino and onnx (extra ``cpu``).
"""

import importlib.util

import numpy as np

from trainer import extras
from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.weights import onnx

ON_GPU = False

# OpenVINO's names. Left alone, it would take bfloat16 where the CPU has it.
_PRECISIONS = {'float32': 'f32', 'bfloat16': 'bf16'}


def available():
    """Tell whether its packages are installed."""
    return all(importlib.util.find_spec(name) for name in ('openvino', 'onnx'))


class _Predictor(Predictor):
    def __init__(self, network, precision):
        openvino = extras.need('openvino', 'the engine openvino', 'cpu')
        extras.need('onnx', 'the engine openvino', 'cpu')
        if precision not in _PRECISIONS:
            raise InputError(
                'precision {}: openvino has {}'.format(precision, ' and '.join(_PRECISIONS))
            )
        core = openvino.Core()
        if precision == 'bfloat16' and 'BF16' not in core.get_property(
            'CPU', 'OPTIMIZATION_CAPABILITIES'
        ):
            raise InputError(
                'precision bfloat16: this CPU has no instructions for it; leave the precision out'
            )
        # Any batch and image size: graphs compiled for one are no faster.
        model = core.read_model(onnx.build(network, features=True).SerializeToString())
        self._request = core.compile_model(
            model,
            'CPU',
            {'INFERENCE_PRECISION_HINT': _PRECISIONS[precision], 'PERFORMANCE_HINT': 'LATENCY'},
        ).create_infer_request()
        super().__init__(
            network,
            'openvino',
            'OpenVINO {}, {}'.format(openvino.__version__.split('-')[0], precision),
        )

    def _compute(self, x, output):
        self._request.infer({'x': np.ascontiguousarray(x, np.float32)}, share_inputs=True)
        return np.array(self._request.get_tensor(output).data)

    def __call__(self, x):
        return self._compute(x, 'scores')

    def features(self, x):
        return self._compute(x, 'features')


def predictor(network, precision='float32', finish=None):
    """Compile a network for inference on the CPU.

    Args:
        network (trainer.networks.base.Network): The network; later changes of its weights
            have no effect.
        precision (str): 'float32', or 'bfloat16' where the CPU has it.
        finish: Of no use on a CPU.

    Returns:
        trainer.inference.predictors.Predictor: For images of any size, in batches of any size.

    Raises:
        trainer.errors.InputError: OpenVINO is missing, or the CPU has not the precision.
    """
    return _Predictor(network, precision)
