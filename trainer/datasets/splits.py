"""Splits a dataset that has no test images, and records the split.

The split is stratified: it takes the same share of each class. It is a function of the seed and
the names of the images, and is recorded in the run's folder, so that resuming and testing use
the same split, wherever the images are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import files
from trainer.datasets.folder import ImageFiles
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.datasets import Dataset

#: Name of the record in a run's folder.
RECORD = 'split.json'

#: Share of each class's images that is for testing; at least one image.
SHARE = 0.2

# Distinguishes the split from other draws of the same seed (trainer.transforms).
_SPLIT = 1 << 33


def make(images: ImageFiles, seed: int) -> dict[str, Any]:
    """Choose images for testing.

    Args:
        images: All images.
        seed: The run's seed.

    Returns:
        The record: ``seed``, ``share`` and ``test``, the sorted names of the chosen images.

    Raises:
        trainer.errors.InputError: A class has fewer than two images.
    """
    counts = np.bincount(images.labels, minlength=len(images.categories))
    small = [images.categories[i] for i in np.flatnonzero(counts < 2)]
    if small:
        raise InputError(
            '`data` {}: {} of {} classes {} one image only, which leaves none for testing: {}; '
            'add images, remove these folders, or divide all into DIR/train and DIR/val'.format(
                images.root,
                len(small),
                len(counts),
                'has' if len(small) == 1 else 'have',
                ', '.join(small[:5]) + ', ...' * (len(small) > 5),
            )
        )
    chosen = []
    for label in range(len(images.categories)):
        own = np.flatnonzero(images.labels == label)
        n = min(max(1, round(SHARE * len(own))), len(own) - 1)
        chosen += np.random.default_rng((seed, label, _SPLIT)).permutation(own)[:n].tolist()
    names = images.names()
    return {'seed': seed, 'share': SHARE, 'test': sorted(names[i] for i in chosen)}


def apply(dataset: Dataset, split: dict[str, Any]) -> Dataset:
    """Divide a dataset according to a record.

    Args:
        dataset: A dataset with all images in ``train``.
        split: From :func:`make` or :func:`read`.

    Raises:
        trainer.errors.InputError: An image in the record is missing.
    """
    images = dataset.train
    assert isinstance(images, ImageFiles)  # images in memory are divided already
    chosen, names = set(split['test']), images.names()
    missing = chosen - set(names)
    if missing:
        raise InputError(
            f'{images.root}: {len(missing)} of the images that {RECORD} keeps for testing are '
            f'not there; the first: {min(missing)}'
        )
    test = np.array([name in chosen for name in names])
    return dataset._replace(
        train=images.take(np.flatnonzero(~test)), test=images.take(np.flatnonzero(test))
    )


def read(path: str) -> dict[str, Any]:
    """Read a record.

    Raises:
        trainer.errors.InputError: The record is missing or damaged.
    """
    try:
        split = files.read_json(path)
        names = split['test']
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError('no names')
        return split
    except OSError as e:
        raise InputError(
            f'{path}: cannot be read ({e.strerror}); it says which images are for testing'
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f'{path}: damaged ({e}); it said which images are for testing') from e
