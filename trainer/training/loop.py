"""The training loop: Chainer's Trainer with its extensions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer
import numpy as np
import threadpoolctl
from chainer.training import triggers

from trainer import files
from trainer.datasets import parallel
from trainer.errors import InputError
from trainer.inference import predictors
from trainer.reports import ending, figures
from trainer.reports.console import Console
from trainer.reports.tensorboard import TensorBoard
from trainer.settings import settings
from trainer.training import build, extensions, schedules, snapshots
from trainer.training.background import Background
from trainer.training.patience import Patience
from trainer.training.stop import Stop
from trainer.training.updater import ChunkedUpdater

if TYPE_CHECKING:
    from trainer.reports.log import Log
    from trainer.training.data import DataPath
    from trainer.training.processes import Alone
    from trainer.training.setup import Setup


class Loop:
    """The training loop of a run.

    Args:
        setup: The run.
        optimizer: Optimizer of its network.
        data: Its batches.
        log: Log of the first process.
        say: Receives messages.
        group: The processes.
    """

    def __init__(
        self,
        setup: Setup,
        optimizer: chainer.Optimizer,
        data: DataPath,
        log: Log,
        say: Callable[[str], object],
        group: Alone,
    ) -> None:
        self.setup, self.group, self.say = setup, group, say
        self.log = log
        self.stop = Stop(say, group)
        self.iterations = len(data.train.plan)
        self.updater = ChunkedUpdater(
            data.train,
            optimizer,
            setup.device,
            group.chunks(setup.options.train_batch_divide),
            build.loss(setup.options),
            group,
            data.finish,
            captured=setup.engine == 'cudnn',
        )
        last = triggers.IntervalTrigger(setup.options.epoch, 'epoch')
        patience = setup.options.patience
        self.patience = None if patience is None else Patience(patience, log, group)

        def ends(trainer):
            return last(trainer) or self._is_patient_no_more()

        self.trainer = chainer.training.Trainer(self.updater, self.stop.before(ends), setup.folder)
        #: The networks that are saved or evaluated: the trained network and its moving average.
        self.networks = [setup.network]
        self._writing = Background()
        self._extend(optimizer, data)

    def _extend(self, optimizer, data):
        setup, group, options = self.setup, self.group, self.setup.options
        if options.ema_decay:
            average = extensions.MovingAverage(
                setup.network, options.ema_decay, options.ema_steps, self.iterations, options.warmup
            )
            self.trainer.extend(average)
            self.networks.append(average.network)
        if setup.precision == 'mixed':
            optimizer.loss_scaling()  # adapts to what float16 can hold
            self.trainer.extend(extensions.LossScale(optimizer))
        network = self.networks[-1]
        predictor = predictors.predictor(network, setup.engine, setup.precision, data.finish)
        evaluator = extensions.Evaluator(data.test, predictor, self.say, group)
        chosen = [extensions.LearningRate(schedules.of(options), self.iterations), evaluator]
        # Arrays on a CPU would change while they are written.
        when = self._writing if setup.device.xp is not np else files.now
        self.snapshot = snapshots.extension(when)
        if not group.rank:
            self.models = extensions.SaveModel(network, os.path.join(setup.folder, 'model'), when)
            chosen += [
                self.log,
                Console(self.log, options.epoch, self.iterations, network.category_num, self.say),
                self.models,
                figures.Figures(
                    self.log,
                    evaluator,
                    setup.dataset.classes,
                    options.epoch,
                    self._is_patient_no_more,
                    when,
                ),
            ]
            if options.tensorboard:
                chosen.append(TensorBoard(self.log, setup.folder))
            self.trainer.extend(self.snapshot, trigger=snapshots.Trigger(lambda: self.stop.wanted))
        if self.patience is not None:
            chosen.append(self.patience)
        for extension in chosen:
            each_epoch = extension.trigger[1] == 'epoch'
            trigger = triggers.IntervalTrigger(1, 'epoch') if each_epoch else None
            self.trainer.extend(extension, trigger=trigger)
        if group.size > 1:
            self._extend_for_several()

    def _is_patient_no_more(self):
        return self.patience is not None and self.patience.reached

    def _extend_for_several(self):
        # Triggers without state, so that snapshots are the same for any number of processes.
        self.trainer.extend(
            lambda trainer: self.stop.agree(),
            name='stop',
            trigger=lambda trainer: True,
            priority=extensions.FIRST,
        )
        self.trainer.extend(
            lambda trainer: self.group.mean_statistics(*self.networks),
            name='statistics',
            trigger=lambda trainer: self.updater.is_new_epoch or self.stop.wanted,
            priority=extensions.BEFORE_EVALUATION,
        )

    def restore(self) -> None:
        """Restore the state of the newest whole snapshot."""
        path = snapshots.restore(self.trainer, self.setup.folder, self.say, self.group)
        self.say(
            f'{path}: going on after epoch {self.updater.epoch}, update {self.updater.iteration}'
        )

    def begin_after(self, epochs: int) -> None:
        """Let a new run start after a number of epochs (``start_epoch``)."""
        self.updater.get_iterator('main').skip(epochs)
        self.updater.iteration = epochs * self.iterations
        state = chainer.serializers.NpzDeserializer(
            {
                'previous_iteration': np.asarray(self.updater.iteration),
                'previous_epoch_detail': np.asarray(float(epochs)),
            }
        )
        entries = self.trainer._extensions.values()
        for trigger in [entry.trigger for entry in entries] + [self.log._trigger]:
            if isinstance(trigger, triggers.IntervalTrigger):
                trigger.serialize(state)

    def run(self) -> bool:
        """Train until the last epoch, or until the user stops it.

        Returns:
            Whether the last epoch is done.
        """
        setup, options = self.setup, self.setup.options
        if self.updater.epoch >= options.epoch:
            self.say(f'{setup.folder}: all {options.epoch} epochs are done; -e takes it further')
            return True
        if self.patience is not None and self.updater.epoch and self.patience():
            self.say(
                f'{setup.folder}: after epoch {self.updater.epoch} it did not get better for '
                f'{options.patience} epochs; a higher --patience takes it further'
            )
            return True
        gradients = np.float16 if setup.precision == 'mixed' else None
        self.group.begin(setup.device, *self.networks, gradients=gradients)
        with (
            self.stop,
            self._writing,
            threadpoolctl.threadpool_limits(options.threads),
            settings.using(threads=options.threads),
            chainer.using_config('engine', setup.engine),
            chainer.using_config('precision', setup.precision),
        ):
            self._run_trainer()
        if self.stop.wanted and self.updater.epoch < options.epoch:
            self.say(
                f'stopped after update {self.updater.iteration}, nothing is lost; to go on:\n'
                f'python main.py --resume {shlex.quote(setup.folder)}'
            )
            return False
        if self._is_patient_no_more() and self.updater.epoch < options.epoch:
            self.say(
                f'ended after epoch {self.updater.epoch}: no better for {options.patience} epochs'
            )
        if not self.group.rank:
            rows = [row for row in self.log.log if row['epoch'] >= options.start_epoch]
            best = self.models.path('best')
            test = setup.dataset.test
            images = 0 if test is None else len(test.labels)
            self.say(ending.text(rows, setup.folder, best, self.trainer.elapsed_time, images))
        return True

    def _run_trainer(self):
        try:
            self.trainer.run(show_loop_exception_msg=False)
        except parallel.Unreadable as e:
            # The state before that batch, which is loaded again on resuming.
            self.group.mean_statistics(*self.networks)
            if not self.group.rank:
                self.snapshot(self.trainer)
            raise InputError(
                f'{e}; repair it, or put another image of its class in its place, and '
                f'go on with --resume {self.setup.folder}: nothing is lost'
            ) from e
