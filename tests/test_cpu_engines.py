"""The engines that train on a CPU, against the reference."""

import concurrent.futures
import gc

import chainer
import numpy as np
import pytest
from conftest import relative
from helpers.networks import NETWORKS, build, cifar, ilsvrc, squeeze_excite, step

from trainer import engines
from trainer.engines import arrays, chunks, pool, products
from trainer.engines.onednn import layers as by_onednn
from trainer.engines.onednn import library, maps
from trainer.engines.onednn import products as by_products
from trainer.errors import InputError
from trainer.inference import predictors
from trainer.networks import layers
from trainer.settings import settings

onednn = pytest.mark.skipif(
    library.unavailable() is not None, reason=f'needs oneDNN (extra cpu): {library.unavailable()}'
)
bfloat16 = pytest.mark.skipif(
    library.unavailable() is not None or not library.computes_bfloat16(),
    reason='needs oneDNN (extra cpu) and a CPU with AVX-512',
)

ENGINES = [
    pytest.param('numpy', 'float32', 1e-5, id='numpy'),
    pytest.param('onednn', 'float32', 1e-5, id='onednn', marks=onednn),
    pytest.param('onednn', 'bfloat16', 3e-2, id='onednn-bfloat16', marks=bfloat16),
]

# Input and output channels, filter, stride, groups, image size.
LAYERS = [
    (3, 16, 7, 2, 1, 33),
    (64, 96, 1, 1, 1, 8),
    (64, 96, 1, 2, 1, 9),
    (32, 32, 3, 1, 1, 8),
    (128, 128, 3, 1, 2, 8),
    (128, 128, 3, 1, 32, 7),
    (128, 128, 3, 2, 32, 9),
    (12, 12, 3, 2, 3, 8),
]


def layer_step(layer, x, gy, residual, engine, precision):
    """Return all that a layer computes: output, statistics, gradients."""
    inputs = [chainer.Variable(x), chainer.Variable(residual)]
    layer.cleargrads()
    layer.bn.avg_mean[...] = layer.bn.avg_var[...] = 0
    with (
        chainer.using_config('engine', engine),
        chainer.using_config('precision', precision),
        chainer.using_config('train', True),
    ):
        y = layer(*inputs)
        y.grad = gy if y.dtype == gy.dtype else maps.convert(gy, y.dtype)
        y.backward()
    found = [y.array, layer.bn.avg_mean, layer.bn.avg_var]
    found += [i.grad for i in inputs] + [p.grad for _, p in sorted(layer.namedparams())]
    return [
        np.array(maps.convert(a, np.dtype(np.float32)) if a.dtype == np.uint16 else a)
        for a in found
    ]


@pytest.mark.parametrize(('engine', 'precision', 'tolerance'), ENGINES)
def test_mirrored_images(engine, precision, tolerance):
    """Views with negative strides: mirrored, and BGR as RGB."""
    rng = np.random.default_rng(0)
    layer = layers.ConvBN(3, 16, 3, 1, 1)
    layer.conv.W.array[...] = rng.standard_normal(layer.conv.W.shape)
    x = rng.standard_normal((2, 3, 8, 9)).astype(np.float32)
    for view in (x[..., ::-1], x[:, ::-1]):
        found = []
        for one, of in ((view, precision), (view.copy(), precision)):
            with (
                chainer.using_config('engine', engine),
                chainer.using_config('precision', of),
                chainer.using_config('train', True),
            ):
                found.append(layer(chainer.Variable(one)).array)
        assert (found[0] == found[1]).all()


