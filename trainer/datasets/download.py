"""Fetching a dataset once."""

import hashlib
import os
import urllib.error
import urllib.request

import chainer
import tqdm

from trainer import files
from trainer.errors import InputError


def fetch(url, md5):
    """Download a file once, with a progress bar, and check it.

    It is kept where Chainer keeps datasets (``CHAINER_DATASET_ROOT``, by default
    ``~/.chainer/dataset``), in ``resnext/``.

    Args:
        url (str): Where it is.
        md5 (str): What its MD5 digest must be, hexadecimal.

    Returns:
        str: Path of the whole, checked file.

    Raises:
        trainer.errors.InputError: It cannot be had, or is not the published file.
    """
    folder = chainer.dataset.get_dataset_directory('resnext')
    path = os.path.join(folder, os.path.basename(url))
    if os.path.exists(path):
        return path
    mend = 'fetch it by another way and name it with --data'
    try:
        with (
            urllib.request.urlopen(url, timeout=30) as response,
            files.replacing(path) as unfinished,
            open(unfinished, 'wb') as f,
        ):
            size = response.headers.get('Content-Length')
            digest = hashlib.md5()
            with tqdm.tqdm(
                total=int(size) if size else None,
                unit='B',
                unit_scale=True,
                desc=os.path.basename(url),
            ) as bar:
                for block in iter(lambda: response.read(1 << 18), b''):
                    digest.update(block)
                    f.write(block)
                    bar.update(len(block))
            f.flush()
            if digest.hexdigest() != md5:
                raise InputError(
                    f'{url}: what came is not the published file (MD5 {digest.hexdigest()} '
                    f'instead of {md5}); try again, or {mend}'
                )
    except urllib.error.URLError as e:
        raise InputError(f'{url}: cannot be downloaded ({e.reason}); {mend}') from e
    except (TimeoutError, ConnectionError) as e:
        raise InputError(f'{url}: the download broke off ({e}); try again, or {mend}') from e
    return path
