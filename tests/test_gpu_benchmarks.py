"""What the benchmarks on a GPU measure, on a GPU or a simulated one."""

import importlib.util

import chainer
import numpy as np
import pytest
from conftest import ROOT

import resnext_ilsvrc
from trainer.engines.autograd import ADD_RELU
from trainer.engines.cudnn import provider, timing
from trainer.training.captured_step import CapturedStep

pytestmark = pytest.mark.gpu


def benchmark(name):
    """Import a file of benchmarks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'benchmarks' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network():
    made = resnext_ilsvrc.ResNext(10, (1, 1, 1, 1), C=4, d=4, multiplier=2)
    made.weight_initialization(0)
    made.check_gpu(0)
    return made


@pytest.fixture
def converted(monkeypatch):
    """Types and memory of images that the engine had to convert."""
    found, nhwc = [], provider.nhwc

    def noted(array, dtype):
        result = nhwc(array, dtype)
        if array.shape[1] == 3 and array.shape[2] > 7 and result is not array:
            found.append((array.dtype.char, array.strides))
        return result

    monkeypatch.setattr(provider, 'nhwc', noted)
    return found


@pytest.mark.parametrize('precision', ['mixed', 'tf32'])
def test_inference_begins_with_images_as_they_are(network, converted, precision):
    """The peer's are of its own type and memory; ours would otherwise be converted twice."""
    x = benchmark('gpu').images('infer', precision, 2, 64)
    assert x.dtype == (np.float16 if precision == 'mixed' else np.float32)
    predictor = network.predictor('cudnn', precision)
    assert predictor.finish is not None
    found = [predictor(x).get() for _ in range(3)]
    assert not converted
    assert abs(found[0]).max() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=2e-2, atol=2e-3 * abs(found[0]).max())
    np.testing.assert_array_equal(found[1], found[2])
    # Images from the host come as they did.
    again = predictor(np.ascontiguousarray(x.get(), np.float32))
    np.testing.assert_allclose(again, found[0], rtol=2e-2, atol=1e-2 * abs(found[0]).max())


@pytest.mark.parametrize('precision', ['mixed', 'tf32'])
def test_training_changes_the_type_of_images_alone(network, converted, precision):
    x = benchmark('gpu').images('train', precision, 2, 64)
    assert x.dtype == np.float32 and x.transpose(0, 2, 3, 1).flags.c_contiguous
    step = CapturedStep(chainer.optimizers.MomentumSGD(0.01).setup(network), network.device)
    t = chainer.get_device('@cupy:0').send(np.zeros(2, np.int32))
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', precision):
        for _ in range(2):
            step(x, t)
    assert converted == ([('f', x.strides)] * 2 if precision == 'mixed' else [])


def test_operations_are_replayed():
    """Python launches each but a few times, however often it is timed."""
    layers = benchmark('gpu_layers')
    layer = layers.Layer((2, 16, 8, 8), (32, 16, 1, 1), 1, 0, 1, ADD_RELU, False)
    names = []
    for name, run, moved in layers.operations(layer, np.float16, 'mixed'):
        calls = []

        def counted(run=run, calls=calls):
            calls.append(1)
            run()

        names.append(name.strip())
        assert layers.milliseconds(counted) >= 0 and moved > 0
        assert len(calls) == 1 + timing.REPEATED
    assert len(names) == 8 and 'with statistics' in names
