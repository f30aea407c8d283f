"""Weights in damaged and hostile files: they load like the valid file, or end in one line.
benchmarks/convert.py has more of them."""

import io
import json
import os
import struct
import time
import zipfile

import damage
import numpy as np
import pytest
import t7_files
import torchfile
from conftest import FIXTURES
from t7_files import Module, Storage, Tensor, tensor

import resnext_ilsvrc
from trainer.errors import InputError
from trainer.weights import npz, torch7

CIFAR = FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7'


@pytest.fixture
def bounded():
    """Bound the memory that a test may add to 1 GB, and its time to 10 s."""
    resource = pytest.importorskip('resource', reason='no resource module: not a Unix system')

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, start = peak(), time.process_time()
    yield
    assert time.process_time() - start < 10
    assert peak() - before < 1e9


def read_t7(path):
    return torch7.read(path)[0]


def numbers_of(path):
    """Find the bytes of all float32 storages of a file, with torchfile alone."""
    roots = {}

    def walk(value):
        if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size:
            while value.base is not None:
                base = value.base
                value = base if isinstance(base, np.ndarray) else base.base
            roots[id(value)] = value
        elif isinstance(value, torchfile.TorchObject):
            walk(value._obj)
        elif isinstance(value, (dict, list)):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)

    walk(torchfile.load(path))
    return damage.places(path.read_bytes(), roots.values())


def refused(read, path, message='x'):
    with pytest.raises(InputError, match=message) as e:
        read(path)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400


# At random.


def test_damaged_t7_files(tmp_path):
    data, numbers = damage.small_t7()
    outcomes, slowest = damage.campaign(tmp_path / 'x.t7', read_t7, data, numbers, 700, 1)
    more, slower = damage.campaign(
        tmp_path / 'x.t7', read_t7, CIFAR.read_bytes(), numbers_of(CIFAR), 300, 2
    )
    outcomes += more
    assert sum(outcomes.values()) == 1000 and max(slowest, slower) < 10
    # Damage to structure, to numbers and to what no network needs was there.
    assert len(outcomes) == 3 and outcomes['one line'] > 500


def test_damaged_npz_files(tmp_path):
    outcomes, slowest = damage.campaign(
        tmp_path / 'x.npz', resnext_ilsvrc.load, damage.small_npz(), [], 1000, 1
    )
    assert set(outcomes) == {'one line', 'equal arrays'} and slowest < 10
    assert outcomes['one line'] > 500


def test_every_cut_of_a_t7_file_is_noticed(tmp_path):
    data = CIFAR.read_bytes()
    path = tmp_path / 'x.t7'
    path.write_bytes(data)
    for length in [*range(len(data) - 1, len(data) - 700, -23), *range(0, len(data), 9973)]:
        os.truncate(path, length)
        refused(read_t7, path, 'not a whole Torch7 file')
        if length < len(data) - 700:
            path.write_bytes(data)


