"""Extensions of Chainer's Trainer: learning rate, averaging, evaluation, saving of models."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.training import extension

from trainer import files
from trainer.errors import InputError
from trainer.metrics import Tally
from trainer.reports.log import ACCURACY
from trainer.training import processes
from trainer.weights import npz

if TYPE_CHECKING:
    from trainer.datasets import parallel
    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network
    from trainer.training.processes import Alone
    from trainer.training.schedules import Schedule
    from trainer.types import When

#: Priorities: before all other extensions, and right before the evaluation.
FIRST = 1000
BEFORE_EVALUATION = extension.PRIORITY_WRITER + 25


class LearningRate(extension.Extension):
    """Sets the learning rate of each update, and reports it as ``lr``.

    Args:
        schedule: One of :mod:`trainer.training.schedules`.
        iterations: Updates in an epoch.
    """

    trigger: tuple[int, str] = 1, 'iteration'
    priority: int = extension.PRIORITY_EDITOR

    def __init__(self, schedule: Schedule, iterations: int) -> None:
        self.schedule = schedule
        self.iterations = iterations

    def initialize(self, trainer: chainer.training.Trainer) -> None:
        self._set(trainer.updater)

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        if trainer.updater.is_new_epoch:  # once, so that its mean is not logged
            chainer.report({'lr': trainer.updater.get_optimizer('main').lr})
        self._set(trainer.updater)

    def _set(self, updater):
        part = (updater.iteration % self.iterations + 1) / self.iterations
        updater.get_optimizer('main').lr = self.schedule(updater.epoch, part)


class MovingAverage(extension.Extension):
    """Keeps an exponential moving average of a network, which is part of the run's snapshots.

    At each update the average becomes decay x average + (1 - decay) x weights; at the first
    update, and during warm-up of the learning rate, it equals the weights. The running
    statistics of batch normalisation depend on the weights and are averaged in the same way.

    Args:
        network: The network that is trained.
        decay: Decay, between 0 and 1.
        steps: The average is updated after the first and every ``steps``-th further update of an
            epoch.
        iterations: Updates in an epoch.
        warmup: Epochs of warm-up.

    Attributes:
        network: The average, a separate network.
    """

    trigger: tuple[int, str] = 1, 'iteration'
    priority: int = extension.PRIORITY_WRITER + 50  # before the evaluation

    def __init__(
        self, network: Network, decay: float, steps: int = 1, iterations: int = 1, warmup: int = 0
    ) -> None:
        self.network: Network = network.copy('copy')
        self.network.cleargrads()
        self.decay = decay
        self.steps = steps
        self.iterations = iterations
        self.warmup = warmup
        self._source = network
        self._updates = 0

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        epoch, update = divmod(trainer.updater.iteration - 1, self.iterations)
        if update % self.steps:
            return
        for link, source in zip(self.network.links(), self._source.links()):
            for name in link._params:
                self._blend(getattr(link, name).array, getattr(source, name).array)
            for name in link._persistent:
                if np.ndim(getattr(link, name)):
                    self._blend(getattr(link, name), getattr(source, name))
                else:  # number of batches in BN's statistics
                    setattr(link, name, getattr(source, name))
        self._updates = 0 if epoch < self.warmup else self._updates + 1

    def _blend(self, average, array):
        rate = 1 - self.decay
        if not self._updates:
            average[...] = array
        elif isinstance(average, np.ndarray):
            average += rate * (array - average)
        else:
            cuda.elementwise(
                'T array, T rate',
                'T average',
                'average += rate * (array - average)',
                'moving_average',
            )(array, rate, average)

    def serialize(self, serializer: chainer.Serializer) -> None:
        self.network.serialize(serializer['network'])
        self._updates = int(serializer('updates', self._updates))


class LossScale(extension.Extension):
    """Saves Chainer's adaptive loss scale in snapshots, which Chainer itself does not.

    Args:
        optimizer: An optimizer whose ``loss_scaling()`` was called.
    """

    trigger: tuple[int, str] = 1, 'epoch'

    def __init__(self, optimizer: chainer.Optimizer) -> None:
        self._optimizer = optimizer

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        pass

    def serialize(self, serializer: chainer.Serializer) -> None:
        optimizer = self._optimizer
        optimizer._loss_scale = float(serializer('scale', optimizer._loss_scale))
        optimizer._loss_scaling_isnan_ever = bool(
            serializer('overflowed', optimizer._loss_scaling_isnan_ever)
        )


class Evaluator(chainer.training.extensions.Evaluator):
    """Chainer's evaluator with the original's numbers.

    It reports loss, accuracy and top5_accuracy, and accuracy/<label> of each class, and
    keeps the :class:`~trainer.metrics.Tally` as ``tally``. Images that cannot be read are
    reported and not counted. With several processes, each evaluates its share and gets the
    totals.

    Args:
        iterator: Test batches.
        predictor: Predictor of the network with its current weights.
        say: Receives messages.
        group: The processes.
    """

    tally: Tally | None = None

    def __init__(
        self,
        iterator: parallel.Iterator,
        predictor: Predictor,
        say: Callable[[str], object] = print,
        group: Alone = processes.ALONE,
    ) -> None:
        super().__init__(iterator, predictor.network, device=predictor.network.device)
        self._predictor = predictor
        self._say = say
        self._group = group

    def evaluate(self) -> dict[str, Any]:
        iterator, network = self.get_iterator('main'), self.get_target('main')
        iterator.reset()
        self.tally = Tally(network.category_num)
        self._predictor.refresh()
        for x, t in iterator:
            if len(t):
                self.tally.add(self._predictor(x), t)
        self._group.sum_tally(self.tally)
        unreadable = self._group.collect(iterator.unreadable)
        if unreadable:
            self._say(f'{len(unreadable)} images for testing left out; the first: {unreadable[0]}')
        if not self.tally.images:
            raise InputError('none of the images for testing could be read')
        observation: dict[str, Any] = {}
        with chainer.reporter.report_scope(observation):
            chainer.report(
                {
                    'loss': self.tally.loss,
                    'accuracy': self.tally.accuracy,
                    'top5_accuracy': self.tally.top5_accuracy,
                },
                network,
            )
            chainer.report(
                {f'accuracy/{i}': a for i, a in enumerate(self.tally.class_accuracy)}, network
            )
        return observation


class SaveModel(extension.Extension):
    """Saves the network after each epoch, and the best one so far under a second name.

    Args:
        network: The network.
        folder: Folder of the models; must exist.
        when: Called with the function that writes a file; see :func:`trainer.weights.npz.save`.
    """

    trigger: tuple[int, str] = 1, 'epoch'
    priority: int = extension.PRIORITY_READER - 10

    def __init__(self, network: Network, folder: str, when: When = files.now) -> None:
        self.network = network
        self.folder = folder
        self.when = when
        self.best = -1.0

    def path(self, what: int | str) -> str:
        """Return the path of the model of an epoch, or of 'best'."""
        return os.path.join(self.folder, f'{self.network.name}_{what}.model')

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        npz.save(self.path(trainer.updater.epoch), self.network, when=self.when)
        accuracy = float(trainer.observation[ACCURACY])
        if accuracy > self.best:
            self.best = accuracy
            npz.save(self.path('best'), self.network, when=self.when)

    def serialize(self, serializer: chainer.Serializer) -> None:
        self.best = float(serializer('best', self.best))
