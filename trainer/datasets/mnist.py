"""MNIST: 60,000 training and 10,000 test images of handwritten digits.

The four IDX files (http://yann.lecun.com/exdb/mnist/) hold grey images of 28x28. They are padded
to 32x32 with black, as in LeCun et al. (1998), and grey is replicated to RGB.
"""

import io
import math
import os
import struct
import zlib

import numpy as np

from trainer import download, files
from trainer.datasets import Dataset, LabelledImages, archives
from trainer.errors import InputError

#: PyTorch's copy; the original site does not want downloads by programs.
URL = 'https://ossci-datasets.s3.amazonaws.com/mnist/'

#: The published files: size in bytes and MD5 digest when compressed.
FILES = {
    'train-images-idx3-ubyte': (9912422, 'f68b3c2dcbeaaa9fbdd348bbdeb94873'),
    'train-labels-idx1-ubyte': (28881, 'd53e105ee54ea40749a09fcbcd1e9432'),
    't10k-images-idx3-ubyte': (1648877, '9fb629c4189551a2d022fa330f9573f3'),
    't10k-labels-idx1-ubyte': (4542, 'ec29112dd5afa0611ce80d1b7f02629c'),
}
_TRAIN, _TEST = list(FILES)[:2], list(FILES)[2:]

# The largest published file has 47 MB, and 60,000 images.
_MOST = 1 << 26
_MOST_IMAGES = 1 << 18

#: Number of classes.
CLASSES = 10


def load(data: str | None = None) -> Dataset:
    """Load MNIST.

    Args:
        data: Folder with the four files, compressed (``.gz``) or not; ``None`` downloads them once.

    Returns:
        The dataset; ``mirror`` is ``False``, as mirrored digits are not digits.

    Raises:
        trainer.errors.InputError: The download failed, or a file is missing or damaged.
    """
    if data is not None and not os.path.isdir(data):
        raise InputError(
            '`data` {}: not a folder; wanted is one with {}, with or without .gz'.format(
                data, ', '.join(FILES)
            )
        )
    return Dataset(
        'mnist', list('0123456789'), _images(_TRAIN, data), _images(_TEST, data), mirror=False
    )


def _images(names, data):
    images, labels = (_find(name, data) for name in names)
    x, t = _read(images, 3), _read(labels, 1)
    if len(x) != len(t) or not len(x):
        raise InputError(
            f'{labels}: {len(t)} labels for the {len(x)} images of {images}; fetch both again'
        )
    if t.max() > 9:
        raise InputError(f'{labels}: a label {t.max()}, but there are ten digits; fetch it again')
    if len(x) > _MOST_IMAGES:
        raise InputError(f'{images}: {len(x):,} images; at most {_MOST_IMAGES:,} are read')
    if not 0 < min(x.shape[1:]) <= max(x.shape[1:]) <= 32:
        raise InputError('{}: images of {} x {} pixels, not 1 to 32'.format(images, *x.shape[1:]))
    missing = [32 - n for n in x.shape[1:]]
    x = np.pad(x, [(0, 0)] + [(n // 2, n - n // 2) for n in missing])
    return LabelledImages(np.repeat(x[:, None], 3, axis=1), t.astype(np.int32))


def _find(name, data):
    if data is None:
        return download.fetch(URL + name + '.gz', *FILES[name])
    for suffix in ('', '.gz'):
        # Some unpackers replace the last hyphen by a dot.
        for known in (name, name.replace('-idx', '.idx')):
            path = os.path.join(data, known + suffix)
            if os.path.isfile(path):
                return path
    raise InputError(f'`data` {data}: {name} is missing, with or without .gz')


def _read(path, dimensions):
    """Return the array in an IDX file of unsigned bytes."""
    try:
        raw = files.read_bounded(path, _MOST)
        if path.endswith('.gz'):
            raw = archives.gunzip(io.BytesIO(raw), _MOST)
    except (OSError, ValueError, zlib.error) as e:
        raise InputError(
            '{}: cannot be read ({}); fetch it again'.format(
                path, getattr(e, 'strerror', None) or e
            )
        ) from e
    head = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) < head:
        raise InputError(
            '{}: not an IDX file of bytes in {} dimension{}'.format(
                path, dimensions, 's' * (dimensions > 1)
            )
        )
    shape = struct.unpack(f'>{dimensions}I', raw[4:head])
    if math.prod(shape) != len(raw) - head:
        raise InputError(
            '{}: {:,} bytes where {} are {:,}; it is cut short: fetch it again'.format(
                path, len(raw) - head, ' x '.join(map(str, shape)), math.prod(shape)
            )
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)
