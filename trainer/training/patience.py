"""The end of a run that no longer gets better."""

from chainer.training import extension

from trainer.reports.log import ACCURACY


class Patience(extension.Extension):
    """Tell whether the accuracy in testing was highest so many epochs ago.

    It is read from the log, so that a run that goes on needs no other state.

    Args:
        epochs (int): How many.
        log (trainer.reports.log.Log): Of the first process.
        group (trainer.training.processes.Alone): The processes.

    Attributes:
        reached (bool): Whether the run is to end.
    """

    trigger = 1, 'epoch'
    priority = extension.PRIORITY_READER - 10  # when the log has its numbers

    def __init__(self, epochs, log, group):
        self.epochs = epochs
        self.reached = False
        self._log = log
        self._group = group

    def __call__(self, trainer=None):
        self.reached = self._group.first(self._look)
        return self.reached

    def _look(self):
        found = [row[ACCURACY] for row in self._log.log if ACCURACY in row]
        return bool(found) and len(found) - 1 - found.index(max(found)) >= self.epochs
