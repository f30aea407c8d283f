"""A training run: everything that ``main.py`` does, for Python."""

import os
import signal
import threading

import chainer
import filelock
import numpy as np
import threadpoolctl

from trainer import datasets, engines, files
from trainer.datasets import parallel, splits
from trainer.errors import InputError
from trainer.inference import predictors
from trainer.reports import figures
from trainer.reports.console import Console
from trainer.reports.log import Log
from trainer.reports.summary import summary as summarise
from trainer.training import build, earlier, extensions, processes, schedules, snapshots, transfer
from trainer.training.data import data_path
from trainer.training.options import (
    DEFAULTS,
    RECORD,
    check_pictures,
    describe,
    read_record,
    resolve,
    write_record,
)
from trainer.training.updater import ChunkedUpdater
from trainer.weights import npz

_OUTPUTS = (
    RECORD,
    splits.RECORD,
    'log.json',
    'loss.jpg',
    'accuracy.jpg',
    'confusion.jpg',
    'confusion.json',
    'model',
)

# Classes of datasets; those of others are their class folders.
_CLASSES = {'cifar10': 10, 'cifar100': 100, 'mnist': 10, 'quick': 10, 'ilsvrc': 1000}


def train(resume=False, say=print, **given):
    """Train a network, as ``main.py`` does with the same flags.

    Args:
        resume (bool): Go on with the run in ``save_path``, with its options.
        say (callable): Where messages go.
        given: Options, of :data:`trainer.training.options.DEFAULTS` and of
            :class:`trainer.recipes.Recipe`.

    Returns:
        bool: ``True`` when the last epoch is done, ``False`` when the run was
        interrupted and can go on.

    Raises:
        trainer.errors.InputError: Something given cannot be used; nothing was
            overwritten or lost.
        SystemExit: The same, in all but the first of several processes
            (:mod:`trainer.training.processes`).
    """
    folder = given.get('save_path', DEFAULTS['save_path'])
    with processes.joined() as group:
        lock = group.together(lambda: None if group.rank else _claim(folder, resume))
        try:
            return _train(folder, resume, (lambda text: None) if group.rank else say, given, group)
        except OSError as e:
            raise InputError(
                f'{e.filename or folder}: cannot be written ({e.strerror or e}); mend that and go '
                'on with --resume'
            ) from e
        finally:
            if lock is not None:
                lock.release()


def summary(resume=False, **given):
    """Describe the network that :func:`train` would train, without loading pictures.

    Args:
        resume, given: See :func:`train`.

    Returns:
        str: See :func:`trainer.reports.summary.summary`.

    Raises:
        trainer.errors.InputError: Something given cannot be used.
    """
    options, architecture = resolve(
        given.get('save_path', DEFAULTS['save_path']), resume, lambda message: None, given
    )
    name = 'quick' if options['quick'] else options['dataset']
    classes = _CLASSES.get(name)
    reset = options['reset_classifier'] and architecture is None
    if classes is None and (reset or architecture is None and options['load_model'] is None):
        classes = len(datasets.load(name, options['data']).classes)
    built = build.of_options(options, given, architecture, classes)
    if reset:
        built = transfer.reset_classifier(built, map(str, range(classes)), options['seed'])
    return summarise(built)


def _claim(folder, resume):
    if resume and not earlier.is_split(folder):
        read_record(folder)  # where there is none, nothing is made either
    try:
        os.makedirs(folder, exist_ok=True)
        lock = filelock.FileLock(os.path.join(folder, '.lock'))
        lock.acquire(timeout=2)  # seconds: a run that was just killed may be about to go
        if earlier.is_split(folder):
            earlier.put_back(folder)
        return lock
    except filelock.Timeout:
        raise InputError(
            f'-p {folder}: another run is writing there; choose another folder'
        ) from None
    except (OSError, NotImplementedError) as e:
        raise InputError(
            '-p {}: cannot be written ({}); choose another folder'.format(
                folder, getattr(e, 'strerror', None) or e
            )
        ) from e


