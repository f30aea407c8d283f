"""Hostile pickles that would hang, overflow the stack or fill the memory of their readers."""

import pickle
import subprocess
import sys

import pth_files
import pytest
from conftest import ROOT
from pth_files import Call, Persistent, Ref

from trainer import pickled, pickled_arrays

# Hashing, comparing, formatting or converting these takes 2**60 steps, or C's whole stack.
EVIL = {
    'doubled tuples': b')' + b'2\x86' * 60,
    'doubled lists': b']' + b'q\x00(h\x00h\x00l' * 60,
    'nested tuples': b')' + b'\x85' * 10**6,
    'nested lists': b'(' * 10**5 + b'l' * 10**5,
}
# Within the bounds on depth and size, but much to do at each of many references.
LARGE = b'(' + b'K\x01' * 200_000 + b'tq\x07'
HERE = Ref('PLACE', 'HERE')


def placed(value, evil):
    """Pickle a value with other opcodes in place of HERE."""
    data = pth_files.dumps(value)
    assert data.count(b'cPLACE\nHERE\n') >= 1
    return data.replace(b'cPLACE\nHERE\n', evil)


def tensor(**change):
    """A tensor of which one argument, of its storage or its own, is HERE."""
    storage = {
        'kind': 'storage',
        'class': Ref('torch', 'FloatStorage'),
        'key': '0',
        'location': 'cpu',
        'count': 1,
        'view': None,
    }
    own = {'offset': 0, 'shape': (1,), 'strides': (1,)}
    storage.update({k: v for k, v in change.items() if k in storage})
    own.update({k: v for k, v in change.items() if k in own})
    return {
        'x': Call(
            Ref('torch._utils', '_rebuild_tensor_v2'),
            Persistent(*storage.values()),
            *own.values(),
            False,
            Call(Ref('collections', 'OrderedDict')),
        )
    }


def pickles():
    """Yield (name, pickle) of everything that could break a reader."""
    for name, evil in EVIL.items():
        yield f'{name} as key', b'\x80\x02}' + evil + b'Ns.'
        yield f'{name} as function', b'\x80\x02' + evil + b')R.'
        yield f'{name} as class', b'\x80\x02' + evil + b')\x81.'
        yield f'{name} as arguments', placed(HERE, b'ccollections\nOrderedDict\n' + evil + b'R')
        yield f'{name} as module', b'\x80\x02' + evil + b'X\1\0\0\0x\x93.'
        yield f'{name} as name', b'\x80\x02X\1\0\0\0x' + evil + b'\x93.'
        yield f'{name} as persistent name', b'\x80\x02' + evil + b'Q.'
        yield f'{name} as root', b'\x80\x02' + evil + b'.'
        for part in ('kind', 'class', 'key', 'count', 'view', 'offset', 'shape', 'strides'):
            yield f"{name} as a tensor's {part}", placed(tensor(**{part: HERE}), evil)
    many = b'h\x07' * 100_000
    ordered = b'ccollections\nOrderedDict\nq\x08'
    pairs = b'](' + b''.join(b'K\1K\1\x86' for _ in range(16_000)) + b'eq\x07'
    big = [b'\x8a\x10' + ((i << 61) - i).to_bytes(16, 'little') + b'N' for i in range(1, 120_000)]
    yield 'items copied often', b'\x80\x02' + ordered + pairs + b'h\x08h\x07\x85R0' * 40_000 + b'.'
    yield 'keys of one hash', b'\x80\x02}(' + b''.join(big) + b'u.'
    yield (
        'memo of one hash',
        b'\x80\x02N' + b''.join(b'p%d\n' % ((i << 61) - i) for i in range(1, 120_000)) + b'.',
    )
    yield 'far memo', b'\x80\x02Nr\xff\xff\xff\xff.'
    yield 'large shared', b'\x80\x02' + LARGE + b'(' + many + b'l.'
    yield 'large integer', b'\x80\x02\x8b\x00\x00\x30\x00' + b'\x7f' * 0x300000 + b'.'
    shapes = placed([tensor(shape=HERE)] * 100, b'h\x07').replace(b'h\x07', LARGE, 1)
    yield 'large shape', shapes
    yield 'in itself', b'\x80\x02]q\x00h\x00a.'
    yield 'changed in use', b'\x80\x02]q\x00]q\x01h\x01\x61h\x01h\x00\x61.'


CHILD = """
import resource, signal, sys, time
from trainer import datasets
from trainer.errors import InputError
from trainer.weights import pytorch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
start = peak()
for path in sys.argv[1:]:
    signal.alarm(10)  # as it is by default: ends the process even where C code hangs
    try:
        if path.endswith('.pth'):
            pytorch.read(path)
        else:
            datasets.load('cifar10', path)
        print('read')
    except InputError as e:
        print(len(str(e)), str(e)[:500].isprintable(), str(e)[:150], flush=True)
    assert peak() - start < 1000, 'memory'
"""


