"""The paper's networks against the 2017 program's numbers, and their files."""

import chainer
import numpy as np
import pytest
from conftest import FIXTURES, starting_with

import resnext
import resnext_ilsvrc
from trainer.errors import InputError
from trainer.networks.layers import Stage, StageConfig
from trainer.weights import description, formats, layout_2017, npz

TINY = FIXTURES / 'original_ilsvrc_tiny.model.npz'


@pytest.fixture(scope='module')
def golden():
    with np.load(FIXTURES / 'original_ilsvrc_tiny_outputs.npz') as f:
        return {name: f[name] for name in f.files}


@pytest.fixture
def tiny():
    """The 2017 program's tiny network, with its pooling."""
    network = resnext_ilsvrc.ResNext(
        10, block_num=(1, 1, 1, 1), C=4, d=4, multiplier=2, round_up_pooling=True
    )
    network.load_model(TINY)
    return network


def scores(network, x, train=False):
    with chainer.no_backprop_mode():
        return network(x, train=train).array


def small(**arguments):
    return resnext_ilsvrc.ResNext(5, (2, 1), 2, 2, 2, **dict({'stem_width': 8}, **arguments))


def same_weights(a, b):
    a, b = npz.state(a), npz.state(b)
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures('engine')
def test_computes_what_the_2017_program_does(tiny, golden):
    for x, y in (('x', 'test_y'), ('x_odd', 'test_y_odd')):
        assert abs(scores(tiny, golden[x]) - golden[y]).max() < 1e-5
    assert abs(scores(tiny, golden['x'], train=True) - golden['train_y']).max() < 1e-5
    after = layout_2017.from_here(npz.state(tiny), tiny.original_units())
    for name, expected in starting_with(golden, 'bn_after/').items():
        if name.endswith('/avg_mean'):  # its biases went into the means
            with np.load(TINY) as f:
                conv = name.replace('/bn/avg_mean', '/conv/b')
                convs = sorted(
                    n
                    for n in f.files
                    if n == conv
                    or n.startswith(conv.replace('bn_relu_3/conv/b', 'conv_group_2/'))
                    and n.endswith('/b')
                )
                expected = expected - np.concatenate([f[n] for n in convs])
        assert abs(after[name] - expected).max() < 1e-5, name


@pytest.mark.usefixtures('engine')
def test_gradients_are_the_2017_programs(tiny, golden, shared):
    with np.load(shared / 'golden/original/ilsvrc_tiny_rand_grads.npz') as f:
        expected = layout_2017.to_here(dict(f), tiny.original_units(), 'grads', 'tiny', fold=False)
    tiny.cleargrads()
    loss = tiny.calc_loss(tiny(golden['x'], train=True), golden['t'].astype(np.int32))
    assert abs(float(loss.array) - golden['train_loss']) < 1e-5
    loss.backward()
    assert len(expected) == sum(1 for _ in tiny.params())
    for name, parameter in tiny.namedparams():
        want = expected[name[1:]]
        assert abs(parameter.grad - want).max() < 2e-5 * abs(want).max() + 1e-7, name


def test_pooling_rounds_as_asked():
    x = np.zeros((1, 3, 224, 224), np.float32)
    network = small(initialize=False)
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        for round_up, size in ((False, 56), (True, 57)):
            network.round_up_pooling = round_up
            shapes = {name: h.shape for name, h in network.activations(x)}
            assert list(shapes) == ['stem', 'pool', 'stage1', 'stage2', 'features']
            assert shapes['stem'] == (1, 8, 112, 112)
            assert shapes['pool'] == (1, 8, size, size)
            assert shapes['features'] == (1, 16, 1, 1)


