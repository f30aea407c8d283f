"""Recipes: how a source trains its network, one module each, a table of values."""

import collections
import importlib
import pkgutil

from trainer.errors import InputError

# Name -> (default, what it is). A recipe's module gives those that it differs in.
_FIELDS = {
    'network': (
        'original',
        "The network: 'original' (the 2017 program's for CIFAR), 'paper' (the "
        "paper's for CIFAR) or 'ilsvrc' (the paper's for ImageNet).",
    ),
    'C': (None, "Cardinality; here and below, None: the network's own default."),
    'd': (None, 'Base width.'),
    'multi': (None, 'Multiplier of the output channels.'),
    'widen_factor': (None, 'Output channels of the first stage, in units of 64.'),
    'depth': (None, "Layers: 9n + 2 for CIFAR; 50, 101 or 152 for 'ilsvrc'."),
    'block_num': (None, 'Blocks in each stage, where depth does not say.'),
    'shortcut': (None, "Type of the shortcuts, 'A', 'B' or 'C'."),
    'initialization': (
        'orthonormal',
        "Initial weights: 'orthonormal' (the 2017 program's), 'torch7', 'prlz77' or 'pytorch'.",
    ),
    'dataset': ('cifar10', 'The dataset.'),
    'preprocessing': (
        'DataAugmentationCifar10NormalizeSmall',
        'The class of data_augmentation that preprocesses the pictures.',
    ),
    'sampling': (
        'every-picture',
        "Which pictures make an epoch: 'every-picture' once, 'original' "
        "(each batch drawn anew) or 'full-batches' (the last, smaller one left out).",
    ),
    'epoch': (None, 'Epochs.'),
    'batch': (None, 'Pictures in a batch.'),
    'batch_scaling': (
        'none',
        "What another batch changes: 'lr' scales the learning rate in "
        "proportion, 'epochs' scales epoch and lr_steps inversely, 'none' nothing.",
    ),
    'train_batch_divide': (1, 'Chunks that a batch is computed in, their gradients added.'),
    'test_batch_divide': (1, 'The same for evaluation.'),
    'optimizer': ('momentum', "'momentum' (Chainer's), 'torch-momentum' or 'torch-nesterov'."),
    'momentum': (0.9, 'Momentum of SGD.'),
    'weight_decay': (None, 'Times each parameter, added to its gradient.'),
    'lr': (None, 'Learning rate at the start.'),
    'lr_schedule': ('steps', "How it goes on: 'steps', 'every' or 'cosine'."),
    'lr_steps': (
        (),
        'steps: epochs after which it is divided by 10, or shares of the epochs '
        'where they are below 1.',
    ),
    'lr_period': (
        0,
        'every: epochs after which it is divided by 10, again and again; cosine: '
        'epochs until it starts again. Below 1, a share of the epochs; 0: all.',
    ),
    'lr_min': (0.0, 'cosine: where it ends before it starts again.'),
    'warmup': (0, 'Epochs in which it climbs from 0, update by update.'),
    'label_smoothing': (0.0, 'Share of each label that is spread over all classes.'),
    'ema_decay': (
        0.0,
        "Decay of the weights' moving average, which is evaluated and saved; 0: none.",
    ),
}

Recipe = collections.namedtuple('Recipe', _FIELDS, defaults=[d for d, _ in _FIELDS.values()])
Recipe.__doc__ = 'The values of a recipe.\n\nAttributes:\n' + ''.join(
    f'    {name}: {text}\n' for name, (_, text) in _FIELDS.items()
)


def available():
    """Return the names of the recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """Return a :class:`Recipe` by its name.

    Raises:
        trainer.errors.InputError: There is no such recipe.
    """
    if name not in available():
        raise InputError('--recipe {}: there are {}'.format(name, ', '.join(available())))
    return importlib.import_module(f'{__name__}.{name}').RECIPE