def test_trees_with_odd_values_are_read_or_refused(tmp_path):
    """Any field of any module with any value: the only error is the one line."""
    rng = np.random.default_rng(0)
    outcomes = []
    for i in range(200):
        builder = t7_files.Builder(i, nested=i % 3 > 0, clear=i % 5 > 0, bias=i % 7 == 0)
        tree = builder.network(
            ('cifar', 'imagenet')[i % 2],
            (2, 1),
            2,
            2,
            8,
            16,
            3,
            ('resnet', 'resnext_B', 'resnext_C')[i // 2 % 3],
            'ABC'[i // 6 % 3],
        )
        modules = list(tree.walk())
        module, other = (modules[j] for j in rng.integers(len(modules), size=2))
        values = [
            None,
            True,
            False,
            0,
            -1,
            1,
            2,
            3,
            10**6,
            1e300,
            0.5,
            np.nan,
            np.inf,
            'x',
            [],
            {},
            [1, 2],
            {'modules': []},
            other,
            Module('nn.Sequential', modules=[]),
            Module('?'),
            t7_files.Function(b'os.exit(1)', [1, other]),
            Storage('Long', [3]),
            Tensor('Float', None),
            tensor('Float', np.zeros(3)),
            tensor('Long', np.zeros(3)),
            Tensor('Float', Storage('Double', np.zeros(9)), 0, (3,)),
            Tensor('Float', tensor('Float', np.zeros(3)), 0, (3,)),
            Tensor('Float', Storage('Float', np.zeros(9)), -5, (3,)),
            Tensor('Float', Storage('Float', np.zeros(9)), 0, (2**40,) * 2, (0, 0)),
            Tensor('Float', Storage('Float', np.zeros(9)), 0, (3,), (2**62,)),
        ]
        if i % 4 == 3 and module.modules:
            module.modules[rng.integers(len(module.modules))] = other
        else:
            module.fields[rng.choice(list(module.fields))] = values[rng.integers(len(values))]
        t7_files.write(tmp_path / 'x.t7', tree)
        try:
            outcomes.append(type(read_t7(tmp_path / 'x.t7')).__name__)
        except InputError as e:
            assert '\n' not in str(e)
            outcomes.append('one line')
    assert set(outcomes) == {'ResNext', 'PaperResNext', 'one line'}


# Made to be so: Torch7 files.


def ints(*values):
    return struct.pack(f'<{len(values)}i', *values)


def number(value):
    return struct.pack('<id', 1, value)


def torch_object(index, name):
    return ints(4, index, 3) + b'V 1' + ints(len(name)) + name


def table(count, item):
    return ints(3, 1, count) + b''.join(number(i) + item(i) for i in range(count))


def doubled(depth, index=1):
    """A module that holds another twice, which holds another twice ..."""
    head = torch_object(index, b'nn.Sequential') + ints(3, index + 1, 1)
    head += ints(2, 7) + b'modules' + ints(3, index + 2, 2) + number(1)
    inner = (
        doubled(depth - 1, index + 3)
        if depth
        else (torch_object(index + 3, b'nn.Identity') + ints(3, index + 4, 0))
    )
    return head + inner + number(2) + ints(4, index + 3)


T7_MADE_TO_HARM = {
    'endless table': lambda: ints(3, 1, 2**31 - 1) + ints(0, 0) * 1_500_000,
    'many tables': lambda: table(300_000, lambda i: ints(3, i + 2, 0)),
    'many booleans': lambda: table(1_500_000, lambda i: ints(5, 1)),
    'many objects': lambda: table(200_000, lambda i: torch_object(i + 2, b'nn.X%d' % i) + ints(0)),
    'huge string': lambda: table(1, lambda i: ints(2, 2**31 - 1) + b'x' * 99),
    'negative string': lambda: table(1, lambda i: ints(2, -5) + b'x' * 99),
    'huge storage': lambda: torch_object(1, b'torch.FloatStorage') + struct.pack('<q', 2**62),
    'negative storage': lambda: (
        torch_object(1, b'torch.FloatStorage') + struct.pack('<q', -1) + bytes(9999)
    ),
    'many dimensions': lambda: (
        torch_object(1, b'torch.FloatTensor') + ints(2**31 - 1) + bytes(9999)
    ),
    'endless vector': lambda: torch_object(1, b'tds.Vec') + ints(2**31 - 1) + ints(0) * 1_500_000,
    'deep': lambda: b''.join(ints(3, i + 1, 1) + number(1) for i in range(100_000)) + ints(0),
    'itself': lambda: torch_object(1, b'nn.Sequential') + ints(4, 1),
    'doubled': lambda: doubled(60),
    'zeros': lambda: b'\4\0\0\0' + bytes(20_000_000),
}


@pytest.mark.parametrize('data', T7_MADE_TO_HARM.values(), ids=T7_MADE_TO_HARM)
def test_hostile_t7_files(data, tmp_path, bounded):
    (tmp_path / 'x.t7').write_bytes(data())
    refused(read_t7, tmp_path / 'x.t7')


def test_much_text(tmp_path):
    (tmp_path / 'x.t7').write_bytes(table(66, lambda i: ints(2, 1 << 20) + b'x' * (1 << 20)))
    refused(read_t7, tmp_path / 'x.t7', 'more than 67,108,864 bytes beside its numbers')


def test_one_storage_cannot_pass_for_many_weights(tmp_path, bounded):
    def tree(strides, offset):
        tree = t7_files.Builder().network('cifar', (1,), 1, 4, 8, 8, 3)
        conv = [m for m in tree.walk() if m.name == 'cudnn.SpatialConvolution'][1]
        numbers = np.concatenate([np.zeros(offset), conv.weight.numpy().ravel()])
        conv.fields['weight'] = Tensor(
            'Float', Storage('Float', numbers), offset, (4, 8, 1, 1), strides
        )
        return tree

    for strides, offset, right in (
        ((8, 1, 1, 1), 0, True),
        ((8, 1, -9, 2**62), 3, True),
        ((0, 0, 0, 0), 0, False),
        ((4, 1, 1, 1), 0, False),
        ((8, -1, 1, 1), 9, False),
        ((16, 1, 1, 1), 0, False),
        ((1, 8, 1, 1), 0, False),
    ):
        t7_files.write(tmp_path / 'x.t7', tree(strides, offset))
        if right:
            read_t7(tmp_path / 'x.t7')
        else:
            refused(read_t7, tmp_path / 'x.t7', 'a tensor of shape')


def test_numbers_cannot_serve_twice(tmp_path):
    def bns(tree):
        return [m for m in tree.walk() if m.name == 'nn.SpatialBatchNormalization']

    for change in (
        lambda a, b: b.fields.update(weight=a.weight),
        lambda a, b: b.fields.update(weight=a.gradWeight),
        lambda a, b: setattr(b.weight, 'offset', b.weight.offset - 1),
    ):
        tree = t7_files.Builder().network('cifar', (1,), 1, 4, 8, 8, 3)
        t7_files.share_storage(tree)
        t7_files.write(tmp_path / 'x.t7', tree)
        read_t7(tmp_path / 'x.t7')
        change(*bns(tree)[1:3])
        t7_files.write(tmp_path / 'x.t7', tree)
        refused(read_t7, tmp_path / 'x.t7', 'has weight where other numbers are')


def test_pipes_devices_and_folders_are_refused(tmp_path):
    paths = [tmp_path, tmp_path / 'missing']
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'pipe')
        paths += [tmp_path / 'pipe', '/dev/zero']
    for path in paths:
        refused(read_t7, path, 'cannot be read')
        no_run = "neither a file of weights nor a run's folder"
        refused(resnext_ilsvrc.load, path, no_run if path == tmp_path else 'cannot be read')


# npz files.


def described(path, arrays=(), **architecture):
    architecture = dict(
        dict(network='ilsvrc', category_num=3, stem_width=1, stages=[[1, 1, 1, 1, 1, 'first']]),
        **architecture,
    )
    np.savez(
        path,
        architecture=np.array(json.dumps({k: v for k, v in architecture.items() if v is not None})),
        **dict(arrays),
    )


ABSURD_DESCRIPTIONS = [
    {'stages': [[2000, 1, 1, 1, 1, 'first']]},
    {'stages': [[10**6, 1, 1, 1, 1, 'first']]},
    {'stages': [[1, 10**9, 1, 1, 1, 'first']]},
    {'stages': [[1, 1, 1, 10**6, 1, 'all']]},
    {'stages': [[1, 1, 1, 1, 0, 'first']]},
    {'stages': [[1, 4, 3, 1, 1, 'first']]},
    {'stages': [[1, 1, 1, 1, 1, 'some']]},
    {'stages': [[1, 1, 1]]},
    {'stages': []},
    {'stages': 'x'},
    {'stages': [[1, 1.0, 1, 1, 1, 'first']]},
    {'category_num': 10**9},
    {'category_num': -1},
    {'category_num': '3'},
    {'stem_width': 10**9},
    {'eps': 'x'},
    {'eps': -1},
    {'eps': float('nan')},
    {'network': 'no'},
    {'network': None},
    {'network': []},
    {'foo': 1},
    {'classes': ['a']},
    {'classes': 3},
    {'initialize': True},
    {'stages': None},
    {'stages': None, 'block_num': [1] * 10**6},
    {'stages': None, 'multiplier': 1e300},
    {'stages': None, 'block_num': [1] * 90, 'C': 1, 'd': 1},
    {'stages': None, 'shortcut': 'D'},
    {'network': 'original-cifar'},
    {'network': 'paper-cifar', 'round_up_pooling': True},
]


@pytest.mark.parametrize('architecture', ABSURD_DESCRIPTIONS)
def test_absurd_descriptions(architecture, tmp_path, bounded):
    described(tmp_path / 'x.npz', {'w': np.zeros(10**6, np.float32)}, **architecture)
    refused(resnext_ilsvrc.load, tmp_path / 'x.npz')


def inflating(path):
    """A member that unpacks to far more than it states."""
    with io.BytesIO() as f:
        np.lib.format.write_array(f, np.zeros(1, np.float32))
        array = f.getvalue()
    with (
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive,
        archive.open('a.npy', 'w') as member,
    ):
        member.write(array)
        for _ in range(1100):
            member.write(bytes(1 << 20))
    data = path.read_bytes()
    whole = struct.pack('<L', len(array) + (1100 << 20))
    assert data.count(whole) >= 1
    path.write_bytes(data.replace(whole, struct.pack('<L', len(array))))


def member(name, data, method=zipfile.ZIP_STORED):
    def write(path):
        with zipfile.ZipFile(path, 'w', method) as archive:
            archive.writestr(name, data)

    return write


def test_two_arrays_of_one_name(tmp_path):
    path = tmp_path / 'x.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        for value in range(2):
            with archive.open(f'a{value}.npy', 'w') as member:
                np.lib.format.write_array(member, np.full(1, value, np.float32))
    path.write_bytes(path.read_bytes().replace(b'a1.npy', b'a0.npy'))
    refused(npz.read_arrays, path, 'two arrays are called a0')


HEADER = b'\x93NUMPY\1\0\x76\0' + b"{'descr': %s, 'fortran_order': False, 'shape': %s, }"


NPZ_MADE_TO_HARM = {
    'inflating': inflating,
    'zeros': lambda path: np.savez_compressed(path, a=np.zeros(100 << 20, np.float32)),
    'objects': lambda path: np.savez(path, a=np.array([{}], object)),
    'nested': lambda path: np.savez(path, architecture=np.array('[' * 10**5)),
    'no json': lambda path: np.savez(path, architecture=np.array('{"network": "ilsvrc"')),
    'list': lambda path: np.savez(path, architecture=np.array('[]')),
    'no string': lambda path: np.savez(path, architecture=np.zeros((0, 3))),
    'strange': lambda path: np.savez(path, a=np.zeros(3)),
    'empty': lambda path: np.savez(path),
    'npy': lambda path: np.save(path.open('wb'), np.zeros(3)),
    'no bytes': lambda path: path.write_bytes(b''),
    't7': lambda path: path.write_bytes(CIFAR.read_bytes()),
    'bzip2': member('a.npy', bytes(999), zipfile.ZIP_BZIP2),
    'text': member('a.txt', b'hello'),
    'huge shape': member(
        'a.npy', (HEADER % (b"'<f4'", b'(4611686018427387904,)')).ljust(127) + b'\n'
    ),
    'negative shape': member(
        'a.npy', (HEADER % (b"'<f4'", b'(-1, -4)')).ljust(127) + b'\n' + bytes(16)
    ),
    'pickle': member('a.npy', (HEADER % (b"'|O'", b'(1,)')).ljust(127) + b'\ncposix\nsystem\n'),
    'code': member('a.npy', (HEADER % (b"__import__('os').getcwd()", b'(1,)')).ljust(127) + b'\n'),
}


@pytest.mark.parametrize('write', NPZ_MADE_TO_HARM.values(), ids=NPZ_MADE_TO_HARM)
def test_hostile_npz_files(write, tmp_path, bounded):
    path = tmp_path / 'x.npz'
    write(path)
    refused(npz.load, path, 'x.npz')
    network = resnext_ilsvrc.ResNext(3, (1,), 1, 1, 1)
    before = {name: np.array(array) for name, array in npz.state(network).items()}
    refused(network.load_model, path, 'x.npz')
    assert all(np.array_equal(before[name], a) for name, a in npz.state(network).items())
