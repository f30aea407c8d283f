"""Inference by OpenVINO, against the reference engine; and how the engine is chosen."""

import json
import sys

import numpy as np
import pytest
from conftest import FIXTURES
from helpers.networks import batches, randomise, relative
from PIL import Image

import predict
import resnext
import resnext_ilsvrc
from trainer import cli
from trainer.errors import InputError
from trainer.inference import prediction, predictors
from trainer.inference.predictors import openvino as engine
from trainer.weights import torch7

needs_openvino = pytest.mark.skipif(
    not engine.available(), reason='OpenVINO and onnx are not installed'
)


def small(**arguments):
    return randomise(resnext_ilsvrc.ResNext(7, (1, 2), C=2, d=4, stem_width=8, **arguments))


@needs_openvino
@pytest.mark.parametrize(
    'network',
    [
        lambda: torch7.read(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7')[0],
        small,
        lambda: small(round_up_pooling=True),
        lambda: randomise(resnext.ResNext(7, (2, 1, 1), C=2, d=4)),
    ],
)
def test_float32_equals_the_reference(network):
    network = network()
    fast, plain = network.predictor('openvino'), network.predictor('reference')
    assert fast.description.startswith('OpenVINO ') and fast.description.endswith(', float32')
    for x in batches((32, 32)) + batches((45, 38)):
        y = fast(x)
        assert y.dtype == np.float32 and y.shape == (len(x), network.category_num)
        assert relative(y, plain(x)) < 1e-5
        assert fast.features(x).shape == plain.features(x).shape
        assert relative(fast.features(x), plain.features(x)) < 1e-5


@needs_openvino
def test_results_stay_when_more_are_computed():
    fast = small().predictor('openvino')
    a, b = batches((32, 32))[:2]
    first = fast(a)
    kept = first.copy()
    fast(b), fast(a + 1), fast.features(a * 2)
    assert np.array_equal(first, kept) and np.array_equal(fast(a), kept)
    assert np.array_equal(fast(np.asfortranarray(a)), kept)


@needs_openvino
def test_the_files_of_torch7(shared):
    folder = shared / 'golden' / 'torch7'
    x = np.load(folder / 'input_224.npy')
    for name in ('tiny_d14_4x2d', 'tiny_d26_8x2d'):
        network = torch7.read(folder / (name + '.t7'))[0]
        assert relative(network.predictor('openvino')(x), network.predictor('reference')(x)) < 1e-5


@needs_openvino
def test_bfloat16_where_the_cpu_has_it():
    network = small()
    x = batches((64, 64))[2]
    try:
        fast = network.predictor('openvino', 'bfloat16')
    except InputError as e:
        assert 'this CPU has no instructions' in str(e)
        pytest.skip('this CPU has no bfloat16')
    plain = network.predictor('reference')(x)
    # It is taken, and only as far off as 8 bits are.
    assert 1e-5 < relative(fast(x), plain) < 3e-2
    assert fast.description.endswith(', bfloat16')
    assert relative(network.predictor('openvino')(x), plain) < 1e-5


@needs_openvino
def test_evaluation_goes_through_it():
    networks = [small(), small()]
    networks[1].fc.b.array[...] += np.arange(7)
    x = batches((32, 32))[2]
    predictors = [network.predictor('openvino') for network in networks]
    plain = [network.predictor('reference') for network in networks]
    for some, others in ((predictors[:1], plain[:1]), (predictors, plain)):
        assert relative(prediction.scores(some, x, 3), prediction.scores(others, x)) < 1e-5
    crops = np.stack([x, x[:, :, ::-1]], axis=1)
    assert relative(prediction.scores(predictors, crops, 5), prediction.scores(plain, crops)) < 1e-5
    networks[0].fc.b.array[...] = np.nan
    with pytest.raises(InputError, match='not finite'):
        prediction.scores([networks[0].predictor('openvino')], x)


def test_the_default_is_what_is_installed(monkeypatch):
    network = small()
    monkeypatch.setattr(predictors, 'installed', lambda name: False)
    assert network.predictor().engine == 'reference'
    chosen = []
    monkeypatch.setattr(engine, 'predictor', lambda *a: chosen.append(a))
    monkeypatch.setattr(predictors, 'installed', lambda name: name == 'openvino')
    network.predictor(precision='bfloat16')
    assert chosen == [(network, 'bfloat16', None)]
    network.predictor('reference')
    assert len(chosen) == 1
    monkeypatch.setattr(type(network), 'model_is_cpu_mode', lambda self: False)
    with pytest.raises(InputError, match='the network is on a GPU'):
        network.predictor('openvino')


def test_engines_and_precisions_that_there_are_not(monkeypatch):
    network = small()
    with pytest.raises(
        InputError, match='engine tensorrt: .* there are .*onednn, onnxruntime, openvino'
    ):
        network.predictor('tensorrt')
    with pytest.raises(InputError, match='precision bfloat16: the engine reference has float32'):
        network.predictor('reference', 'bfloat16')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(
        InputError, match='needs the package openvino .*uv sync --inexact --extra cpu'
    ):
        network.predictor('openvino')


def test_the_reference_sees_later_weights():
    network = small()
    x = batches((32, 32))[0]
    plain = network.predictor('reference')
    before = plain(x)
    network.fc.b.array[...] += 1
    assert np.allclose(plain(x), before + 1) and isinstance(plain, predictors.Predictor)


@pytest.mark.parametrize(
    'flags, said',
    [(['--engine', 'reference'], None), (['--engine', 'openvino'], 'OpenVINO'), ([], 'OpenVINO')],
)
def test_the_script_says_what_computes(flags, said, tmp_path, monkeypatch, capfd):
    if said and not engine.available():
        pytest.skip('OpenVINO and onnx are not installed')
    small().save_model(tmp_path / 'm.npz')
    image = np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    monkeypatch.setattr(
        sys,
        'argv',
        ['predict.py', str(tmp_path / 'a.png'), '--json', '-m', str(tmp_path / 'm.npz')] + flags,
    )
    with pytest.raises(SystemExit) as e:
        cli.run(predict.main)
    out, err = capfd.readouterr()
    assert e.value.code == 0 and len(json.loads(out)[0]['classes']) == 5
    if said is None:
        assert err == ''
    else:
        assert err.startswith('computed by OpenVINO') and err.endswith(', float32\n')
