"""Builds the parts of a run from its options."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from trainer import recipes
from trainer.errors import InputError
from trainer.networks import initialization, table
from trainer.optimizers import OPTIMIZERS, ClipGradient, HeadRate, WeightDecays
from trainer.recipes.options import SIZES, Options
from trainer.recipes.spec import flag
from trainer.run_folder import RECORD
from trainer.training import transfer
from trainer.training.losses import LabelSmoothing
from trainer.transforms.table import CLASSES
from trainer.weights import description, formats, npz

if TYPE_CHECKING:
    from trainer.datasets import Dataset
    from trainer.networks.base import Network

#: Most weights of a network in a run's record (4 GB), which has no numbers to compare with.
WEIGHT_LIMIT = 1 << 30


def network(
    options: Options,
    given: dict[str, Any],
    architecture: dict[str, Any] | None,
    dataset: Dataset,
    going_on: bool,
    say: Callable[[str], object] | None = None,
) -> tuple[Network, Options]:
    """Build the network: from the run's record, from ``-m``, or new.

    Args:
        options: The run's options.
        given: The options that the user gave.
        architecture: Description of the network in the record; ``None`` for a new run.
        dataset: The dataset, whose classes are the network's.
        going_on: Whether the weights come from a snapshot.
        say: Receives notes about the file of ``-m``.

    Returns:
        The network, and the options, with the sizes of a network from a file.

    Raises:
        trainer.errors.InputError: There is no such network, or it does not fit.
    """
    model, classes = options.load_model, dataset.classes
    if not going_on and model is not None:
        architecture = None  # the file has the weights, too
    built, options = of_options(options, given, architecture, len(classes), say)
    if not going_on and model is None:
        initialization.fill(built, options.initialization, options.seed)
        if options.zero_init_last:
            initialization.zero_last(built)
    elif not going_on:
        options = transfer.fitting(options, given, built, classes)
    if not going_on and options.reset_classifier:
        built = transfer.reset_classifier(built, classes, options.seed)
    record = os.path.join(options.save_path, RECORD)
    where = record if architecture is not None or model is None else f'-m {model}'
    _check_classes(built, dataset, where)
    built.classes = classes
    return built, options


def _check_classes(built, dataset, where):
    classes = dataset.classes
    fix = '; --reset-classifier trains a new classifier for these'
    fix = fix if where.startswith('-m ') else ''
    if built.category_num != len(classes):
        raise InputError(
            f'{where}: a network of {built.category_num} classes, but {dataset.name} has '
            f'{len(classes)}{fix}'
        )
    if built.classes not in (None, classes):
        held, now = next(c for c in zip(built.classes, classes) if c[0] != c[1])
        raise InputError(
            f'{where}: its classes are not those of {dataset.name} ({held} where there is {now} '
            f'now){fix}'
        )


def of_options(
    options: Options,
    given: dict[str, Any],
    architecture: dict[str, Any] | None,
    category_num: int | None,
    say: Callable[[str], object] | None = None,
) -> tuple[Network, Options]:
    """Like :func:`network`, with any number of classes; a new network has ``category_num`` classes
    and zero weights."""
    if architecture is not None:
        record = os.path.join(options.save_path, RECORD)
        return description.build(architecture, record, WEIGHT_LIMIT), options
    if options.load_model is None:
        sizes = {size: getattr(options, size) for size in SIZES}
        entry = table.get(options.network)
        assert category_num is not None
        return entry.cls.of_sizes(category_num, sizes, **entry.variant), options
    built, found = formats.read(options.load_model, headless=options.reset_classifier)
    if say is not None:
        for note in found.notes:
            say(f'note: {note}')
    return built, options.replace(**_sizes_held(given, built, options.load_model))


def _sizes_held(given, built, model):
    """Refuse flags that contradict a network from a file; return its sizes."""
    held = {
        'network': table.of(built).name,
        'C': built.C,
        'd': built.d,
        'block_num': built.block_num,
        'depth': built.layers,
        'multi': getattr(built, 'multiplier', None),
        'widen_factor': built.stages[0].out_channels / 64,
        'shortcut': built.shortcut,
    }
    for name in held:
        value = given.get(name)
        if value is not None and tuple(np.ravel(value)) != tuple(np.ravel(held[name])):
            raise InputError(f'{flag(name)} {value}: {model} holds {npz.describe(built)}')
    return held


def preprocessing(
    options: Options,
    given: dict[str, Any],
    built: Network,
    say: Callable[[str], object] | None = None,
) -> str:
    """Choose the preprocessing: the given one, that of the file of ``-m``, or the recipe's.

    Args:
        options: The run's options.
        given: The options that the user gave.
        built: The network, which gets the preprocessing and loses the geometry of a file.
        say: Receives a note about the latter.

    Returns:
        The name of a class of :mod:`data_augmentation`.
    """
    name = options.preprocessing
    if (
        options.load_model is not None
        and built.preprocessing is not None
        and 'preprocessing' not in given
        and given.get('recipe') in (None, recipes.FINE_TUNE)
    ):
        name = built.preprocessing
    if 'preprocessing' not in given:  # some sources have different means for other datasets
        chosen = CLASSES[name]
        name = getattr(chosen, 'of_dataset', {}).get(options.dataset, name)
    built.preprocessing = name
    if built.geometry is not None:
        if say is not None and options.load_model is not None:
            say(f'note: -m was tested by {built.geometry}; this run tests as it trains, by {name}')
        description.set_geometry(built, None)
    return name


def optimizer(options: Options, built: Network) -> chainer.Optimizer:
    """Return the optimizer, set up with its hooks, in order: norm of the gradients, weight decay,
    the classifier's learning rate."""
    made = OPTIMIZERS[options.optimizer](options.lr, options.momentum)
    made.setup(built)
    if options.clip_grad is not None:
        made.add_hook(ClipGradient(options.clip_grad))
    if options.norm_weight_decay is None and options.bias_weight_decay is None:
        made.add_hook(chainer.optimizer_hooks.WeightDecay(options.weight_decay))
    else:
        made.add_hook(_decay(options, built))
    if options.head_lr != 1:
        made.add_hook(HeadRate(list(built[transfer.HEAD].params()), options.head_lr))
    if options.freeze:
        transfer.Frozen(built, options.freeze)
    return made


def _decay(options, built):
    """Return the weight decay of normalisation, of biases, and of all other parameters."""
    parts = {'norm': [], 'bias': [], 'other': []}
    for link in built.links():
        norm = isinstance(link, chainer.links.BatchNormalization)
        for name in sorted(link._params):
            part = 'norm' if norm else 'bias' if name == 'b' else 'other'
            parts[part].append(getattr(link, name))
    usual = options.weight_decay
    rates = {'norm': options.norm_weight_decay, 'bias': options.bias_weight_decay, 'other': usual}
    return WeightDecays(
        [(usual if rate is None else rate, parts[name]) for name, rate in rates.items()]
    )


def loss(options: Options) -> LabelSmoothing | None:
    """Return the training loss; ``None``: the network's own."""
    mixed = options.mixup or options.cutmix or options.reprob
    return LabelSmoothing(options.label_smoothing) if options.label_smoothing or mixed else None
