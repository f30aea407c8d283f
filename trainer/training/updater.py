"""Chainer's updater over batches that are computed in chunks."""

import chainer

from trainer.training import processes
from trainer.training.captured_step import CapturedStep
from trainer.training.step import Step


class ChunkedUpdater(chainer.training.updaters.StandardUpdater):
    """Chainer's updater with the original's gradient accumulation.

    Args:
        iterator (trainer.datasets.parallel.Iterator): Of batches (x, t), or (x, t, rows).
        optimizer, device, divide, loss, group, finish: See
            :class:`trainer.training.step.Step`.
        captured (bool): Whether the step becomes a CUDA graph
            (:class:`trainer.training.captured_step.CapturedStep`).

    Attributes:
        step (trainer.training.step.Step): Makes the updates.
    """

    def __init__(
        self,
        iterator,
        optimizer,
        device,
        divide=1,
        loss=None,
        group=processes.ALONE,
        finish=None,
        captured=False,
    ):
        super().__init__(iterator, optimizer, device=device)
        self.step = (CapturedStep if captured else Step)(
            optimizer, device, divide, loss, finish, group
        )

    def update_core(self):
        iterator = self.get_iterator('main')
        self.update_with(*self.step.group.together(iterator.next, undo=iterator.step_back))

    def update_with(self, x, t, rows=None):
        """Update from a batch (:meth:`trainer.training.step.Step.__call__`).

        Reports ``main/loss``, the mean loss over the whole batch, and ``main/accuracy``,
        weighted by the number of images.
        """
        loss, accuracy, images = self.step(x, t, rows)
        chainer.report(
            {'loss': (loss, images), 'accuracy': (accuracy, images)},
            self.get_optimizer('main').target,
        )

    def serialize(self, serializer):
        self.step.settle()
        super().serialize(serializer)
        if isinstance(serializer, chainer.serializer.Deserializer):
            self.step.forget()
