"""Fetching a dataset once."""

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request

import chainer
import tqdm

from trainer import files
from trainer.errors import InputError

_BLOCK = 1 << 18
# Seconds without a byte, and bytes a second from then on, on average.
_TIMEOUT = 30
_SLOWEST = 1000

_MEND = 'fetch it by another way and name it with --data'

_BROKEN = (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException, ValueError)


def fetch(url, size, md5):
    """Download a file once, with a progress bar, and check it, then and whenever it is used.

    It is kept where Chainer keeps datasets (``CHAINER_DATASET_ROOT``, by default
    ``~/.chainer/dataset``), in ``resnext/``; where it is damaged there, it is fetched again.

    Args:
        url (str): Where it is.
        size (int): Its bytes.
        md5 (str): What its MD5 digest must be, hexadecimal.

    Returns:
        str: Path of the whole, checked file.

    Raises:
        trainer.errors.InputError: It cannot be had, or is not the published file.
        OSError: It cannot be kept.
    """
    folder = chainer.dataset.get_dataset_directory('resnext')
    path = os.path.join(folder, os.path.basename(url))
    if os.path.exists(path):
        with files.open_regular(path) as f:
            if hashlib.file_digest(f, 'md5').hexdigest() == md5:
                return path
    with files.replacing(path) as unfinished, open(unfinished, 'wb') as f:
        try:
            found = _download(url, size, f)
        except urllib.error.URLError as e:
            raise InputError(f'{url}: cannot be downloaded ({e.reason}); {_MEND}') from e
        except _BROKEN as e:
            raise InputError(
                f'{url}: the download broke off ({type(e).__name__}: {e}); try again, or {_MEND}'
            ) from e
        if found != md5:
            raise InputError(
                f'{url}: what came is not the published file (MD5 {found} instead of {md5}); '
                f'try again, or {_MEND}'
            )
    return path


def _download(url, size, f):
    """Copy what is at a URL into a file, at most ``size`` bytes; return its MD5 digest."""
    digest, start = hashlib.md5(), time.monotonic()
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        tqdm.tqdm(total=size, unit='B', unit_scale=True, desc=os.path.basename(url)) as bar,
    ):
        for block in iter(lambda: response.read1(_BLOCK), b''):
            digest.update(block)
            f.write(block)
            bar.update(len(block))
            if bar.n > size:
                raise ValueError(f'more than its {size:,} bytes came')
            if bar.n < _SLOWEST * (time.monotonic() - start - _TIMEOUT):
                raise TimeoutError(f'less than {_SLOWEST:,} bytes a second came')
        if bar.n < size:
            raise ValueError(f'{bar.n:,} of {size:,} bytes came')
    return digest.hexdigest()
