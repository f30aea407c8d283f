"""Inference by the network itself, on its device: plain Chainer, and engines used like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer

from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.settings import settings

if TYPE_CHECKING:
    import numpy as np

    from trainer.networks.base import Network
    from trainer.types import Array

ON_GPU = None


class ByNetwork(Predictor):
    """The network in evaluation mode, without a computational graph.

    Args:
        precision: A precision of the engine.
    """

    def __init__(
        self,
        network: Network,
        engine: str,
        description: str,
        precision: str,
        finish: Callable[[Array], Array] | None,
    ) -> None:
        super().__init__(network, engine, f'{description}, {precision}', finish)
        self._precision = precision
        self._folded: dict[tuple, tuple] = {}

    def _compute(self, function, x):
        x = self.network.device.send(x)
        with (
            chainer.no_backprop_mode(),
            chainer.using_config('train', False),
            chainer.using_config('engine', self.engine),
            chainer.using_config('precision', self._precision),
            settings.using(folded=self._folded),
        ):
            y = function(chainer.Variable(x if self.finish is None else self.finish(x)))
        return chainer.backends.cuda.to_cpu(y.array)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._compute(self.network, x)

    def features(self, x: np.ndarray) -> np.ndarray:
        return self._compute(self.network.features, x)

    def refresh(self) -> None:
        self._folded.clear()


def predictor(
    network: Network, precision: str = 'float32', finish: Callable[[Array], Array] | None = None
) -> Predictor:
    """Return the predictor of plain Chainer, which has only float32.

    Raises:
        trainer.errors.InputError: The precision is not float32.
    """
    if precision != 'float32':
        raise InputError(
            f'precision {precision}: the engine reference has float32; on a CPU openvino has '
            'bfloat16 ("uv sync --inexact --extra cpu" installs it)'
        )
    return ByNetwork(network, 'reference', f'Chainer {chainer.__version__}', precision, finish)
