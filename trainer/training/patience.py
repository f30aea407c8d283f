"""Early stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainer.training import extension

from trainer.reports.log import ACCURACY, Log

if TYPE_CHECKING:
    import chainer

    from trainer.training.processes import Alone


class Patience(extension.Extension):
    """Tells whether the test accuracy was highest a number of epochs ago.

    It reads the log, so that a resumed run needs no other state.

    Args:
        epochs: Number of epochs.
        log: Log of the first process.
        group: The processes.

    Attributes:
        reached: Whether the run has to end.
    """

    trigger: tuple[int, str] = 1, 'epoch'
    priority: int = extension.PRIORITY_READER - 10  # once the log has the numbers

    def __init__(self, epochs: int, log: Log, group: Alone) -> None:
        self.epochs = epochs
        self.reached: bool = False
        self._log = log
        self._group = group

    def __call__(self, trainer: chainer.training.Trainer | None = None) -> bool:
        self.reached = self._group.first(self._look)
        return self.reached

    def _look(self):
        found = [row[ACCURACY] for row in self._log.log if ACCURACY in row]
        return bool(found) and len(found) - 1 - found.index(max(found)) >= self.epochs