def _train(folder, resume, say, given, group):
    options, architecture, going_on = group.first(
        lambda: (*resolve(folder, resume, say, given), resume and bool(snapshots.find(folder)))
    )
    device = group.together(lambda: group.device(options['gpu']))
    engine, precision, why = group.first(
        lambda: engines.choose(options['gpu'], options['precision'], True, options['engine'])
    )
    dataset = group.in_turn(
        lambda: datasets.load('quick' if options['quick'] else options['dataset'], options['data'])
    )
    pictures = describe(dataset)
    if any(other != pictures for other in group.collect([pictures])):
        raise InputError(
            '--data {}: the processes find different pictures there'.format(options['data'])
        )
    if architecture is not None:
        group.first(lambda: check_pictures(folder, pictures))
        given = options  # nothing is chosen anew
    split = None
    if dataset.test is None:
        path = os.path.join(folder, splits.RECORD)
        split = group.first(
            lambda: (
                splits.read(path)
                if architecture is not None
                else splits.make(dataset.train, options['seed'])
            )
        )
        dataset = splits.apply(dataset, split)
    network = build.network(options, given, architecture, dataset, going_on)
    preprocessing = build.preprocessing(options, given, network)
    _introduce(say, options, network, dataset)
    say(
        'device: {}, engine {}, precision {}{}'.format(
            'CPU' if options['gpu'] < 0 else 'GPU {}'.format(options['gpu']),
            engine,
            precision,
            '; ' + why if why else '',
        )
    )
    if group.size > 1:
        say(
            'processes: {}, each with its share of every batch{}'.format(
                group.size, ' and a GPU of its own' if options['gpu'] >= 0 else ''
            )
        )
    if options['load_model'] is not None and not going_on:
        say(transfer.describe(options))

    device.use()
    optimizer = build.optimizer(options, network)
    log = Log(dataset)
    epochs_before = options['start_epoch'] - 1
    if not going_on:
        # Everything named is read before the folder is touched: it may lie there.
        if options['load_optimizer'] is not None:
            arrays = snapshots.optimizer_arrays(options['load_optimizer'])
            try:
                chainer.serializers.NpzDeserializer(arrays).load(optimizer)
            except (KeyError, ValueError, TypeError) as e:
                raise InputError(
                    '-o {}: does not fit {} ({})'.format(
                        options['load_optimizer'], npz.describe(network), e
                    )
                ) from e
        if options['load_log'] is not None:
            log.load(options['load_log'], epochs_before)
    data = data_path(dataset, options, preprocessing, group)
    models = os.path.join(folder, 'model')

    def begin_folder():
        if not resume and (left := _outputs(folder)):
            earlier.move_aside(folder, left, say)
        files.remove_unfinished(
            folder, lambda name: name in _OUTPUTS or snapshots.number(name) is not None
        )
        os.makedirs(models, exist_ok=True)
        files.remove_unfinished(models, lambda name: name.endswith('.model'))
        if split is not None:
            files.save_json(os.path.join(folder, splits.RECORD), split)
        write_record(folder, options, network, pictures)

    group.first(begin_folder)
    stop = _Stop(say, group)
    updater = ChunkedUpdater(
        data.train,
        optimizer,
        device,
        group.chunks(options['train_batch_divide']),
        build.loss(options),
        group,
        data.finish,
        captured=engine == 'cudnn',
    )
    trainer = chainer.training.Trainer(
        updater, chainer.training.triggers.IntervalTrigger(options['epoch'], 'epoch'), folder
    )
    trainer.stop_trigger = stop.before(trainer.stop_trigger)
    iterations = len(data.train.plan)
    networks = [network]
    if options['ema_decay']:
        average = extensions.MovingAverage(network, options['ema_decay'])
        trainer.extend(average)
        network = average.network
        networks.append(network)
    if precision == 'mixed':
        optimizer.loss_scaling()  # adapts to what float16 can hold
        trainer.extend(extensions.LossScale(optimizer))
    evaluator = extensions.Evaluator(
        data.test, predictors.predictor(network, engine, precision, data.finish), say, group
    )
    snapshot = snapshots.extension()
    chosen = [extensions.LearningRate(schedules.of(options), iterations), evaluator]
    if not group.rank:
        chosen += [
            log,
            Console(log, options['epoch'], iterations),
            extensions.SaveModel(network, models),
            figures.Figures(log, evaluator, dataset.classes, options['epoch']),
        ]
        trainer.extend(snapshot, trigger=snapshots.Trigger(lambda: stop.wanted))
    for extension in chosen:
        trainer.extend(extension, trigger=_epochs(1) if extension.trigger[1] == 'epoch' else None)
    if group.size > 1:
        # Triggers without a state: snapshots are the same for any number of processes.
        trainer.extend(
            lambda trainer: stop.agree(),
            name='stop',
            trigger=lambda trainer: True,
            priority=extensions.FIRST,
        )
        trainer.extend(
            lambda trainer: group.mean_statistics(*networks),
            name='statistics',
            trigger=lambda trainer: updater.is_new_epoch or stop.wanted,
            priority=extensions.BEFORE_EVALUATION,
        )

    if going_on:
        path = snapshots.restore(trainer, folder, say, group)
        say(f'{path}: going on after epoch {updater.epoch}, update {updater.iteration}')
    elif epochs_before:
        _begin_after(trainer, log, epochs_before, iterations)
    if updater.epoch >= options['epoch']:
        say('{}: all {} epochs are done; -e takes it further'.format(folder, options['epoch']))
        return True
    group.begin(device, *networks, gradients=np.float16 if precision == 'mixed' else None)
    # BLAS's threads wait by spinning: a network as small as --quick's gains nothing by
    # them, and on a busy machine they cost it many times its time.
    threads = options['threads'] or (1 if options['quick'] else None)
    with (
        stop,
        threadpoolctl.threadpool_limits(threads),
        chainer.using_config('threads', threads),
        chainer.using_config('engine', engine),
        chainer.using_config('precision', precision),
    ):
        try:
            trainer.run(show_loop_exception_msg=False)
        except parallel.Unreadable as e:
            # As it was before that batch, which going on asks for again.
            group.mean_statistics(*networks)
            if not group.rank:
                snapshot(trainer)
            raise InputError(
                f'{e}; mend it, or put another picture of its class in its place, and '
                f'go on with --resume {folder}: nothing is lost'
            ) from e
    if stop.wanted and updater.epoch < options['epoch']:
        say(
            f'stopped after update {updater.iteration}, nothing is lost: python main.py --resume '
            f'{folder}'
        )
        return False
    return True


