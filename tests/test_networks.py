"""The networks of the paper: sizes, shortcuts, the forms of its figure 3, and summaries."""

import dataclasses
import json
import re
import sys

import chainer
import chainer.functions as F
import numpy as np
import pytest

import main
import resnext
import resnext_ilsvrc
from trainer.engines import shapes
from trainer.errors import InputError
from trainer.reports.summary import layers, summary
from trainer.training.resolve import resolve
from trainer.weights import forms, layout_2017, npz


def randomised(network, seed=0):
    """Give it the same weights each time, and batch normalisation numbers that matter."""
    rng = np.random.default_rng(seed)
    network.weight_initialization(seed)
    for name, array in npz.state(network).items():
        if name.endswith(('avg_mean', 'beta', '/b')):
            array[...] = rng.normal(0, 0.3, array.shape)
        elif name.endswith(('avg_var', 'gamma')):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return network


def images(seed=0, size=16, n=2):
    return np.random.default_rng(seed).normal(size=(n, 3, size, size)).astype(np.float32)


# Forms A and B of figure 3, written out with their branches.


class Branches:
    """Computes a network from the arrays of its file in form A or B, branch by branch.

    Shares nothing with the networks: arrays by name, and Chainer's functions.
    """

    def __init__(self, arrays, train, eps, imagenet, relu_last):
        self.train, self.eps, self.imagenet, self.relu_last = train, eps, imagenet, relu_last
        self.p = {
            name: chainer.Parameter(np.array(a)) if a.ndim else a for name, a in arrays.items()
        }
        self.used = set()

    def get(self, name):
        self.used.add(name)
        return self.p[name]

    def conv(self, x, name, stride=1, pad=0):
        return F.convolution_2d(x, self.get(name + '/conv/W'), None, stride, pad)

    def bn(self, x, name):
        gamma, beta = self.get(name + '/bn/gamma'), self.get(name + '/bn/beta')
        if self.train:
            return F.batch_normalization(x, gamma, beta, eps=self.eps)
        return F.fixed_batch_normalization(
            x,
            gamma,
            beta,
            self.get(name + '/bn/avg_mean').array,
            self.get(name + '/bn/avg_var').array,
            eps=self.eps,
        )

    def branch(self, x, here, stride):
        h = F.relu(self.bn(self.conv(x, here + 'reduce'), here + 'reduce'))
        return F.relu(self.bn(self.conv(h, here + 'grouped', stride, 1), here + 'grouped'))

    def block(self, x, here, stride, C):
        paths = [self.branch(x, f'{here}branch{k}/', stride) for k in range(1, C + 1)]
        if here + 'branch1/expand/conv/W' in self.p:  # form A
            h = sum(self.conv(path, f'{here}branch{k}/expand') for k, path in enumerate(paths, 1))
        else:
            h = self.conv(F.concat(paths, axis=1), here + 'expand')
        h = self.bn(h, here + 'expand')
        if here + 'shortcut/conv/W' in self.p:
            x = self.bn(self.conv(x, here + 'shortcut', stride), here + 'shortcut')
        else:
            x = x[:, :, ::stride, ::stride]
            n, channels, height, width = x.shape
            x = F.concat([x, np.zeros((n, h.shape[1] - channels, height, width), x.dtype)], axis=1)
        return F.relu(h + x) if self.relu_last else F.relu(h) + x

    def __call__(self, x, block_num, strides, C):
        h = self.conv(x, 'stem', *((2, 3) if self.imagenet else (1, 1)))
        h = F.relu(self.bn(h, 'stem'))
        if self.imagenet:
            h = F.max_pooling_2d(h, 3, 2, 1, cover_all=False)
        for i, (blocks, stride) in enumerate(zip(block_num, strides), 1):
            for j in range(1, blocks + 1):
                h = self.block(h, f'stage{i}/block{j}/', stride if j == 1 else 1, C)
        h = F.mean(h, axis=(2, 3))
        if 'fc/W' in self.p:
            return F.linear(h, self.get('fc/W'), self.get('fc/b'))
        h = self.conv(h[:, :, None, None], 'fc')
        return F.relu(self.bn(h, 'fc'))[:, :, 0, 0]


