"""CuPy's threads follow the order of an array's axes: where that is not the order of its memory,
neighbouring threads read and write far from each other, many times slower."""

import sys

import chainer
import numpy as np
import pytest
from conftest import simulated
from helpers import networks

from trainer.engines.cudnn import generic
from trainer.settings import settings
from trainer.training.captured_step import CapturedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not simulated(), reason='the simulated GPU tells what CuPy is asked for'),
]


def is_scattered(array):
    """Return whether the last axis of an array is not the one that is contiguous in memory."""
    strides = [abs(s) for n, s in zip(array.shape, array.strides) if n > 1]
    return array.ndim == 4 and len(strides) > 1 and strides[-1] != min(strides)


@pytest.fixture
def scattered(monkeypatch):
    """Operations on scattered arrays: (function of this project, shape, strides)."""
    from cupy import _array, _kernels

    found = []

    def noting(compute):
        def noted(*args, **kwargs):
            frame = sys._getframe(1)
            while 'simulated_gpu' in frame.f_code.co_filename:
                frame = frame.f_back
            found.extend(
                (frame.f_code.co_qualname, a.shape, a.strides)
                for a in [*args, *kwargs.values()]
                for a in (a if isinstance(a, (list, tuple)) else [a])
                if isinstance(a, _array.ndarray) and is_scattered(a)
            )
            return compute(*args, **kwargs)

        return noted

    for name in ('_apply', '_write'):
        real = getattr(_array, name)
        for module in list(sys.modules.values()):
            if getattr(module, name, None) is real:
                monkeypatch.setattr(module, name, noting(real))
    monkeypatch.setattr(_kernels._Generated, '_launch', noting(_kernels._Generated._launch))
    return found


@pytest.mark.parametrize('make', networks.NETWORKS)
def test_feature_maps(make, scattered):
    import cupy

    network, images, t = networks.build(make)
    network.check_gpu(0)
    x = generic.empty(cupy, images.shape, np.dtype(np.float16))
    x[...] = cupy.asarray(images)
    optimizer = chainer.optimizers.MomentumSGD(0.01).setup(network)
    optimizer.loss_scaling()
    step = CapturedStep(optimizer, network.device, 2)
    with (
        chainer.using_config('engine', 'cudnn'),
        chainer.using_config('precision', 'mixed'),
        settings.using(plans=1),
    ):
        scattered.clear()
        for _ in range(2):
            step(x, cupy.asarray(t))
    assert not scattered
    predictor = network.predictor('cudnn', 'mixed')
    for _ in range(2):  # lays out the weights, and captures
        predictor(x)
    scattered.clear()
    predictor(x)
    assert not scattered


def test_what_is_scattered(scattered):
    import cupy

    x = generic.empty(cupy, (2, 8, 4, 4), np.dtype(np.float32))
    pixels = x.transpose(0, 2, 3, 1)
    pixels[...] = 1
    assert not scattered
    x[...] = 2
    x + x
    assert [shape for _, shape, _ in scattered] == [(2, 8, 4, 4)] * 3
