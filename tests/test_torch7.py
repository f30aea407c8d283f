"""Torch7 files: those that Torch7 wrote, and others of every kind from the tests' writer."""

import subprocess
import sys

import chainer
import numpy as np
import pytest
import t7_files
import torchfile
from conftest import FIXTURES, ROOT

import ilsvrc_converter
import resnext
import resnext_ilsvrc
from trainer.errors import InputError
from trainer.weights import npz, torch7

CIFAR = FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7'


def relative(a, b):
    return abs(np.asarray(a, np.float64).reshape(b.shape) - b).max() / abs(b).max()


def outputs(network, x):
    """Every activation, and the scores as 'output'."""
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        arrays = {name: h.array for name, h in network.activations(x)}
        return dict(arrays, feat=arrays['features'], output=network(x).array)


def small(builder=None, form='cifar', **arguments):
    """A module tree of 2-1-1 blocks, 4x2d."""
    arguments = dict(dict(block_num=(2, 1, 1), C=4, d=2, stem=16, out=32, classes=7), **arguments)
    return (builder or t7_files.Builder()).network(form, **arguments)


def find(tree, name, n=0):
    return [module for module in tree.walk() if module.name.endswith(name)][n]


@pytest.fixture
def converted(tmp_path):
    def convert(tree):
        t7_files.write(tmp_path / 'x.t7', tree)
        return ilsvrc_converter.convert(tmp_path / 'x.t7')

    return convert


@pytest.fixture
def check(converted):
    """Convert a module tree, maybe changed, and compare with what its modules compute."""

    def check(tree, size=32, change=lambda tree: None):
        x = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
        expected = t7_files.evaluate(tree, x.astype(np.float64))
        change(tree)
        network = converted(tree)
        assert relative(outputs(network, x)['output'], expected) < 2e-6
        return network

    return check


# What Torch7 wrote.


