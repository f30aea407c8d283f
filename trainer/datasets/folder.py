"""Folders of images, and folders of class folders as a dataset: Tiny-ImageNet, MiniImageNet,
Caltech-101 and -256, or users' own images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import files
from trainer.datasets import Dataset, class_names
from trainer.errors import InputError
from trainer.transforms.decoding import SUFFIXES

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Source

#: Names of folders for testing, next to ``train``; the first that exists is used.
TEST_FOLDERS = ('val', 'valid', 'validation', 'test')

#: Folders of Caltech-101 and Caltech-256 with images of no class.
NO_CLASSES = ('BACKGROUND_Google', '257.clutter')

_LAYOUT = 'wanted is DIR/train/<class>/<image> and DIR/val/<class>/<image>, or DIR/<class>/<image>'


class ImageFiles:
    """Image files and their labels.

    Args:
        paths: The files, or :class:`trainer.transforms.decoding.Encoded`.
        labels: Index of the category of each image.
        categories: Synsets, or names of class folders.
        root: The folder that contains all of them.
        upright: Whether they are turned upright by their EXIF orientation.

    Attributes:
        paths, categories: See above.
        labels: int32 (images,).
    """

    def __init__(
        self,
        paths: Sequence[Source],
        labels: Sequence[int] | np.ndarray,
        categories: list[str],
        root: str = '',
        upright: bool = False,
    ) -> None:
        self.paths: list[Any] = list(paths)  # images in memory are their own paths
        self.labels: np.ndarray = np.asarray(labels, np.int32)
        self.categories = list(categories)
        self.root = root
        self.upright = upright

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Return some of the images, with the same categories."""
        paths = [self.paths[i] for i in np.asarray(indices).tolist()]
        return ImageFiles(paths, self.labels[indices], self.categories, self.root, self.upright)

    def names(self) -> list[str]:
        """Return the paths relative to ``root``."""
        skip = len(os.path.join(self.root, ''))
        return [os.fspath(path)[skip:].replace(os.sep, '/') for path in self.paths]

    def digest(self) -> str:
        """Return a hexadecimal digest of names and labels, which does not depend on contents."""
        lines = '\n'.join(map('{}\t{}'.format, self.names(), self.labels.tolist()))
        return hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()

    def labels_for(self, network: Network) -> np.ndarray:
        """Return the labels as indices of a network's classes.

        Categories are looked up among the network's class names, then, for a network of
        1000 classes, among ImageNet's synsets; in both cases not all classes need to occur.
        Otherwise there must be as many categories as classes, in sorted order; if the
        network has class names, at least one must be among them.

        Returns:
            int32 (images,).

        Raises:
            trainer.errors.InputError: Categories and classes do not match.
        """
        for classes in (network.classes, class_names.synsets(network)):
            if classes is not None and set(self.categories) <= set(classes):
                number = {name: i for i, name in enumerate(classes)}
                table = [number[category] for category in self.categories]
                return np.array(table, np.int32)[self.labels]
        strange = network.classes is not None and not set(network.classes) & {
            *self.categories,
            *class_names.named(self.categories),
        }
        if strange or len(self.categories) != network.category_num:
            raise InputError(
                'the images are of {} classes ({}), the network has {}{}'.format(
                    len(self.categories),
                    _some(self.categories),
                    network.category_num,
                    ' and knows no such names'
                    if network.classes is None
                    else f' ({_some(network.classes)})',
                )
            )
        return self.labels


def _some(names):
    return ', '.join(names[:2]) + (', ...' if len(names) > 2 else '')


def _visible(names):
    return sorted(name for name in names if not name.startswith('.'))


def _fail(error):
    raise error


def images_below(folder: str) -> list[str]:
    """Return the image files, by suffix, in a folder and its subfolders, sorted.

    Args:
        folder: The folder. Hidden files and folders are skipped.
    """
    paths = []
    for here, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = _visible(folders)
        paths += [
            os.path.join(here, name) for name in _visible(names) if name.lower().endswith(SUFFIXES)
        ]
    return paths


def class_folders(root: str) -> ImageFiles:
    """Find images sorted into class folders: ``root/n01440764/anything.JPEG``.

    Args:
        root: A folder. Its subfolders, including empty ones, are the classes, sorted by name.

    Returns:
        ImageFiles

    Raises:
        trainer.errors.InputError: There are no images in subfolders.
    """
    categories = [
        name for name in _visible(os.listdir(root)) if os.path.isdir(os.path.join(root, name))
    ]
    paths, labels = [], []
    for label, category in enumerate(categories):
        found = images_below(os.path.join(root, category))
        paths += found
        labels += [label] * len(found)
    if not paths:
        if any(name.lower().endswith(SUFFIXES) for name in _visible(os.listdir(root))):
            raise InputError(
                f'{root}: holds images, but no class folders; wanted is '
                f'{os.path.join(root, "n01440764", "anything.JPEG")}, or, one level higher, '
                f'{os.path.dirname(os.path.abspath(root))}'
            )
        raise InputError(
            '{}: no images in class folders; wanted is {} (or another suffix of {})'.format(
                root, os.path.join(root, 'n01440764', 'anything.JPEG'), ', '.join(SUFFIXES)
            )
        )
    return ImageFiles(paths, labels, categories, root)


