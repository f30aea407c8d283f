"""CIFAR's archives, whole, damaged, and made to take time or memory."""

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import time
import tracemalloc

import damage
import numpy as np
import pytest
from conftest import write_cifar10

from trainer import datasets
from trainer.datasets import archives, cifar10, cifar_files
from trainer.errors import InputError

WANTED = {'a', 'b'}
MOST = 1 << 20


def tar(members, form=tarfile.GNU_FORMAT):
    """Return a plain archive of (name, data) or ready headers."""
    with io.BytesIO() as f:
        with tarfile.open(fileobj=f, mode='w', format=form) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return f.getvalue()


def header(name='a', size=b'00000000017', kind=b'0'):
    """Return one header with these fields as they are, its checksum right."""
    fields = name.encode().ljust(100, b'\0') + b'0000644\0' + b'0000000\0' * 2
    fields += size.ljust(12, b'\0') + b'00000000000\0' + b' ' * 8 + kind + bytes(100)
    fields = (fields + b'ustar  \0').ljust(512, b'\0')
    return fields[:148] + b'%06o\0 ' % sum(fields) + fields[156:]


def refused(path, words='', most=MOST):
    with pytest.raises(InputError, match=words) as e:
        archives.read(path, WANTED, most)
    assert str(path) in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 400


WHOLE = tar([('x/a', b'A' * 999), ('x/c', b'C' * 5000), ('x/b', b'')])


@pytest.mark.parametrize('pack', [bytes, gzip.compress], ids=['plain', 'gzip'])
@pytest.mark.parametrize('form', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_whole(pack, form, tmp_path):
    members = [('x' * 120 + '/a', b'A' * 999), ('c', b'C' * 5000), ('d/b', b'')]
    (tmp_path / 'x').write_bytes(pack(tar(members, form)))
    assert archives.read(tmp_path / 'x', WANTED, MOST) == {'a': b'A' * 999, 'b': b''}


def test_damage_in_gzip_is_noticed(tmp_path):
    """Any damage: the same images or one line; CIFAR's own reader took other images."""
    write_cifar10(tmp_path / 'cifar-10-batches-bin', per_file=1)
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        archive.add(tmp_path / 'cifar-10-batches-bin', arcname='x')
    data = gzip.compress((tmp_path / 'x.tar').read_bytes(), 1)
    golden = datasets.load('cifar10', str(tmp_path / 'x.tar'))
    path = tmp_path / 'x.tar.gz'
    refusals = 0
    for _, (how, damaged) in zip(
        range(400), damage.damaged(data, np.random.default_rng(0)), strict=False
    ):
        path.write_bytes(damaged)
        try:
            found = datasets.load('cifar10', str(path))
        except InputError as e:
            assert str(path) in str(e) and '\n' not in str(e), how
            refusals += 1
        else:
            for part, whole in zip(
                found.train + found.test, golden.train + golden.test, strict=True
            ):
                np.testing.assert_array_equal(part, whole, how)
    assert refusals > 300


def test_damage_in_plain_archives(tmp_path):
    path = tmp_path / 'x.tar'
    for _, (how, damaged) in zip(
        range(400), damage.damaged(WHOLE, np.random.default_rng(0)), strict=False
    ):
        path.write_bytes(damaged)
        try:
            archives.read(path, WANTED, MOST)
        except InputError as e:
            assert str(path) in str(e) and '\n' not in str(e), how


def test_only_plain_and_gzip(tmp_path):
    import bz2

    for compress in (lzma.compress, bz2.compress):
        (tmp_path / 'x').write_bytes(compress(WHOLE))
        refused(tmp_path / 'x', 'not a whole tar archive')
    (tmp_path / 'x').write_bytes(gzip.compress(WHOLE) + b'x')
    refused(tmp_path / 'x', 'more follows its end')
    (tmp_path / 'x').write_bytes(gzip.compress(WHOLE)[:-1])
    refused(tmp_path / 'x', 'ends too soon')
    refused(tmp_path, 'cannot be read')


MADE_TO_HARM = [
    (lambda: gzip.compress(tar([('c', bytes(1 << 24))])), 'holds more than'),
    (lambda: gzip.compress(tar([('a', bytes(1 << 24))])), 'holds more than'),
    (lambda: gzip.compress(tar([(str(i), bytes(1 << 17)) for i in range(9)])), 'holds more'),
    (lambda: gzip.compress(WHOLE + bytes(1 << 24)), 'its headers have more than'),
    (lambda: gzip.compress(tar([('x', b'')] * 9999)), 'its headers have more than'),
    (lambda: gzip.compress(header(kind=b'x', size=b'77777777') + b'5 a=\n' * 10**6), 'headers'),
    (lambda: gzip.compress(header(kind=b'L', size=b'77777777') + b'x' * (1 << 23)), 'headers'),
    (lambda: gzip.compress(header(kind=b'L', size=b'1') * 2000), 'not a whole'),
    (lambda: b'\x1f\x8b\x08\x08' + bytes(6) + b'x' * 900_000, 'ends too soon'),
    (lambda: gzip.compress(b'') * 40_000, 'more follows its end'),
    (lambda: header(size=b'\x80' + bytes(3) + b'\x7f' * 8), 'holds more than'),
    (lambda: header(size=b'\xff' * 12), 'not a whole'),
    (lambda: header(size=b'zzz'), 'not a whole'),
    (lambda: header(kind=b'S') + bytes(9999), 'not a whole'),
    (lambda: header(kind=b'S', size=b'77777777777') + bytes(9999), 'not a whole'),
    (lambda: tar([('a', b'1'), ('x/a', b'2')]), 'two files are called a'),
    (lambda: b'', 'not a whole'),
]


@pytest.mark.parametrize('data, words', MADE_TO_HARM)
def test_made_to_harm(data, words, tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(data())
    start = time.process_time()
    tracemalloc.start()
    refused(path, words)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert time.process_time() - start < 5


def test_an_absurd_size_is_not_read(tmp_path):
    (tmp_path / 'x').write_bytes(WHOLE)
    os.truncate(tmp_path / 'x', 1 << 34)
    refused(tmp_path / 'x', 'it has more than')


def test_published_archives_have_their_digest(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path / 'cifar-10-batches-bin', per_file=1)
    path = tmp_path / 'mine.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(folder, arcname='x')
    data = bytearray(path.read_bytes())
    published = cifar_files.Archive('x.tar.gz', len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setattr(cifar10, 'SPEC', cifar10.SPEC._replace(archives=(published,) * 2))
    datasets.load('cifar10', str(path))
    data[4] ^= 1  # the time in gzip's header, of which the checksum says nothing
    path.write_bytes(data)
    with pytest.raises(InputError, match='the size of the published one, but another MD5'):
        datasets.load('cifar10', str(path))
