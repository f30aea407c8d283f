"""Writes the log of a run for TensorBoard, by tensorboardX (extra ``tensorboard``)."""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chainer.training import extension

from trainer import extras
from trainer.reports.log import ACCURACY, Log

if TYPE_CHECKING:
    import chainer

#: Subfolder of a run's folder.
FOLDER = 'tensorboard'

#: Name in the log -> name in TensorBoard; equal parts before the slash share a chart.
SCALARS = {
    'main/loss': 'loss/train',
    'validation/main/loss': 'loss/test',
    'main/accuracy': 'accuracy/train',
    ACCURACY: 'accuracy/test',
    'validation/main/top5_accuracy': 'accuracy/test_top5',
    'lr': 'learning_rate',
}


def need() -> ModuleType:
    """Return the package.

    Raises:
        trainer.errors.InputError: It is not installed.
    """
    return extras.need('tensorboardX', '--tensorboard', 'tensorboard')


class TensorBoard(extension.Extension):
    """Writes each epoch's numbers for ``tensorboard --logdir RUN``.

    Args:
        log: The log with the numbers.
        folder: The run's folder.
    """

    trigger: tuple[int, str] = 1, 'epoch'
    priority: int = extension.PRIORITY_READER - 10

    def __init__(self, log: Log, folder: str) -> None:
        self._log = log
        self._folder = os.path.join(folder, FOLDER)
        self._writer: Any = None  # a tensorboardX.SummaryWriter

    def initialize(self, trainer: chainer.training.Trainer) -> None:
        # Epochs that a killed run wrote after its last snapshot are written again. The name has
        # the time in seconds: a run that was continued within one would overwrite the file.
        first = trainer.updater.epoch + 1
        self._writer = need().SummaryWriter(
            self._folder, purge_step=first if self._log.log else None, filename_suffix=f'.{first}'
        )

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        row = self._log.log[-1]
        for key, name in SCALARS.items():
            if key in row and math.isfinite(row[key]):
                self._writer.add_scalar(name, float(row[key]), row['epoch'])
        self._writer.flush()

    def finalize(self) -> None:
        if self._writer is not None:
            self._writer.close()
