"""Evaluation of networks on labelled images in files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainer import files
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.metrics import Tally

if TYPE_CHECKING:
    from trainer.datasets.folder import ImageFiles
    from trainer.inference.model import Model
    from trainer.inference.predictors import Predictor


class Evaluation(NamedTuple):
    """The result of :func:`evaluate`.

    Attributes:
        tally: Counts over the images that could be read.
        unreadable: (path, error) of the other images.
        seconds: Duration.
        computed_by: The engine and its precision.
    """

    tally: Tally
    unreadable: list[tuple[str, str]]
    seconds: float
    computed_by: str


def evaluate(
    networks: Sequence[Model | Predictor],
    images: ImageFiles,
    batch: int = 64,
    divide: int = 1,
    ten_crop: bool = False,
    workers: int | None = None,
    progress: Callable[[int, Tally], object] | None = None,
    each: Callable[[np.ndarray, np.ndarray, np.ndarray], object] | None = None,
) -> Evaluation:
    """Measure loss and accuracy of networks on images.

    Images that cannot be read are reported and not counted.

    Args:
        networks: One network, or several, whose posterior probabilities are averaged; see
            :func:`trainer.inference.prediction.predictors`.
        images: The images.
        batch: Images, or crops, in a batch.
        divide: Chunks in which each batch is computed.
        ten_crop: Whether to average over ten crops of each image.
        workers: Processes that load images; ``None``: one per core; 0: this process.
        progress: Called with (number of images, Tally) after each batch.
        each: Called after each batch with indices, labels and scores of the images that could be
            read (:class:`trainer.reports.results.Results`).

    Returns:
        Evaluation

    Raises:
        trainer.errors.InputError: The networks cannot be used together, the labels do
            not fit them, or no image could be read.
    """
    computing = prediction.averaged(networks)
    labels = images.labels_for(computing[0].network)
    tally = Tally(computing[0].network.category_num)

    def count(x, read, items):
        if len(read):
            scores = prediction.scores(computing, x, _chunk(batch, divide))
            tally.add(scores, labels[items[read]])
            if each is not None:
                each(items[read], labels[items[read]], scores)
        if progress is not None:
            progress(len(items), tally)

    start = time.perf_counter()
    unreadable = _each_batch(computing, images, batch, ten_crop, workers, count)
    return Evaluation(tally, unreadable, time.perf_counter() - start, computing[0].description)


def features(
    network: Model | Predictor,
    images: ImageFiles,
    write: Callable[[np.ndarray], object],
    batch: int = 64,
    divide: int = 1,
    ten_crop: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, str]]:
    """Compute the classifier's inputs, averaged over ten crops if there are.

    Args:
        network: The network.
        write: Called with float32 (images of a batch, channels), in the order of ``images``; rows
            of images that could not be read are nan.
        progress: Called with (number of images) after each batch.
        images, batch, divide, ten_crop, workers: See :func:`evaluate`.

    Returns:
        (path, error) of the images that could not be read.

    Raises:
        trainer.errors.InputError: No image could be read.
    """
    (predictor,) = prediction.predictors([network])

    def keep(x, read, items):
        rows = np.full((len(items), predictor.network.stages[-1].out_channels), np.nan, np.float32)
        if len(read):
            h = prediction.compute(predictor.features, x, _chunk(batch, divide))
            rows[read] = (h.mean(axis=1) if ten_crop else h)[..., 0, 0]
        write(rows)

    return _each_batch([predictor], images, batch, ten_crop, workers, keep, progress)


def save_features(
    path: str, network: Model | Predictor, images: ImageFiles, **kwargs: Any
) -> list[tuple[str, str]]:
    """Write :func:`features` as an npy file, float32 (images, channels).

    A JSON file of the same name describes the rows: ``images`` (paths), ``labels``,
    ``categories`` and ``unreadable`` (path and error of each). Both appear whole or not at all.

    Args:
        path: The npy file.
        network, images, kwargs: See :func:`features`.

    Returns:
        See :func:`features`.

    Raises:
        trainer.errors.InputError: The name does not end in ``.npy``, or no image
            could be read.
    """
    check_features(path)
    name = os.path.splitext(path)[0]
    (predictor,) = prediction.predictors([network])
    with files.replacing(path) as unfinished, open(unfinished, 'wb') as f:
        np.lib.format.write_array_header_1_0(
            f,
            {
                'descr': '<f4',
                'fortran_order': False,
                'shape': (len(images), predictor.network.stages[-1].out_channels),
            },
        )
        unreadable = features(
            predictor, images, lambda rows: f.write(rows.astype('<f4').data), **kwargs
        )
        f.flush()
        files.save_json(
            name + '.json',
            {
                'images': list(map(os.fspath, images.paths)),
                'labels': images.labels.tolist(),
                'categories': images.categories,
                'unreadable': [{'path': path, 'error': error} for path, error in unreadable],
            },
        )
    return unreadable


def check_features(path: str) -> None:
    """Check that :func:`save_features` can write a file.

    Raises:
        trainer.errors.InputError: It cannot.
    """
    if os.path.splitext(path)[1] != '.npy':
        raise InputError(f'`features` {path}: a name that ends in .npy is wanted')
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise InputError(f'`features` {path}: there is no such folder')


def _chunk(batch, divide):
    return max(1, batch // divide)


def _each_batch(predictors, images, batch, ten_crop, workers, use, progress=None):
    """Call ``use`` with each batch: (readable images, their places in the batch, all indices).

    Returns:
        list: (path, error) of the images that could not be read.
    """
    load = prediction.ImageLoader(
        prediction.preprocessing([predictor.network for predictor in predictors]),
        images.paths,
        ten_crop,
        prediction.take_rows(predictors),
        images.upright,
    )
    unreadable = []
    for items, x, errors in load.batches(batch, workers):
        unreadable += [(os.fspath(images.paths[items[i]]), errors[i]) for i in sorted(errors)]
        read = np.array([i for i in range(len(items)) if i not in errors], int)
        use(x[read] if errors else x, read, items)
        if progress is not None:
            progress(len(items))
    if len(unreadable) == len(images):
        raise InputError(
            'none of the {} images could be read; the first: {}: {}'.format(
                len(images), *unreadable[0]
            )
        )
    return unreadable
