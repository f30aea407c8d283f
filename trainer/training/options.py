"""The options of a run: from a recipe, from flags, and from the run's own folder."""

import argparse
import hashlib
import json
import os
import platform

import chainer
import numpy as np
import PIL

from trainer import datasets, engines, files, recipes, values
from trainer.engines import cudnn, onednn
from trainer.errors import InputError
from trainer.networks import table as networks
from trainer.training import snapshots
from trainer.training.data import SAMPLINGS
from trainer.training.initial import INITIALIZATIONS
from trainer.training.optimizers import OPTIMIZERS
from trainer.transforms.table import CLASSES
from trainer.weights import description

#: Options beside those of the recipe, and their defaults. Each is a flag of main.py.
DEFAULTS = {
    'save_path': './',
    'recipe': 'original',
    'data': None,
    'quick': False,
    'seed': 0,
    'gpu': -1,
    'engine': None,
    'precision': None,
    'workers': None,
    'threads': None,
    'start_epoch': 1,
    'schedule_epoch': None,
    'load_model': None,
    'load_optimizer': None,
    'load_log': None,
    'reset_classifier': False,
    'freeze': (),
    'head_lr': 1.0,
}

#: All options that say how large a network is.
SIZES = ('C', 'd', 'multi', 'widen_factor', 'depth', 'block_num', 'shortcut')

#: What an option may be, where there are few; main.py shows them.
CHOICES = {
    'network': tuple(networks.available()),
    'shortcut': ('A', 'B', 'C'),
    'sampling': SAMPLINGS,
    'optimizer': tuple(OPTIMIZERS),
    'lr_schedule': ('steps', 'every', 'cosine'),
    'initialization': INITIALIZATIONS,
    'batch_scaling': ('none', 'lr', 'epochs'),
    'preprocessing': tuple(CLASSES),
    'engine': tuple(dict.fromkeys(engines.ON_CPU + engines.ON_GPU)),
    'precision': tuple(dict.fromkeys(cudnn.PRECISIONS + onednn.PRECISIONS)),
}

_NATURAL, _POSITIVE = values.positive(int), values.positive(float)

#: What an option is, text or a switch where it is not here; types of argparse.
TYPES = {
    'seed': values.not_negative(int),
    'gpu': int,
    'workers': values.not_negative(int),
    'threads': _NATURAL,
    'start_epoch': _NATURAL,
    'schedule_epoch': _NATURAL,
    'head_lr': _POSITIVE,
    'C': _NATURAL,
    'd': _NATURAL,
    'multi': _POSITIVE,
    'widen_factor': _POSITIVE,
    'depth': _NATURAL,
    'block_num': _NATURAL,
    'epoch': _NATURAL,
    'batch': _NATURAL,
    'train_batch_divide': _NATURAL,
    'test_batch_divide': _NATURAL,
    'momentum': values.not_negative(float),
    'weight_decay': values.not_negative(float),
    'lr': _POSITIVE,
    'lr_steps': values.epochs,
    'lr_period': values.epochs,
    'lr_min': values.not_negative(float),
    'warmup': _NATURAL,
    'label_smoothing': values.share,
    'ema_decay': values.share,
}

#: Options of several values.
SEQUENCES = {'freeze', 'block_num', 'lr_steps'}

#: Options that are paths; recorded so that they are of use in any folder.
_PATHS = ('data', 'load_model', 'load_optimizer', 'load_log')

#: What may differ when a run goes on; everything else shapes its result.
_FREE = {'save_path', 'epoch', 'data', 'gpu', 'workers', 'engine', 'precision'}

#: The file in a run's folder that holds its options.
RECORD = 'run.json'


