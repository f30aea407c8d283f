"""A training run: everything that ``main.py`` does, for Python."""
import json
import os
import platform
import shutil
import signal
import threading

import chainer
import filelock
import numpy as np
import PIL

import data_augmentation
import resnext
from trainer import datasets, devices, files, recipes
from trainer.datasets import loading
from trainer.errors import InputError
from trainer.reports import figures
from trainer.reports.console import Console
from trainer.reports.log import Log
from trainer.training import extensions, snapshots
from trainer.training.updater import ChunkedUpdater
from trainer.transforms import generator
from trainer.weights import npz, registry

#: Options beside those of the recipe, and their defaults. Each is a flag of main.py.
DEFAULTS = {
    'save_path': './', 'dataset': 'cifar10', 'data': None, 'quick': False, 'seed': 0,
    'sampling': 'every-picture', 'gpu': -1, 'workers': None, 'start_epoch': 1,
    'load_model': None, 'load_optimizer': None, 'load_log': None,
}

#: What may differ when a run goes on; everything else shapes its result.
_FREE = {'save_path', 'epoch', 'data', 'gpu', 'workers'}

_PLANS = {'every-picture': loading.EveryPictureOnce, 'original': loading.OriginalSampling}
SAMPLINGS = tuple(_PLANS)

_RUN = 'run.json'
_OUTPUTS = (_RUN, 'log.json', 'loss.jpg', 'accuracy.jpg', 'confusion.jpg', 'model')


class _Load:
    """Load training or test pictures of a dataset, preprocessed (for ``loading.iterator``)."""

    def __init__(self, pictures, preprocessing, seed=None):
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.seed = seed

    def __call__(self, indices, epoch):
        images, labels = self.pictures.images[indices], self.pictures.labels[indices]
        if not len(indices):
            return np.empty((0, 3, 32, 32), np.float32), labels
        if self.seed is None:
            return self.preprocessing.test_batch(images), labels
        drawn = [self.preprocessing.draw(generator(self.seed, epoch, i)) for i in indices.tolist()]
        return self.preprocessing.train_batch(images, drawn), labels


