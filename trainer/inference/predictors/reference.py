"""Inference by plain Chainer: the network itself, wherever it is, in float32."""

import chainer

from trainer.errors import InputError
from trainer.inference.predictors import Predictor

ON_GPU = None


class _Predictor(Predictor):
    def __init__(self, network, finish):
        super().__init__(network, 'reference', f'Chainer {chainer.__version__}, float32', finish)

    def _compute(self, function, x):
        x = self.network.device.send(x)
        with (
            chainer.no_backprop_mode(),
            chainer.using_config('train', False),
            chainer.using_config('engine', 'reference'),
        ):
            y = function(chainer.Variable(x if self.finish is None else self.finish(x)))
        return chainer.backends.cuda.to_cpu(y.array)

    def __call__(self, x):
        return self._compute(self.network, x)

    def features(self, x):
        return self._compute(self.network.features, x)

    def refresh(self):
        pass  # it computes with the network itself


def predictor(network, precision='float32', finish=None):
    """The network itself, in evaluation mode and without a graph: float32 alone.

    Raises:
        trainer.errors.InputError: Another precision is asked for.
    """
    if precision != 'float32':
        raise InputError(
            f'precision {precision}: the engine reference has float32; on a CPU openvino has '
            'bfloat16 ("uv sync --inexact --extra cpu" installs it)'
        )
    return _Predictor(network, finish)
