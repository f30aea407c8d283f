"""What a run is made of, built from its options."""

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.networks import table
from trainer.training import initial, transfer
from trainer.training.losses import LabelSmoothing
from trainer.training.optimizers import OPTIMIZERS
from trainer.training.options import RECORD, SIZES
from trainer.transforms.table import CLASSES
from trainer.weights import description, formats, npz

#: A run's record may not describe more weights than this (4 GB): it has no numbers to go by.
WEIGHT_LIMIT = 1 << 30


def network(options, given, architecture, dataset, going_on):
    """Build the network: from the run's record, from ``-m``, or new.

    Args:
        options (dict): The run's; sizes are set to those of a network from a file.
        given (dict): Those that the user gave.
        architecture (dict): What the record says of the network; ``None`` in a new run.
        dataset (trainer.datasets.Dataset): Whose classes it is to tell apart.
        going_on (bool): Whether a snapshot brings the weights.

    Raises:
        trainer.errors.InputError: There is no such network, or it does not fit.
    """
    model, classes = options['load_model'], dataset.classes
    if not going_on and model is not None:
        architecture = None  # the file has the weights, too
    built = of_options(options, given, architecture, len(classes))
    if not going_on and model is None:
        initial.fill(built, options['initialization'], options['seed'])
    elif not going_on and options['reset_classifier']:
        built = transfer.reset_classifier(built, classes, options['seed'])
    where = RECORD if architecture is not None or model is None else f'-m {model}'
    if built.category_num != len(classes):
        raise InputError(
            '{}: a network of {} classes, but {} has {}{}'.format(
                where,
                built.category_num,
                dataset.name,
                len(classes),
                '' if where == RECORD else '; --reset-classifier trains a new classifier for these',
            )
        )
    if built.classes not in (None, classes):
        other = next(c for c in zip(built.classes, classes) if c[0] != c[1])
        raise InputError(
            '{}: its classes are not those of {} ({} where there is {} now){}'.format(
                where,
                dataset.name,
                *other,
                '' if where == RECORD else '; --reset-classifier trains a new classifier for these',
            )
        )
    built.classes = classes
    return built


def of_options(options, given, architecture, category_num):
    """As :func:`network`, of however many classes; a new one has ``category_num``, and no
    weights yet."""
    if architecture is not None:
        return description.build(architecture, RECORD, WEIGHT_LIMIT)
    if options['load_model'] is None:
        return table.get(options['network']).cls.of_sizes(category_num, options)
    built, _ = formats.read(options['load_model'])
    _take_sizes(options, given, built, options['load_model'])
    return built


def _take_sizes(options, given, built, model):
    """Refuse flags that contradict what the file of ``-m`` holds; record what it holds."""
    held = {
        'network': table.of_kind(built.kind).name,
        'C': built.C,
        'd': built.d,
        'block_num': built.block_num,
        'depth': built.layers,
        'multi': getattr(built, 'multiplier', None),
        'widen_factor': built.stages[0].out_channels / 64,
        'shortcut': built.shortcut,
    }
    for name in ('network',) + SIZES:
        value = given.get(name)
        if value is not None and tuple(np.ravel(value)) != tuple(np.ravel(held[name])):
            raise InputError(f'--{name} {value}: {model} holds {npz.describe(built)}')
        options[name] = held[name]


def preprocessing(options, given, built):
    """Choose the preprocessing: as given, as the file of ``-m`` says, or as the recipe says.

    Args:
        options (dict): The run's; the choice is written there.
        given (dict): Those that the user gave.
        built (trainer.networks.base.Network): The network, which is told as well.

    Returns:
        type: A class of :mod:`data_augmentation`.
    """
    name = options['preprocessing']
    if (
        options['load_model'] is not None
        and built.preprocessing is not None
        and not ({'preprocessing', 'recipe'} & set(given))
    ):
        name = built.preprocessing
    if 'preprocessing' not in given:  # some sources have other means for other datasets
        chosen = CLASSES[name]
        name = getattr(chosen, 'of_dataset', {}).get(options['dataset'], name)
    options['preprocessing'] = built.preprocessing = name
    return CLASSES[name]


def optimizer(options, built):
    """Return the optimizer, set up, with weight decay on all parameters, as every source has it."""
    made = OPTIMIZERS[options['optimizer']](options['lr'], options['momentum'])
    made.setup(built)
    made.add_hook(chainer.optimizer_hooks.WeightDecay(options['weight_decay']))
    if options['head_lr'] != 1:
        made.add_hook(transfer.HeadRate(built, options['head_lr']))
    if options['freeze']:
        transfer.Frozen(built, options['freeze'])
    return made


def loss(options):
    """Return the loss that training minimises; ``None``: the network's own."""
    return LabelSmoothing(options['label_smoothing']) if options['label_smoothing'] else None
