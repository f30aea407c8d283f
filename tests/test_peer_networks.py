"""SE-ResNeXt and ResNet-D against timm's and chainercv's own code (tests/peer_networks.py)."""

import chainer
import numpy as np
import peer_networks as peers
import pytest
from conftest import FIXTURES, relative

import resnext_ilsvrc
from trainer.engines.onednn import library
from trainer.errors import InputError
from trainer.inference.predictors import openvino
from trainer.networks import table
from trainer.reports import summary
from trainer.weights import description, formats, namings, npz, state_dict

PEERS = {'timm': peers.TIMM, 'chainercv': peers.CHAINERCV}
NETWORKS = [(peer, name) for peer, names in PEERS.items() for name in names]

_CAFFE = {'se_reduction': 16, 'round_up_pooling': True, 'pool_pad': 0}
_D = {'deep_stem': (32, 32), 'average_shortcut': True}
BUILD = {
    'seresnext50_32x4d': lambda: resnext_ilsvrc.seresnext50(peers.CLASSES, initialize=False),
    'resnext50d_32x4d': lambda: resnext_ilsvrc.resnext50d(peers.CLASSES, initialize=False),
    'seresnext26d_32x4d': lambda: resnext_ilsvrc.ResNext(
        peers.CLASSES, (2, 2, 2, 2), 32, 4, 2, se_reduction=16, initialize=False, **_D
    ),
    'legacy_seresnext50_32x4d': lambda: resnext_ilsvrc.seresnext50(
        peers.CLASSES, initialize=False, **_CAFFE
    ),
    'SEResNeXt50': lambda: resnext_ilsvrc.seresnext50(
        peers.CLASSES, eps=2e-5, initialize=False, **_CAFFE
    ),
    'SEResNeXt101': lambda: resnext_ilsvrc.seresnext101(
        peers.CLASSES, eps=2e-5, initialize=False, **_CAFFE
    ),
}


def _chainercv_name(ours):
    """Return what chainercv calls an array."""
    if ours.startswith(('stem/', 'fc/')):
        return ours.replace('stem/', 'conv1/').replace('fc/', 'fc6/')
    stage, block, part, *rest = ours.split('/')
    parts = {'reduce': 'conv1', 'grouped': 'conv2', 'expand': 'conv3', 'shortcut': 'residual_conv'}
    block = int(block[5:]) - 1
    return '/'.join(
        [f'res{int(stage[5:]) + 1}', f'b{block}' if block else 'a', parts.get(part, part), *rest]
    )


def names_of(peer, name, network):
    """Return the peer's name -> ours of all arrays."""
    if peer == 'chainercv':
        return {_chainercv_name(ours): ours for ours in npz.state(network)}
    naming = namings.table()['senet' if name.startswith('legacy') else 'timm'][0]
    return state_dict._names(naming, network)


def weights(peer, name, network):
    """Return the peer's name -> array, float64, of what it computed with."""
    found = {}
    for theirs, ours in names_of(peer, name, network).items():
        held = npz.state(network)[ours]
        if np.ndim(held):
            shape = held.shape
            if peer == 'timm':
                shape = state_dict._there_shape(ours, held)
            found[theirs] = peers.numbers(theirs, shape)
    return found


def golden(peer, name):
    with np.load(FIXTURES / f'peer_{peer}.npz') as held:
        return [held[f'{name}/{part}'] for part in ('scores', 'training', 'names', 'gradients')]


def in_float64(peer, name):
    with chainer.using_config('dtype', np.float64):
        network = BUILD[name]()
    names, held = names_of(peer, name, network), npz.state(network)
    for theirs, array in weights(peer, name, network).items():
        held[names[theirs]][...] = array.reshape(held[names[theirs]].shape)
    return network


def error(golden, found):
    """Return the largest difference, relative to the largest score."""
    return abs(golden - found).max() / abs(golden).max()


# What each has alone, and all of it together.
WITH_ALL = (('timm', 'seresnext26d_32x4d'), ('chainercv', 'SEResNeXt50'))


