"""Hostile files of each kind that the project reads (:mod:`helpers.kinds`)."""

import base64
import gzip
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pth_files
import test_archives
import test_damaged_files
import test_hostile_pickles
import test_record

from helpers import kinds

#: Control characters that a terminal would obey, and a line end.
CONTROL = '\x1b[2J\x1b]0;x\x07\r\n\u202e\x9b31m'

Case = tuple[str, str, Callable]


class _Calls:
    """Pickled, it calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _executing() -> Iterator[tuple[str, bytes]]:
    """Yield (name, pickle) of pickles that run a command where they are unpickled."""
    for i, (function, arguments) in enumerate(
        [
            (os.system, ('true',)),
            (os.popen, ('true',)),
            (eval, ("__import__('os').system('true')",)),
            (exec, ("import os; os.system('true')",)),
            (os.remove, ('/nonexistent',)),
            (getattr, (os, 'system')),
            (base64.b64decode, ('eA==',)),
        ]
    ):
        for protocol in (0, 2, 4) if function is not getattr else ():
            yield (
                f'calls {i}, protocol {protocol}',
                pickle.dumps({'w': _Calls(function, *arguments)}, protocol),
            )
    yield 'INST', b"(S'true'\nios\nsystem\n."
    yield 'OBJ', b"(cos\nsystem\nS'true'\no."
    yield 'STACK_GLOBAL', b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.'
    yield 'NEWOBJ', b'\x80\x02csubprocess\nPopen\n]S"true"\na\x85\x81.'
    yield 'dotted', b'\x80\x04\x8c\x08builtins\x8c\x0feval.__call__.x\x93.'
    yield 'BUILD', b'\x80\x02ccollections\nOrderedDict\n)R}S"__class__"\ncos\nsystem\nsb.'
    yield 'persistent', b'\x80\x02cos\nsystem\nQ.'
    yield 'extension', b'\x80\x02\x82\x01.'


def _named(name, data):
    def make(folder):
        path = os.path.join(folder, name)
        pathlib.Path(path).write_bytes(data() if callable(data) else data)
        return path

    return make


def _by(name, write):
    """Return a function that makes a file by ``write(path)``."""

    def make(folder):
        path = pathlib.Path(folder, name)
        write(path)
        return str(path)

    return make


def _in_place(kind, change):
    """Return a function that makes a kind's whole file and changes it by ``change(path)``."""

    def make(folder):
        path = kinds.KINDS[kind].make(folder)
        change(pathlib.Path(path))
        return path

    return make


def _pickles() -> Iterator[Case]:
    for name, data in [*test_hostile_pickles.pickles(), *_executing()]:
        for kind, write in (
            ('pth, zip', pth_files.write_zip),
            ('pth, legacy', pth_files.write_legacy),
        ):
            yield (
                kind,
                name,
                _by(
                    'x.pth',
                    lambda path, write=write, data=data: write(path, None, {}, pickled=data),
                ),
            )
    for name, data in _executing():
        yield (
            'cifar, python',
            name,
            _in_place('cifar, python', lambda path, data=data: path.write_bytes(data)),
        )
        head = test_damaged_files.HEADER % (b"'|O'", b'(1,)')
        yield (
            'npz',
            'object: ' + name,
            _by('x.npz', test_damaged_files.member('a.npy', head.ljust(127) + b'\n' + data)),
        )


def _weights() -> Iterator[Case]:
    for name, data in test_damaged_files.T7_MADE_TO_HARM.items():
        yield 't7', name, _named('x.t7', data)
    for name, write in test_damaged_files.NPZ_MADE_TO_HARM.items():
        yield 'npz', name, _by('x.npz', write)
        yield (
            'snapshot',
            name,
            _in_place('snapshot', lambda path, w=write: _without_suffix(w, path)),
        )
    for i, architecture in enumerate(test_damaged_files.ABSURD_DESCRIPTIONS):
        yield (
            'npz',
            f'description {i}',
            _by(
                'x.npz',
                lambda path, a=architecture: test_damaged_files.described(
                    path, {'w': np.zeros(10**6, np.float32)}, **a
                ),
            ),
        )
    for members in (60_000, 500_000, 4_000_000):
        for kind in ('npz', 'pth, zip', 'snapshot'):
            yield (
                kind,
                f'{members:,} members',
                _in_place(kind, lambda path, n=members: zip_directory(path, n)),
            )
    for name, header in _safetensors():
        yield 'safetensors', name, _named('x.safetensors', header)