NETWORKS = {
    'paper': lambda shortcut: resnext.PaperResNext(
        5, (2, 1), 4, 3, 1, stem_width=8, shortcut=shortcut, eps=1e-3
    ),
    'paper, C 1': lambda shortcut: resnext.PaperResNext(
        5, (1, 2), 1, 4, 1, stem_width=6, shortcut=shortcut
    ),
    'original': lambda shortcut: resnext.ResNext(5, (2, 1), 4, 3, 2, shortcut=shortcut),
    'ilsvrc': lambda shortcut: resnext_ilsvrc.ResNext(
        5, (1, 2), 3, 2, 2, stem_width=8, shortcut=shortcut
    ),
}


@pytest.mark.parametrize('form', forms.FORMS)
@pytest.mark.parametrize('shortcut', 'ABC')
@pytest.mark.parametrize('name', NETWORKS)
def test_forms_a_b_and_c_are_equal(name, shortcut, form, tmp_path):
    """In double precision, so that no ReLU's input near 0 gets another sign by rounding."""
    single = randomised(NETWORKS[name](shortcut))
    single.save_model(tmp_path / 'x.npz', layout=form)
    with np.load(tmp_path / 'x.npz') as f:
        arrays = {key: f[key].astype(np.float64) for key in f.files if f[key].dtype.kind != 'U'}
    with chainer.using_config('dtype', np.float64):
        network = NETWORKS[name](shortcut)
    network.load_model(tmp_path / 'x.npz')
    x = images(size=48 if name == 'ilsvrc' else 16, n=3)
    t = np.array([0, 4, 2], np.int32)
    y = Branches(arrays, False, network.eps, name == 'ilsvrc', name != 'original')(
        x.astype(np.float64), network.block_num, (1, 2), network.C
    )
    assert abs(y.array - single(x, train=False).array).max() < 2e-6 * abs(y.array).max()
    x = x.astype(np.float64)
    for train in (False, True):
        there = Branches(arrays, train, network.eps, name == 'ilsvrc', name != 'original')
        y = there(x, network.block_num, (1, 2), network.C)
        ours = network(x, train=train)
        assert abs(y.array).max() > 0.1
        assert abs(y.array - ours.array).max() < 1e-9
        network.cleargrads()
        network.calc_loss(ours, t).backward()
        F.softmax_cross_entropy(y, t).backward()
        grads = layout_2017.to_here(
            {
                key: p.grad
                for key, p in there.p.items()
                if isinstance(p, chainer.Parameter) and p.grad is not None
            },
            forms.units(network, form),
            'grads',
            name,
            fold=False,
        )
        assert set(grads) == {key[1:] for key, _ in network.namedparams()}
        for key, p in network.namedparams():
            assert abs(grads[key[1:]] - p.grad).max() < 1e-9, key
        assert max(abs(g).max() for g in grads.values()) > 1e-2
        # Everything in the file was used but BN's counters, in training its statistics too.
        unused = {key for key in set(arrays) - there.used if not key.endswith('/N')}
        assert all('/avg_' in key for key in unused) if train else not unused
    # The shapes are those of figure 3.
    d, C, out = network.d, network.C, network.stages[0].out_channels
    stem = network.stem.conv.W.shape[0]
    branch = f'stage1/block1/branch{C}/'
    assert arrays[branch + 'reduce/conv/W'].shape == (d, stem, 1, 1)
    assert arrays[branch + 'grouped/conv/W'].shape == (d, d, 3, 3)
    if form == 'form-a':
        assert arrays[branch + 'expand/conv/W'].shape == (out, d, 1, 1)
    else:
        assert arrays['stage1/block1/expand/conv/W'].shape == (out, C * d, 1, 1)


@pytest.mark.parametrize('form', forms.FORMS)
@pytest.mark.parametrize('name', NETWORKS)
def test_forms_are_recognised_and_give_the_same_weights(name, form, tmp_path):
    network = randomised(NETWORKS[name]('B'))
    network.classes = list('abcde')
    network.save_model(tmp_path / 'x.npz', layout=form)
    again = NETWORKS[name]('B')
    again.load_model(tmp_path / 'x.npz')
    built = resnext.load(tmp_path / 'x.npz')
    assert type(built) is type(network) and built.architecture() == network.architecture()
    for key, array in npz.state(network).items():
        assert np.array_equal(npz.state(again)[key], array), key
        assert np.array_equal(npz.state(built)[key], array), key