@pytest.mark.parametrize(
    ('peer', 'name', 'engine'),
    [(*network, 'reference') for network in NETWORKS]
    + [(*network, engine) for network in WITH_ALL for engine in ('numpy', 'cudnn')],
)
def test_everything_in_float64(peer, name, engine):
    """Scores, by running statistics and by the batch's, and all gradients; cuDNN's wiring."""
    network = in_float64(peer, name)
    scores, training, keys, gradients = golden(peer, name)
    x = peers.images()
    with chainer.using_config('engine', engine):
        with chainer.no_backprop_mode():
            assert error(scores, network(x, train=False).array) < 1e-10
        if '101' in name:  # the rest is as in 50 layers
            return
        network.cleargrads()
        y = network(x, train=True)
        assert error(training, y.array) < 1e-10
        chainer.functions.sum(y * peers.score_weights()).backward()
    names = names_of(peer, name, network)
    params = {path[1:]: p for path, p in network.namedparams()}
    assert sorted(keys) == sorted(theirs for theirs, ours in names.items() if ours in params)
    for theirs, (product, norm) in zip(keys.tolist(), gradients):
        found = peers.digest(theirs, params[names[theirs]].grad)
        assert abs(np.subtract(found, (product, norm))).max() < 1e-8 * norm, theirs


def predict(network, engine):
    x = peers.images().astype(np.float32)
    return network.predictor(engine)(x)


def _engines():
    yield 'reference', True
    yield 'numpy', True
    yield 'onednn', library.unavailable() is None
    yield 'openvino', openvino.available()


ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not there, reason=f'{name} is not installed'))
    for name, there in _engines()
]


@pytest.fixture(scope='module', params=[n for n in NETWORKS if '101' not in n[1]])
def from_file(request, tmp_path_factory):
    """A network as it comes from the peer's file, and the peer's scores."""
    peer, name = request.param
    arrays = weights(peer, name, BUILD[name]())
    path = str(tmp_path_factory.mktemp('peer') / 'weights')
    if peer == 'chainercv':
        np.savez(path, **{key: a.astype(np.float32) for key, a in arrays.items()})
        network, found = formats.read(path + '.npz')
        assert found.format == 'npz'
    else:
        tensors = {
            key: state_dict.Tensor('float64', a.shape, lambda a=a: a) for key, a in arrays.items()
        }
        network, found = state_dict.read(tensors, path)
        whose = 'senet' if name.startswith('legacy') else 'timm'
        assert found.details == f"float64, {whose}'s names"
    assert network.architecture() == BUILD[name]().architecture()
    return network, golden(peer, name)[0]


@pytest.mark.parametrize('engine', ENGINES)
def test_files_compute_what_their_peers_do(from_file, engine):
    network, scores = from_file
    assert error(scores, predict(network, engine)) < 1e-5


def test_written_and_read_again(from_file, tmp_path):
    network, _ = from_file
    npz.save(tmp_path / 'x.npz', network)
    again = npz.load(tmp_path / 'x.npz')
    assert again.architecture() == network.architecture()
    assert all(np.array_equal(a, npz.state(again)[k]) for k, a in npz.state(network).items())
    if network.eps == 1e-5:
        naming = 'senet' if network.round_up_pooling else 'timm'
        arrays = state_dict.write(network, naming)
        tensors = {
            key: state_dict.Tensor(a.dtype.name, a.shape, lambda a=a: a)
            for key, a in arrays.items()
        }
        again, _ = state_dict.read(tensors, 'x')
        assert all(np.array_equal(a, npz.state(again)[k]) for k, a in npz.state(network).items())


@pytest.mark.parametrize('form', ['form-a', 'form-b'])
def test_branches_apart(form, tmp_path):
    network = resnext_ilsvrc.ResNext(3, (1, 1), 2, 2, 4, se_reduction=4, **_D)
    npz.save(tmp_path / 'x.npz', network, form)
    again = npz.load(tmp_path / 'x.npz')
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with chainer.no_backprop_mode():
        assert relative(network(x, train=False).array, again(x, train=False).array) < 1e-6


