"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.types import Path

#: Limits of a JSON file: bytes, values, nesting, digits of an integer. The log of 600 epochs on
#: 1,000 classes has 42 MB and two million values.
_JSON_BYTES, _JSON_VALUES, _JSON_DEPTH, _JSON_DIGITS = 1 << 26, 1 << 22, 8, 19

#: Largest directory of a zip archive in bytes; 5,000 arrays take 0.5 MB. zipfile needs 16 times
#: as much memory, and 10 s for 4 million members.
_ZIP_DIRECTORY = 8 << 20

#: Names of unfinished files begin with this; no other files have such names.
_UNFINISHED = re.compile(r'\.resnext-unfinished-\d+-[0-9a-f]{8}-(.+)', re.DOTALL)


def now(write: Callable[[], None]) -> None:
    """Write at once: for functions that leave it to their caller when a file is written."""
    write()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[str]:
    """Yield a path to write to; at the end it becomes ``path``, in one step.

    The file is written to the same folder and then renamed, so that readers of ``path``
    find the old file or the new one. After an exception the old file stays and the
    unfinished one is removed.

    Args:
        path: The file to create or replace. Its folder must exist.

    Raises:
        OSError: The file cannot be written, is read-only, or is not a regular file.
    """
    folder, name = os.path.split(os.fspath(path))
    # Renaming would replace even these, such as /dev/null.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, 'it is not a file', os.fspath(path))
    if is_read_only(path):
        raise PermissionError(errno.EACCES, 'it is read-only', os.fspath(path))
    # Keeps the suffix, from which Pillow and Matplotlib take the format, and only the end of a
    # long name, as file systems allow 255 bytes.
    unfinished = os.path.join(
        folder, f'.resnext-unfinished-{os.getpid()}-{secrets.token_hex(4)}-{name[-40:]}'
    )
    try:
        yield unfinished
        with open(unfinished, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(unfinished, path)
        _sync_folder(folder)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        if isinstance(e, OSError):
            e.filename = os.fspath(path)  # a full disk has none, others the unfinished file's
        raise


def is_read_only(path: Path) -> bool:
    """Return whether a file exists that its owner made read-only."""
    return os.path.isfile(path) and not os.stat(path).st_mode & 0o222


def check_apart(inputs: Iterable[Any], **outputs: str | None) -> None:
    """Check that no output replaces an input.

    Args:
        inputs: Files that are read; other things are skipped.
        outputs: Flag, without its dashes -> file to write, or ``None``.

    Raises:
        trainer.errors.InputError: One does.
    """
    written = [(flag, path) for flag, path in outputs.items() if path and os.path.exists(path)]
    for read in inputs if written else ():
        for flag, path in written:
            same = False
            with contextlib.suppress(OSError, TypeError, ValueError):
                same = os.path.samefile(path, read)
            if same:
                dashes = '-' if len(flag) == 1 else '--'
                raise InputError(f'{dashes}{flag} {path}: is read here; give another name')


def _sync_folder(folder):
    """Sync a folder, so that the names in it survive a loss of power, where the system can."""
    # Windows cannot open folders, and some file systems cannot sync them.
    with contextlib.suppress(OSError):
        opened = os.open(folder or os.curdir, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file in binary mode. Pipes and devices, which may never end, are refused.

    Raises:
        OSError: It cannot be read or is not a regular file.
    """
    if '\0' in os.fspath(path):  # a ValueError elsewhere
        raise OSError(errno.EINVAL, 'its name holds a NUL', path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'it is not a file', path)
    return open(path, 'rb')


def read_bounded(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: The file.
        most: Largest size in bytes.

    Raises:
        OSError: The file cannot be read, or is larger.
    """
    with open_regular(path) as f:
        if os.fstat(f.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f'it has more than {most:,} bytes', path)
        return f.read(most)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file; ILSVRC's list of 50,000 images has 2 MB.

    Raises:
        OSError: The file cannot be read, or is larger than 8 MB.
        UnicodeDecodeError: It is not UTF-8.
    """
    return io.StringIO(read_bounded(path, 8 << 20).decode(), newline=None).readlines()


def read_json(path: Path) -> Any:
    """Read a JSON file that may be damaged or hostile.

    Returns:
        The value: numbers are finite, and it nests at most 8 deep.

    Raises:
        OSError: The file cannot be read, is not a regular file, or is too large.
        ValueError: It is not JSON, has too many values, or nests too deeply.
    """
    data = read_bounded(path, _JSON_BYTES)
    if sum(map(data.count, (b',', b'[', b'{'))) > _JSON_VALUES:
        raise ValueError('too many values')
    try:
        content = json.loads(data, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError as e:
        raise ValueError('nested too deeply') from e
    inner = [content]
    for _ in range(_JSON_DEPTH):
        inner = [
            value
            for outer in inner
            if isinstance(outer, (dict, list))
            for value in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if inner:
        raise ValueError('nested too deeply')
    return content


def _integer(text):
    if len(text) > _JSON_DIGITS:
        raise ValueError(f'an integer of {len(text)} digits')
    return int(text)


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'a number that is not finite: {text:.20}')
    return value


def save_json(path: Path, content: object) -> None:
    """Write JSON to a file that appears whole or not at all."""
    with replacing(path) as unfinished, open(unfinished, 'w') as f:
        json.dump(content, f, indent=0)


def remove_unfinished(folder: str, ours: Callable[[str], bool]) -> None:
    """Remove the files that :func:`replacing` left in ``folder`` (not below it) when it was killed.

    Args:
        folder: The folder.
        ours: Returns, for a file's final name, whether no other process can be writing that file.
    """
    for entry in os.scandir(folder):
        match = _UNFINISHED.fullmatch(entry.name)
        if match and ours(match[1]) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.remove(entry.path)


def first_zip_member(head: bytes) -> bytes:
    """A file of which no more than ``most`` bytes are read at a time."""
    if head[:4] != b'PK\3\4':
        return b''
    (length,) = struct.unpack('<H', head[26:28].ljust(2, b'\0'))
    return head[30 : 30 + length]


class _BoundedReads:
    """A file of which no more than ``most`` bytes are read at a time."""

    def __init__(self, f: BinaryIO, most: int | None) -> None:
        self._f, self.most = f, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._f, name)

    def read(self, n: int = -1) -> bytes:
        if self.most is None or 0 <= n <= self.most:
            return self._f.read(n)
        data = self._f.read(self.most + 1)
        if len(data) > self.most:
            raise zipfile.BadZipFile(f'its directory has more than {self.most:,} bytes')
        return data


def open_zip(f: BinaryIO) -> zipfile.ZipFile:
    """Open a zip archive that may be damaged or hostile.

    Args:
        f: The file, open in binary mode.

    Raises:
        zipfile.BadZipFile: It is not a zip archive, or its directory is too large.
    """
    # zipfile reads the whole directory, whatever size the archive states, when it is opened.
    bounded = _BoundedReads(f, _ZIP_DIRECTORY)
    archive = zipfile.ZipFile(cast(BinaryIO, bounded))
    bounded.most = None
    return archive
