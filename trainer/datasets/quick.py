"""3,500 real images of CIFAR-10 that are part of the project, for ``--quick``.

Training: the first 250 images of each class in ``data_batch_1``, in the file's order. Test: the
first 100 of each class in ``test_batch``. They are stored losslessly in ``quick/``, one sheet
per class, in rows of 25 images: ten rows for training, then four for testing.
``python -m trainer.datasets.quick DIR`` makes the sheets from CIFAR-10's binary folder.
"""

import os
import sys

import numpy as np
from PIL import Image

from trainer import files
from trainer.datasets import Dataset, LabelledImages, cifar10
from trainer.errors import InputError

_FOLDER = os.path.join(os.path.dirname(__file__), 'quick')
_COLUMNS, _TRAIN, _TEST = 25, 250, 100

#: Number of classes.
CLASSES = 10


def load(data: str | None = None) -> Dataset:
    """Load the images, class by class.

    Args:
        data: Must be ``None``: the images are part of the project.

    Returns:
        2,500 training and 1,000 test images.

    Raises:
        trainer.errors.InputError: A sheet is missing or damaged.
    """
    if data is not None:
        raise InputError(
            f'`data` {data}: the images of `quick` are part of the project; leave one '
            'of the two out'
        )
    sheets = [_read(os.path.join(_FOLDER, name + '.webp')) for name in cifar10.SPEC.classes]

    def take(chosen):
        images = np.concatenate([sheet[chosen] for sheet in sheets])
        return LabelledImages(
            images, np.repeat(np.arange(len(sheets), dtype=np.int32), len(images) // len(sheets))
        )

    return Dataset(
        'cifar10', list(cifar10.SPEC.classes), take(slice(_TRAIN)), take(slice(_TRAIN, None))
    )


def _read(path):
    rows = (_TRAIN + _TEST) // _COLUMNS
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert('RGB'))
        tiles = sheet.reshape(rows, 32, _COLUMNS, 32, 3)
    except (OSError, ValueError) as e:
        raise InputError(f'{path}: cannot be read ({e}); get the project again') from e
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, 32, 32)


def _make(folder):
    published = cifar10.load(folder)
    os.makedirs(_FOLDER, exist_ok=True)
    for label, name in enumerate(published.classes):
        # data_batch_1 comes first and holds more than 250 of each class.
        images = np.concatenate(
            [
                part.images[np.flatnonzero(part.labels == label)[:n]]
                for part, n in ((published.train, _TRAIN), (published.test, _TEST))
            ]
        )
        tiles = images.reshape(-1, _COLUMNS, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        path = os.path.join(_FOLDER, name + '.webp')
        with files.replacing(path) as unfinished:
            Image.fromarray(np.ascontiguousarray(tiles).reshape(-1, _COLUMNS * 32, 3)).save(
                unfinished, 'WEBP', lossless=True, quality=100, method=6
            )


if __name__ == '__main__':
    _make(sys.argv[1])
