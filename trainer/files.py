"""Files that appear whole or not at all."""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat

#: What files are called before they are whole; nobody else's are called that.
_UNFINISHED = re.compile(r'\.resnext-unfinished-\d+-[0-9a-f]{8}-(.+)', re.DOTALL)


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to; at the end it becomes ``path``, in one step.

    The file is written beside its place and renamed, so that whoever reads
    ``path`` finds the old file or the new one. After an exception the old one
    stays and the unfinished one is removed.

    Args:
        path (str): The file to create or replace. Its folder must exist.
    """
    folder, name = os.path.split(os.fspath(path))
    # The suffix stays: Pillow and Matplotlib read the format from it. Of a long name only
    # the end does: file systems allow 255 bytes.
    unfinished = os.path.join(
        folder, f'.resnext-unfinished-{os.getpid()}-{secrets.token_hex(4)}-{name[-40:]}'
    )
    try:
        yield unfinished
        with open(unfinished, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        if isinstance(e, OSError):
            e.filename = os.fspath(path)  # a full disk has none, others the unfinished file's
        raise


def open_regular(path):
    """Open a file to read bytes; folders, pipes and devices, which may never end, are errors.

    Raises:
        OSError: It cannot be read.
    """
    if '\0' in os.fspath(path):  # a ValueError elsewhere
        raise OSError(errno.EINVAL, 'its name holds a NUL', path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'it is not a file', path)
    return open(path, 'rb')


def read_bounded(path, most):
    """Return the bytes of a regular file.

    Args:
        path (str): The file.
        most (int): Bytes; of a larger one nothing is read.

    Raises:
        OSError: It cannot be read, or is larger.
    """
    with open_regular(path) as f:
        if os.fstat(f.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f'it has more than {most:,} bytes', path)
        return f.read(most)


def read_lines(path):
    """Return the lines of a list in UTF-8; ILSVRC's of 50,000 pictures has 2 MB.

    Raises:
        OSError: It cannot be read, or has more than 8 MB.
        UnicodeDecodeError: It is no UTF-8.
    """
    return io.StringIO(read_bounded(path, 8 << 20).decode(), newline=None).readlines()


def save_json(path, content):
    """Write JSON to a file that appears whole or not at all."""
    with replacing(path) as unfinished, open(unfinished, 'w') as f:
        json.dump(content, f, indent=0)


def remove_unfinished(folder, ours):
    """Remove the files that :func:`replacing` left in ``folder`` (not below it) when it was killed.

    Args:
        folder (str): The folder.
        ours (callable): Tells of a file's final name whether no other process can be
            writing it; what others write stays.
    """
    for entry in os.scandir(folder):
        match = _UNFINISHED.fullmatch(entry.name)
        if match and ours(match[1]) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.remove(entry.path)