@pytest.mark.parametrize('form', forms.FORMS)
def test_what_does_not_fit_a_form_is_refused(form, tmp_path):
    network = NETWORKS['paper']('B')
    network.save_model(tmp_path / 'x.npz', layout=form)
    with pytest.raises(InputError, match=r'x\.npz: does not fit PaperResNext'):
        resnext.PaperResNext(5, (2, 1), 2, 6, 1, stem_width=8).load_model(tmp_path / 'x.npz')
    arrays = npz.read_arrays(tmp_path / 'x.npz')
    key = 'stage2/block1/branch2/grouped/conv/W'
    for change, message in (
        (None, 'it has no ' + key),
        (np.zeros((2, 6, 3, 3)), 'differ in shape'),
        (np.float32(1), 'differ in shape'),
        (np.full(arrays[key].shape, '1.5'), 'holds <U3, not numbers'),
    ):
        damaged = dict(arrays, **{key: change})
        if change is None:
            del damaged[key]
        np.savez(tmp_path / 'y.npz', **damaged)
        with pytest.raises(InputError, match=message):
            resnext.load(tmp_path / 'y.npz')
    with pytest.raises(InputError, match="layout 'form-d'"):
        network.save_model(tmp_path / 'z.npz', layout='form-d')
    assert not (tmp_path / 'z.npz').exists()


# Sizes.


@pytest.mark.parametrize(
    'C, d, parameters, multiply_adds',
    [
        (1, 64, 25557032, '4.09'),
        (2, 40, 25425000, '4.12'),
        (4, 24, 25292968, '4.16'),
        (8, 14, 25603016, '4.27'),
        (32, 4, 25028904, '4.23'),
    ],
)
def test_the_papers_table_of_equal_complexity(C, d, parameters, multiply_adds):
    network = resnext_ilsvrc.resnext50(C=C, d=d, initialize=False)
    assert network.count_params() == parameters
    assert [stage.out_channels for stage in network.stages] == [256, 512, 1024, 2048]
    found = layers(network)
    assert sum(layer.parameters for layer in found) == parameters
    assert f'{sum(layer.multiply_adds for layer in found) / 1e9:.2f}' == multiply_adds


@pytest.mark.parametrize(
    'build, depth, parameters',
    [
        # torchvision's and the paper's networks of these names.
        (resnext_ilsvrc.resnet50, 50, 25557032),
        (resnext_ilsvrc.resnet101, 101, 44549160),
        (resnext_ilsvrc.resnet152, 152, 60192808),
        (lambda **k: resnext_ilsvrc.resnext101(C=32, d=8, **k), 101, 88791336),
        (lambda **k: resnext_ilsvrc.resnext101(C=64, d=4, **k), 101, 83455272),
        (lambda **k: resnext_ilsvrc.resnext101(**k), 101, 44177704),
    ],
)
def test_imagenet_networks(build, depth, parameters):
    network = build(initialize=False)
    assert (network.layers, network.count_params()) == (depth, parameters)


def by_hand(depth, C, d, widen_factor, classes):
    """Parameters of the paper's CIFAR network, from its section 5.3."""
    n, channels = (depth - 2) // 9, 64
    total = 3 * 64 * 9 + 2 * 64
    for i in range(3):
        width, out = C * d * 2**i, 64 * widen_factor * 2**i
        for _ in range(n):
            total += channels * width + 2 * width + 9 * width * width // C + 2 * width
            total += width * out + 2 * out
            total += channels * out + 2 * out if channels != out else 0
            channels = out
    return total + (channels + 1) * classes


