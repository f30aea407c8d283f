"""Recipes: how a source trains its network, one module each, a table of values."""
import collections
import importlib
import pkgutil

_FIELDS = {
    'epoch': 'Epochs.',
    'batch': 'Pictures in a batch.',
    'train_batch_divide': 'Chunks that a batch is computed in, their gradients added.',
    'test_batch_divide': 'The same for evaluation.',
    'lr': 'Learning rate at the start.',
    'lr_steps': 'Epochs after which the learning rate is divided by 10.',
    'momentum': 'Momentum of SGD.',
    'weight_decay': 'Times each parameter, added to its gradient.',
    'C': 'Cardinality.',
    'd': 'Base width.',
    'multi': 'Multiplier of the output channels.',
    'block_num': 'Blocks in each stage.',
}

Recipe = collections.namedtuple('Recipe', _FIELDS)
Recipe.__doc__ = 'The values of a recipe.\n\nAttributes:\n' + ''.join(
    '    {}: {}\n'.format(*item) for item in _FIELDS.items())


def available():
    """Return the names of the recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """Return a :class:`Recipe` by its name."""
    return importlib.import_module('{}.{}'.format(__name__, name)).RECIPE
