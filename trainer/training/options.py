"""The options of a run: from a recipe, from flags, and from the run's own folder."""

import hashlib
import json
import os
import platform

import chainer
import numpy as np
import PIL

import resnext
import resnext_ilsvrc
from trainer import files, recipes
from trainer.engines.cudnn import PRECISIONS
from trainer.errors import InputError
from trainer.training import snapshots
from trainer.training.data import SAMPLINGS
from trainer.training.initial import INITIALIZATIONS
from trainer.training.optimizers import OPTIMIZERS
from trainer.transforms import table
from trainer.weights import registry

#: Options beside those of the recipe, and their defaults. Each is a flag of main.py.
DEFAULTS = {
    'save_path': './',
    'recipe': 'original',
    'data': None,
    'quick': False,
    'seed': 0,
    'gpu': -1,
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

#: The networks, and the sizes that they have where neither recipe nor flag says otherwise.
NETWORKS = {
    'original': {'C': 2, 'd': 64, 'multi': 4, 'block_num': (3, 3, 3), 'shortcut': 'A'},
    'paper': {'C': 8, 'd': 64, 'widen_factor': 4, 'depth': 29, 'shortcut': 'B'},
    'ilsvrc': {'C': 32, 'd': 4, 'depth': 50, 'shortcut': 'B'},
}

#: All options that say how large a network is.
SIZES = ('C', 'd', 'multi', 'widen_factor', 'depth', 'block_num', 'shortcut')

#: What an option may be, where there are few; main.py shows them.
CHOICES = {
    'network': tuple(NETWORKS),
    'shortcut': ('A', 'B', 'C'),
    'sampling': SAMPLINGS,
    'optimizer': tuple(OPTIMIZERS),
    'lr_schedule': ('steps', 'every', 'cosine'),
    'initialization': INITIALIZATIONS,
    'batch_scaling': ('none', 'lr', 'epochs'),
    'preprocessing': tuple(table.CLASSES),
    'precision': PRECISIONS,
}

#: What may differ when a run goes on; everything else shapes its result.
_FREE = {'save_path', 'epoch', 'data', 'gpu', 'workers', 'precision'}

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
    if resume and record is None:
        say(f'{folder}: no run to go on with yet, starting one')
    for name in given:
        if name not in DEFAULTS and name not in recipes.Recipe._fields:
            raise TypeError(f'no option {name!r}')
    for name, choices in CHOICES.items():
        if given.get(name) is not None and given[name] not in choices:
            raise InputError('--{} {}: there are {}'.format(name, given[name], ', '.join(choices)))
    if record is None:
        return _new(given, say), None
    options = dict(_defaults(record['options'])[0], **record['options'])
    if options['schedule_epoch'] is None:
        options['schedule_epoch'] = options['epoch']
    for name, value in given.items():
        # Compare as JSON does, which has no tuples.
        if name not in _FREE and json.loads(json.dumps(value)) != json.loads(
            json.dumps(options[name])
        ):
            raise InputError(
                f'--{name} {value}: the run in {folder} has {options[name]}; leave the flag out, or start another run in '
                'another folder (-p)'
            )
    return dict(options, **given), record['network']


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
        default = NETWORKS[options['network']].get(size)
        options[size] = default if own.get(size) is None else own[size]
    return options, recipe


def _new(given, say):
    options, recipe = _defaults(given)
    network = options['network']
    known = (
        set(NETWORKS[network])
        | {'block_num'}
        | ({'depth'} if network == 'original' else {'multi'} if network == 'ilsvrc' else set())
    )
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
    if options['data'] is not None:  # the record is to be of use anywhere
        options['data'] = os.path.abspath(options['data'])
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
    of = resnext_ilsvrc.ResNext if network == 'ilsvrc' else resnext.PaperResNext
    try:
        return of.blocks_of_depth(depth)
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
        dict: options, network and versions; ``None`` where there is no run.

    Raises:
        trainer.errors.InputError: It is damaged, or gone from beside snapshots.
    """
    path = os.path.join(folder, RECORD)
    try:
        with open(path) as f:
            record = json.load(f)
        if not isinstance(record['options'], dict) or not isinstance(record['network'], dict):
            raise ValueError('no options')
        return record
    except FileNotFoundError:
        if snapshots.find(folder):
            raise InputError(
                f'{path}: gone, though there are snapshots beside it; give the options of '
                'the run and its newest snapshot with -o'
            ) from None
        return None
    except (ValueError, KeyError, TypeError) as e:
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
        'network': registry.architecture(network),
        'versions': {
            'python': platform.python_version(),
            'numpy': np.__version__,
            'chainer': chainer.__version__,
            'pillow': PIL.__version__,
        },
    }
    with files.replacing(os.path.join(folder, RECORD)) as path, open(path, 'w') as f:
        json.dump(record, f, indent=1)