@pytest.mark.parametrize(
    'depth, C, d, widen_factor, classes',
    [
        (29, 8, 64, 4, 10),
        (29, 16, 64, 4, 10),
        (29, 1, 64, 4, 10),
        (11, 3, 5, 1, 100),
        (56, 2, 8, 2, 7),
    ],
)
def test_the_papers_cifar_networks(depth, C, d, widen_factor, classes):
    network = resnext.PaperResNext.of_depth(
        depth, classes, C=C, d=d, widen_factor=widen_factor, initialize=False
    )
    assert network.layers == depth
    assert network.count_params() == by_hand(depth, C, d, widen_factor, classes)
    if (depth, d) == (29, 64) and C > 1:  # 34.4 M and 68.1 M in the paper's table 7
        assert network.count_params() == {8: 34426698, 16: 68155210}[C]
        assert f'{network.count_parameters() / 1e6:.1f}' == {8: '34.4', 16: '68.1'}[C]


def test_resnet_is_the_case_of_cardinality_1():
    network = resnext.resnet(20, 7, d=5)
    assert [stage.groups for stage in network.stages] == [1, 1, 1]
    assert [stage.width for stage in network.stages] == [5, 10, 20]
    assert network.layers == 20 and network.category_num == 7
    assert np.isfinite(network(images(), train=False).array).all()


@pytest.mark.parametrize(
    'network, depth',
    [
        (resnext.PaperResNext, 30),
        (resnext.PaperResNext, 2),
        (resnext.PaperResNext, -7),
        (resnext.ResNext, 28),
        (resnext_ilsvrc.ResNext, 29),
    ],
)
def test_other_depths_are_refused_in_one_line(network, depth):
    with pytest.raises(InputError, match=f'^depth {depth}: .* layers') as e:
        network.of_depth(depth, 10)
    assert '\n' not in str(e.value)


def test_depths_of_each_class():
    assert resnext.ResNext.of_depth(38, 10, C=1, d=1, initialize=False).block_num == (4, 4, 4)
    network = resnext_ilsvrc.ResNext.of_depth(152, 3, C=2, d=1, initialize=False)
    assert network.block_num == (3, 8, 36, 3) and network.layers == 152


@pytest.mark.parametrize('shortcut', 'ABC')
def test_shortcut_types(shortcut):
    """Which blocks have projections; the paper's type B has them where sizes change."""
    for build in NETWORKS.values():
        network = build(shortcut)
        found = [layer.path for layer in layers(network) if layer.path.endswith('/shortcut')]
        blocks = [
            f'stage{i}/block{j}/shortcut'
            for i, blocks in enumerate(network.block_num, 1)
            for j in range(1, blocks + 1)
        ]
        firsts = [block for block in blocks if '/block1/' in block]
        assert found == {'A': [], 'B': firsts, 'C': blocks}[shortcut]
    network = resnext.PaperResNext(5, (2, 2), 1, 4, 1, shortcut='B', initialize=False)
    assert [stage.projections for stage in network.stages] == ['none', 'first']
    with pytest.raises(ValueError, match='A, B and C'):
        NETWORKS['original']('D')


def test_shortcuts_of_the_original_are_kept_in_files_but_not_in_its_own(tmp_path):
    network = NETWORKS['original']('C')
    network.save_model(tmp_path / 'x.npz')
    assert resnext.load(tmp_path / 'x.npz').architecture()['shortcut'] == 'C'
    with pytest.raises(InputError, match='2017 program cannot hold'):
        network.save_model(tmp_path / 'y.npz', layout='original')


# Summaries.


class Counter(chainer.FunctionHook):
    """Counts the multiplications of what is really computed."""

    name = 'Counter'
    total = 0

    def forward_postprocess(self, function, in_data):
        x, W = (in_data + (None, None))[:2]
        if function.label == 'Convolution2DFunction':
            outputs = self.outputs(function, x, W)
            self.total += outputs * W.shape[1] * W.shape[2] * W.shape[3]
        elif function.label == 'LinearFunction':
            self.total += x.shape[0] * W.size

    @staticmethod
    def outputs(function, x, W):
        height, width = (
            (n + 2 * pad - k) // stride + 1
            for n, k, stride, pad in (
                (x.shape[2], W.shape[2], function.sy, function.ph),
                (x.shape[3], W.shape[3], function.sx, function.pw),
            )
        )
        return x.shape[0] * W.shape[0] * height * width


