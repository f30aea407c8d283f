"""State dicts of PyTorch: the namings, both of torch.save's formats, safetensors.

What PyTorch computes comes from the fixtures, which ``tests/torch_networks.py`` wrote, and
where PyTorch is installed, from itself.
"""

import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile

import chainer
import damage
import numpy as np
import pth_files
import pytest
import torchfile
from conftest import FIXTURES, ROOT
from helpers.networks import same, small
from pth_files import Call, Persistent, Ref

import resnext
from trainer.errors import InputError
from trainer.weights import pytorch, safetensors, state_dict, torch7

WRITE = {'zip': pth_files.write_zip, 'legacy': pth_files.write_legacy}


def outputs(network, x):
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        return network(x).array


def relative(a, b):
    return abs(a.astype(np.float64) - b).max() / abs(b).max()


def tensors(path, entry=None):
    """Read a state dict, whatever its names: name -> array."""
    with open(path, 'rb') as f:
        legacy = f.read(2) != b'PK'
        f.seek(0)
        archive = pytorch._Legacy(f) if legacy else pytorch._Zip(f)
        return {name: t.load() for name, t in pytorch._choose(archive, entry)[1].items()}


def refused(read, path, message):
    with pytest.raises(InputError, match=message) as e:
        read(path)
    assert '\n' not in str(e.value) and str(path) in str(e.value) and len(str(e.value)) < 500


@pytest.fixture(scope='module')
def numbers():
    with np.load(FIXTURES / 'pytorch_outputs.npz') as f:
        return {name: f[name] for name in f.files}


# What PyTorch wrote.


@pytest.mark.parametrize(
    'name, naming, form',
    [
        ('torchvision', 'torchvision', 'imagenet'),
        ('lornatang', 'torchvision', 'imagenet'),
        ('bfloat16', 'torchvision', 'imagenet'),
        ('clcarwin', 'clcarwin', 'imagenet'),
        ('prlz77', 'prlz77', 'cifar'),
    ],
)
def test_computes_what_pytorch_does(name, naming, form, numbers, tmp_path):
    path = FIXTURES / f'pytorch_{name}.pth'
    network, found, entry = pytorch.read(path)
    assert found.naming.name == naming
    assert found.dtypes == ('bfloat16' if name == 'bfloat16' else 'float32')
    assert entry == ('state_dict' if name == 'lornatang' else '')
    assert relative(outputs(network, numbers[form]), numbers[name]) < 1e-5

    pytorch.save(tmp_path / 'back.pth', network, naming)
    back = tensors(tmp_path / 'back.pth')
    theirs = state_dict.strip(tensors(path, entry or None))
    assert list(back) == list(theirs)
    for name, array in theirs.items():
        assert back[name].shape == array.shape and back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes(), name
    assert same(pytorch.read(tmp_path / 'back.pth')[0], network)


def test_a_training_state_holds_several(tmp_path):
    path = FIXTURES / 'pytorch_lornatang.pth'
    averaged = pytorch.read(path, 'ema_state_dict')[0]
    assert not same(averaged, pytorch.read(path)[0])
    with pytest.raises(InputError, match='no state dict model; there are: ema_state_dict, '):
        pytorch.read(path, 'model')
    arrays, storages = pth_files.contents(state_dict.write(small()))
    pth_files.write_zip(tmp_path / 'x.pth', {'net': arrays, 'epoch': 3, 'lr': [0.1]}, storages)
    assert same(pytorch.read(tmp_path / 'x.pth')[0], small())
    pth_files.write_zip(tmp_path / 'x.pth', {'net': arrays, 'other': arrays}, storages)
    words = 'several state dicts; choose with `ilsvrc_converter.py --entry`: net, oth'
    refused(pytorch.read, tmp_path / 'x.pth', words)


def numbered(module, prefix=''):
    """Yield name -> array as clcarwin's converter names a Torch7 file's modules."""
    for i, child in enumerate(module.modules):
        here = f'{prefix}{i}.'
        kind = child.torch_typename().decode().split('.')[1]
        if kind in ('Sequential', 'ConcatTable'):
            yield from numbered(child, here)
        elif kind in ('SpatialConvolution', 'SpatialBatchNormalization', 'Linear'):
            here += '1.' * (kind == 'Linear')  # in a Sequential, behind a function
            for part in ('weight', 'bias', 'running_mean', 'running_var'):
                if part.encode() in child._obj:
                    yield here + part, child[part.encode()]