def test_computes_what_torch7_does():
    network = ilsvrc_converter.convert(CIFAR)
    with np.load(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.npz') as f:
        ours = outputs(network, f['x'])
        for i in (1, 2, 3):
            name = f'stage{i}'
            assert relative(ours[name][:, :, ::4, ::4], f[name]) < 2e-5
        assert relative(ours['feat'], f['feat']) < 2e-5
        assert relative(ours['output'], f['output']) < 2e-5
    assert type(network) is resnext.PaperResNext
    assert (network.layers, network.C, network.d, network.stem_width) == (20, 4, 2, 8)


@pytest.mark.parametrize(
    'name, numbers, size',
    [
        ('tiny_d14_4x2d', 'tiny_d14_4x2d', 224),
        ('tiny_d26_8x2d', 'tiny_d26_8x2d', 224),
        ('tiny_d26_8x2d_headcode', 'tiny_d26_8x2d', 224),
        ('tiny_d26_8x2d_cuda', 'tiny_d26_8x2d', 224),
        ('cifar10_tiny_d20_4x2d', 'cifar10_tiny_d20_4x2d', 32),
    ],
)
def test_computes_what_torch7_does_in_every_file(name, numbers, size, shared):
    folder = shared / 'golden' / 'torch7'
    network = ilsvrc_converter.convert(folder / (name + '.t7'))
    ours = outputs(network, np.load(folder / f'input_{size}.npy'))
    checked = 0
    for what in ('stage1', 'stage2', 'stage3', 'stage4', 'feat', 'output'):
        path = folder / f'{numbers}.{what}.npy'
        if path.exists():
            assert relative(ours[what], np.load(path)) < 2e-5, what
            checked += 1
    assert checked >= 2


def test_the_variants_of_one_network_are_equal(shared):
    states = [
        npz.state(ilsvrc_converter.convert(shared / f'golden/torch7/tiny_d26_8x2d{variant}.t7'))
        for variant in ('', '_headcode', '_cuda')
    ]
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(np.array_equal(state[name], states[0][name]) for name in state)


def test_the_writer_writes_what_torchfile_reads(tmp_path):
    """The tests below rely on the format, not on the converter's reading of it."""
    tree = t7_files.Builder(modules='nn').network('cifar', (1,), 2, 2, 4, 8, 3)
    tree.fields['hook'] = t7_files.Function(b'os.exit(1)', [1])
    t7_files.write(tmp_path / 'x.t7', tree)
    read = torchfile.load(tmp_path / 'x.t7')
    conv = find(tree, 'SpatialConvolution')
    assert np.array_equal(read.modules[0].weight, conv.weight.numpy().astype(np.float32))
    assert read.modules[0].kW == 3 and read.modules[-1].torch_typename() == b'nn.Linear'
    assert read.hook.dumped == b'os.exit(1)'


# Files of every kind.


@pytest.mark.parametrize('form, size', [('cifar', 32), ('imagenet', 112)])
@pytest.mark.parametrize('bottleneck', ['resnet', 'resnext_B', 'resnext_C'])
@pytest.mark.parametrize('shortcut', ['A', 'B', 'C'])
def test_forms_bottlenecks_and_shortcuts(form, size, bottleneck, shortcut, check, tmp_path):
    seed = len(form + bottleneck + shortcut)
    for nested, clear in ((True, True), (False, False)):
        tree = small(
            t7_files.Builder(seed, nested=nested, clear=clear),
            form,
            bottleneck=bottleneck,
            shortcut=shortcut,
        )
        if clear:
            t7_files.share_storage(tree)
        network = check(tree, size)
        assert type(network) is (
            resnext.PaperResNext if form == 'cifar' else resnext_ilsvrc.ResNext
        )
        assert network.block_num == (2, 1, 1)
        assert network.category_num == 7
        assert (network.C, network.d) == ((1, 8) if bottleneck == 'resnet' else (4, 2))
        found = torch7.read(tmp_path / 'x.t7')[1]
        assert found == ('torch.FloatTensor', size, shortcut)


@pytest.mark.parametrize('kind', ['Float', 'Double', 'Half', 'Cuda', 'CudaDouble', 'CudaHalf'])
@pytest.mark.parametrize('shared_storage', [False, True])
def test_tensors_of_every_kind(kind, shared_storage, check, tmp_path):
    tree = small(t7_files.Builder(kind=kind, clear=False))
    # Buffers of kinds that torchfile does not know.
    tree.fields['_long'] = t7_files.tensor('CudaLong', np.arange(3))
    tree.fields['_half'] = t7_files.tensor('Half', np.arange(3))
    if shared_storage:
        t7_files.share_storage(tree)
    check(tree)
    assert torch7.read(tmp_path / 'x.t7')[1].tensors == f'torch.{kind}Tensor'


@pytest.mark.parametrize(
    'stem, classes, C, d, blocks',
    [
        (3, 1, 1, 5, (1, 1, 1)),
        (20, 1000, 3, 7, (1, 2, 3)),
        (1, 2, 8, 1, (3, 1)),
        (64, 10, 2, 4, (1,)),
    ],
)
def test_odd_sizes(stem, classes, C, d, blocks, check):
    tree = small(stem=stem, classes=classes, C=C, d=d, block_num=blocks, out=12)
    # As for 8x8 maps, whatever is left of them.
    find(tree, 'SpatialAveragePooling').fields.update(
        kW=32 // 2 ** (len(blocks) - 1), kH=32 // 2 ** (len(blocks) - 1)
    )
    network = check(tree)
    assert network.block_num == blocks
    assert (network.C, network.d, network.stem_width) == (C, d, stem)


def test_a_stem_as_wide_as_the_first_stage_needs_no_projection(check):
    network = check(small(stem=32))
    assert [stage.projections for stage in network.stages] == ['none', 'first', 'first']


@pytest.mark.parametrize('bottleneck', ['resnet', 'resnext_B'])
def test_biases_of_convolutions(bottleneck, check):
    check(small(t7_files.Builder(modules='nn', bias=True), bottleneck=bottleneck))


def test_pooling_that_rounds_up_is_kept(check):
    tree = small(form='imagenet')
    find(tree, 'SpatialMaxPooling').fields['ceil_mode'] = True
    find(tree, 'SpatialAveragePooling').fields.update(kW=8, kH=8)
    assert check(tree, 112).round_up_pooling is True


def test_eps_is_the_files(check):
    assert check(small(t7_files.Builder(eps=1e-2))).eps == 1e-2


def test_forms_that_older_torch7_wrote(check):
    def age(tree):
        for m in tree.walk():
            if m.name == 'cudnn.SpatialConvolution':
                shape = m.weight.shape
                if m.groups > 1:  # five dimensions
                    m.weight.shape = (m.groups, shape[0] // m.groups) + shape[1:]
                    m.weight.strides = m.weight.strides[:1] + m.weight.strides
                    m.weight.strides = (
                        shape[0] // m.groups * m.weight.strides[0],
                    ) + m.weight.strides[1:]
                elif m.kW == 1:  # two
                    m.name = 'nn.SpatialConvolutionMM'
                    m.weight.shape, m.weight.strides = shape[:2], m.weight.strides[:2]
                m.fields.update(padding=m.padW, padW=None, padH=None)
            elif m.name == 'nn.SpatialBatchNormalization':
                m.fields.update(
                    running_var=None,
                    running_std=t7_files.tensor('Float', (m.running_var.numpy() + m.eps) ** -0.5),
                )

    check(small(), change=age)


def test_batch_normalisation_without_scale_and_shift(check):
    tree = small()
    for bn in tree.walk():
        if bn.name == 'nn.SpatialBatchNormalization':
            bn.fields.update(affine=False, weight=None, bias=None, gradWeight=None, gradBias=None)
    check(tree)


def test_views_that_are_not_contiguous(check):
    def transpose(tree):
        t = find(tree, 'Linear').weight
        numbers = t.numpy()
        t.storage, t.strides = (
            t7_files.Storage('Float', np.concatenate([np.zeros(5), numbers.T.ravel()])),
            (1, len(numbers)),
        )
        t.offset = 5

    check(small(), change=transpose)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda tree: t7_files.Module('nn.DataParallelTable', modules=[tree], dimension=1),
        lambda tree: t7_files.Module('nn.DataParallelTable', modules=[tree, small()]),
        lambda tree: t7_files.Module('nn.Sequential', modules=[tree]),
        lambda tree: {'epoch': 90, 'model': tree, 'best': t7_files.tensor('Float', np.ones(2))},
        lambda tree: [tree],
    ],
)
def test_wrapped_networks(wrap, tmp_path):
    tree = small()
    t7_files.write(tmp_path / 'plain.t7', tree)
    t7_files.write(tmp_path / 'wrapped.t7', wrap(tree))
    plain, wrapped = (
        npz.state(ilsvrc_converter.convert(tmp_path / name)) for name in ('plain.t7', 'wrapped.t7')
    )
    assert all(np.array_equal(plain[name], wrapped[name]) for name in plain)


