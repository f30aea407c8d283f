"""Folders of pictures, and folders of class folders."""
import os

import numpy as np

from trainer.datasets import class_names
from trainer.errors import InputError
from trainer.transforms.pictures import SUFFIXES


class PictureFiles:
    """Picture files and what they show.

    Args:
        paths (list of str): The files.
        labels (sequence of int): For each, the index of its category.
        categories (list of str): Synsets, or names of class folders.

    Attributes:
        paths (list of str): As given. categories (list of str): As given.
        labels (numpy.ndarray): int32 (pictures,).
    """

    def __init__(self, paths, labels, categories):
        self.paths = list(paths)
        self.labels = np.asarray(labels, np.int32)
        self.categories = list(categories)

    def __len__(self):
        return len(self.paths)

    def labels_for(self, network):
        """Return the labels by the numbers that a network's classes have.

        The categories are looked up among the network's own class names; then, for a
        network of 1000 classes, among ImageNet's synsets, so that some of them will do;
        otherwise the sorted categories must be as many as the classes.

        Returns:
            numpy.ndarray: int32 (pictures,).

        Raises:
            trainer.errors.InputError: They do not match.
        """
        for classes in (network.classes, class_names.synsets(network)):
            if classes is not None and set(self.categories) <= set(classes):
                number = {name: i for i, name in enumerate(classes)}
                table = [number[category] for category in self.categories]
                return np.array(table, np.int32)[self.labels]
        if len(self.categories) != network.category_num:
            raise InputError(
                '-ld: the pictures are of {} classes ({}), the network has {}{}'.format(
                    len(self.categories), _some(self.categories), network.category_num,
                    ' and knows no such names' if network.classes is None else
                    ' ({})'.format(_some(network.classes))))
        return self.labels


def _some(names):
    return ', '.join(names[:2]) + (', ...' if len(names) > 2 else '')


def _visible(names):
    return sorted(name for name in names if not name.startswith('.'))


def _fail(error):
    raise error


def pictures_below(folder):
    """Return the picture files in a folder and below it, sorted, known by their suffixes.

    Args:
        folder (str): The folder. Hidden files and folders are left out.
    """
    paths = []
    for here, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = _visible(folders)
        paths += [os.path.join(here, name) for name in _visible(names)
                  if name.lower().endswith(SUFFIXES)]
    return paths


def class_folders(root):
    """Find pictures sorted into class folders: ``root/n01440764/anything.JPEG``.

    Args:
        root (str): A folder. Its subfolders are the classes, in the order of their
            names; an empty one counts.

    Returns:
        PictureFiles

    Raises:
        trainer.errors.InputError: There are no pictures in subfolders.
    """
    categories = [name for name in _visible(os.listdir(root))
                  if os.path.isdir(os.path.join(root, name))]
    paths, labels = [], []
    for label, category in enumerate(categories):
        found = pictures_below(os.path.join(root, category))
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InputError(
            '{}: no pictures in class folders; wanted is {} (or another suffix of {})'.format(
                root, os.path.join(root, 'n01440764', 'anything.JPEG'), ', '.join(SUFFIXES)))
    return PictureFiles(paths, labels, categories)


def expand(paths):
    """Replace each folder by the picture files in it and below it.

    Args:
        paths (sequence of str): Files and folders.

    Returns:
        list of str: Files; those that were given, as they are.

    Raises:
        trainer.errors.InputError: There is no picture in a folder.
    """
    files = []
    for path in paths:
        found = pictures_below(path) if os.path.isdir(path) else [path]
        if not found:
            raise InputError('{}: no pictures in this folder; they are known by their suffixes, '
                             '{}'.format(path, ', '.join(SUFFIXES)))
        files += found
    return files