def resolve(folder, resume, say, given):
    """Put the options of a run together: what is given, over what the run has, over a recipe.

    Args:
        folder (str): The run's folder.
        resume (bool): Whether to go on with the run that is recorded there.
        say (callable): Where messages go.
        given (dict): What the user gave.

    Returns:
        tuple of dict: The options, complete, and what is recorded of the network, or
        ``None`` where a run begins.

    Raises:
        trainer.errors.InputError: An option cannot be used, or is not that of the run.
    """
    record = read_record(folder) if resume else None
    for name in given:
        if name not in DEFAULTS and name not in recipes.Recipe._fields:
            raise TypeError(f'no option {name!r}')
    for name, value in given.items():
        try:
            check(name, value)
        except ValueError as e:
            raise InputError(f'--{name} {value}: {e}') from e
    given = _anywhere(given)
    if record is None:
        return _new(given, say), None
    options = _anywhere(dict(_defaults(record['options'])[0], **record['options']))
    if options['schedule_epoch'] is None:
        options['schedule_epoch'] = options['epoch']
    for name, value in given.items():
        # Compare as JSON does, which has no tuples.
        if name not in _FREE and json.loads(json.dumps(value)) != json.loads(
            json.dumps(options[name])
        ):
            raise InputError(
                f'--{name} {value}: the run in {folder} has {options[name]}; leave the flag out, '
                'or start another run in another folder (-p)'
            )
    return dict(options, **given), record['network']


def check(name, value):
    """Check an option as its flag would, whether it was given in Python or read from a file.

    Raises:
        ValueError: It is none, or a value that it cannot have.
    """
    default = dict(DEFAULTS, **recipes.Recipe._field_defaults).get(name, NotImplemented)
    if default is NotImplemented:
        raise ValueError('there is no such option')
    if value is None or (type(value) is type(default) and value == default):
        return
    if name in SEQUENCES:
        if not isinstance(value, (list, tuple)):
            raise ValueError('not a list')
        for one in value:
            _check_one(name, one, str)
    else:
        _check_one(name, value, type(default) if isinstance(default, bool) else str)


def _check_one(name, value, kind):
    choices = {'dataset': datasets.available, 'recipe': recipes.available}.get(
        name, lambda: CHOICES.get(name)
    )()
    if choices and value not in choices:
        raise ValueError('there are ' + ', '.join(choices))
    if name not in TYPES:
        if not isinstance(value, kind):
            raise ValueError(f'not a {kind.__name__}')
        return
    try:
        same = TYPES[name](str(value)) == value
    except argparse.ArgumentTypeError as e:
        raise ValueError(str(e)) from e
    except ValueError:
        same = False
    if not same:
        raise ValueError('not a number that it can have')


def _anywhere(options):
    """Return options whose paths do not depend on the current folder."""
    paths = {name: os.path.abspath(options[name]) for name in _PATHS if options.get(name)}
    return dict(options, **paths)


def _defaults(given):
    """Return what holds where nothing is given, as a dict, and the recipe."""
    quick, name = given.get('quick'), given.get('recipe')
    if quick and name not in (None, 'quick'):
        raise InputError(
            f'--quick and --recipe {name}: --quick is a recipe of its own; leave one of the two out'
        )
    name = 'quick' if quick else name or DEFAULTS['recipe']
    recipe = recipes.get(name)
    options = dict(DEFAULTS, **recipe._asdict())
    options['recipe'] = name
    options['network'] = given.get('network', recipe.network)
    own = recipe._asdict() if options['network'] == recipe.network else {}
    for size in SIZES:
        default = networks.get(options['network']).sizes.get(size)
        options[size] = default if own.get(size) is None else own[size]
    return options, recipe


def _new(given, say):
    options, recipe = _defaults(given)
    network = options['network']
    entry = networks.get(network)
    known = {*entry.sizes, *entry.further_sizes}
    for size in SIZES:
        if size in given and size not in known and given.get('load_model') is None:
            raise InputError(
                '--{} {}: --network {} has no such size; it has {}'.format(
                    size, given[size], network, ', '.join('--' + s for s in SIZES if s in known)
                )
            )
    if 'block_num' in given:
        if 'depth' in given:
            raise InputError(
                '--depth {} and --block_num: either of them says how deep the network '
                'is; leave one out'.format(given['depth'])
            )
        options['depth'] = None
    options.update(given)
    if options['reset_classifier'] and options['load_model'] is None:
        raise InputError(
            '--reset-classifier: there is no model whose classifier could be; name it '
            'with --retrain'
        )
    if options['depth'] is not None:
        options['block_num'] = blocks(network, options['depth'])
    _scale(options, recipe, given, say)
    if options['schedule_epoch'] is None:
        options['schedule_epoch'] = options['epoch']
    return options


