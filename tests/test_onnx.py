"""ONNX graphs: ONNX's own checker, and what ONNX Runtime computes with them."""

import json
import sys

import chainer
import numpy as np
import pytest
from conftest import FIXTURES
from helpers.networks import batches, randomise, relative

import resnext
import resnext_ilsvrc
from trainer.errors import InputError
from trainer.weights import npz, torch7
from trainer.weights import onnx as writer

GOLDEN = ['tiny_d14_4x2d', 'tiny_d26_8x2d']


@pytest.fixture
def onnx():
    return pytest.importorskip('onnx', reason='onnx is not installed')


@pytest.fixture
def computed(onnx, tmp_path):
    """A function: (network, x, fold) -> (scores by ONNX Runtime, the model)."""
    runtime = pytest.importorskip('onnxruntime', reason='ONNX Runtime is not installed')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def compute(network, xs, fold=True):
        path = tmp_path / 'x.onnx'
        writer.save(path, network, fold)
        session = runtime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return [session.run(None, {'x': x})[0] for x in xs], onnx.load(path)

    return compute


def outputs(network, x):
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        return network(x).array


def check(network, xs, computed):
    """Compare logits at several batch sizes, of the same file, folded and not."""
    for fold in (True, False):
        ys, model = computed(network, xs, fold)
        for x, y in zip(xs, ys):
            assert relative(y, outputs(network, x)) < 1e-5
        kinds = {node.op_type for node in model.graph.node}
        assert ('BatchNormalization' in kinds) is not fold
        assert [o.version for o in model.opset_import] == [17]


def test_the_torch7_fixture(computed):
    network = torch7.read(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7')[0]
    check(network, batches((32, 32)), computed)
    with np.load(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.npz') as f:
        (y,), _ = computed(network, [f['x']])
        assert relative(y.reshape(f['output'].shape), f['output']) < 2e-5


@pytest.mark.parametrize('name', GOLDEN)
def test_the_torch7_files(name, shared, computed):
    network = torch7.read(shared / 'golden' / 'torch7' / (name + '.t7'))[0]
    check(network, batches((224, 224)), computed)


@pytest.mark.parametrize(
    'network',
    [
        lambda: resnext.ResNext(7, (2, 1, 1), C=2, d=4),
        lambda: resnext.ResNext(7, (1, 1), C=2, d=4, shortcut='B'),
        lambda: resnext.PaperResNext(7, (1, 2, 1), C=2, d=4, stem_width=8, shortcut='A'),
        lambda: resnext.PaperResNext(7, (2, 1), C=2, d=4, stem_width=8, shortcut='C', eps=1e-3),
        lambda: resnext_ilsvrc.ResNext(7, (1, 11, 1), C=4, d=2, multiplier=2, stem_width=8),
        lambda: resnext_ilsvrc.ResNext(7, (1, 1), C=2, d=4, stem_width=8, round_up_pooling=True),
    ],
)
def test_every_kind_of_network(network, computed):
    network = randomise(network())
    for size in ((32, 32), (45, 38)):
        check(network, batches(size)[:2], computed)


def test_weights_and_metadata_are_in_the_file(onnx):
    network = randomise(resnext_ilsvrc.ResNext(3, (1, 1), C=2, d=4, stem_width=8))
    network.classes = ['a', 'b', 'ç']
    model = writer.build(network, fold=False)
    arrays = npz.state(network)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    assert set(weights) == {name for name in arrays if not name.endswith('/N')}
    assert all(weights[name].tobytes() == arrays[name].tobytes() for name in weights)
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {
        'architecture': json.loads(json.dumps(network.architecture()))
    }
    (x,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == [
        'batch',
        3,
        'height',
        'width',
    ]


def test_nothing_is_written_that_the_checker_refuses(onnx, tmp_path, monkeypatch):
    network = resnext_ilsvrc.ResNext(3, (1, 1), C=2, d=4, stem_width=8)
    monkeypatch.setattr(writer, '_IR_VERSION', -1)
    with pytest.raises(onnx.checker.ValidationError):
        writer.save(tmp_path / 'x.onnx', network)
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(InputError, match='needs the package onnx .*uv sync --inexact --extra onnx'):
        writer.save(tmp_path / 'x.onnx', resnext_ilsvrc.ResNext(3, (1,), 2, 4, stem_width=8))
    assert list(tmp_path.iterdir()) == []