def _introduce(say, options, network, dataset):
    """Say what is about to be trained, on what, and how."""
    say(f'{network.name}: {npz.describe(network)}, {network.count_parameters():,} weights')
    say(
        'data: {}, {} pictures for training, {} for testing; {}'.format(
            dataset.name,
            len(dataset.train.labels),
            len(dataset.test.labels),
            options['preprocessing'],
        )
    )
    for note in dataset.notes:
        say('note: ' + note)
    say(
        'recipe: {}; batch {}, {} from learning rate {:g} ({}), weight decay {:g}'.format(
            options['recipe'],
            options['batch'],
            options['optimizer'],
            options['lr'],
            schedules.describe(options),
            options['weight_decay'],
        )
    )


def _epochs(n):
    return chainer.training.triggers.IntervalTrigger(n, 'epoch')


def _begin_after(trainer, log, epochs, iterations):
    """Make a new trainer begin after so many epochs (``--start_epoch``)."""
    updater = trainer.updater
    updater.get_iterator('main').skip(epochs)
    updater.iteration = epochs * iterations
    state = chainer.serializers.NpzDeserializer(
        {
            'previous_iteration': np.asarray(updater.iteration),
            'previous_epoch_detail': np.asarray(float(epochs)),
        }
    )
    found = [entry.trigger for entry in trainer._extensions.values()] + [log._trigger]
    for trigger in found:
        if isinstance(trigger, chainer.training.triggers.IntervalTrigger):
            trigger.serialize(state)


def _outputs(folder):
    """Return the names of what a run left in a folder."""
    left = [name for name in _OUTPUTS if os.path.lexists(os.path.join(folder, name))]
    return left + [os.path.basename(path) for path in snapshots.find(folder)]


class _Stop:
    """Ctrl-C: finish the update, take a snapshot, stop. A second Ctrl-C stops at once.

    Several processes stop after the same update: the first after which one is asked to.
    """

    def __init__(self, say, group):
        self._say = say
        self._group = group
        self._asked = self._agreed = False

    @property
    def wanted(self):
        return self._asked if self._group.size == 1 else self._agreed

    def agree(self):
        """Learn, after an update, whether one of the processes is asked to stop."""
        self._agreed = self._group.sum(self._asked) != [0.0]

    def __enter__(self):
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc):
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number, frame):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._say('\nstopping after this update, with a snapshot; again to stop at once')

    def before(self, trigger):
        """Return a stop trigger: now, or when ``trigger`` says so."""

        def stop(trainer):
            return self.wanted or trigger(trainer)

        return stop