def check_numbering(path, naming):
    expected = dict(numbered(torchfile.load(path)))
    written = {
        name: a for name, a in state_dict.write(torch7.read(path)[0], naming).items() if a.ndim
    }
    assert list(written) == list(expected)
    assert all(written[name].tobytes() == expected[name].tobytes() for name in expected)


def test_the_numbers_are_those_of_a_torch7_file():
    check_numbering(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7', 'clcarwin-flat')


@pytest.mark.parametrize(
    'name, naming',
    [
        ('tiny_d26_8x2d', 'clcarwin'),
        ('tiny_d26_8x2d_headcode', 'clcarwin-flat'),
        ('tiny_d14_4x2d', 'clcarwin'),
    ],
)
def test_the_numbers_are_those_of_every_torch7_file(name, naming, shared):
    check_numbering(shared / 'golden' / 'torch7' / (name + '.t7'), naming)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'safetensors'])
@pytest.mark.parametrize(
    'name',
    [
        'torchvision',
        'timm',
        'lornatang',
        'clcarwin',
        'clcarwin, CIFAR',
        'clcarwin-flat',
        'clcarwin-flat, CIFAR',
        'cadene',
        'prlz77',
    ],
)
def test_every_naming_with_pytorch_itself(name, form, tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    if form == 'safetensors':
        pytest.importorskip('safetensors', reason='safetensors is not installed')
        from safetensors import torch as files
    import torch_networks

    build, imagenet = torch_networks.BUILD[name]
    theirs = torch_networks.randomise(build())
    naming = name.split(',')[0]
    path, back = tmp_path / 'x', tmp_path / 'back'
    if form == 'safetensors':
        files.save_file(theirs.state_dict(), path)
        network, found = safetensors.read(path)
        safetensors.save(back, network, naming)
        state = files.load_file(back)
    else:
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=form == 'zip')
        network, found, _ = pytorch.read(path)
        pytorch.save(back, network, naming)
        state = torch.load(back, weights_only=True)
        assert list(state) == list(theirs.state_dict())
    assert found.naming.name == ('torchvision' if naming in ('timm', 'lornatang') else naming)

    x = np.random.default_rng(2).normal(size=(2, 3) + ((64, 48) if imagenet else (16, 16)))
    x = x.astype(np.float32)
    assert relative(outputs(network, x), torch_networks.compute(theirs, x)) < 1e-5

    for key, tensor in theirs.state_dict().items():
        assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor), key
    other = build()
    other.load_state_dict(state)
    assert np.array_equal(
        torch_networks.compute(other.eval(), x), torch_networks.compute(theirs, x)
    )


