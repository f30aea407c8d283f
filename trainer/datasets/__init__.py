"""Where images come from, one module a dataset; and how batches of them are made.

A dataset's module has ``load(data)``, which returns a :class:`Dataset`; ``data`` is
what ``--data`` gives, or ``None``; and where their number is fixed, its ``CLASSES``.
"""

import collections
import importlib
import pkgutil

# Modules here that are no datasets.
_OTHERS = {'archives', 'cifar_files', 'class_names', 'download', 'loading', 'parallel', 'splits'}

#: Images in memory: images, uint8 (images, 3, height, width), RGB; labels, int32 (images,).
LabelledImages = collections.namedtuple('LabelledImages', 'images labels')

#: name (str); classes (list of str); train and test: LabelledImages, or files
#: (:class:`trainer.datasets.folder.ImageFiles`), test ``None`` where there is no split
#: yet (:mod:`trainer.datasets.splits`); mirror (bool): whether a mirrored image shows
#: the same class; notes (sequence of str): what a user should know about the images.
Dataset = collections.namedtuple(
    'Dataset', 'name classes train test mirror notes', defaults=(True, ())
)


def available():
    """Return the names of the datasets: the modules here, but for those that read them."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _OTHERS)


def load(name, data=None):
    """Load a dataset.

    Args:
        name (str): One of :func:`available`.
        data (str): A folder or file to read it from; ``None``: the dataset's own way.

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
