"""The folder of a run: record, snapshots, models, and the images for testing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from typing import TYPE_CHECKING, Any

import chainer
import filelock
import numpy as np
import PIL
from PIL import Image

from trainer import datasets, earlier, files
from trainer.datasets import Dataset, splits
from trainer.datasets.folder import ImageFiles
from trainer.errors import InputError
from trainer.recipes.flags import from_json
from trainer.weights import description

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.recipes.options import Options

#: Name of the file that holds the options of a run.
RECORD = 'run.json'

#: Names of everything else that a run writes to its folder, except snapshots.
OUTPUTS = (
    RECORD,
    splits.RECORD,
    'log.json',
    'loss.jpg',
    'accuracy.jpg',
    'confusion.jpg',
    'confusion.json',
    'model',
    'tensorboard',
)

_SNAPSHOT = re.compile(r'snapshot_iter_(\d+)')


def updates_of(name: str) -> int | None:
    """Return the update of a snapshot, from its file name; ``None`` for other files."""
    match = _SNAPSHOT.fullmatch(name)
    return int(match[1]) if match else None


def snapshots(folder: str) -> list[str]:
    """Return the snapshots in a folder, newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [(n, name) for name in names if (n := updates_of(name)) is not None]
    return [os.path.join(folder, name) for _, name in sorted(found, reverse=True)]


def read_record(folder: str) -> dict[str, Any]:
    """Read the record of a run from its folder.

    Returns:
        Options, images, network, versions; see :func:`write_record`.

    Raises:
        trainer.errors.InputError: There is no run, or its record is damaged or missing.
    """
    path = os.path.join(folder, RECORD)
    try:
        record = files.read_json(path)
        if 'pictures' in record:  # as version 1.0 named them
            record.setdefault('images', record.pop('pictures'))
        for part in ('options', 'network'):
            if not isinstance(record[part], dict):
                raise ValueError(f'no {part}')
        if not isinstance(record.get('images', {}), dict):
            raise ValueError('no images')
        record['options'] = from_json(record['options'])
        return record
    except FileNotFoundError:
        if snapshots(folder):
            raise InputError(
                f'{path}: gone, though there are snapshots beside it; give the options of '
                'the run and its newest snapshot with -o'
            ) from None
        raise InputError(
            f'{folder}: no run: there is no {RECORD}; python main.py -p {folder} begins one'
        ) from None
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f'{path}: damaged ({e}); it cannot be resumed') from e


def describe(dataset: Dataset) -> dict[str, Any]:
    """Describe the images on which a run is trained, for :func:`check_images`.

    Returns:
        Dict: name; train and test, numbers of images; digest of names and labels.
    """

    def digest(part):
        return (
            part.digest()
            if hasattr(part, 'digest')
            else hashlib.sha256(part.labels.astype('<i4').tobytes()).hexdigest()
        )

    parts = {name: getattr(dataset, name) for name in ('train', 'test')}
    said = {name: len(part.labels) for name, part in parts.items() if part is not None}
    return dict(
        said,
        name=dataset.name,
        digest=''.join(digest(part) for part in parts.values() if part is not None),
    )


def check_images(folder: str, images: dict[str, Any]) -> None:
    """Refuse to resume a run with other images than it began with.

    Args:
        folder: The run's folder.
        images: From :func:`describe`.

    Raises:
        trainer.errors.InputError: The images are not the same.
    """
    began = read_record(folder).get('images', images)
    # If the project divides the images, all are described as 'train'.
    divided = 'test' in began or 'test' in images
    for name in ('train', 'test'):
        if images.get(name) != began.get(name):
            raise InputError(
                '{}: the run began with {} images{}, now there are {}; give it '
                'those back, or start another run (-m takes its model over)'.format(
                    folder,
                    began.get(name, 'no'),
                    f' for {name}ing' if divided else ' in all',
                    images.get(name, 'none'),
                )
            )
    if images != began:
        raise InputError(
            f'{folder}: the run began with other images (as many, but other names or '
            'classes); give it those back, or start another run (-m takes its model '
            'over)'
        )


def write_record(folder: str, used: Options, network: Network, images: dict[str, Any]) -> None:
    """Write the record of a run, with which it can be resumed and compared.

    Args:
        folder: The run's folder.
        used: The run's options.
        network: The network that is trained.
        images: From :func:`describe`.
    """
    record = {
        'options': dataclasses.asdict(used),
        'images': images,
        'network': description.of(network),
        'versions': {
            'python': platform.python_version(),
            'numpy': np.__version__,
            'chainer': chainer.__version__,
            'pillow': PIL.__version__,
        },
    }
    with files.replacing(os.path.join(folder, RECORD)) as path, open(path, 'w') as f:
        json.dump(record, f, indent=1)


