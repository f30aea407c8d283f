"""What the benchmarks on a GPU measure, on a GPU or a simulated one."""

import collections
import importlib.util
import math
import re

import chainer
import numpy as np
import pytest
from conftest import ROOT

import resnext
import resnext_ilsvrc
from trainer.engines.autograd import ADD_RELU
from trainer.engines.cudnn import graphs, parameters, provider, timing
from trainer.training.captured_step import CapturedStep

pytestmark = pytest.mark.gpu


def benchmark(name):
    """Import a file of benchmarks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'benchmarks' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = benchmark('gpu_layers')


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
    # Once each in the eager step, the rehearsal, and the capture.
    assert converted == ([('f', x.strides)] * 3 if precision == 'mixed' else [])


def test_operations_are_replayed():
    """Python launches each but a few times, however often it is timed."""
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


def small():
    return resnext.PaperResNext(10, (1, 1, 1), C=2, d=4)


def by_hand(batch, itemsize):
    """Return the bytes of a step's convolutions and normalisations, by the layers' shapes."""
    found = collections.Counter()
    for layer, count in layers.layers_of(small(), batch, 32).items():
        y_shape = graphs.out_shape(layer.x, layer.w, layer.stride, layer.pad)
        x, w, y = (math.prod(shape) * itemsize for shape in (layer.x, layer.w, y_shape))
        channels = 4 * y_shape[1]
        # cuDNN adds up what a 1x1 convolution makes, in float16.
        sums = 2 * channels if itemsize == 2 and layer.w[2] == 1 else 0
        added = layer.kind == ADD_RELU
        mask = y // 16 if added else 0
        normalize = {'normalize_sums': 8 * channels} if sums else {'normalize': 4 * channels}
        each = collections.Counter(
            conv_forward=x + w + y + sums,
            conv_backward_weights=x + y + 4 * w // itemsize,
            **{name: (2 + added) * y + mask + more for name, more in normalize.items()},
            # With a residual its gradient is written on the way.
            backward_sums=(2 + added) * y + mask + 6 * channels,
            backward_input=3 * y + 6 * channels,
        )
        for name, moved in each.items():
            found[name] += count * moved
    classes, features = small().fc.W.shape
    found['conv_backward_weights'] += 4 * (batch * (features + classes) + classes * features)
    return found


@pytest.mark.parametrize('precision, itemsize', [('float32', 4), ('mixed', 2)])
def test_traffic_of_a_small_network(precision, itemsize):
    found = layers.traffic_of_step(small, 32, precision, 7)
    # A straight line through two small batches is exact.
    assert found == layers._traffic(small(), 32, precision, 7)
    expected = by_hand(7, itemsize)
    # A GPU may have no plan for weight gradients from float16 to float32: of the stem, and of
    # narrow groups. They are float16 then, and the update reads that.
    saved = expected['conv_backward_weights'] - found['conv_backward_weights']
    convolutions = sum(p.size for name, p in small().namedparams() if name.endswith('conv/W'))
    assert 0 <= saved <= (2 * convolutions if precision == 'mixed' else 0)
    expected['conv_backward_weights'] -= saved
    for name, moved in expected.items():
        assert found[name] == moved, name
    weights = sum(p.size for p in small().params())
    # Gradients, and from those the weights and their momentum.
    assert found['update'] == weights * (4 + 2 * (4 + 4)) - saved
    if precision == 'mixed':
        assert found['find_overflow'] == weights * 4 - saved
        assert found['convert'] == convolutions * (4 + 2)


@pytest.mark.parametrize('network', layers.NETWORKS)
def test_documented_traffic(network):
    """The figures of docs/gpu.md are what the launches say."""
    row = re.search(rf'`{network}`.*', (ROOT / 'docs' / 'gpu.md').read_text())[0]
    gigabytes, *milliseconds = map(float, re.findall(r'\d+\.\d+', row))
    total = sum(layers.traffic_of_step(*layers.NETWORKS[network], 'mixed', 128).values())
    assert gigabytes == pytest.approx(total / 1e9, abs=0.05)
    assert milliseconds == pytest.approx([total / 3.35e9, total / 4.8e9], abs=0.05)


def test_traffic_of_the_update():
    """Of parameters without a gradient, with a float32 and with a float16 one."""
    import cupy

    table = np.zeros(3, parameters.ENTRY)
    table['count'], table['grad'], table['half'] = 10, (0, 8, 8), (0, 0, 1)
    there = cupy.asarray(table.view(np.uint8))
    assert layers.kernel_bytes('find_overflow', [there]) == 10 * (0 + 4 + 2)
    assert layers.kernel_bytes('update', [there]) == 10 * (3 * 16 + 0 + 4 + 2)