# What is refused, in one line that names the module.


def _set(name, n=0, **fields):
    return lambda tree: find(tree, name, n).fields.update(fields)


def _rename(name, to, n=0):
    return lambda tree: setattr(find(tree, name, n), 'name', to)


def _append(name, *modules):
    return lambda tree: (
        find(tree, name).fields['modules'].extend(t7_files.Module(module) for module in modules)
    )


@pytest.mark.parametrize(
    'form, change, message',
    [
        (
            'cifar',
            _set('SpatialConvolution', kW=5, kH=5),
            r'\(1\) cudnn.SpatialConvolution has kernel 5',
        ),
        (
            'cifar',
            _set('SpatialConvolution', 2, kH=1),
            r'\(4\)\(1\)\(1\)\(1\)\(1\)\(4\) .* not square',
        ),
        ('cifar', _set('SpatialConvolution', 2, padW=0, padH=0), 'padding 0'),
        ('cifar', _set('SpatialConvolution', 1, dW=2, dH=2), 'stride 2'),
        ('cifar', _set('SpatialConvolution', 4, dW=2, dH=2), 'stride 2'),
        ('cifar', _set('SpatialConvolution', 2, groups=3), '3 groups'),
        ('cifar', _set('SpatialConvolution', 1, groups=2), '2 groups'),
        ('cifar', _set('SpatialConvolution', 2, groups=2), 'weight of shape'),
        ('cifar', _set('SpatialConvolution', 2, nInputPlane=16), 'takes 16 channels'),
        ('cifar', _set('SpatialConvolution', 2, nOutputPlane=16), '16 channels'),
        ('cifar', _set('SpatialConvolution', weight=None), 'no tensor weight'),
        ('cifar', _set('SpatialConvolution', kW=None), 'no number kW'),
        (
            'cifar',
            _set('SpatialBatchNormalization', 3, eps=1e-3),
            'eps 0.001 where others have 1e-05',
        ),
        ('cifar', _set('SpatialBatchNormalization', bias=None), 'no tensor bias'),
        ('cifar', _set('SpatialBatchNormalization', running_mean=None), 'no tensor running_mean'),
        (
            'cifar',
            _set(
                'SpatialBatchNormalization', running_var=t7_files.tensor('Float', np.full(16, -1))
            ),
            'below 0',
        ),
        (
            'cifar',
            _set(
                'SpatialBatchNormalization',
                running_var=None,
                running_std=t7_files.tensor('Float', np.zeros(16)),
            ),
            'infinite',
        ),
        (
            'cifar',
            _set('SpatialBatchNormalization', weight=t7_files.tensor('Float', np.full(16, np.nan))),
            'not finite',
        ),
        ('cifar', _set('Linear', bias=t7_files.tensor('Double', np.full(7, 1e300))), 'not finite'),
        ('cifar', _set('Linear', bias=t7_files.tensor('Long', np.ones(7))), 'in torch.LongTensor'),
        (
            'cifar',
            _set('Linear', weight=t7_files.tensor('Float', np.ones((7, 9)))),
            r'shape \(7, 9\)',
        ),
        ('cifar', _set('SpatialAveragePooling', padW=1, padH=1), 'plain average'),
        ('cifar', _set('SpatialAveragePooling', divide=False), 'plain average'),
        ('cifar', _set('View', numElements=64), 'takes 64 numbers'),
        (
            'cifar',
            _rename('nn.CAddTable', 'nn.CMulTable'),
            'nn.CMulTable stands where the addition',
        ),
        ('cifar', _rename('cudnn.ReLU', 'nn.PReLU'), 'nn.PReLU stands where a ReLU'),
        ('cifar', _rename('nn.Linear', 'nn.Dropout'), 'nn.Dropout stands where the classifier'),
        ('cifar', _append('nn.Sequential', 'nn.LogSoftMax'), 'nn.LogSoftMax follows'),
        ('cifar', _append('nn.ConcatTable', 'nn.Identity'), '3 paths'),
        ('cifar', lambda tree: tree.modules.pop(), 'ends where the classifier should follow'),
        ('cifar', lambda tree: tree.modules.insert(6, tree.modules[5]), 'in the network twice'),
        ('imagenet', _set('SpatialMaxPooling', kW=2, kH=2), '3x3'),
        ('imagenet', _set('SpatialMaxPooling', padW=0, padH=0), 'padding 1'),
        ('imagenet', _rename('nn.SpatialMaxPooling', 'cudnn.SpatialAveragePooling'), 'max pooling'),
        ('imagenet', lambda tree: tree.modules.pop(3), 'where max pooling should be'),
        ('imagenet', _set('SpatialConvolution', kW=3, kH=3), 'has kernel 3'),
    ],
)
def test_what_cannot_be_represented_is_refused(form, change, message, converted):
    tree = small(form=form)
    change(tree)
    with pytest.raises(InputError, match=r'x\.t7: cannot be converted: module .*' + message) as e:
        converted(tree)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'change, message',
    [
        (_set('JoinTable', dimension=3), 'does not join channels'),
        (_set('SpatialConvolution', 3, nOutputPlane=3), 'takes 2 channels'),
        (
            lambda tree: find(tree, 'ConcatTable', 1).modules.pop(),
            'takes 8 channels where there are 6',
        ),
        (lambda tree: find(tree, 'ConcatTable', 1).modules.clear(), 'no branches'),
    ],
)
def test_branches_that_cannot_be_represented_are_refused(change, message, converted):
    tree = small(bottleneck='resnext_B')
    change(tree)
    with pytest.raises(InputError, match=message):
        converted(tree)