def test_pytorch_maps_what_is_written_into_memory(tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    pytorch.save(tmp_path / 'x.pth', small())
    state = torch.load(tmp_path / 'x.pth', weights_only=True, mmap=True)
    expected = state_dict.write(small())
    assert all(np.array_equal(state[name].numpy(), expected[name]) for name in expected)


# Formats.


def test_both_formats_in_every_precision(tmp_path):
    network = small()
    arrays = state_dict.write(network)
    for write in WRITE.values():
        for dtype in ('float16', 'float32', 'float64'):
            converted = {name: a.astype(dtype) if a.ndim else a for name, a in arrays.items()}
            write(tmp_path / 'x', *pth_files.contents(converted))
            read, found, _ = pytorch.read(tmp_path / 'x')
            assert found.dtypes == dtype
            there = state_dict.write(read)
            assert all(
                np.array_equal(there[name], converted[name].astype(there[name].dtype))
                for name in there
            )


def test_byte_order_views_and_old_names(tmp_path):
    network = small()
    arrays = state_dict.write(network)
    root, storages = pth_files.contents(arrays)
    pth_files.write_zip(tmp_path / 'x', root, storages, byteorder=b'big')
    assert same(pytorch.read(tmp_path / 'x')[0], network)

    # All in one storage, convolutions as channels_last keeps them.
    flat, root = np.zeros(0, np.float32), {}
    total = sum(a.size for a in arrays.values() if a.dtype == np.float32)
    for name, a in arrays.items():
        if a.dtype == np.float32:
            axes = (0, 2, 3, 1) if a.ndim == 4 else tuple(range(a.ndim))
            stored = np.ascontiguousarray(a.transpose(axes))
            strides = [0] * a.ndim
            for axis, stride in zip(axes, stored.strides):
                strides[axis] = stride // 4
            root[name] = pth_files.tensor('0', 'float32', total, a.shape, strides, flat.size)
            flat = np.concatenate([flat, stored.ravel()])
    for write in WRITE.values():  # without the counters, as before PyTorch 0.4.1
        write(tmp_path / 'x', root, {'0': flat})
        network.stem.bn.N = 0
        assert same(pytorch.read(tmp_path / 'x')[0], network)


def test_wrappers_and_parameters(tmp_path):
    arrays, storages = pth_files.contents(state_dict.write(small()))
    wrapped = {
        'module._orig_mod.' + name: Call(
            Ref('torch._utils', '_rebuild_parameter'),
            t,
            True,
            Call(Ref('collections', 'OrderedDict')),
        )
        for name, t in arrays.items()
    }
    wrapped = Call(
        Ref('collections', 'OrderedDict'), list(map(list, wrapped.items())), state={'_metadata': {}}
    )
    pth_files.write_zip(tmp_path / 'x', wrapped, storages)
    assert same(pytorch.read(tmp_path / 'x')[0], small())


def test_safetensors_files(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    network = small()
    network.classes = ['a', 'b', 'ç']
    network.stem.bn.N = 7
    safetensors.save(tmp_path / 'x', network)
    read, found = safetensors.read(tmp_path / 'x')
    assert same(read, network) and read.classes == network.classes
    assert (found.naming.name, found.dtypes) == ('torchvision', 'float32')
    data = (tmp_path / 'x').read_bytes()
    size = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:size])

    def write(change, body=data[size:]):
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        (tmp_path / 'x').write_bytes(len(text).to_bytes(8, 'little') + text + body)

    write(lambda h: h['__metadata__'].update(classes='["a"]'))
    refused(safetensors.read, tmp_path / 'x', 'not a list of 3 names')
    write(lambda h: h.update({'fc.bias': dict(h['fc.bias'], shape=[4])}))
    refused(safetensors.read, tmp_path / 'x', 'not a whole safetensors file')
    write(lambda h: None, data[size:-1])
    refused(safetensors.read, tmp_path / 'x', 'not a whole safetensors file')
    refused(safetensors.read, tmp_path / 'none', 'No such file')
    # bfloat16 is the upper half of float32.
    body, at = b'', 0
    for name, t in header.items():
        if name == '__metadata__':
            continue
        first, end = t['data_offsets']
        part = np.frombuffer(data[size + first : size + end], '<u2')
        if t['dtype'] == 'F32':
            part, t['dtype'] = part[1::2], 'BF16'
        body += part.tobytes()
        t['data_offsets'] = [at, len(body)]
        at = len(body)
    write(lambda h: None, body)
    read, found = safetensors.read(tmp_path / 'x')
    assert found.dtypes == 'bfloat16'
    bits = network.fc.W.array.view(np.uint32) >> 16 << 16
    assert np.array_equal(read.fc.W.array.view(np.uint32), bits)


def test_safetensors_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    for call in (lambda: safetensors.read('x'), lambda: safetensors.save('x', small())):
        with pytest.raises(
            InputError, match='needs the package safetensors .*uv sync --inexact --extra safetens'
        ):
            call()


# Networks that a state dict does not fit.