def _without_suffix(write, path):
    path.unlink()
    write(path.with_suffix('.npz'))  # which np.savez would add
    path.with_suffix('.npz').rename(path)


def zip_directory(path: os.PathLike, members: int) -> None:
    """Write a zip archive whose directory lists many empty members; only the first exists."""
    name = path.name.endswith('pth') and 'x/data.pkl' or 'a.npy'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(name, b'')
    first = path.read_bytes()[: 30 + len(name)]
    with open(path, 'wb') as f:
        f.write(first)
        entry = struct.pack('<4s6H3L5H2L', b'PK\1\2', *[20, 20, 0, 0, 0, 0], 0, 0, 0, 8, *[0] * 6)
        entry = entry[:46].ljust(46, b'\0')
        size = members * (46 + 8)
        for begin in range(0, members, 10_000):
            end = min(begin + 10_000, members)
            f.write(b''.join(entry + b'%08d' % i for i in range(begin, end)))
        record = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, members, members, size,
                             len(first))  # fmt: skip
        f.write(record + struct.pack('<4sLQL', b'PK\6\7', 0, len(first) + size, 1))
        count = min(members, 0xFFFF)
        f.write(struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, count, count, size, len(first), 0))


def _safetensors():
    def file(header, data=b''):
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack('<Q', len(header)) + header + data

    tensor = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
    empty = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
    yield 'header of 2^62', struct.pack('<Q', 1 << 62) + b'{}'
    yield 'no header', struct.pack('<Q', 0)
    yield 'deep', lambda: file(b'[' * 100_000)
    yield 'deep metadata', lambda: file(b'{"__metadata__":' + b'[' * 100_000)
    yield 'a million empty', lambda: file({f'{i}': empty for i in range(1_000_000)})
    yield '60,000 empty', lambda: file({f'{i}': empty for i in range(60_000)})
    yield (
        'two of one name',
        file(b'{"a":%b,"a":%b}' % ((json.dumps(tensor).encode(),) * 2), bytes(4)),
    )
    yield 'control characters', file({CONTROL: tensor}, bytes(4))
    yield 'huge shape', file({'a': tensor | {'shape': [1 << 40] * 4}}, bytes(4))
    yield 'long name', lambda: file({'n' * (1 << 21): tensor}, bytes(4))
    yield 'metadata of numbers', file({'__metadata__': {'geometry': 7}, 'a': tensor}, bytes(4))
    yield 'integer of 10^4 digits', file(b'{"a":{"dtype":"F32","shape":[1%b]}}' % (b'0' * 10**4))


def _archives() -> Iterator[Case]:
    for i, (data, _) in enumerate(test_archives.MADE_TO_HARM):
        yield 'cifar, tar.gz', f'archive {i}', _named('x.tar.gz', data)
    bomb = gzip.compress(bytes(1 << 20)) * 400
    yield 'cifar, tar.gz', 'many gzip members', _named('x.tar.gz', bomb)
    yield (
        'mnist',
        'bomb',
        _in_place('mnist', lambda path: path.write_bytes(gzip.compress(bytes(1 << 28), 9))),
    )
    for shape in ((2**32 - 1,) * 3, (0, 28, 28), (2**31, 2, 0)):
        data = bytes((0, 0, 8, 3)) + struct.pack('>3I', *shape)
        yield (
            'mnist',
            f'shape {shape}',
            _in_place('mnist', lambda path, data=data: path.write_bytes(gzip.compress(data))),
        )
    for kind in ('cifar, binary', 'cifar, python'):
        yield kind, 'sparse and huge', _in_place(kind, lambda path: os.truncate(path, 1 << 36))


