"""Files that appear whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import stat

#: What files and folders are called before they are whole.
UNFINISHED = 'tmp-'


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
    # The suffix stays: Pillow and Matplotlib read the format from it.
    unfinished = os.path.join(folder, f'{UNFINISHED}{os.getpid()}-{name}')
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
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'it is not a file', path)
    return open(path, 'rb')


def save_json(path, content):
    """Write JSON to a file that appears whole or not at all."""
    with replacing(path) as unfinished, open(unfinished, 'w') as f:
        json.dump(content, f, indent=0)


def remove_unfinished(folder):
    """Remove what a killed process left in ``folder`` (not below it)."""
    for entry in os.scandir(folder):
        if entry.name.startswith(UNFINISHED):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.remove(entry.path)