@pytest.mark.parametrize(
    'change, message',
    [
        (_set('MulConstant', constant_scalar=1), 'as many zeros'),
        (_set('Concat', dimension=1), 'as many zeros'),
        (_set('SpatialAveragePooling', 1, kW=2, kH=2), '1x1 with stride 2'),
        (_set('SpatialAveragePooling', 1, dW=1, dH=1), '1x1 with stride 2'),
    ],
)
def test_padding_shortcuts_that_differ_are_refused(change, message, converted):
    tree = small(shortcut='A')
    change(tree)
    with pytest.raises(InputError, match=message):
        converted(tree)


@pytest.mark.parametrize('key', ['weight', 'running_mean', 'gradWeight'])
@pytest.mark.parametrize('held', [1.5, 'x', {}, {'position': 0}, True])
def test_a_storage_that_is_another_object(key, held, converted):
    storage = t7_files.Module('nn.Storage')
    storage.fields = held
    tree = small(form='cifar')
    module = find(tree, 'BatchNormalization' if key == 'running_mean' else 'SpatialConvolution')
    tensor = t7_files.tensor('Float', module.fields[key.replace('gradW', 'w')].numpy())
    tensor.storage = storage
    module.fields[key] = tensor
    with pytest.raises(InputError, match='a tensor has no storage of its type') as e:
        converted(tree)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'content, message',
    [
        ({'a': small(), 'b': small()}, '2 networks'),
        ({'a': 1}, '0 networks'),
        ([], '0 networks'),
        (t7_files.tensor('Float', np.ones(3)), 'what it holds is not a module'),
        (t7_files.Module('nn.Sequential\n\x1b[31m', modules=[]), r'nn\.Sequential\?\?\[31m'),
    ],
)
def test_files_of_other_things_are_refused(content, message, converted):
    with pytest.raises(InputError, match=message):
        converted(content)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not begin as one'),
        (b'4\n1\n3\nV 1\n', 'text format'),
        (b'PK\3\4' * 99, 'begin'),
        (b'\x89PNG\r\n', 'begin'),
        (b'\4\0\0\0', 'ends too soon'),
    ],
)
def test_files_of_other_formats_are_refused(content, message, tmp_path):
    (tmp_path / 'x.t7').write_bytes(content)
    with pytest.raises(InputError, match=message):
        torch7.read(tmp_path / 'x.t7')