def write_arrays(path, arrays):
    pth_files.write_zip(path, *pth_files.contents(arrays))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda a: a.pop('layer1.1.bn3.weight'), 'it has no layer1.1.bn3.weight'),
        (lambda a: a.pop('layer2.0.conv2.weight'), 'but no layer2.0.conv2.weight'),
        (lambda a: a.pop('layer2.0.downsample.0.weight'), 'but no layer2.0.downsample.0.weight'),
        (lambda a: a.pop('fc.weight'), 'but no fc.weight'),
        (lambda a: a.update({'layer1.2.conv2.weight': a['fc.bias']}), 'it also has layer1.2.conv2'),
        (lambda a: a.update({'bn1.weight': a['bn1.weight'][:3]}), r'bn1.weight is \(3,\) there'),
        (lambda a: a.update({'conv1.weight': a['conv1.weight'][..., :3, :3]}), 'its names are not'),
        (lambda a: a.update({'fc.weight': a['fc.weight'][0]}), r'fc.weight has shape \(16,\)'),
        (lambda a: a.update({'bn1.bias': a['bn1.bias'] * np.nan}), 'not finite'),
        (lambda a: a.update({'bn1.bias': a['bn1.bias'] * 1e300}), 'not finite'),
        (lambda a: a.update({'bn1.running_var': -a['bn1.running_var']}), 'variances below 0'),
        (lambda a: a.update({'bn1.bias': a['bn1.bias'].astype(int)}), 'bn1.bias holds int64'),
        (lambda a: a.update({'bn1.num_batches_tracked': a['bn1.bias']}), 'not a number of batches'),
        (
            lambda a: [a.pop(name) for name in list(a) if name.startswith('conv1')],
            'its names are not',
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    arrays = {
        name: a.astype(np.float64) if name == 'bn1.bias' else a
        for name, a in state_dict.write(small()).items()
    }
    change(arrays)
    write_arrays(tmp_path / 'x.pth', arrays)
    refused(pytorch.read, tmp_path / 'x.pth', message)


@pytest.mark.parametrize(
    'network, naming, message',
    [
        (dict(eps=1e-3), None, 'eps 0.001'),
        (dict(round_up_pooling=True), 'clcarwin', 'pooling rounds sizes up'),
        (dict(stages=[[1, 4, 2, 8, 2, 'first']]), None, 'stage 1 has stride 2'),
        (
            dict(stages=[[1, 4, 2, 4, 1, 'none'], [1, 4, 2, 16, 2, 'none']]),
            'clcarwin',
            'of stage 2',
        ),
        (dict(stages=[[2, 4, 2, 16, 1, 'all']]), 'timm', 'the shortcuts of stage 1'),
        (dict(stages=[[2, 4, 2, 4, 1, 'first']]), None, 'the shortcuts of stage 1'),
        (dict(), 'prlz77', 'naming prlz77: it has no names for ResNext of 3 classes'),
        (dict(kind='cifar'), 'torchvision', 'it has no names for PaperResNext of 3 classes'),
        (dict(), 'keras', 'naming keras: there are torchvision, timm'),
    ],
)
def test_networks_that_a_naming_cannot_hold(network, naming, message, tmp_path):
    network = small(**network)
    (tmp_path / 'x.pth').write_text('old')
    with pytest.raises(InputError, match=message):
        pytorch.save(tmp_path / 'x.pth', network, naming)
    assert (tmp_path / 'x.pth').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_projections_everywhere_have_numbers(tmp_path):
    network = small('cifar', stages=[[2, 4, 2, 8, 1, 'all'], [2, 8, 2, 16, 2, 'all']])
    for naming in ('clcarwin', 'clcarwin-flat'):
        pytorch.save(tmp_path / 'x.pth', network, naming)
        read, found, _ = pytorch.read(tmp_path / 'x.pth')
        assert found.naming.name == naming and same(read, network)
        assert [stage.projections for stage in read.stages] == ['all', 'all']


def test_the_2017_cifar_network_has_no_names():
    with pytest.raises(InputError, match='there are no names for ResNext of 3 classes'):
        state_dict.write(resnext.ResNext(3, (1, 1), 2, 2))


# Damaged and hostile files.

MARK = 'ran'


def hostile(folder):
    """Pickled things that would leave a file behind if anything ran."""
    command = f'echo > {folder / MARK}'
    python = f'open({str(folder / MARK)!r}, "w")'
    for module, name, argument in (
        ('os', 'system', command),
        ('posix', 'system', command),
        ('subprocess', 'getoutput', command),
        ('builtins', 'eval', python),
        ('builtins', 'exec', python),
        ('__builtin__', 'eval', python),
        ('torch.serialization', 'load', str(folder / MARK)),
        ('torch._utils', '_rebuild_wrapper_subclass', python),
        ('torch', 'load', command),
    ):
        yield Call(Ref(module, name), argument)
    yield Call(Call(Ref('builtins', 'getattr'), Ref('os', 'system'), '__call__'), command)


@pytest.mark.parametrize('form', WRITE)
def test_hostile_files_are_refused_and_nothing_runs(form, tmp_path):
    arrays, storages = pth_files.contents(state_dict.write(small()))
    first = next(iter(arrays))
    path = tmp_path / 'x.pth'
    for bad in hostile(tmp_path):
        evil_tensor = pth_files.tensor('0', 'float32', 1, (1,))
        evil_tensor.arguments = evil_tensor.arguments[:5] + (bad,)  # its backward hooks
        for root in (
            bad,
            {'state_dict': arrays, 'args': bad},
            dict(arrays, **{first: bad}),
            {'state_dict': arrays, 'x': evil_tensor},
            [bad, arrays],
            {'state_dict': arrays, 'x': Persistent('storage', bad, '0', 'cpu', 1)},
            Call(Ref('collections', 'OrderedDict'), [['x', bad]], state={'x': bad}),
            {'state_dict': arrays, 'x': Call(Ref('argparse', 'Namespace'), state={'x': bad})},
        ):
            WRITE[form](path, root, storages)
            refused(pytorch.read, path, 'refers to .* not run here')
    # The same in other opcodes.
    for data in (
        pickle.dumps(os.system, 4),
        pickle.dumps(os.system, 0),
        b"(S'echo > " + str(tmp_path / MARK).encode() + b"'\nios\nsystem\n.",
        b'\x80\x02cos\nsystem\n(' + pth_files.opcodes('x') + b'o.',
        b'\x80\x02\x82\x01.',
        b'\x80\x02(' + b'cos\nsystem\n' * 3 + b't\x81.',
    ):
        WRITE[form](path, None, storages, pickled=data)
        with pytest.raises(InputError):
            pytorch.read(path)
    assert not (tmp_path / MARK).exists()


def test_the_hostile_file_would_run(tmp_path):
    """Else the test above says nothing: Python's own reader runs it."""
    for bad, _ in zip(hostile(tmp_path), range(2)):
        subprocess.run(
            [
                sys.executable,
                '-c',
                'import pickle, sys; pickle.loads({!r})'.format(
                    pth_files.dumps({'state_dict': bad})
                ),
            ],
            check=True,
        )
        (tmp_path / MARK).unlink()


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.update(strides=(0,)), 'strides'),
        (lambda t: t.update(offset=1), 'past its stor'),
        (lambda t: t.update(offset=-1), 'past its storage'),
        (lambda t: t.update(shape=(10**12,)), 'past its storage'),
        (lambda t: t.update(shape=(2,) * 9, strides=(1,) * 9), 'a tensor of a shape'),
        (lambda t: t.update(shape=(2.0,)), 'a tensor of a shape'),
        (lambda t: t.update(key='0'), 'has not 4 numbers'),
        (lambda t: t.update(key='absent'), 'KeyError'),
        (lambda t: t.update(key='other'), 'share their numbers'),
        (lambda t: t.update(count=10**12), 'has not 1000000000000 numbers'),
        (lambda t: t.update(dtype='float64'), 'has not 4 numbers'),
    ],
)
def test_tensors_that_do_not_fit_their_storage(change, message, tmp_path):
    arrays, storages = pth_files.contents(state_dict.write(small()))
    arguments = dict(key='1', dtype='float32', count=4, shape=(4,), strides=(1,), offset=0)
    change(arguments)
    if arguments['key'] == 'other':
        arguments['key'] = arrays['bn1.bias'].arguments[0].arguments[2]
    arrays['bn1.weight'] = pth_files.tensor(**arguments)
    pth_files.write_zip(tmp_path / 'x.pth', arrays, storages)
    refused(pytorch.read, tmp_path / 'x.pth', 'not a whole PyTorch file .*' + message)