@pytest.mark.parametrize(
    'build, layers, parameters',
    [
        (lambda: resnext_ilsvrc.resnext50(initialize=False), 50, 25028904),
        (lambda: resnext_ilsvrc.resnext101(initialize=False), 101, 44177704),
        (lambda: resnext_ilsvrc.resnext101(C=64, initialize=False), 101, 83455272),
        (lambda: resnext_ilsvrc.resnext101(C=32, d=8, initialize=False), 101, 88791336),
        (lambda: resnext.PaperResNext(10, C=8, initialize=False), 29, 34426698),
        (lambda: resnext.PaperResNext(10, C=16, initialize=False), 29, 68155210),
    ],
)
def test_sizes_are_the_published_ones(build, layers, parameters):
    network = build()
    assert network.count_params() == parameters
    assert network.layers == layers
    if isinstance(network, resnext_ilsvrc.ResNext):
        assert network.stages[0].out_channels == 256
        assert network.fc.W.shape == (1000, 2048)


def test_arguments_lay_out_the_stages():
    network = resnext_ilsvrc.ResNext(
        7, (1, 2), 2, 40, 3.2, shortcut='C', stem_width=16, initialize=False
    )
    assert network.stages == (
        StageConfig(1, 80, 2, 256, 1, 'all'),
        StageConfig(2, 160, 2, 512, 2, 'all'),
    )
    assert (network.C, network.d, network.multiplier) == (2, 40, 3.2)
    assert network.stage2.block2.shortcut is not None
    assert resnext_ilsvrc.resnext152(C=2, d=1, initialize=False).block_num == (3, 8, 36, 3)
    assert resnext_ilsvrc.ResNext(3, C=1, d=1, initialize=False).block_num == (3, 4, 23, 3)
    with pytest.raises(ValueError):
        small(shortcut='D')
    with pytest.raises(ValueError):
        small(eps=0)
    with pytest.raises(ValueError):
        resnext_ilsvrc.ResNext(0, (1,), 1, 1, 1)


@pytest.mark.parametrize(
    'build',
    [
        small,
        lambda: small(shortcut='A', eps=1e-3, round_up_pooling=True),
        lambda: small(shortcut='C', stem_width=5),
        lambda: small(stages=[[1, 6, 3, 9, 2, 'none'], [2, 4, 1, 7, 1, 'all']]),
        lambda: resnext_ilsvrc.ResNext(4, (1, 1), 1, 10, 3.2),
        lambda: resnext.PaperResNext(3, (1, 2), 2, 4, 1, stem_width=4),
        lambda: resnext.PaperResNext(3, (1, 1), 1, 4, shortcut='A', eps=0.01),
    ],
)
def test_files_say_what_they_hold(build, tmp_path):
    network = build()
    network.classes = ['a'] * network.category_num
    for link in network.links():
        if hasattr(link, 'avg_mean'):
            link.avg_mean[...] = np.random.default_rng(1).normal(size=link.avg_mean.shape)
    network.save_model(tmp_path / 'x.npz')
    for load in (resnext.load, resnext_ilsvrc.load, formats.load):
        loaded = load(tmp_path / 'x.npz')
        assert type(loaded) is type(network)
        assert same_weights(loaded, network)
        assert loaded.architecture() == network.architecture()
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 40)).astype(np.float32)
    assert np.array_equal(scores(loaded, x), scores(network, x))


def test_original_layout_is_the_2017_programs(tiny, golden, tmp_path):
    path = tmp_path / 'tiny.model'
    tiny.save_model(path, layout='original')
    with np.load(path) as ours, np.load(TINY) as theirs:
        assert ours.files == theirs.files
        for name in ours.files:
            assert (ours[name].shape, ours[name].dtype) == (theirs[name].shape, theirs[name].dtype)
    again = resnext_ilsvrc.load(path)
    assert again.round_up_pooling is False  # as the weights were trained
    again.round_up_pooling = True
    assert same_weights(again, tiny)
    assert abs(scores(again, golden['x']) - golden['test_y']).max() < 1e-5