def _chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _png(width, height, data=b'', bits=8, colour=2, more=b''):
    head = _chunk(b'IHDR', struct.pack('>2I5B', width, height, bits, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + more + _chunk(b'IDAT', data) + _chunk(b'IEND', b'')


def _images() -> Iterator[Case]:
    bomb = zlib.compress(bytes(1 << 28), 9)
    many = _chunk(b'tEXt', b'x\0') * 200_000
    text = _chunk(b'zTXt', b'x\0\0' + bomb)
    for name, data in {
        'just too large': lambda: _png(1 << 13, (1 << 13) + 1, bomb),
        'as large as may be': lambda: _png(1 << 13, 1 << 13, bomb),
        'size of 2^31': lambda: _png((1 << 31) - 1, (1 << 31) - 1),
        'size of 0': lambda: _png(0, 0),
        'text that grows': lambda: _png(1, 1, zlib.compress(bytes(4)), more=text),
        'profile that grows': lambda: _png(
            1, 1, zlib.compress(bytes(4)), more=_chunk(b'iCCP', b'x\0\0' + bomb)
        ),
        'many chunks': lambda: _png(1, 1, zlib.compress(bytes(4)), more=many),
        'data that grows': lambda: _png(1, 1, bomb),
        'control characters': CONTROL.encode(),
    }.items():  # fmt: skip
        yield 'png', name, _named('x.png', data)
    yield 'ppm', 'size of 10^9', _named('x.ppm', b'P6 1000000000 1000000000 255 ')
    yield 'ppm', 'digits', _named('x.ppm', b'P6 ' + b'1' * 10**6)
    yield (
        'bmp',
        'size of 2^31',
        _in_place('bmp', lambda path: _patch(path, 18, b'\xff\xff\xff\x7f' * 2)),
    )
    yield 'gif', 'size of 65535', _in_place('gif', lambda path: _patch(path, 6, b'\xff' * 4))
    yield (
        'tiff',
        'directory that is its own next',
        _named('x.tif', b'II*\0\x08\0\0\0\0\0\x08\0\0\0'),
    )
    entries = b''.join(struct.pack('<2HLL', i, 4, 1 << 30, 8) for i in range(60_000))
    yield (
        'tiff',
        'many large tags',
        _named('x.tif', b'II*\0\x08\0\0\0' + struct.pack('<H', 60_000) + entries + bytes(4)),
    )
    for suffix in ('jpeg', 'webp', 'avif'):
        yield suffix, 'much follows', _in_place(suffix, lambda path: os.truncate(path, 1 << 34))
    yield 'jpeg', 'a size of 65535', _in_place('jpeg', _enlarge)


def _patch(path, at, data):
    held = bytearray(path.read_bytes())
    held[at : at + len(data)] = data
    path.write_bytes(held)


def _enlarge(path):
    at = path.read_bytes().index(b'\xff\xc0') + 5
    _patch(path, at, b'\xff' * 4)


def _json() -> Iterator[Case]:
    for kind in ('run.json', 'log.json', 'split.json', 'config.json', 'log.json with -l'):
        for name, data in test_record.HARMFUL.items():
            yield kind, name, _in_place(kind, lambda path, data=data: path.write_bytes(data))
        yield (
            kind,
            'control characters',
            _in_place(kind, lambda path: path.write_text(_with_control(path.read_text()))),
        )
        yield kind, 'NUL', _in_place(kind, lambda path: path.write_bytes(b'\0' * 999))
    yield (
        'list of images',
        'NUL',
        _in_place('list of images', lambda p: p.write_bytes(b'a\0.png\ta\n')),
    )
    yield (
        'list of images',
        'control characters',
        _in_place(
            'list of images', lambda path: path.write_text(CONTROL.replace('\n', '') + '.png\ta\n')
        ),
    )
    yield (
        'list of images',
        'out of the folder',
        _in_place(
            'list of images', lambda path: path.write_text('../../../../../etc/passwd.png\ta\n')
        ),
    )


def _with_control(text):
    """Put control characters into all keys and texts of a JSON file."""

    def change(value):
        if isinstance(value, dict):
            return {key: change(v) for key, v in value.items()} | {CONTROL: 1}
        if isinstance(value, list):
            return [change(v) for v in value]
        return CONTROL + value if isinstance(value, str) else value

    return json.dumps(change(json.loads(text)))


def _places() -> Iterator[Case]:
    """Pipes, devices, folders and odd names in place of a file of each kind."""
    for kind in kinds.KINDS:
        yield kind, 'pipe', _in_place(kind, lambda path: (path.unlink(), os.mkfifo(path)))
        yield kind, 'zero', _in_place(kind, lambda p: (p.unlink(), p.symlink_to('/dev/zero')))
        yield (
            kind,
            'in itself',
            _in_place(kind, lambda path: (path.unlink(), path.symlink_to(path))),
        )
    for kind in ('t7', 'npz', 'pth, zip', 'safetensors', 'png', 'jpeg', 'config.json'):
        yield (
            kind,
            'control characters in its name',
            lambda folder, kind=kind: shutil.move(
                _in_place(kind, lambda path: path.write_bytes(b'x'))(folder),
                os.path.join(folder, CONTROL + 'x' * 99),
            ),
        )


def cases() -> list[Case]:
    """Return (kind, name, make: (folder) -> path) of all of them."""
    return [
        *_pickles(), *_weights(), *_archives(), *_images(), *_json(), *_places()
    ]  # fmt: skip