def test_other_files_are_told_apart(tmp_path):
    path = tmp_path / 'x.pth'
    arrays, storages = pth_files.contents(state_dict.write(small()))
    small().save_model(path)
    refused(pytorch.read, path, 'not one of torch.save')
    pth_files.write_zip(path, arrays, storages, more=[('x/constants.pkl', b'')])
    refused(pytorch.read, path, 'TorchScript')
    with zipfile.ZipFile(path, 'w') as archive:  # as torch.jit.save does
        archive.writestr('x/data.pkl', b'')
        code = zipfile.ZipInfo('x/code/__torch__.py')
        archive.writestr(code, 'class Net(Module):' * 99, zipfile.ZIP_DEFLATED)
        archive.writestr('x/constants.pkl', b'')
    refused(pytorch.read, path, 'TorchScript program; save its state_dict')
    pth_files.write_zip(path, [1], {})
    refused(pytorch.read, path, 'holds no dict')
    pth_files.write_zip(path, {'lr': 0.1, 'optimizer': {'lr': 0.1}}, {})
    refused(pytorch.read, path, 'no state dict of a ResNeXt; dicts of tensors in it: none')
    pth_files.write_zip(path, Call(Ref('torchvision.models.resnet', 'ResNet'), state={}), {})
    refused(pytorch.read, path, 'refers to torchvision.models.resnet.ResNet, which weights do not')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', bytes(1 << 24))
    refused(pytorch.read, path, 'not as PyTorch writes them')
    with tarfile.open(path, 'w') as archive:
        archive.add(FIXTURES / 'pytorch_prlz77.pth', 'storages')
    refused(pytorch.read, path, 'not a whole PyTorch file')
    refused(pytorch.read, tmp_path, 'cannot be read')
    refused(pytorch.read, tmp_path / 'none', 'cannot be read')