def load(data: str | None = None) -> Dataset:
    """Load a folder of class folders as a dataset.

    Args:
        data: A folder with ``train/<class>/`` and ``val/<class>/`` (or another of
            :data:`TEST_FOLDERS`; or, as Tiny-ImageNet has it, ``val/images/`` and
            ``val/val_annotations.txt``), or with ``<class>/``; images may be in subfolders.
            Folders of :data:`NO_CLASSES` are skipped.

    Returns:
        A dataset of files, whose images are turned upright; ``test`` is ``None`` if there are no
        images for testing. The classes are the names of the folders, sorted.

    Raises:
        trainer.errors.InputError: There are no class folders, one has no images, or
            training and testing have different ones.
    """
    if data is None:
        raise InputError(f'`dataset` folder: `data` DIR says which; {_LAYOUT}')
    if not os.path.isdir(data):
        raise InputError(f'`data` {data}: not a folder; {_LAYOUT}')
    root, test = data, None
    # A class may have this name, too: its folder then holds images, not folders.
    if _subfolders(os.path.join(data, 'train')):
        root = os.path.join(data, 'train')
        test = next(
            (path for name in TEST_FOLDERS if os.path.isdir(path := os.path.join(data, name))), None
        )
    train = _classes_of(class_folders(root))
    if test is not None:
        test = _classes_of(_annotated(test) or class_folders(test))
    for part in (train, test):
        if part is not None:
            part.upright = True
    left_out = sorted({c for c in _subfolders(root) if c in NO_CLASSES})
    notes = [
        f'left out {os.path.join(root, name)}: images of anything are no class; another '
        'name of the folder keeps them'
        for name in left_out
    ]
    return dataset('folder', train, test, notes + _beside(data))


def _beside(data):
    """Return a list with a note if there are folders for testing next to a folder ``train``."""
    above, name = os.path.split(os.path.abspath(data))
    there = [test for test in TEST_FOLDERS if os.path.isdir(os.path.join(above, test))]
    if name != 'train' or not there:
        return []
    return [f'{os.path.join(above, there[0])} is not used; --data {above} takes it for testing']


def dataset(
    name: str, train: ImageFiles, test: ImageFiles | None, notes: Sequence[str] = ()
) -> Dataset:
    """Make a dataset of files, after checking that its classes can be trained and tested.

    Args:
        name: Name of the dataset.
        train: Images for training.
        test: Images for testing, or ``None``.
        notes: Notes for the user.

    Raises:
        trainer.errors.InputError: See :func:`load`.
    """
    if len(train.categories) < 2:
        only = os.path.join(train.root, train.categories[0])
        if inner := _subfolders(only):
            raise InputError(
                f'{train.root}: one level too high: its only folder is {train.categories[0]}, '
                f'which holds {len(inner)} folders; {only} may be meant'
            )
        raise InputError(
            f'{train.root}: one class folder only, {train.categories[0]}; two or more are wanted'
        )
    for part in (train, test):
        if part is None:
            continue
        empty = np.flatnonzero(np.bincount(part.labels, minlength=len(part.categories)) == 0)
        if len(empty):
            raise InputError(
                f'{os.path.join(part.root, part.categories[empty[0]])}: a class folder without '
                'images; put some there, or remove it'
            )
    if test is not None and test.categories != train.categories:
        parts = []
        for some, others in ((train, test), (test, train)):
            own = sorted(set(some.categories) - set(others.categories))
            if own:
                parts.append(
                    '{} only in {} ({})'.format(
                        len(own), some.root, ', '.join(own[:3]) + ', ...' * (len(own) > 3)
                    )
                )
        raise InputError(
            'training and testing have different classes: {}; where classes, not '
            'images, are divided, put all of them into one folder'.format(' and '.join(parts))
        )
    return Dataset(name, train.categories, train, test, notes=tuple(notes))


def _subfolders(folder):
    return (
        [
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith('.')
        ]
        if os.path.isdir(folder)
        else []
    )


def _classes_of(images):
    """Skip the folders of :data:`NO_CLASSES`."""
    kept = [c for c in images.categories if c not in NO_CLASSES]
    if len(kept) == len(images.categories):
        return images
    number = [kept.index(c) if c in kept else -1 for c in images.categories]
    labels = np.array(number, np.int32)[images.labels]
    some = images.take(np.flatnonzero(labels >= 0))
    return ImageFiles(some.paths, labels[labels >= 0], kept, images.root, images.upright)


def _annotated(folder):
    """Find images with labels in a list: ``images/*`` and ``val_annotations.txt`` (Tiny-ImageNet).

    Returns:
        ImageFiles: ``None`` if there is no such list.
    """
    listing = os.path.join(folder, 'val_annotations.txt')
    if not os.path.isfile(listing):
        return None
    try:
        rows = [line.split('\t')[:2] for line in files.read_lines(listing) if line.strip()]
        names, categories = zip(*rows)
    except OSError as e:
        raise InputError(f'{listing}: cannot be read ({e.strerror})') from e
    except ValueError as e:  # or not UTF-8
        raise InputError(f'{listing}: not a list of images and their classes, tabs between') from e
    paths = [os.path.join(folder, 'images', name) for name in names]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        raise InputError(f'{missing}: missing, but {listing} names it')
    known = sorted({c.strip() for c in categories})
    number = {c: i for i, c in enumerate(known)}
    return ImageFiles(paths, [number[c.strip()] for c in categories], known, folder)


def expand(paths: Sequence[str]) -> list[str]:
    """Replace each folder by the image files in it and its subfolders.

    Args:
        paths: Files and folders.

    Returns:
        Files; files in ``paths`` stay as they are.

    Raises:
        trainer.errors.InputError: There is no image in a folder.
    """
    expanded = []
    for path in paths:
        found = images_below(path) if os.path.isdir(path) else [path]
        if not found:
            raise InputError(
                '{}: no images in this folder; they are known by their suffixes, {}'.format(
                    path, ', '.join(SUFFIXES)
                )
            )
        expanded += found
    return expanded