@pytest.mark.parametrize(
    ('build', 'parameters'),
    [
        # timm's results/model_metadata and torch's count of the same networks.
        (resnext_ilsvrc.seresnext50, 27_559_896),
        (resnext_ilsvrc.seresnext101, 48_955_416),
        (resnext_ilsvrc.resnext50d, 25_048_136),
    ],
)
def test_summary_counts(build, parameters):
    network = build(initialize=False)
    text = summary.summary(network)
    total = next(line for line in text.splitlines() if line.startswith('total'))
    assert f'{parameters:,}' in total and network.count_params() == parameters
    assert max(map(len, text.splitlines())) <= 80


def test_table():
    for name, variant in (
        ('ilsvrc', {}),
        ('ilsvrc_se', {'se_reduction': 16}),
        ('ilsvrc_d', {'deep_stem': [32, 32], 'average_shortcut': True}),
    ):
        entry = table.get(name)
        sizes = {'multi': None, 'block_num': (1, 1, 1, 1), **entry.sizes}
        network = entry.cls.of_sizes(3, sizes, **entry.variant)
        assert network.variant == variant and table.of(network) is entry


def test_what_a_plain_network_would_misread():
    """Arrays fit that were computed with other shortcuts or another pooling."""
    plain = resnext_ilsvrc.ResNext(3, (1, 1), 2, 2, 4)
    for variant in ({'average_shortcut': True}, {'pool_pad': 0}):
        other = resnext_ilsvrc.ResNext(3, (1, 1), 2, 2, 4, **variant)
        for held, into in ((plain, other), (other, plain)):
            with pytest.raises(InputError, match=next(iter(variant))):
                npz.fill(into, npz.state(held), 'x.npz', held.architecture())
        with pytest.raises(InputError, match='naming clcarwin'):
            state_dict.write(other, 'clcarwin')
    with pytest.raises(InputError, match='its se_reduction'):
        state_dict.write(resnext_ilsvrc.ResNext(3, (1, 1), 2, 2, 4, se_reduction=2), 'clcarwin')


@pytest.mark.parametrize(
    'damage',
    [
        {'se_reduction': 0},
        {'se_reduction': 3},
        {'se_reduction': 'x'},
        {'deep_stem': [1]},
        {'deep_stem': [0, 1]},
        {'deep_stem': 5},
        {'pool_pad': 2},
        {'deep_stem': [1 << 20, 1 << 20]},
    ],
)
def test_descriptions_that_cannot_be_built(damage):
    described = resnext_ilsvrc.ResNext(3, (1, 1), 2, 2, 4).architecture() | damage
    with pytest.raises(InputError, match='describes a network that cannot be built'):
        description.build(described, 'x.npz', 10**6)


def test_load_model_takes_chainercvs_into_its_own_network_alone(tmp_path):
    sizes = {'block_num': (1, 1), 'C': 2, 'd': 2, 'multiplier': 4, 'se_reduction': 4}
    its = resnext_ilsvrc.ResNext(3, **sizes, eps=2e-5, round_up_pooling=True, pool_pad=0)
    arrays = {_chainercv_name(ours): a for ours, a in npz.state(its).items()}
    np.savez(tmp_path / 'x.npz', **arrays)
    again = resnext_ilsvrc.ResNext(3, **sizes, eps=2e-5, round_up_pooling=True, pool_pad=0)
    again.load_model(tmp_path / 'x.npz')
    assert np.array_equal(again.fc.W.array, its.fc.W.array)
    for wrong, message in (({'pool_pad': 0}, 'eps'), ({'eps': 2e-5}, 'pool_pad')):
        with pytest.raises(InputError, match=message):
            resnext_ilsvrc.ResNext(3, **sizes, **wrong).load_model(tmp_path / 'x.npz')


def test_a_resnet_of_chainercv_is_refused(tmp_path):
    arrays = {
        'conv1/conv/W': np.zeros((4, 3, 7, 7)),
        'res2/a/conv2/conv/W': np.zeros((4, 4, 3, 3)),
        'res2/a/conv3/conv/W': np.zeros((8, 4, 1, 1)),
    }
    np.savez(tmp_path / 'x.npz', **arrays)
    with pytest.raises(InputError, match='does not tell where its strides are'):
        formats.read(str(tmp_path / 'x.npz'))
