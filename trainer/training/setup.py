"""Sets up a run before it starts: options, engine, dataset, network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer

from trainer import datasets, engines, run_folder
from trainer.datasets import Dataset, splits
from trainer.errors import InputError, together
from trainer.recipes.options import Options
from trainer.reports import tensorboard
from trainer.training import build, schedules, snapshots, transfer
from trainer.training.resolve import resolve
from trainer.weights import formats, npz

if TYPE_CHECKING:
    from trainer.reports.log import Log
    from trainer.training.processes import Alone


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that has not started.

    Attributes:
        folder: Folder of the run.
        options: The complete options.
        resumed: Whether the folder had a record.
        going_on: Whether the folder had snapshots as well.
        device: Device that computes.
        engine, precision: Engine and its precision.
        why: Why a GPU is not used through cuDNN, or ``None``.
        dataset: The dataset, divided for training and testing.
        images: Description of the dataset in the record.
        split: The project's split of the dataset; ``None``: the dataset comes divided.
        network: The network, on the CPU.
    """

    folder: str
    options: Options
    resumed: bool
    going_on: bool
    device: chainer.backend.Device
    engine: str
    precision: str
    why: str | None
    dataset: Dataset
    images: dict
    split: dict | None
    network: chainer.Chain


def set_up(folder: str, resume: bool, say: Callable, given: dict, group: Alone) -> Setup:
    """Resolve the options of a run, load its dataset and build its network.

    Nothing is written. See :func:`trainer.training.run.train` for the arguments.

    Raises:
        trainer.errors.InputError: An option cannot be used.
    """
    options, architecture, going_on = group.first(
        lambda: (
            *resolve(folder, resume, say, given),
            resume and bool(run_folder.snapshots(folder)),
        )
    )
    resumed = architecture is not None

    def load():
        return _dataset(folder, options, resumed, group)

    device, (engine, precision, why), _, _, *loaded = together(
        lambda: group.together(lambda: group.device(options.gpu)),
        lambda: group.first(
            lambda: engines.choose(options.gpu, options.precision, True, options.engine)
        ),
        lambda: group.first(lambda: going_on or _check_files(options)),
        lambda: group.first(lambda: options.tensorboard and tensorboard.need() and None),
        # Other files may have to be downloaded, in vain if there is another error.
        *([load] if options.data is not None or options.quick else []),
    )
    dataset, images, split = loaded[0] if loaded else load()
    if resumed:
        given = dataclasses.asdict(options)  # as before
    network, options = build.network(options, given, architecture, dataset, going_on, say)
    options = options.replace(preprocessing=build.preprocessing(options, given, network, say))
    if options.freeze:
        transfer.check_frozen(network, options.freeze)
    return Setup(
        folder,
        options,
        resumed,
        going_on,
        device,
        engine,
        precision,
        why,
        dataset,
        images,
        split,
        network,
    )


def _check_files(options):
    """Check that named files exist, and that the model is a file of weights."""

    def model():
        if options.load_model is not None:
            formats.kind_of(options.load_model)

    def other(flag, path):
        if path is not None and not os.path.isfile(path):
            raise InputError(f'{flag} {path}: there is no such file')

    together(
        model, lambda: other('-o', options.load_optimizer), lambda: other('-l', options.load_log)
    )


def _dataset(folder, options, resumed, group):
    """Return the divided dataset, its description for the record, and the split."""
    name = 'quick' if options.quick else options.dataset
    dataset = group.in_turn(lambda: datasets.load(name, options.data))
    images = run_folder.describe(dataset)
    if any(other != images for other in group.collect([images])):
        raise InputError(f'`data` {options.data}: the processes find different images there')
    if resumed:
        group.first(lambda: run_folder.check_images(folder, images))
    if dataset.test is not None:
        return dataset, images, None
    split = group.first(
        lambda: (
            run_folder.read_split(folder) if resumed else splits.make(dataset.train, options.seed)
        )
    )
    return splits.apply(dataset, split), images, split


def introduce(setup: Setup, say: Callable, processes: int) -> None:
    """Print what is about to be trained, on what, and how."""
    options, network, dataset = setup.options, setup.network, setup.dataset
    assert dataset.test is not None
    say(f'{network.name}: {npz.describe(network)}, {network.count_parameters():,} weights')
    say(
        f'data: {dataset.name}, {len(dataset.train.labels)} images for training, '
        f'{len(dataset.test.labels)} for testing; {options.preprocessing}'
    )
    for note in dataset.notes:
        say(f'note: {note}')
    say(
        f'recipe: {options.recipe}; batch {options.batch}, {options.optimizer} from learning rate '
        f'{options.lr:g} ({schedules.describe(options)}), weight decay {options.weight_decay:g}'
    )
    if augmentation := _augmentation(setup):
        say(f'augmentation: {augmentation}')
    say(
        f'device: {"CPU" if options.gpu < 0 else f"GPU {options.gpu}"}, engine {setup.engine}, '
        f'precision {setup.precision}' + (f'; {setup.why}' if setup.why else '')
    )
    if processes > 1:
        say(
            f'processes: {processes}, each with its share of every batch'
            + (' and a GPU of its own' if options.gpu >= 0 else '')
        )
    if os.path.normpath(setup.folder) != os.curdir:
        say(f'folder: {setup.folder}')
    if options.load_model is not None and not setup.going_on:
        say(transfer.describe(options))
    if options.freeze:
        say(f'frozen: {", ".join(options.freeze)}')


def _augmentation(setup):
    """Describe the augmentation beyond the preprocessing in a few words."""
    options = setup.options
    told = []
    if options.auto_augment != 'none':
        told.append('TrivialAugment')
        if options.gpu >= 0 and hasattr(setup.dataset.train, 'images'):
            told[-1] += ' and all of the preprocessing on the CPU'
    for name, words in (
        ('mixup', 'mixup {:g}'),
        ('cutmix', 'CutMix {:g}'),
        ('reprob', '{:.0%} erased in part'),
    ):
        if getattr(options, name):
            told.append(words.format(getattr(options, name)))
    if options.repeated_augmentation > 1:
        told.append(f'each image {options.repeated_augmentation} times in a batch')
    return ', '.join(told)


def take_over(setup: Setup, optimizer: chainer.Optimizer, log: Log) -> None:
    """Load the files of flags of 2017: an optimizer's state, a log.

    Raises:
        trainer.errors.InputError: A file is damaged, or does not fit.
    """
    options = setup.options
    if options.load_optimizer is not None:
        arrays = snapshots.optimizer_arrays(options.load_optimizer)
        try:
            chainer.serializers.NpzDeserializer(arrays).load(optimizer)
        except (KeyError, ValueError, TypeError) as e:
            raise InputError(
                f'-o {options.load_optimizer}: does not fit {npz.describe(setup.network)} ({e})'
            ) from e
    if options.load_log is not None:
        log.load(options.load_log, options.start_epoch - 1)