@pytest.mark.parametrize('size', [33, 64])
@pytest.mark.parametrize('shortcut', 'AC')
@pytest.mark.parametrize('name', NETWORKS)
def test_sizes_and_multiply_adds_are_those_of_a_real_pass(name, shortcut, size):
    network = NETWORKS[name](shortcut)
    x = images(size=size, n=1)
    counter = Counter()
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        real = {key: h.shape for key, h in network.activations(x)}
        with counter:
            network(x)
        with chainer.using_config('engine', 'shapes'):
            found = {key: h.shape for key, h in network.activations(shapes.zeros(x.shape))}
            assert network(shapes.zeros(x.shape)).shape == (1, 5)
    assert found == real
    listed = layers(network, size)
    assert sum(layer.multiply_adds for layer in listed) == counter.total > 0
    assert sum(layer.parameters for layer in listed) == network.count_params()
    assert listed[0].output == real['stem'][1:]
    assert [layer.output for layer in listed if layer.path.endswith('/expand')][-1] == real[
        'stage2'
    ][1:]


def test_summary_groups_by_stage_and_fits_80_columns():
    network = resnext_ilsvrc.resnext152(C=64, initialize=False)
    text = summary(network)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split()[0] for line in text.splitlines() if re.match('[a-z]+[0-9]* ', line)]
    assert rows[2:] == [
        'stem',
        'pool',
        'stage1',
        'stage2',
        'stage3',
        'stage4',
        'features',
        'fc',
        'total',
    ]
    assert re.search(r'^stage4 +2048x7x7 ', text, re.MULTILINE)
    assert re.search(r'^  block2-36 +each of 35: +1024x14x14 ', text, re.MULTILINE)
    assert re.search(r'^    grouped +1024 of 3x3 /2, 64 groups +1024x14x14 ', text, re.MULTILINE)
    assert text.split('total')[1].split()[0] == f'{network.count_params():,}'
    assert '2048x14x14' in summary(network, 448).split('stage4')[1].splitlines()[0]


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """What ``python main.py --summary`` prints with more flags; it leaves no file behind."""

    def printed(*flags):
        folder = tmp_path / 'empty'
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', ['main.py', '--summary', *map(str, flags)])
        assert main.main() == 0
        assert not list(folder.iterdir())
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    'flags, parameters, multiply_adds',
    [
        ('--network ilsvrc --dataset ilsvrc --C 8 --d 14', 25603016, '4.27'),
        ('--network ilsvrc --dataset ilsvrc --depth 101 --C 64', 83455272, None),
        ('--network paper --C 16', 68155210, None),
        ('', 8485140, None),  # the original's 2x64d
    ],
)
def test_summary_flag(flags, parameters, multiply_adds, printed):
    lines = printed(*flags.split()).splitlines()
    assert lines[-3].split()[:2] == ['total', f'{parameters:,}']
    if multiply_adds:
        assert lines[-1].endswith(f', {multiply_adds} G multiply-adds')


def test_summary_flag_with_other_shortcuts_and_a_file(printed, tmp_path):
    assert printed('--shortcut', 'B').count('shortcut') == 3
    network = NETWORKS['ilsvrc']('C')
    network.save_model(tmp_path / 'x.npz', layout='form-b')
    assert printed('-m', tmp_path / 'x.npz').splitlines() == summary(network).splitlines()
    with pytest.raises(InputError, match='C 7: .*x.npz holds'):
        printed('-m', tmp_path / 'x.npz', '--C', 7)


def test_summary_flag_with_a_run(printed, tmp_path):
    network = NETWORKS['paper']('B')
    options = resolve(str(tmp_path), False, print, {'network': 'paper'})[0]
    (tmp_path / 'run.json').write_text(
        json.dumps({'options': dataclasses.asdict(options), 'network': network.architecture()})
    )
    assert printed('--resume', tmp_path).splitlines() == summary(network).splitlines()


def test_summary_of_a_depth_that_is_none_is_one_line(monkeypatch, capsys):
    argv = ['main.py', '--summary', '--network', 'paper', '--depth', '30']
    monkeypatch.setattr(sys, 'argv', argv)
    with pytest.raises(SystemExit) as end:
        main.command()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert err.startswith('main.py: error: --depth 30: ') and err.count('\n') == 1
