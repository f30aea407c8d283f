"""Inference on a GPU by cuDNN: batch normalisation folded into the convolutions, each shape of
input captured as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer import cuda
from trainer.engines import cudnn
from trainer.engines.cudnn import library, timing
from trainer.engines.cudnn.captured import Room
from trainer.inference import predictors
from trainer.settings import settings

if TYPE_CHECKING:
    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network
    from trainer.types import Array

ON_GPU = True


class _CudnnPredictor(predictors.Predictor):
    """The folded network, captured as one CUDA graph for each shape of input.

    The first input of a shape is computed directly; timing plans and capturing pay off from the
    second on. CuPy arrays give CuPy arrays, without waiting for the result.
    """

    def __init__(self, network, precision, finish=None):
        super().__init__(
            network,
            'cudnn',
            'cuDNN {}, {}'.format(
                library.version(), 'float16' if precision == 'mixed' else precision
            ),
            finish,
        )
        self._precision = precision
        self._folded = {}
        self._captured = {}
        self._seen = set()
        self._room = Room()

    def _compute(self, x):
        with (
            chainer.using_config('engine', 'cudnn'),
            chainer.using_config('train', False),
            chainer.using_config('precision', self._precision),
            settings.using(folded=self._folded),
            chainer.no_backprop_mode(),
        ):
            if self.finish is not None:
                x = self.finish(x)
            features = self.network.features(chainer.Variable(x))
            return features.array, self.network.classify(features).array

    def _capture(self, x):
        # The last, smaller batch of many is computed only once.
        rest = any(x.ndim == len(shape) and len(x) < shape[0] for shape, *_ in self._captured)
        x = cuda.empty_like(x)
        x.fill(0)
        with timing.untimed(rest), timing.progress():
            while True:
                self._room.run(lambda: self._compute(x))
                self._room.rehearse(lambda: self._compute(x))
                graph, outputs = self._room.capture(lambda: self._compute(x))
                if not self._room.lost():
                    return graph, x, outputs
                self._captured.clear()

    def _run(self, x, which):
        import cupy

        on_device = isinstance(x, cupy.ndarray)
        if not on_device:
            x = np.ascontiguousarray(x, None if self.finish else np.float32)
        with self._room.entered():
            if self._room.lost():
                self._captured.clear()
            key = x.shape, x.dtype.char, on_device
            if key not in self._seen:
                self._seen.add(key)
                there = cupy.asarray(x)
                with timing.untimed():
                    outputs = self._room.run(lambda: self._compute(there))
            else:
                if key not in self._captured:
                    self._captured[key] = self._capture(x)
                graph, captured_x, outputs = self._captured[key]
                if on_device:
                    cuda.assign(captured_x, x)
                else:
                    captured_x.set(x)
                graph.launch()
            return outputs[which].copy() if on_device else outputs[which].get()

    def __call__(self, x):
        return self._run(x, 1)

    def features(self, x):
        return self._run(x, 0)

    def refresh(self):
        with self._room.entered(), settings.using(folded=None):
            for layer, kept in self._folded.items():
                for array, new in zip(kept, cudnn.fold(*layer, kept[0].dtype)):
                    array[...] = new


def predictor(
    network: Network, precision: str = 'float32', finish: Callable[[Array], Array] | None = None
) -> Predictor:
    """Make a network on a GPU ready for inference.

    Args:
        network: The network.
        precision: 'float32', 'tf32' or 'mixed' (float16).
        finish: See :func:`trainer.inference.predictors.predictor`.
    """
    return _CudnnPredictor(network, precision, finish)
