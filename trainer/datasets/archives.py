"""Reads gzip files, and tar archives, plain or gzipped: to their end, and within bounds."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Container, Sequence
from typing import IO

from trainer import files
from trainer.errors import InputError

_BLOCK = 1 << 18
# Most bytes of headers, padding and end. A published archive has ten headers of 512 bytes.
_MAX_HEADERS = 1 << 20


class _Gunzip:
    """The content of a gzip file: complete, with a valid checksum, and nothing after its end."""

    def __init__(self, f):
        self._f = f
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, size):
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._f.read(_BLOCK)
            data = self._zlib.decompress(packed, size)
            if data:
                return data
            if not packed:
                raise ValueError('it ends too soon')
        if self._zlib.unused_data or self._f.read(1):
            raise ValueError('more follows its end')
        return b''


class _Limited:
    """A file of which at most the allowed number of bytes can be read."""

    def __init__(self, f, most, what):
        self._f, self._left = f, most
        self._excess = f'{what} more than {most:,} bytes'

    def allow(self, size):
        self._left += size

    def read(self, size):
        data = self._f.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(self._excess)
        return data


def gunzip(f: IO[bytes], most: int) -> bytes:
    """Return the content of a gzip file.

    Args:
        f: The file, open in binary mode.
        most: Most bytes of content.

    Raises:
        ValueError, zlib.error: The file is damaged or holds more.
    """
    stream = _Limited(_Gunzip(f), most, 'it holds')
    return b''.join(iter(lambda: stream.read(_BLOCK), b''))


def read(
    path: str, wanted: Container[str], most: int, published: Sequence[tuple] = ()
) -> dict[str, bytes]:
    """Return the contents of files in an archive, without unpacking to disk.

    The whole archive is read, so that damage anywhere in a gzipped archive is detected.

    Args:
        path: The archive.
        wanted: Names of the files, without folders.
        most: Most bytes of the archive, packed and unpacked.
        published: (name, bytes, MD5 digest) of published archives; an archive of such a size must
            have the digest.

    Returns:
        Name -> content of the wanted files that the archive has.

    Raises:
        trainer.errors.InputError: The archive is missing, damaged or changed, neither plain
            nor gzipped, or has a wanted file twice.
    """
    try:
        with files.open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size > most:
                raise ValueError(f'it has more than {most:,} bytes')
            digests = {md5 for _, length, md5 in published if length == size}
            if digests and hashlib.file_digest(f, 'md5').hexdigest() not in digests:
                raise ValueError('it has the size of the published one, but another MD5')
            f.seek(0)
            packed = f.read(2) == b'\x1f\x8b'
            f.seek(0)
            return _members(_Gunzip(f) if packed else f, wanted, most)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except Exception as e:  # damaged headers make tarfile raise almost any exception
        raise InputError(f'{path}: not a whole tar archive ({e}); fetch it again') from e


def _members(f, wanted, most):
    stream, contents, total = _Limited(f, _MAX_HEADERS, 'its headers have'), {}, 0
    with tarfile.open(fileobj=stream, mode='r|', bufsize=_BLOCK) as tar:
        for member in tar:
            total += member.size
            if member.issparse() or not 0 <= member.size <= total <= most:
                raise ValueError(f'it is sparse, or holds more than {most:,} bytes')
            stream.allow(member.size)
            name = os.path.basename(member.name)
            if member.isreg() and name in wanted:
                if name in contents:
                    raise ValueError(f'two files are called {name}')
                contents[name] = tar.extractfile(member).read()
        while stream.read(_BLOCK):
            pass
    return contents
