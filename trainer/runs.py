"""What the folder of a run tells: its options, its models, the pictures it is tested on."""

import os

import numpy as np
from PIL import Image

from trainer import datasets
from trainer.datasets import splits
from trainer.datasets.folder import PictureFiles
from trainer.errors import InputError
from trainer.training import options

#: Reads what a folder says of its run.
record = options.read_record


def model(folder, which='best'):
    """Return the file of a run's model.

    Args:
        folder (str): The run's folder.
        which (str): An epoch's number, or 'best'.

    Raises:
        trainer.errors.InputError: There is none.
    """
    record(folder)
    models = os.path.join(folder, 'model')
    names = os.listdir(models) if os.path.isdir(models) else []
    name = next((n for n in names if n.endswith(f'_{which}.model')), None)
    if name is None:
        raise InputError(
            '{}: no model {} there{}'.format(
                models, which, '' if names else '; there is one after the first epoch'
            )
        )
    return os.path.join(models, name)


def dataset(folder=None, name=None, data=None):
    """Load a dataset, divided for training and testing as a run has it.

    Args:
        folder (str): The run's folder, or ``None``.
        name (str): Of :func:`trainer.datasets.available`; ``None``: the run's.
        data (str): Where it is; ``None``: where the run had it, or its own way.

    Returns:
        trainer.datasets.Dataset: Its ``test`` is ``None`` where nothing divides it.

    Raises:
        trainer.errors.InputError: It cannot be had.
    """
    used = record(folder)['options'] if folder is not None else {}
    own = 'quick' if used.get('quick') else used.get('dataset')
    if name in (None, own):
        name, data = own, data or used.get('data')
    loaded = datasets.load(name, data)
    if loaded.test is None and folder is not None and name == own:
        loaded = splits.apply(loaded, splits.read(os.path.join(folder, splits.RECORD)))
    return loaded


def pictures(dataset, part='test'):
    """Return pictures as :func:`trainer.inference.evaluation.evaluate` takes them.

    Args:
        dataset (trainer.datasets.Dataset): In memory or in files.
        part (str): 'test' or 'train'; all pictures where nothing divides them.

    Returns:
        trainer.datasets.folder.PictureFiles: For pictures in memory, its paths are the
        pictures themselves (PIL.Image.Image).
    """
    chosen = dataset.train if dataset.test is None else getattr(dataset, part)
    if hasattr(chosen, 'paths'):
        return chosen
    return PictureFiles(
        [
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            for image in chosen.images
        ],
        chosen.labels,
        dataset.classes,
    )
