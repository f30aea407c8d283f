"""The CIFAR network against the 2017 program's numbers, and its methods."""

import json

import chainer
import numpy as np
import pytest
from conftest import FIXTURES, has_gpu, starting_with

import resnext
from trainer.errors import InputError
from trainer.training.updater import ChunkedUpdater
from trainer.weights import layout_2017 as layout
from trainer.weights import npz

SMALL = dict(category_num=10, block_num=(1, 1, 1), C=4, d=8, multiplier=4)


@pytest.fixture
def set_b(original, tmp_path):
    """The 2017 program's file of random weights."""
    path = tmp_path / 'B.model'
    with open(path, 'wb') as f:
        np.savez_compressed(f, **starting_with(original, 'B/'))
    return str(path)


def small(path, dtype=np.float32):
    with chainer.using_config('dtype', dtype):
        network = resnext.ResNext(**SMALL)
    network.load_model(path)
    return network


def updater(network):
    optimizer = chainer.optimizers.MomentumSGD(0.1, 0.9).setup(network)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(5e-4))
    return lambda divide=1: ChunkedUpdater(
        chainer.iterators.SerialIterator([0], 1), optimizer, chainer.get_device('@numpy'), divide
    )


def errors(network, arrays, what=lambda p: p.array, whole=True):
    """Return name -> greatest difference to the original's arrays that are given."""
    given = {}
    parameters = {name[1:]: what(p) for name, p in network.namedparams()}
    for conv, convs, bn, bns in network.original_units():
        for here, names, parts in ((conv, convs, 'W'), (bn, bns, ('gamma', 'beta'))):
            for part in parts:
                key = f'{here}/{part}'
                if all(f'{n}/{part}' in arrays for n in names):
                    joined = np.concatenate([arrays[f'{n}/{part}'] for n in names])
                    given[key] = abs(joined - parameters[key]).max()
    assert len(given) == len(parameters) if whole else len(given) > 10
    return given


@pytest.mark.usefixtures('engine')
class TestFloat64:
    """The only difference is rounding."""

    def test_outputs(self, original, set_b):
        network = small(set_b, np.float64)
        x = original['x0'].astype(np.float64)
        assert abs(network(x, train=False).array - original['f64/test_y']).max() < 1e-9
        y = network(x, train=True)
        assert abs(y.array - original['f64/train_y']).max() < 1e-9
        assert abs(network.calc_loss(y, original['t0']).array - original['f64/loss1']) < 1e-9

    def test_gradients_and_three_updates(self, original, set_b):
        self.check(original, set_b, starting_with(original, 'f64/'), whole=False)

    def test_gradients_and_three_updates_of_all_parameters(self, original, set_b, shared):
        with np.load(shared / 'golden/original/cifar_small_f64.npz') as f:
            self.check(original, set_b, dict(f), whole=True)

    @staticmethod
    def check(original, set_b, golden, whole):
        network = small(set_b, np.float64)
        update = updater(network)()
        for i in range(3):
            update.update_with(original[f'x{i}'].astype(np.float64), original[f't{i}'])
            if i == 0:
                found = errors(network, starting_with(golden, 'after1/'), whole=whole)
                assert max(found.values()) < 1e-9, found
        found = errors(network, starting_with(golden, 'after3/'), whole=whole)
        assert max(found.values()) < 1e-9, found
        found = errors(
            network, starting_with(golden, 'v3/'), lambda p: p.update_rule.state['v'], whole
        )
        assert max(found.values()) < 1e-9, found
        y = network(original['x0'].astype(np.float64), train=False)
        # The original's biases decay; folded into the means, they do not.
        assert abs(y.array - golden['after3_test_y']).max() < 2e-4

        network = small(set_b, np.float64)
        loss = network.calc_loss(
            network(original['x0'].astype(np.float64), train=True), original['t0']
        )
        network.cleargrads()
        loss.backward()
        found = errors(network, starting_with(golden, 'grad1/'), lambda p: p.grad, whole)
        assert max(found.values()) < 1e-9, found


