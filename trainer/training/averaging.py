"""Averages the models of a run (stochastic weight averaging, arXiv 1803.05407)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer
import numpy as np
import tqdm

from trainer import run_folder
from trainer.engines import choose
from trainer.errors import InputError
from trainer.reports.comparison import Run
from trainer.training import resolve, transfer
from trainer.training.data import data_path
from trainer.transforms import mixing
from trainer.transforms.table import CLASSES
from trainer.weights import formats, npz

if TYPE_CHECKING:
    from trainer.datasets import parallel
    from trainer.networks.base import Network

#: Name of the averaged model, in place of an epoch's number.
NAME = 'average'


def checkpoints(folder: str, n: int, best: bool = False) -> list[tuple[int, str]]:
    """Choose the models of a run to average.

    Args:
        folder: The run's folder.
        n: Number of models.
        best: Whether to take those with the lowest test error instead of the last.

    Returns:
        (epoch, path), in the order of the epochs.

    Raises:
        trainer.errors.InputError: There are fewer models.
    """
    run_folder.read_record(folder)
    models = os.path.join(folder, 'model')
    names = os.listdir(models) if os.path.isdir(models) else []
    found = {int(m[1]): name for name in names if (m := re.search(r'_(\d+)\.model$', name))}
    if len(found) < n:
        raise InputError(f'-n {n}: there are {len(found)} models in {models}')
    epochs = sorted(found)
    if best:
        errors = {
            row['epoch']: row['test_error'] for row in Run(folder).epochs if 'test_error' in row
        }
        epochs.sort(key=lambda epoch: (-errors.get(epoch, np.inf), epoch))
    return [(epoch, os.path.join(models, found[epoch])) for epoch in sorted(epochs[-n:])]


def mean(paths: list[str]) -> Network:
    """Return a network with the means of the parameters and statistics in files.

    Args:
        paths: Models of one run.

    Returns:
        The network, on the CPU. Sums are computed in float64.

    Raises:
        trainer.errors.InputError: A file is damaged, or holds another network.
    """
    network = formats.load(paths[0])
    held = npz.state(network)
    sums = {name: np.array(array, np.float64) for name, array in held.items() if np.ndim(array)}
    for path in paths[1:]:
        other = npz.state(formats.load(path))
        for name, total in sums.items():
            if name not in other or np.shape(other[name]) != total.shape:
                raise InputError(f'{path}: another network than in {paths[0]}')
            total += other[name]
    for name, total in sums.items():
        held[name][...] = total / len(paths)
    return network


def recompute_statistics(
    network: Network,
    batches: parallel.Iterator,
    chunks: int,
    images: int,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Recompute the statistics of batch normalisation as means over training batches.

    Args:
        network: The network, whose statistics are replaced.
        batches: Training batches.
        chunks: Chunks of a batch, as in training.
        images: Approximate number of images; at most one epoch is used.
        progress: Called with the number of images of each batch.

    Returns:
        Number of images used.
    """
    norms = [link for link in network.links() if isinstance(link, chainer.links.BatchNormalization)]
    decays = [link.decay for link in norms]
    done = k = 0
    try:
        for _ in range(len(batches.plan)):
            x, t, *rows = batches.next()
            n = min(chunks, len(t))
            parts = [np.array_split(array, n) for array in (x, *rows)]
            for part in zip(*parts):
                for link in norms:
                    link.decay = k / (k + 1)  # so that all batches have the same weight
                k += 1
                given = mixing.apply(*part) if rows else part[0]
                with chainer.no_backprop_mode(), chainer.using_config('train', True):
                    network(chainer.Variable(network.device.send(given)))
            done += len(t)
            if progress is not None:
                progress(len(t))
            if done >= images:
                break
    finally:
        batches.finalize()
        for link, decay in zip(norms, decays):
            link.decay = decay
    return done


def average(
    folder: str, n: int = 10, best: bool = False, images: int = 20_000, data: str | None = None
) -> tuple[Network, list[int]]:
    """Average models of a run, with statistics recomputed on its training images.

    Args:
        folder: The run's folder.
        n: Number of models.
        best: Whether to take those with the lowest test error instead of the last.
        images: Approximate number of training images for the statistics, preprocessed, augmented
            and mixed as in the run.
        data: Path of the dataset; ``None``: the run's path.

    Returns:
        The network, on the CPU, and the epochs of the models.

    Raises:
        trainer.errors.InputError: There is no such run, or its models or images cannot be read.
    """
    found = checkpoints(folder, n, best)
    options, _ = resolve.resolve(folder, True, lambda message: None, {})
    options = options.replace(gpu=-1, workers=0)
    dataset = run_folder.dataset(folder, None, data)
    network = mean([path for _, path in found])
    if options.freeze:
        transfer.Frozen(network, options.freeze)
    batches = data_path(dataset, options, CLASSES[options.preprocessing]).train
    total = min(images, len(dataset.train.labels))
    engine, precision, _ = choose(-1, None, True)
    with (
        tqdm.tqdm(total=total, unit='img', desc='statistics', leave=False, ncols=79) as bar,
        chainer.using_config('engine', engine),
        chainer.using_config('precision', precision),
    ):
        recompute_statistics(network, batches, options.train_batch_divide, images, bar.update)
    return network, [epoch for epoch, _ in found]
