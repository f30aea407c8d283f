"""Console output: a line per epoch, and a progress bar with the remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import tqdm
from chainer.training import extension

from trainer.reports.log import ACCURACY, Log

if TYPE_CHECKING:
    import chainer

#: Seconds between two updates of the loss.
_SHOWN = 0.2

_HEAD = 'epoch  train loss  test loss  accuracy{}        lr      time       left'
_ROW = '{:5d}  {:10.4f}  {:9.4f}  {:7.2f}%{}  {:8.2g}  {:>8s}  {:>9s}'


class Console(extension.Extension):
    """Prints a table row after each epoch, and a progress bar on a terminal.

    Args:
        log: The log with the numbers.
        epochs: Epochs of the whole run.
        iterations: Updates in an epoch.
        classes: Number of classes; with five or fewer, top-5 accuracy is left out.
        say: Receives the lines.
    """

    trigger: tuple[int, str] = 1, 'iteration'
    priority: int = extension.PRIORITY_READER - 5

    def __init__(
        self, log: Log, epochs: int, iterations: int, classes: int, say: Callable[[str], object]
    ) -> None:
        self._log = log
        self._epochs = epochs
        self._iterations = iterations
        self._top5 = classes > 5
        self._say = say
        self._bar = None
        self._shown = 0

    def initialize(self, trainer: chainer.training.Trainer) -> None:
        updater = trainer.updater
        self._begun = updater.iteration, trainer.elapsed_time
        self._printed = len(self._log.log)
        self._say(_HEAD.format('    top-5' if self._top5 else ''))
        self._open(updater)

    def _open(self, updater):
        if updater.epoch < self._epochs:
            self._bar = tqdm.tqdm(
                total=self._iterations,
                initial=updater.iteration % self._iterations,
                leave=False,
                desc=f'epoch {updater.epoch + 1}/{self._epochs}',
                unit=' batches',
                bar_format='{desc} |{bar}| {n_fmt}/{total_fmt}, {rate_fmt}{postfix}',
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
            )

    def _close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, trainer):
        iteration, elapsed = self._begun
        done = trainer.updater.iteration - iteration
        ahead = self._epochs * self._iterations - trainer.updater.iteration
        return clock((trainer.elapsed_time - elapsed) / done * ahead)

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        if self._bar is not None:
            now = time.monotonic()
            if not self._bar.disable and now > self._shown + _SHOWN:
                # On a GPU, reading the loss waits for the step.
                self._shown = now
                self._bar.set_postfix_str(
                    'loss {:.3f}, {} left'.format(
                        float(trainer.observation['main/loss'][0]), self._left(trainer)
                    ),
                    refresh=False,
                )
            self._bar.update()
        if len(self._log.log) > self._printed:
            self._printed = len(self._log.log)
            self._close()
            row = self._log.log[-1]
            top5 = 100 * row['validation/main/top5_accuracy']
            self._say(
                _ROW.format(
                    row['epoch'],
                    row['main/loss'],
                    row['validation/main/loss'],
                    100 * row[ACCURACY],
                    f'  {top5:6.2f}%' if self._top5 else '',
                    row['lr'],
                    clock(trainer.elapsed_time),
                    self._left(trainer),
                )
            )
            self._open(trainer.updater)

    def finalize(self) -> None:
        self._close()


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds: 0:01:01, 291:04:05."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