def blocks(network, depth):
    """Return the blocks in each stage of a network of so many layers.

    Raises:
        trainer.errors.InputError: There is no such network.
    """
    try:
        return networks.get(network).cls.blocks_of_depth(depth)
    except InputError as e:
        raise InputError(f'--{e}') from None


def _scale(options, recipe, given, say):
    """Let another batch than the recipe's change what its source says it changes."""
    batch, usual = options['batch'], recipe.batch
    if batch == usual or options['batch_scaling'] == 'none':
        return
    if options['batch_scaling'] == 'lr':
        if 'lr' not in given:
            options['lr'] = recipe.lr * batch / usual
            say(
                'learning rate {:g} = {:g} x {} / {}: the recipe scales it with the batch; --lr '
                'sets it'.format(options['lr'], recipe.lr, batch, usual)
            )
        return
    if 'epoch' not in given:
        options['epoch'] = max(1, recipe.epoch * usual // batch)
    if 'lr_steps' not in given:
        options['lr_steps'] = tuple(
            step if 0 < step < 1 else step * usual // batch for step in recipe.lr_steps
        )
    say(
        '{} epochs, divided by 10 after {}: the recipe scales them with {} / batch; --epoch and '
        '--lr_steps set them'.format(
            options['epoch'], ', '.join(map(str, options['lr_steps'])), usual
        )
    )


def read_record(folder):
    """Read what a run's folder says of its run.

    Returns:
        dict: options, pictures, network, versions; see :func:`write_record`.

    Raises:
        trainer.errors.InputError: There is no run, or its record is damaged or gone.
    """
    path = os.path.join(folder, RECORD)
    try:
        record = files.read_json(path)
        for part in ('options', 'network'):
            if not isinstance(record[part], dict):
                raise ValueError(f'no {part}')
        if not isinstance(record.get('pictures', {}), dict):
            raise ValueError('no pictures')
        for name, value in record['options'].items():
            try:
                check(name, value)
            except ValueError as e:
                raise ValueError(f'{name:.40} {value!r:.80}: {e}') from e
        return record
    except FileNotFoundError:
        if snapshots.find(folder):
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
        raise InputError(f'{path}: damaged ({e}); it cannot be gone on with') from e


def describe(dataset):
    """Return which pictures a run is trained on, for :func:`check_pictures`.

    Returns:
        dict: name; train and test, numbers of pictures; digest, of names and labels.
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


def check_pictures(folder, pictures):
    """Refuse to go on with other pictures than a run began with.

    Args:
        folder (str): The run's folder.
        pictures (dict): From :func:`describe`.

    Raises:
        trainer.errors.InputError: They are others.
    """
    began = read_record(folder).get('pictures', pictures)
    for name in ('train', 'test'):
        if pictures.get(name) != began.get(name):
            raise InputError(
                '{}: the run began with {} pictures for {}, now there are {}; give it '
                'those back, or start another run (-m takes its model over)'.format(
                    folder, began.get(name, 'no'), name + 'ing', pictures.get(name, 'none')
                )
            )
    if pictures != began:
        raise InputError(
            f'{folder}: the run began with other pictures (as many, but other names or '
            'classes); give it those back, or start another run (-m takes its model '
            'over)'
        )


def write_record(folder, options, network, pictures):
    """Write down what shaped the run, for whoever goes on with it or asks.

    Args:
        folder (str): The run's folder.
        options (dict): The run's.
        network (trainer.networks.base.Network): What is trained.
        pictures (dict): From :func:`describe`.
    """
    record = {
        'options': options,
        'pictures': pictures,
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
