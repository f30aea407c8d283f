"""Where images come from, one module a dataset; and how batches of them are made.

A dataset's module has ``load(data)``, which returns a :class:`Dataset`; ``data`` is
what ``--data`` gives, or ``None``; and where their number is fixed, its ``CLASSES``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from trainer.datasets.folder import ImageFiles

# Modules here that are no datasets.
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
        name: What it is called.
        classes: The names of its classes.
        train: Images in memory or in files.
        test: Likewise; ``None`` where there is no split yet (:mod:`trainer.datasets.splits`).
        mirror: Whether a mirrored image shows the same class.
        notes: What a user should know about the images.
    """

    name: str
    classes: list[str]
    train: LabelledImages | ImageFiles
    test: LabelledImages | ImageFiles | None
    mirror: bool = True
    notes: Sequence[str] = ()


def available() -> list[str]:
    """Return the names of the datasets: the modules here, but for those that read them."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _OTHERS)


def load(name: str, data: str | None = None) -> Dataset:
    """Load a dataset.

    Args:
        name: One of :func:`available`.
        data: A folder or file to read it from; ``None``: the dataset's own way.

    Returns:
        Dataset

    Raises:
        trainer.errors.InputError: It cannot be read or fetched.
    """
    return _module(name).load(data)


def class_count(name: str) -> int | None:
    """Return the number of classes of a dataset; ``None`` where its class folders tell."""
    return getattr(_module(name), 'CLASSES', None)


def _module(name):
    return importlib.import_module(f'{__name__}.{name}')