def claim(folder: str, resume: bool) -> filelock.BaseFileLock:
    """Create a folder and lock it; return the lock.

    To resume a run, its record must exist; otherwise nothing is created.

    Raises:
        trainer.errors.InputError: Another run is writing there, or the folder is not writable.
    """
    if resume and not earlier.is_split(folder):
        read_record(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = filelock.FileLock(os.path.join(folder, '.lock'))
        lock.acquire(timeout=2)  # seconds: a run that was just killed may still be ending
        if earlier.is_split(folder):
            earlier.put_back(folder)
        return lock
    except filelock.Timeout:
        raise InputError(
            f'-p {folder}: another run is writing there; choose another folder'
        ) from None
    except (OSError, NotImplementedError) as e:
        reason = getattr(e, 'strerror', None) or e
        raise InputError(f'-p {folder}: cannot be written ({reason}); choose another folder') from e


def outputs(folder: str) -> list[str]:
    """Return the names of the files that a run left in a folder."""
    left = [name for name in OUTPUTS if os.path.lexists(os.path.join(folder, name))]
    return left + [os.path.basename(path) for path in snapshots(folder)]


def begin(
    folder: str,
    used: Options,
    network: Network,
    images: dict[str, Any],
    split: dict[str, Any] | None = None,
) -> None:
    """Prepare the folder for a run: remove unfinished files, write the record and the split.

    Args:
        folder: The run's folder.
        used, network, images: See :func:`write_record`.
        split: From :func:`trainer.datasets.splits.make`, or ``None``.
    """
    files.remove_unfinished(folder, lambda name: name in OUTPUTS or updates_of(name) is not None)
    models = os.path.join(folder, 'model')
    os.makedirs(models, exist_ok=True)
    files.remove_unfinished(models, lambda name: name.endswith('.model'))
    if split is not None:
        files.save_json(os.path.join(folder, splits.RECORD), split)
    write_record(folder, used, network, images)


def read_split(folder: str) -> dict[str, Any]:
    """Return how a run divided its dataset; see :func:`trainer.datasets.splits.read`."""
    return splits.read(os.path.join(folder, splits.RECORD))


def dataset(folder: str | None = None, name: str | None = None, data: str | None = None) -> Dataset:
    """Load a dataset, divided for training and testing as in a run.

    Args:
        folder: The run's folder, or ``None``.
        name: Name from :func:`trainer.datasets.available`; ``None``: the run's dataset.
        data: Path of the dataset; ``None``: the run's path, or the dataset's default.

    Returns:
        The dataset; ``test`` is ``None`` if nothing divides it.

    Raises:
        trainer.errors.InputError: The dataset cannot be loaded.
    """
    used = read_record(folder)['options'] if folder is not None else {}
    own = 'quick' if used.get('quick') else used.get('dataset')
    if name in (None, own):
        name, data = own, data or used.get('data')
    if name is None:
        raise InputError('`dataset`: there is no run that says which')
    loaded = datasets.load(name, data)
    if loaded.test is None and folder is not None and name == own:
        loaded = splits.apply(loaded, read_split(folder))
    return loaded


def images(dataset: Dataset, part: str = 'test') -> ImageFiles:
    """Return images in the form that :func:`trainer.inference.evaluation.evaluate` takes.

    Args:
        dataset: A dataset in memory or in files.
        part: 'test' or 'train'; if nothing divides the dataset, all images are returned.

    Returns:
        The labelled images; for images in memory, paths are PIL.Image.Image.
    """
    chosen = dataset.test if part == 'test' and dataset.test is not None else dataset.train
    if isinstance(chosen, ImageFiles):
        return chosen
    return ImageFiles(
        [
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            for image in chosen.images
        ],
        chosen.labels,
        dataset.classes,
    )


def check_no_run(folder: str) -> None:
    """Check that an evaluation may write its ``log.json`` to a folder.

    Raises:
        trainer.errors.InputError: There is a run, which has a ``log.json`` of its own.
    """
    if os.path.exists(os.path.join(folder, RECORD)):
        raise InputError(f'-p {folder}: the log.json there is that of a run; choose another folder')
