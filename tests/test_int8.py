"""Inference in 8-bit integers: accuracy, cache, errors."""

import importlib.util
import json
import os
import subprocess
import sys

import chainer
import numpy as np
import pytest
from conftest import FIXTURES, ROOT, relative
from helpers.images import random_image
from helpers.networks import batches, randomise
from PIL import Image

import predict
import resnext_ilsvrc
from trainer import cli
from trainer.datasets import quick
from trainer.errors import InputError
from trainer.training.data import Load
from trainer.transforms import table
from trainer.weights import onnx, torch7

needs_nncf = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ('nncf', 'openvino', 'onnx')),
    reason='nncf, OpenVINO and onnx (extra int8) are not installed',
)


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
    """What is quantised is kept in the test's folder."""
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'root'))
    root = chainer.dataset.get_dataset_root()
    chainer.dataset.set_dataset_root(str(tmp_path / 'root'))
    yield
    chainer.dataset.set_dataset_root(root)


def small():
    return randomise(resnext_ilsvrc.ResNext(7, (1, 1), C=4, d=4, stem_width=8))


def photographs(folder, number=4):
    folder.mkdir()
    for i in range(number):
        Image.fromarray(random_image(70, 90, i)).save(folder / f'{i}.png')
    return str(folder)


def real_images(network, part, every):
    preprocessing = table.of(network)
    items = [(1, i) for i in range(0, len(part.labels), every)]
    x = np.empty((len(items), *preprocessing.shape), np.float32)
    Load(part, preprocessing)(items, x)
    return x


@needs_nncf
def test_answers_on_real_images_stay():
    network = torch7.read(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7')[0]
    images = quick.load()
    fast = network.predictor(
        precision='int8', calibration=real_images(network, images.train, every=25)
    )
    assert fast.engine == 'openvino' and fast.description.endswith(', int8')
    x = real_images(network, images.test, every=1)
    scores, wanted = fast(x), network.predictor('openvino')(x)
    assert len(x) == 1000 and np.mean(scores.argmax(1) == wanted.argmax(1)) >= 0.97
    # Of 8 bits, and no more than 8 bits are off.
    assert 5e-3 < relative(wanted, scores) < 0.1
    features = fast.features(x[:8])
    assert 5e-3 < relative(network.predictor('openvino').features(x[:8]), features) < 0.1


@needs_nncf
def test_what_was_quantised_is_kept(monkeypatch, tmp_path):
    import nncf

    network, calibration = small(), list(batches((64, 64))[2])
    x = batches((64, 64))[2]
    once = network.predictor(precision='int8', calibration=calibration)(x)

    def quantize(*args, **kwargs):
        raise AssertionError('it is kept')

    with monkeypatch.context() as patched:
        patched.setattr(nncf, 'quantize', quantize)
        again = network.predictor(precision='int8', calibration=calibration)(x)
        assert np.array_equal(once, again)
        with pytest.raises(AssertionError):
            network.predictor(precision='int8', calibration=calibration[1:])
        changed = small()
        changed.fc.b.array[0] += 1
        with pytest.raises(AssertionError):
            changed.predictor(precision='int8', calibration=calibration)
    (kept,) = (tmp_path / 'root' / 'resnext' / 'int8').glob('*.xml')
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged: made again
    again = network.predictor(precision='int8', calibration=calibration)(x)
    assert np.array_equal(once, again)


@pytest.mark.parametrize('groups, channels, width, wanted', [(8, 4, 32, 1), (6, 4, 16, 3)])
def test_merged_groups_compute_the_same(groups, channels, width, wanted):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((groups * 5, channels, 3, 3)).astype(np.float32)
    x = rng.standard_normal((2, groups * channels, 9, 8)).astype(np.float32)
    merged, number = onnx.merge_groups(w, groups, width)
    assert number == wanted and merged.shape == (len(w), groups * channels // number, 3, 3)
    before = chainer.functions.convolution_2d(x, w, groups=groups).array
    after = chainer.functions.convolution_2d(x, merged, groups=number).array
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert onnx.merge_groups(w, groups, 1)[0] is w


@needs_nncf
def test_nothing_is_reported_to_anybody(tmp_path):
    """Telemetry of OpenVINO and nncf stays out; under pytest nncf's would of itself."""
    program = """
from trainer import extras
extras.need('openvino', 'this test')
extras.need('nncf', 'this test')
from nncf.telemetry import wrapper
assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)
"""
    environment = os.environ | {'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, '-c', program], env=environment, check=True, cwd=tmp_path)
    assert not (tmp_path / 'intel').exists()


@needs_nncf
def test_the_script(tmp_path, monkeypatch, capfd):
    small().save_model(tmp_path / 'm.npz')
    folder = photographs(tmp_path / 'photographs')
    given = ['predict.py', folder, '--json', '-m', str(tmp_path / 'm.npz')]
    given += ['--precision', 'int8', '--calibration', folder]
    monkeypatch.setattr(sys, 'argv', given)
    with pytest.raises(SystemExit) as e:
        cli.run(predict.main)
    out, err = capfd.readouterr()
    assert e.value.code == 0 and len(json.loads(out)) == 4
    assert err.endswith(', int8\n')


@needs_nncf
def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = photographs(tmp_path / 'photographs')
    (tmp_path / 'photographs' / '2.png').write_bytes(b'no image')
    with pytest.raises(InputError, match=r'calibration: .*2\.png: not an image'):
        small().predictor(precision='int8', calibration=folder)


def test_what_is_refused(tmp_path, monkeypatch, capsys):
    network = small()
    folder = photographs(tmp_path / 'photographs')
    with pytest.raises(InputError, match='int8: calibration DIR says which images'):
        network.predictor(precision='int8')
    with pytest.raises(InputError, match='calibration: precision bfloat16 needs none'):
        network.predictor('openvino', 'bfloat16', folder)
    with pytest.raises(InputError, match='int8: the engine numpy has none; openvino has'):
        network.predictor('numpy', 'int8', folder)
    (tmp_path / 'empty').mkdir()
    network.save_model(tmp_path / 'm.npz')
    for path, said in (('empty', 'no images in it'), ('nowhere', 'not a folder')):
        given = ['predict.py', folder, '-m', str(tmp_path / 'm.npz')]
        given += ['--precision', 'int8', '--calibration', str(tmp_path / path)]
        monkeypatch.setattr(sys, 'argv', given)
        with pytest.raises(SystemExit) as e:
            cli.run(predict.main)
        assert e.value.code == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and '--calibration' in err and said in err
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(InputError, match='uv sync --inexact --extra int8'):
        network.predictor(precision='int8', calibration=folder)