@pytest.mark.parametrize('form', WRITE)
def test_damaged_files(form, tmp_path):
    # Without the counters, as before PyTorch 0.4.1: damage.compare knows float32 alone.
    arrays, storages = pth_files.contents(
        {name: a for name, a in state_dict.write(small()).items() if a.ndim}
    )
    WRITE[form](tmp_path / 'x', arrays, storages)
    data = (tmp_path / 'x').read_bytes()
    places = damage.places(data, storages.values())
    outcomes, slowest = damage.campaign(
        tmp_path / 'x',
        lambda path: pytorch.read(path)[0],
        data,
        [] if form == 'zip' else places,
        400,
        1,
    )
    assert outcomes['one line'] > 200 and slowest < 10
    assert set(outcomes) <= {'one line', 'equal arrays', 'damaged numbers as they are'}


def test_damaged_safetensors_files(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    from safetensors.numpy import save_file

    arrays = {name: a for name, a in state_dict.write(small()).items() if a.ndim}
    save_file(arrays, tmp_path / 'x')
    data = (tmp_path / 'x').read_bytes()
    outcomes, slowest = damage.campaign(
        tmp_path / 'x',
        lambda path: safetensors.read(path)[0],
        data,
        damage.places(data, arrays.values()),
        400,
        1,
    )
    assert outcomes['one line'] > 200 and slowest < 10


def test_hostile_safetensors_files(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    path = tmp_path / 'x'
    safetensors.save(path, small())
    with open(path, 'rb') as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
        numbers = f.read()

    def write(header):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, 'little') + text + numbers)

    write(header)
    safetensors.read(path)
    write(dict(header, __metadata__={'classes': '[' * 100_000}))
    refused(safetensors.read, path, 'its classes are not a list')
    empty = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
    write({str(i): empty for i in range(100_000)})
    refused(safetensors.read, path, 'its header has [67],')
    write(header)
    os.truncate(path, 1 << 34)
    refused(safetensors.read, path, 'it has more than')


def test_pickles_without_end_take_no_time(tmp_path):
    start = time.perf_counter()
    for pickled in (
        b'\x80\x02' + b'N0' * (1 << 20) + b'}.',
        b'\x80\x02' + b'(' * (1 << 22),
        b'\x80\x02]' + b'q\x00(h\x00h\x00l' * 10**5 + b'.',
        bytes(1 << 23),
    ):
        for write in WRITE.values():
            write(tmp_path / 'x', None, {}, pickled=pickled)
            with pytest.raises(InputError):
                pytorch.read(tmp_path / 'x')
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_protocol_of_pickles(protocol, tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    state = {name: torch.tensor(a) for name, a in state_dict.write(small()).items()}
    for zipped in (True, False):
        torch.save(
            state, tmp_path / 'x', pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
        )
        assert same(pytorch.read(tmp_path / 'x')[0], small())


def test_a_cut_file_is_noticed(tmp_path):
    for name in ('torchvision', 'prlz77'):
        data = (FIXTURES / f'pytorch_{name}.pth').read_bytes()
        for length in list(range(0, len(data), 997)) + [len(data) - 1]:
            (tmp_path / 'x').write_bytes(data[:length])
            refused(pytorch.read, tmp_path / 'x', 'not a whole PyTorch file|not one of torch.save')


def test_nothing_of_pytorch_is_needed():
    """Neither PyTorch nor pickle's reader is touched."""
    code = (
        'import sys; sys.modules["torch"] = None; import trainer, pickle; '
        'pickle.Unpickler = pickle._Unpickler = pickle.loads = pickle.load = None; '
        'from trainer.weights import pytorch; pytorch.read(sys.argv[1])'
    )
    subprocess.run(
        [sys.executable, '-c', code, str(FIXTURES / 'pytorch_torchvision.pth')],
        cwd=ROOT,
        check=True,
    )