def data_path(dataset, options, preprocessing):
    """Return the iterators of a run: training and test batches, preprocessed.

    Args:
        dataset (trainer.datasets.Dataset): The pictures.
        options (dict): As in :func:`train`, complete.
        preprocessing (type): A class of :mod:`data_augmentation`.

    Returns:
        tuple of chainer.dataset.Iterator: Over lists of pieces (x, t); see
        :mod:`trainer.datasets.loading`.
    """
    batch, workers = options['batch'], options['workers']
    if workers is None:
        # On a CPU the network is a thousand times slower than its data.
        workers = min(4, os.cpu_count() or 1) if options['gpu'] >= 0 else 0
    plan = _PLANS[options['sampling']](len(dataset.train.labels), batch, options['seed'])
    if not len(plan):
        raise InputError('-b {}: there are only {} pictures to draw a batch from'.format(
            batch, len(dataset.train.labels)))
    test_plan = loading.InOrder(len(dataset.test.labels),
                                max(1, batch // options['test_batch_divide']))

    def iterator(pictures, plan, seed, repeat):
        picture = 3 * 32 * 32 * 4 + 4
        return loading.iterator(
            _Load(pictures, preprocessing, seed), plan, workers=workers, repeat=repeat,
            shared_mem=picture * -(-plan.batch // loading.MIN_PIECES))

    return (iterator(dataset.train, plan, options['seed'], True),
            iterator(dataset.test, test_plan, None, False))


def train(resume=False, say=print, **given):
    """Train a network, as ``main.py`` does with the same flags.

    Args:
        resume (bool): Go on with the run in ``save_path``, with its options.
        say (callable): Where messages go.
        given: Options, of :data:`DEFAULTS` and of :class:`trainer.recipes.Recipe`.

    Returns:
        bool: ``True`` when the last epoch is done, ``False`` when the run was
        interrupted and can go on.

    Raises:
        trainer.errors.InputError: Something given cannot be used; nothing was
            overwritten or lost.
    """
    folder = given.get('save_path', DEFAULTS['save_path'])
    lock = _claim(folder)
    try:
        try:
            return _train(folder, resume, say, given)
        except OSError as e:
            raise InputError('{}: cannot be written ({}); mend that and go on with --resume'.format(
                e.filename or folder, e.strerror or e))
    finally:
        lock.release()


def _claim(folder):
    try:
        os.makedirs(folder, exist_ok=True)
        lock = filelock.FileLock(os.path.join(folder, '.lock'))
        lock.acquire(timeout=0)
        return lock
    except filelock.Timeout:
        raise InputError('-p {}: another run is writing there; choose another folder'.format(
            folder))
    except (OSError, NotImplementedError) as e:
        raise InputError('-p {}: cannot be written ({}); choose another folder'.format(
            folder, getattr(e, 'strerror', None) or e))


def _resolve(folder, resume, say, given):
    """Return (options, architecture): what is given over what the run has over defaults."""
    record = None
    if resume:
        record = _record(folder)
        if record is None:
            say('{}: no run to go on with yet, starting one'.format(folder))
    defaults = dict(DEFAULTS, **recipes.get(
        'quick' if given.get('quick') else 'original')._asdict())
    for name in given:
        if name not in defaults:
            raise TypeError('no option {!r}'.format(name))
    if record is None:
        return dict(defaults, **given), None
    options = dict(defaults, **record['options'])
    for name, value in given.items():
        # Compare as JSON does, which has no tuples.
        if name not in _FREE and json.loads(json.dumps(value)) != options[name]:
            raise InputError('--{} {}: the run in {} has {}; leave the flag out, or start another '
                             'run in another folder (-p)'.format(name, value, folder, options[name]))
    return dict(options, **given), record['network']


def _record(folder):
    path = os.path.join(folder, _RUN)
    try:
        with open(path) as f:
            record = json.load(f)
        if not isinstance(record['options'], dict) or not isinstance(record['network'], dict):
            raise ValueError('no options')
        return record
    except FileNotFoundError:
        if snapshots.find(folder):
            raise InputError('{}: gone, though there are snapshots beside it; give the options of '
                             'the run and its newest snapshot with -o'.format(path))
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise InputError('{}: damaged ({}); it cannot be gone on with'.format(path, e))


def _network(options, architecture, dataset):
    """Build the network: from the run's record, from ``-m``, or new."""
    model, classes = options['load_model'], dataset.classes
    if architecture is not None:
        network = registry.build(architecture, _RUN, None)
    elif model is not None:
        network = npz.load(model)
        registry_flags = {'C': network.C, 'd': network.d, 'block_num': network.block_num,
                          'multi': getattr(network, 'multiplier', None)}
        for name in options['explicit']:
            value = options[name]
            if name in registry_flags and tuple(np.ravel(value)) != tuple(
                    np.ravel(registry_flags[name])):
                raise InputError('--{} {}: {} holds {}'.format(
                    name, value, model, npz.describe(network)))
    else:
        network = resnext.ResNext(len(classes), tuple(options['block_num']), options['C'],
                                  options['d'], options['multi'], initialize=False)
        network.weight_initialization(options['seed'])
    if network.category_num != len(classes):
        raise InputError('{}: a network of {} classes, but {} has {}'.format(
            '-m {}'.format(model) if model else _RUN, network.category_num, dataset.name,
            len(classes)))
    network.classes = classes
    return network


def _train(folder, resume, say, given):
    options, architecture = _resolve(folder, resume, say, given)
    options['explicit'] = sorted(given)
    going_on = resume and bool(snapshots.find(folder))
    device = devices.get(options['gpu'])
    dataset = datasets.load('quick' if options['quick'] else options['dataset'], options['data'])
    network = _network(options, architecture if going_on else None, dataset)
    preprocessing = getattr(data_augmentation, network.preprocessing or '', None)
    if preprocessing is None:
        raise InputError('-m {}: training has no preprocessing for this network'.format(
            options['load_model']))
    say('{}: {}, {:,} weights'.format(network.name, npz.describe(network),
                                      network.count_parameters()))
    say('data: {}, {} pictures for training, {} for testing'.format(
        dataset.name, len(dataset.train.labels), len(dataset.test.labels)))
    say('device: {}'.format('CPU' if options['gpu'] < 0 else 'GPU {}'.format(options['gpu'])))

    device.use()
    optimizer = chainer.optimizers.MomentumSGD(options['lr'], options['momentum'])
    optimizer.setup(network)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(options['weight_decay']))
    log = Log(dataset)
    epochs_before = options['start_epoch'] - 1
    if not going_on:
        # Everything named is read before the folder is touched: it may lie there.
        if options['load_optimizer'] is not None:
            arrays = snapshots.optimizer_arrays(options['load_optimizer'])
            try:
                chainer.serializers.NpzDeserializer(arrays).load(optimizer)
            except (KeyError, ValueError, TypeError) as e:
                raise InputError('-o {}: does not fit {} ({})'.format(
                    options['load_optimizer'], npz.describe(network), e))
        if options['load_log'] is not None:
            log.load(options['load_log'], epochs_before)
    train_iterator, test_iterator = data_path(dataset, options, preprocessing)
    if not resume:
        _move_aside(folder, say)
    files.remove_unfinished(folder)
    models = os.path.join(folder, 'model')
    os.makedirs(models, exist_ok=True)
    files.remove_unfinished(models)
    _write_record(folder, options, network)

    stop = _Stop(say)
    updater = ChunkedUpdater(train_iterator, optimizer, device, options['train_batch_divide'])
    trainer = chainer.training.Trainer(
        updater, chainer.training.triggers.IntervalTrigger(options['epoch'], 'epoch'), folder)
    trainer.stop_trigger = stop.before(trainer.stop_trigger)
    evaluator = extensions.Evaluator(test_iterator, network, device)
    iterations = len(train_iterator.dataset.plan)
    snapshot = snapshots.extension()
    for extension in (
            extensions.LearningRate(extensions.steps(options['lr'], options['lr_steps'])),
            evaluator, log, Console(log, options['epoch'], iterations),
            extensions.SaveModel(network, models),
            figures.Figures(log, evaluator, dataset.classes, options['epoch'])):
        trainer.extend(extension, trigger=_epochs(1) if extension.trigger[1] == 'epoch' else None)
    trainer.extend(snapshot, trigger=snapshots.Trigger(lambda: stop.wanted))

    if going_on:
        path = snapshots.restore(trainer, folder, say)
        say('{}: going on after epoch {}, update {}'.format(
            path, updater.epoch, updater.iteration))
    elif epochs_before:
        _begin_after(trainer, log, epochs_before, iterations)
    if updater.epoch >= options['epoch']:
        say('{}: all {} epochs are done; -e takes it further'.format(folder, options['epoch']))
        return True
    with stop:
        trainer.run(show_loop_exception_msg=False)
    if stop.wanted and updater.epoch < options['epoch']:
        say('stopped after update {}, nothing is lost: python main.py --resume {}'.format(
            updater.iteration, folder))
        return False
    return True


def _epochs(n):
    return chainer.training.triggers.IntervalTrigger(n, 'epoch')


def _begin_after(trainer, log, epochs, iterations):
    """Make a new trainer begin after so many epochs (``--start_epoch``)."""
    updater = trainer.updater
    loading.skip_epochs(updater.get_iterator('main'), epochs)
    updater.iteration = epochs * iterations
    state = chainer.serializers.NpzDeserializer({
        'previous_iteration': np.asarray(updater.iteration),
        'previous_epoch_detail': np.asarray(float(epochs))})
    found = [entry.trigger for entry in trainer._extensions.values()] + [log._trigger]
    for trigger in found:
        if isinstance(trigger, chainer.training.triggers.IntervalTrigger):
            trigger.serialize(state)


def _write_record(folder, options, network):
    """Write down what shaped the run, for whoever goes on with it or asks."""
    record = {
        'options': {k: v for k, v in options.items() if k != 'explicit'},
        'network': network.architecture(),
        'versions': {'python': platform.python_version(), 'numpy': np.__version__,
                     'chainer': chainer.__version__, 'pillow': PIL.__version__},
    }
    with files.replacing(os.path.join(folder, _RUN)) as path, open(path, 'w') as f:
        json.dump(record, f, indent=1)


def _move_aside(folder, say):
    """Move what an earlier run left in the folder into ``earlier/<n>/``."""
    left = [name for name in _OUTPUTS if os.path.lexists(os.path.join(folder, name))]
    left += [os.path.basename(path) for path in snapshots.find(folder)]
    if not left:
        return
    n = 1
    while os.path.lexists(os.path.join(folder, 'earlier', str(n))):
        n += 1
    aside = os.path.join(folder, 'earlier', str(n))
    os.makedirs(aside)
    for name in left:
        shutil.move(os.path.join(folder, name), os.path.join(aside, name))
    say('moved an earlier run to {}'.format(aside))


class _Stop:
    """Ctrl-C: finish the update, take a snapshot, stop. A second Ctrl-C stops at once."""

    def __init__(self, say):
        self.wanted = False
        self._say = say

    def __enter__(self):
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc):
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number, frame):
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        self._say('\nstopping after this update, with a snapshot; again to stop at once')

    def before(self, trigger):
        """Return a stop trigger: now, or when ``trigger`` says so."""
        def stop(trainer):
            return self.wanted or trigger(trainer)
        return stop