def test_torchfile_itself_stays_as_it_was():
    assert isinstance(torchfile.load(CIFAR).modules[0].weight, np.ndarray)
    assert not isinstance(torchfile.type_handlers[b'torch.FloatTensor'], type(None))


# The script.


def test_script_runs_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'ilsvrc_converter.py'), '-t', str(CIFAR)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / (CIFAR.name[:-3] + '.npz')).exists()


def test_script_tells_and_writes(run_converter, tmp_path):
    status, told, errors = run_converter('-t', CIFAR)
    assert (status, errors) == (0, '')
    for word in (
        '20 layers (blocks 2-2-2)',
        'CIFAR form',
        '32x32',
        'cardinality 4',
        'base width 2',
        'stem 8',
        'type B',
        '10 classes',
        'torch.FloatTensor',
        'parameters',
    ):
        assert word in told
    name = CIFAR.name[:-3] + '.npz'
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert 'wrote ' + name in told
    expected = npz.state(ilsvrc_converter.convert(CIFAR))
    for load in (resnext.load, resnext_ilsvrc.load):
        state = npz.state(load(tmp_path / name))
        assert all(np.array_equal(state[key], expected[key]) for key in expected)
    (tmp_path / 'sub').mkdir()
    for output, place in (('sub', 'sub/' + name), ('y.npz', 'y.npz'), ('y.npz', 'y.npz')):
        assert run_converter('-t', CIFAR, '-o', output)[0] == 0
        with np.load(tmp_path / place) as f:
            assert all(np.array_equal(f[key], expected[key]) for key in expected)


def test_script_writes_the_original_layout(run_converter, tmp_path):
    tree = small(form='imagenet', stem=64)
    t7_files.write(tmp_path / 'x.t7', tree)
    status, told, errors = run_converter('-t', 'x.t7', '--layout', 'original')
    assert (status, errors) == (0, '')
    assert 'other numbers' in told
    with np.load(tmp_path / 'x.npz') as f:
        assert f.files[0] == 'conv_bn_relu/conv/W' and f.files[-1] == 'linear/linear/b'
    network = resnext_ilsvrc.load(tmp_path / 'x.npz')
    x = np.random.default_rng(0).normal(size=(1, 3, 112, 112)).astype(np.float32)
    assert relative(outputs(network, x)['output'], t7_files.evaluate(tree, x * 1.0)) < 2e-6


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), '-t/--t7'),
        (('-t', 'missing.t7'), 'missing.t7: cannot be read (No such file'),
        (('-t', '.'), "neither a file of weights nor a run's folder"),
        (('-t', 'bad.t7'), 'bad.t7: not a whole Torch7 file'),
        (('-t', 'bad.t7', '-o', 'bad.t7'), '-o bad.t7: is the file to convert itself'),
        (('-t', str(CIFAR), '-o', 'no/x.npz'), '-o no/x.npz: there is no folder no'),
        (('-t', str(CIFAR), '--layout', 'original'), '2017 program cannot hold'),
        (('-t', str(CIFAR), '--layout', 'other'), '--layout'),
    ],
)
def test_script_ends_in_one_line(arguments, message, run_converter, tmp_path):
    (tmp_path / 'bad.t7').write_bytes(CIFAR.read_bytes()[:-100])
    output = tmp_path / (CIFAR.name[:-3] + '.npz')
    output.write_bytes(b'mine')
    status, told, errors = run_converter(*arguments)
    assert (status, errors.count('\n')) == (2, 1)
    assert message in errors and 'wrote' not in told
    assert {path.name for path in tmp_path.iterdir()} == {'bad.t7', output.name}
    assert output.read_bytes() == b'mine'
