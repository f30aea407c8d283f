"""Inference by ONNX Runtime against the reference; and which of two engines is taken."""

import types

import numpy as np
import pytest
from helpers.networks import batches, randomise, relative

import resnext
import resnext_ilsvrc
from trainer import files
from trainer.errors import InputError
from trainer.inference import fastest, predictors
from trainer.inference.predictors import onnxruntime as engine

needs_onnxruntime = pytest.mark.skipif(
    not engine.available(), reason='ONNX Runtime and onnx are not installed'
)


def ilsvrc():
    return randomise(resnext_ilsvrc.ResNext(7, (1, 2), C=2, d=4, stem_width=8))


@needs_onnxruntime
@pytest.mark.parametrize('make', [ilsvrc, lambda: randomise(resnext.ResNext(7, (2, 1), C=2, d=4))])
def test_float32_equals_the_reference(make):
    network = make()
    fast, plain = network.predictor('onnxruntime'), network.predictor('reference')
    assert fast.description.startswith('ONNX Runtime ') and fast.description.endswith(', float32')
    for x in batches((32, 32)) + batches((45, 38)):
        y = fast(x)
        assert y.dtype == np.float32 and y.shape == (len(x), network.category_num)
        assert relative(y, plain(x)) < 1e-5
        assert relative(fast.features(x), plain.features(x)) < 1e-5


@needs_onnxruntime
def test_another_precision():
    with pytest.raises(InputError, match='precision bfloat16: onnxruntime has float32'):
        ilsvrc().predictor('onnxruntime', 'bfloat16')


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    with pytest.raises(InputError, match='needs the package onnxruntime .*--extra onnxruntime'):
        ilsvrc().predictor('onnxruntime')


class TestFastest:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        path = tmp_path / 'inference.json'
        monkeypatch.setattr(fastest, '_path', lambda: str(path))
        monkeypatch.setattr(fastest.importlib.metadata, 'version', lambda name: '1')
        return path

    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that runs while an engine of so many seconds an image computes."""
        now, made = [0.0], []
        monkeypatch.setattr(fastest, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))

        def make(name):
            made.append(name)

            def compute(x):
                now[0] += len(x) * {'openvino': 2.0, 'onnxruntime': 1.0}[name]

            return compute

        return make, made

    def test_the_faster_one_is_taken_and_remembered(self, clock, cache, capsys):
        make, made = clock
        for _ in range(2):
            assert fastest.engine(['openvino', 'onnxruntime'], make, 8) == 'onnxruntime'
        assert made == ['openvino', 'onnxruntime']
        assert capsys.readouterr().err == 'timing openvino and onnxruntime on this CPU, once\n'
        assert list(files.read_json(str(cache)).values()) == ['onnxruntime']

    def test_one_is_not_timed(self, clock, cache):
        make, made = clock
        assert fastest.engine(['openvino'], make, 8) == 'openvino'
        assert not made and not cache.exists()

    @pytest.mark.parametrize('text', ['[', '[1]', '{"x": "openvino"}'])
    def test_a_damaged_cache_is_replaced(self, clock, cache, text):
        cache.write_text(text)
        assert fastest.engine(['openvino', 'onnxruntime'], clock[0], 8) == 'onnxruntime'
        assert 'onnxruntime' in files.read_json(str(cache)).values()

    def test_without_either_the_reference_computes(self, monkeypatch):
        monkeypatch.setattr(predictors, 'installed', lambda name: False)
        assert ilsvrc().predictor().engine == 'reference'