@pytest.mark.parametrize(('engine', 'precision', 'tolerance'), ENGINES)
@pytest.mark.parametrize('sizes', LAYERS)
def test_layers(sizes, engine, precision, tolerance):
    """Compare with float64, without a ReLU, whose flips do not depend on the arithmetic."""
    channels, out, ksize, stride, groups, size = sizes
    rng = np.random.default_rng(0)
    with chainer.using_config('dtype', np.float64):
        layer = layers.ConvBN(channels, out, ksize, stride, ksize // 2, groups, relu=False)
    layer.conv.W.array[...] = rng.standard_normal(layer.conv.W.shape)
    layer.bn.gamma.array[...] = rng.uniform(0.5, 1.5, out)
    x = rng.standard_normal((4, channels, size, size + 1))
    y = [(n - 1) // stride + 1 for n in x.shape[2:]]
    gy, residual = rng.standard_normal((2, 4, out, *y))
    expected = layer_step(layer, x, gy, residual, 'reference', 'float32')
    for p in layer.params():
        p.array = p.array.astype(np.float32)
    layer.bn.avg_mean, layer.bn.avg_var = (
        a.astype(np.float32) for a in (layer.bn.avg_mean, layer.bn.avg_var)
    )
    arguments = [a.astype(np.float32) for a in (x, gy, residual)]
    found = layer_step(layer, *arguments, engine, precision)
    for want, got in zip(expected, found, strict=True):
        assert relative(want, got) < tolerance


@onednn
@pytest.mark.parametrize(('engine', 'precision', 'tolerance'), ENGINES[1:])
@pytest.mark.parametrize('weights', [0, 1 << 30])
def test_products_and_convolutions(weights, engine, precision, tolerance, monkeypatch):
    """1x1 convolutions by products and by primitives of convolutions."""
    called = []
    monkeypatch.setattr(by_products, '_WEIGHTS', weights)
    for name in ('forward', 'backward_data', 'backward_weights'):
        real = getattr(by_products, name)
        monkeypatch.setattr(
            by_products, name, lambda *a, real=real: called.append(real.__name__) or real(*a)
        )
    test_layers((24, 40, 1, 1, 1, 9), engine, precision, tolerance)
    done = {'forward', 'backward_data', 'backward_weights'}
    assert set(called) == (set() if weights else done)


@onednn
def test_a_product_adds_the_gradient_that_is_there():
    rng = np.random.default_rng(0)
    gy, addend = (maps.empty((2, c, 3, 3), np.dtype(np.float32)) for c in (40, 24))
    gy[...], addend[...] = rng.standard_normal(gy.shape), rng.standard_normal(addend.shape)
    w = rng.standard_normal((40, 24, 1, 1)).astype(np.float32)
    found = by_products.backward_data(gy, w, addend.shape, addend)
    expected = np.einsum('oi,nohw->nihw', w[:, :, 0, 0], gy) + addend
    assert relative(expected, found) < 1e-6


@pytest.mark.parametrize('sizes', LAYERS)
def test_layers_in_many_pieces(sizes, monkeypatch):
    """Pieces of a few rows of an image, as large feature maps have."""
    monkeypatch.setattr(products, '_MATRIX', 1)
    monkeypatch.setattr(products, '_LEAST', 2 * (sizes[-1] + 1))
    monkeypatch.setattr(products, '_ROWS', 16)
    monkeypatch.setattr(chunks, '_VALUES', 500)
    test_layers(sizes, 'numpy', 'float32', 1e-5)


def test_numbers_of_threads_give_the_same_bits():
    network, x, t = build(squeeze_excite)
    found = []
    for threads in (1, 2, 5):
        with settings.using(threads=threads):
            loss, *arrays_of = step(network, x, t, 'numpy')
        found.append([loss.tobytes(), *(a.tobytes() for d in arrays_of for a in d.values())])
    assert found[0] == found[1] == found[2]


def test_nan_passes_a_relu():
    x = np.ones((2, 8, 4, 4), np.float32)
    x[0, 0, 0, 0] = np.nan
    with chainer.using_config('train', True), chainer.using_config('engine', 'numpy'):
        y = layers.ConvBN(8, 8, 1, relu=True)(chainer.Variable(x))
    assert np.isnan(y.array).any()


@pytest.mark.parametrize('make', NETWORKS)
def test_networks_in_float64(make):
    """Autograd, residuals, statistics and pooling differ only by rounding."""
    network, x, t = build(make, np.float64)
    expected, found = (step(network, x, t, e) for e in ('reference', 'numpy'))
    assert relative(expected[0], found[0]) < 1e-12
    for which in (1, 2):
        for name, array in expected[which].items():
            assert relative(array, found[which][name]) < 1e-9, name


@onednn
@pytest.mark.parametrize('make', NETWORKS)
def test_networks_by_onednn(make):
    network, x, t = build(make)
    expected, found = (step(network, x, t, e) for e in ('reference', 'onednn'))
    assert relative(expected[0], found[0]) < 1e-5
    for name, array in expected[2].items():
        assert relative(array, found[2][name]) < 1e-5, name
    one, other = (np.concatenate([g.ravel() for g in s[1].values()]) for s in (expected, found))
    assert relative(one, other) < 1e-2  # a ReLU may flip


@bfloat16
def test_squeeze_and_excitation_in_bfloat16():
    """Scores and statistics; gradients differ where ReLUs flip."""
    network, x, t = build(squeeze_excite)
    expected, found = (step(network, x, t, *e) for e in (('reference',), ('onednn', 'bfloat16')))
    assert relative(expected[0], found[0]) < 3e-2
    assert relative(expected[1]['/fc/W'], found[1]['/fc/W']) < 3e-2
    assert all(np.isfinite(g).all() and g.any() for g in found[1].values())


@bfloat16
def test_feature_maps_are_bfloat16_and_parameters_are_not():
    network, x, _ = build(cifar)
    with (
        chainer.using_config('engine', 'onednn'),
        chainer.using_config('precision', 'bfloat16'),
        chainer.using_config('train', True),
    ):
        kinds = {name: h.dtype for name, h in network.activations(chainer.Variable(x))}
        y = network(chainer.Variable(x))
    assert kinds.pop('features') == np.float32 and set(kinds.values()) == {np.dtype(np.uint16)}
    y.grad = np.ones_like(y.array)
    y.backward()
    assert {p.grad.dtype for p in network.params()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(('engine', 'precision', 'tolerance'), ENGINES)
@pytest.mark.parametrize('make', [ilsvrc, squeeze_excite])
def test_inference(make, engine, precision, tolerance):
    network, x, _ = build(make)
    network(x, train=True)
    with chainer.no_backprop_mode():
        expected = network(x, train=False).array
        with chainer.using_config('engine', engine), chainer.using_config('precision', precision):
            assert relative(expected, network(x, train=False).array) < 2 * tolerance


class TestChoice:
    @onednn
    def test_the_fastest_that_is_installed(self, monkeypatch):
        monkeypatch.setattr(library, 'unavailable', lambda: None)
        assert engines.choose(-1) == ('onednn', 'float32', None)
        for reason, said in (
            ('libdnnl.so.3: cannot open shared object file', 'onednn-cpu-gomp is not installed'),
            ('libgomp.so.1: cannot open shared object file', "needs the system's libgomp.so.1"),
        ):
            monkeypatch.setattr(library, 'unavailable', lambda reason=reason: reason)
            engine, precision, why = engines.choose(-1)
            assert (engine, precision) == ('numpy', 'float32')
            assert why.startswith('onednn is not used: ') and said in why
            with pytest.raises(InputError, match='engine onednn: .*' + said):
                engines.choose(-1, engine='onednn')

    @onednn
    def test_one_that_computes_something_else_is_not_used(self, monkeypatch):
        from trainer.engines import onednn as engine

        compute = engine.conv_bn
        found = []
        for wrong in (lambda *args: compute(*args) * 1.001, lambda *args: 1 / 0):
            engine._wrong.cache_clear()
            with monkeypatch.context() as patched:
                patched.setattr(engine, 'conv_bn', wrong)
                found.append(engines.choose(-1))
        engine._wrong.cache_clear()
        assert [(name, precision) for name, precision, _ in found] == [('numpy', 'float32')] * 2
        assert 'its results are off by 1.0e-03' in found[0][2]
        assert 'it failed here (ZeroDivisionError: division by zero)' in found[1][2]

    def test_named(self):
        for engine in ('numpy', 'reference'):
            assert engines.choose(-1, engine=engine) == (engine, 'float32', None)
        with pytest.raises(InputError, match='engine cudnn: on a CPU there are onednn, numpy'):
            engines.choose(-1, engine='cudnn')

    @onednn
    def test_precision(self, monkeypatch):
        with pytest.raises(InputError, match='precision mixed: onednn has float32'):
            engines.choose(-1, 'mixed')
        monkeypatch.setattr(library, 'has_bfloat16', lambda: False)
        with pytest.raises(InputError, match='precision bfloat16: onednn has float32 here'):
            engines.choose(-1, 'bfloat16')
        monkeypatch.setattr(library, 'has_bfloat16', lambda: True)
        assert engines.choose(-1, 'bfloat16') == ('onednn', 'bfloat16', None)


@pytest.mark.parametrize(
    'engine', ['numpy', pytest.param('onednn', marks=onednn), 'openvino', 'onnxruntime']
)
def test_predictor_learns_of_new_weights_when_told(engine):
    if engine in ('openvino', 'onnxruntime') and not predictors.installed(engine):
        pytest.skip(f'{engine} and onnx are not installed')
    network, x, _ = build(ilsvrc)
    network(x, train=True)
    predictor, reference = network.predictor(engine), network.predictor('reference')
    assert relative(reference(x), predictor(x)) < 1e-5
    for p in network.params():
        p.array *= 1.1
    predictor.refresh()
    assert relative(reference(x), predictor(x)) < 1e-5
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for found in threads.map(predictor, [x] * 8):
            assert relative(reference(x), found) < 1e-5


@pytest.mark.parametrize('round_up', [True, False])
@pytest.mark.parametrize(
    'computes', [arrays, pytest.param(by_onednn, marks=onednn)], ids=['numpy', 'onednn']
)
def test_max_pooling(computes, round_up):
    """Chosen values are equal: the first of them gets the gradient."""
    rng = np.random.default_rng(0)
    x = chainer.Variable(rng.integers(0, 4, (2, 16, 12, 13)).astype(np.float32))
    y = chainer.functions.max_pooling_2d(x, 3, 2, 1, cover_all=round_up)
    gy = y.grad = rng.standard_normal(y.shape).astype(np.float32)
    y.backward()
    f32 = np.dtype(np.float32)
    found, place = computes.max_pooling(arrays.nhwc(x.array, f32), y.shape, 3, 2, 1)
    assert np.array_equal(found, y.array)
    gx = computes.max_pooling_backward(arrays.nhwc(gy, f32), place, x.shape, 3, 2, 1)
    assert relative(x.grad, gx) < 1e-6


@pytest.mark.parametrize('shape', [(2, 5, 8, 6), (1, 3, 7, 5), (3, 4, 1, 9), (2, 16, 1, 1)])
@pytest.mark.parametrize(('engine', 'precision', 'tolerance'), ENGINES)
def test_average_pooling(shape, engine, precision, tolerance):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    h, w = shape[2:]
    gy = rng.standard_normal((*shape[:2], -(-h // 2), -(-w // 2)))
    y, gx = np.zeros(gy.shape), np.zeros(shape)
    for i, j in np.ndindex(*gy.shape[2:]):
        window = np.s_[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        y[:, :, i, j] = x[window].mean(axis=(2, 3))
        gx[window] = gy[:, :, i : i + 1, j : j + 1] / x[window][0, 0].size
    for name in ('reference', engine):
        dtype, bound = (np.float64, 1e-14) if name == 'reference' else (np.float32, tolerance)
        variable = chainer.Variable(x.astype(dtype))
        with chainer.using_config('engine', name), chainer.using_config('precision', precision):
            given = variable
            if (name, precision) == ('onednn', 'bfloat16') and shape[2:] != (1, 1):
                given = chainer.Variable(maps.convert(variable.array, maps.BFLOAT16))
            found = engines.current().average_pooling(given)
            gradient = gy.astype(dtype)
            if found.dtype == np.uint16:
                gradient = maps.convert(gradient, maps.BFLOAT16)
            found.grad = gradient
            found.backward()
        got = found.array, given.grad
        for want, have in zip((y, gx), got):
            have = maps.convert(have, maps.FLOAT32) if have.dtype == np.uint16 else have
            assert relative(want, have) < bound


def test_memory_is_used_again():
    first = pool.empty((3, 1000), np.float32)
    view, address = first[1:], first.ctypes.data
    del first
    assert pool.empty((3, 1000), np.float32).ctypes.data != address, 'a view is still there'
    del view
    gc.collect()
    again = [pool.empty((1000, 3), np.float32) for _ in range(2)]
    assert address in [a.ctypes.data for a in again]
    assert all(a.ctypes.data % 64 == 0 for a in again)