def check(cases):
    """Read all in a child with bounds on time and memory; each must end in a short line."""
    pytest.importorskip('resource', reason='no resource module: not a Unix system')
    result = subprocess.run(
        [sys.executable, '-c', CHILD, *map(str, cases.values())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = result.stdout.splitlines()
    for name, line in zip(cases, lines, strict=False):
        length, printable = line.split()[:2]
        assert int(length) < 500 and printable == 'True', (name, line)
        assert 'MemoryError' not in line and 'RecursionError' not in line, (name, line)
    assert len(lines) == len(cases), list(cases)[len(lines)] + ': ' + result.stderr
    assert result.returncode == 0, result.stderr


def test_pytorch_files(tmp_path):
    cases = {}
    for name, data in pickles():
        cases[name] = tmp_path / f'{len(cases)}.pth'
        pth_files.write_zip(cases[name], None, {}, pickled=data)
    check(cases)


def test_the_published_bytes(tmp_path):
    """The first two files that were found, byte for byte."""
    doubled = bytes.fromhex('80027d29') + bytes.fromhex('3286') * 60 + bytes.fromhex('4e732e')
    nested = bytes.fromhex('80027d29') + b'\x85' * 10**6 + bytes.fromhex('4e732e')
    cases = {}
    for write in (pth_files.write_zip, pth_files.write_legacy):
        for name, data in {'doubled': doubled, 'nested': nested}.items():
            cases[f'{name} {write.__name__}'] = path = tmp_path / f'{len(cases)}.pth'
            write(path, None, {}, pickled=data)
    check(cases)


def test_keys_of_the_older_format(tmp_path):
    cases = {}
    pth_files.write_legacy(tmp_path / 'whole', {'x': 1}, {})
    end = pth_files.dumps([])
    whole = (tmp_path / 'whole').read_bytes()
    assert whole.endswith(end)
    for name, evil in EVIL.items():
        for keys in ([HERE], HERE, [HERE] * 2):
            path = cases[f'{name} {len(cases)}'] = tmp_path / f'{len(cases)}.pth'
            path.write_bytes(whole.removesuffix(end) + placed(keys, evil) + bytes(8))
    check(cases)


def cifar(labels, shape=(3001, 3072), code='u1', order=False):
    """A table of CIFAR-10's Python version."""
    reconstruct = Ref('numpy.core.multiarray', '_reconstruct')
    raw = Call(Ref('_codecs', 'encode'), chr(0) * 3001 * 3072, 'latin1')
    dtype = Call(Ref('numpy', 'dtype'), code, False, True, state=(3, '|', None, None, None))
    pixels = Call(
        reconstruct, Ref('numpy', 'ndarray'), (0,), 'b', state=(1, shape, dtype, order, raw)
    )
    return {'data': pixels, 'labels': labels}


def test_cifar(tmp_path):
    text = b'X' + (10**6).to_bytes(4, 'little') + b'x' * 10**6
    evil = {
        **EVIL,
        '1 MB of text beside numbers': b'](' + text + b'K\x01' * 3000 + b'e',
        'lists of lists': b']' + b'q\x00(h\x00h\x00l' * 25,
        'large numbers': b'](' + b'\x8a\x10' + b'\x7f' * 16 + b'K\x01' * 3000 + b'e',
    }
    cases = {}
    for name, opcodes in evil.items():
        for part in ('labels', 'shape', 'code', 'order'):
            path = cases[f'{name} as {part}'] = tmp_path / str(len(cases))
            path.mkdir()
            data = placed(cifar(**{'labels': [0] * 3001, part: HERE}), opcodes)
            for file in [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']:
                (path / file).write_bytes(b'')
            (path / 'data_batch_1').write_bytes(data)
    check(cases)


def test_the_table_is_one():
    """Else the test above says nothing."""
    table = pickled.read(pth_files.dumps(cifar([0] * 3001)), pickled_arrays.NAMES)
    assert pickled_arrays.read(table['data']).shape == (3001, 3072)


def test_shared_values_are_read():
    """The bounds leave what training states share and nest."""
    shared, names = (0.9, 0.999), {'lr': 0.1}
    groups = [{'betas': shared, 'names': names, 'params': [i]} for i in range(1000)]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickled.read(pickle.dumps(groups, protocol)) == groups
    nested = []
    for _ in range(60):
        nested = [nested]
    assert pickled.read(pickle.dumps(nested, 2)) == nested
    assert pickled.read(pickle.dumps({1, 2, 3}, 4)) == [1, 2, 3]
