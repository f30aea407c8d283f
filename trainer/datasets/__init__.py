"""Datasets, one module each, and the loading of batches.

The module of a dataset has ``load(data)``, which returns a :class:`Dataset`; ``data`` is
the value of ``--data``, or ``None``. If the number of classes is fixed, it has ``CLASSES``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from trainer.datasets.folder import ImageFiles

# Modules of this package that are not datasets.
_OTHERS = {'archives', 'cifar_files', 'class_names', 'download', 'loading', 'parallel', 'splits'}


class LabelledImages(NamedTuple):
    """Images in memory.

    Attributes:
        images: uint8 (images, 3, height, width), RGB.
        labels: int32 (images,).
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Images for training and for testing.

    Attributes:
        name: Name of the dataset.
        classes: Names of its classes.
        train: Images in memory or in files.
        test: Images in memory or in files; ``None``: not divided yet
            (:mod:`trainer.datasets.splits`).
        mirror: Whether a mirrored image shows the same class.
        notes: Notes for the user.
    """

    name: str
    classes: list[str]
    train: LabelledImages | ImageFiles
    test: LabelledImages | ImageFiles | None
    mirror: bool = True
    notes: Sequence[str] = ()


def available() -> list[str]:
    """Return the names of the datasets: those of their modules."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _OTHERS)


def load(name: str, data: str | None = None) -> Dataset:
    """Load a dataset.

    Args:
        name: One of :func:`available`.
        data: Folder or file of the dataset; ``None``: the dataset's default.

    Returns:
        Dataset

    Raises:
        trainer.errors.InputError: The dataset cannot be read or downloaded.
    """
    return _module(name).load(data)


def class_count(name: str) -> int | None:
    """Return the number of classes of a dataset; ``None`` if it depends on class folders."""
    return getattr(_module(name), 'CLASSES', None)


def _module(name):
    return importlib.import_module(f'{__name__}.{name}')