@pytest.mark.usefixtures('engine')
class TestFloat32:
    def test_outputs_and_statistics(self, original, set_b):
        network = small(set_b)
        for train, key in ((False, 'B_test'), (True, 'B_train')):
            y = network(network.prepare_input(original['x0'], volatile=True), train=train)
            golden = original[key + '_y']
            assert abs(y.array - golden).max() < 2e-5 * abs(golden).max()
            loss = network.calc_loss(y, original['t0'])
            assert abs(loss.array - original[key + '_loss']) < 2e-5 * original[key + '_loss']
        after = dict(starting_with(original, 'B/'), **starting_with(original, 'B_bn_after/'))
        golden = layout.to_here(after, network.original_units(), '', '')
        found = npz.state(network)
        for name in golden:
            if 'avg_' in name:  # the variances include eps, as Chainer v1's did
                assert abs(found[name] - golden[name]).max() < 2e-6, name

    def test_activations(self, set_b, shared):
        network = small(set_b)
        names = {
            'stem': 'conv_bn_relu',
            'stage1': 'resnext_block_1_1',
            'stage2': 'resnext_block_2_1',
            'stage3': 'resnext_block_3_1',
        }
        x = np.load(shared / 'golden/original/cifar_input_x.npy')
        for train, file in ((False, 'test'), (True, 'train')):
            path = shared / f'golden/original/cifar_small_rand_acts_{file}.npz'
            with np.load(path) as golden, chainer.using_config('train', train):
                for name, h in network.activations(chainer.Variable(x)):
                    if name in names:
                        g = golden[names[name]]
                        assert abs(h.array - g).max() < 2e-5 * abs(g).max(), (name, file)

    def test_gradients(self, original, set_b, shared):
        network = small(set_b)
        with np.load(shared / 'golden/original/cifar_small_rand_grads.npz') as golden:
            network.cleargrads()
            network.calc_loss(network(original['x0'], train=True), original['t0']).backward()
            for name, error in errors(network, golden, lambda p: p.grad).items():
                assert error < 5e-3, name

    def test_accumulated_step(self, original, set_b, shared):
        network = small(set_b)
        x = np.concatenate([original['x0'], original['x1']])
        t = np.concatenate([original['t0'], original['t1']])
        updater(network)(4).update_with(x, t)
        folder = shared / 'golden/original'
        with np.load(folder / 'cifar_small_accum_b8_div4_grads.npz') as golden:
            # The hook has added weight decay to the gradients.
            before = small(set_b)
            old = {name: p.array for name, p in before.namedparams()}
            for name, p in network.namedparams():
                p.grad -= np.float32(5e-4) * old[name]
            found = errors(network, golden, lambda p: p.grad)
            assert max(found.values()) < 5e-3, found
        with np.load(folder / 'cifar_small_accum_b8_div4_after1.npz') as golden:
            found = errors(network, golden)
            assert max(found.values()) < 5e-4, found
            after = layout.to_here(dict(golden), network.original_units(), '', '')
        for name, array in npz.state(network).items():
            if 'avg_' in name:
                # The biases, folded into the means, have decayed by 5e-5 of themselves.
                assert abs(array - after[name]).max() < (1e-5 if 'var' in name else 2e-5), name


def test_chunks_add_up_to_the_mean_loss(original, set_b):
    """Uneven chunks too: without batch statistics, chunking changes nothing."""
    x = np.concatenate([original['x0'], original['x1'][:3]]).astype(np.float64)
    t = np.concatenate([original['t0'], original['t1'][:3]])
    after = []
    for divide in (1, 3):
        network = small(set_b, np.float64)
        with chainer.using_config('train', False):
            updater(network)(divide).update_with(x, t)
        after.append([p.array for p in network.params()])
    assert max(abs(a - b).max() for a, b in zip(*after)) < 1e-12


@pytest.mark.parametrize('C', [2, 4, 8, 16])
def test_count_parameters(C):
    counts = json.loads((FIXTURES / 'original_cifar_counts.json').read_text())[f'{C}x64d']
    network = resnext.ResNext(10, C=C, d=64, initialize=False)
    assert network.count_parameters() == counts['count_parameters']
    # The original also has the biases that batch normalisation cancels.
    assert network.count_params() == counts['trainable'] - counts['conv_bias']
    assert network.name == f'ResNext_10_{C}'