@pytest.mark.parametrize(
    'name, build',
    [
        ('50_32x4d', lambda: resnext_ilsvrc.resnext50(initialize=False)),
        ('101_32x4d', lambda: resnext_ilsvrc.resnext101(initialize=False)),
        ('101_64x4d', lambda: resnext_ilsvrc.resnext101(C=64, initialize=False)),
    ],
)
def test_original_layout_of_the_published_networks(name, build, shared):
    network = build()
    arrays = layout_2017.from_here(npz.state(network), network.original_units())
    layout = shared / f'golden/original/ilsvrc_{name}_npz_layout.txt'
    assert layout.read_text().splitlines() == [
        '{}\t{}\t{}'.format(key, np.shape(array), 'int64' if key.endswith('/N') else array.dtype)
        for key, array in arrays.items()
    ]


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'stem_width': 64, 'shortcut': 'A'},
        {'stem_width': 64, 'shortcut': 'C'},
        {'stem_width': 64, 'eps': 1e-4},
        {'stem_width': 64, 'stages': [[1, 4, 2, 8, 1, 'first'], [1, 4, 2, 16, 2, 'first']]},
        {'stem_width': 64, 'stages': [[1, 4, 2, 6, 1, 'first']]},
    ],
)
def test_original_layout_refuses_what_it_cannot_hold(arguments, tmp_path):
    with pytest.raises(InputError, match='2017 program cannot hold'):
        small(**arguments).save_model(tmp_path / 'x.npz', layout='original')
    assert not list(tmp_path.iterdir())


def test_original_layout_refuses_the_papers_cifar_network(tmp_path):
    with pytest.raises(InputError, match='2017 program cannot hold'):
        resnext.PaperResNext(3, (1,), 1, 2).save_model(tmp_path / 'x.npz', layout='original')
    assert not list(tmp_path.iterdir())


def test_another_network_is_refused_and_left_alone(tmp_path):
    small().save_model(tmp_path / 'x.npz')
    network = small(shortcut='C')
    before = {name: np.array(array) for name, array in npz.state(network).items()}
    with pytest.raises(InputError, match='does not fit'):
        network.load_model(tmp_path / 'x.npz')
    after = npz.state(network)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_file_for_other_strides_or_eps_is_refused(tmp_path):
    stages = [[1, 4, 2, 8, 1, 'first'], [1, 4, 2, 8, 2, 'first']]
    other = [[1, 4, 2, 8, 1, 'first'], [1, 4, 2, 8, 1, 'first']]
    small(stages=stages).save_model(tmp_path / 'x.npz')
    small(stages=stages, round_up_pooling=True).load_model(tmp_path / 'x.npz')
    for arguments, message in (
        ({'stages': other}, 'stages is'),
        ({'stages': stages, 'eps': 1e-3}, 'eps is 1e-05 there and 0.001'),
    ):
        with pytest.raises(InputError, match='does not fit .*' + message):
            small(**arguments).load_model(tmp_path / 'x.npz')


def test_a_2017_file_for_another_network_is_refused():
    with pytest.raises(InputError, match='tiny.model.npz: the 2017 program cannot hold'):
        resnext.PaperResNext(10, (1, 1, 1, 1), 4, 4).load_model(TINY)


def test_flags_that_contradict_a_file_are_an_error():
    network = small(initialize=False)
    description.check_flags(network, 'x.npz')
    description.check_flags(network, 'x.npz', C=2, d=2, layers=11)
    for flag, flags in (('-c 4', {'C': 4}), ('-d 3', {'d': 3}), ('-l 50', {'layers': 50})):
        with pytest.raises(InputError, match=rf'^{flag}: x\.npz holds .* 11 layers, 2x2d'):
            description.check_flags(network, 'x.npz', **flags)


def test_blocks_are_computed_in_order_where_there_are_ten_or_more():
    """Of blocks that keep sizes none can be told apart by shapes; by names, 10 is before 2."""
    stage = Stage(4, StageConfig(12, 4, 2, 4, 1, 'first'))
    seen = []
    for i in range(1, 13):
        block = stage[f'block{i}']
        block.forward = lambda x, i=i: seen.append(i) or x
    stage(np.zeros((1, 4, 2, 2), np.float32))
    assert seen == list(range(1, 13))