class TestFiles:
    def test_original_layout_round_trip(self, original, set_b, tmp_path):
        network = small(set_b)
        network.save_model(str(tmp_path / 'out'), layout='original')
        lines = (FIXTURES / 'original_cifar_small_layout.txt').read_text().splitlines()
        with np.load(tmp_path / 'out') as f:
            assert [f'{k}\t{f[k].shape}\t{f[k].dtype}' for k in f.files] == lines
            for name, golden in starting_with(original, 'B/').items():
                if name.endswith('/b'):
                    assert not f[name].any()
                elif name.endswith('/avg_mean'):
                    bias = starting_with(original, 'B/')[name.replace('bn/avg_mean', 'conv/b')]
                    np.testing.assert_allclose(f[name], golden - bias, rtol=1e-6, atol=1e-7)
                else:
                    np.testing.assert_array_equal(f[name], golden)
        again = small(str(tmp_path / 'out'))
        for (name, a), b in zip(npz.state(network).items(), npz.state(again).values()):
            np.testing.assert_array_equal(a, b, name)

    def test_own_layout_needs_no_sizes(self, set_b, tmp_path):
        network = small(set_b)
        network.classes = [chr(97 + i) for i in range(10)]
        network.save_model(str(tmp_path / 'own'))
        again = resnext.load(str(tmp_path / 'own'))
        assert again.architecture() == network.architecture()
        for (name, a), b in zip(npz.state(network).items(), npz.state(again).values()):
            np.testing.assert_array_equal(a, b, name)
        # Plain Chainer reads it too.
        plain = resnext.ResNext(**SMALL)
        chainer.serializers.load_npz(tmp_path / 'own', plain)
        np.testing.assert_array_equal(plain.fc.conv.W.array, network.fc.conv.W.array)

    def test_original_layout_needs_no_sizes(self, set_b):
        network = resnext.load(set_b)
        assert network.architecture() == dict(small(set_b).architecture(), classes=None)

    def test_another_network_is_refused_and_nothing_changes(self, set_b):
        network = resnext.ResNext(10, (1, 1, 1), C=2, d=8)
        before = {k: np.copy(a) for k, a in npz.state(network).items()}
        with pytest.raises(InputError, match='does not fit ResNext of 10 classes'):
            network.load_model(set_b)
        for name, array in npz.state(network).items():
            np.testing.assert_array_equal(array, before[name])

    def test_other_class_count_is_refused(self, set_b, tmp_path):
        small(set_b).save_model(str(tmp_path / 'm'))
        with pytest.raises(InputError, match=r'fc/bn/avg_mean is \(10,\) there'):
            resnext.ResNext(100, (1, 1, 1), C=4, d=8).load_model(str(tmp_path / 'm'))


class TestOriginalMethods:
    def test_initial_weights(self):
        network = resnext.ResNext(10, (1, 1, 1), C=2, d=16)
        network.weight_initialization(3)
        for W in (
            network.stage2.block1.grouped.conv.W.array,
            network.fc.conv.W.array,
            network.stem.conv.W.array,
        ):
            out, channels, kh, kw = W.shape
            filters = W.reshape(out, channels, kh * kw).astype(np.float64)
            variance = 2.0 / (channels * kh * kw)
            np.testing.assert_allclose(filters.var(axis=(1, 2)), variance, rtol=1e-4)
            # Orthogonal: the smaller side's products vanish but for their own.
            a = filters if channels <= kh * kw else filters.transpose(0, 2, 1)
            gram = a @ a.transpose(0, 2, 1)
            scale = gram[:, 0, 0]
            np.testing.assert_allclose(
                gram, scale[:, None, None] * np.eye(a.shape[1]), atol=1e-5 * scale.max()
            )
        other = resnext.ResNext(10, (1, 1, 1), C=2, d=16)
        assert (other.stem.conv.W.array != network.stem.conv.W.array).any()
        other.weight_initialization(3)
        np.testing.assert_array_equal(other.stem.conv.W.array, network.stem.conv.W.array)

    def test_accuracy(self):
        y = chainer.Variable(np.float32([[3, 1, 0], [0, 2, 1], [5, 4, 3], [0, 1, 2]]))
        t = chainer.Variable(np.int32([0, 2, 1, 2]))
        right, wrong = resnext.ResNext.accuracy(y, t)
        assert right == {0: 1, 2: 1} and wrong == {(2, 1): 1, (1, 0): 1}
        right, right2, _ = resnext.ResNext.accuracy_n(y, t, n=2)
        assert right == {0: 1, 2: 1} and right2 == {0: 1, 1: 1, 2: 2}

    def test_readme_calls(self):
        network = resnext.ResNext(10, (1, 1, 1), C=2, d=8)
        assert network.check_gpu(-1) is False and network.model_is_cpu_mode()
        x = network.prepare_input([np.zeros((3, 32, 32), np.float64)], volatile=True)
        assert x.dtype == np.float32 and not x.requires_grad
        assert network(x, train=False).shape == (1, 10)

    def test_train_flag(self):
        network = resnext.ResNext(10, (1, 1, 1), C=2, d=8)
        x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
        network(x, train=False)
        assert not network.stem.bn.avg_mean.any()
        network(x, train=True)
        assert network.stem.bn.avg_mean.any()
        with chainer.using_config('train', False):
            before = network.stem.bn.avg_mean.copy()
            network(x)
            np.testing.assert_array_equal(before, network.stem.bn.avg_mean)

    def test_gpu_without_gpu(self):
        if has_gpu():
            pytest.skip('there is a GPU here')
        with pytest.raises(InputError, match='-g 0: '):
            resnext.ResNext(10, (1, 1, 1), C=2, d=8).check_gpu(0)
