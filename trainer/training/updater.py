"""Chainer's updater for batches that are computed in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer

from trainer.training import processes
from trainer.training.captured_step import CapturedStep
from trainer.training.step import Step

if TYPE_CHECKING:
    import numpy as np

    from trainer.datasets import parallel
    from trainer.training.processes import Alone
    from trainer.types import Array


class ChunkedUpdater(chainer.training.updaters.StandardUpdater):
    """Chainer's updater with the original's gradient accumulation.

    Args:
        iterator: Iterator over batches (x, t) or (x, t, rows).
        optimizer, device, divide, loss, group, finish: See
            :class:`trainer.training.step.Step`.
        captured: Whether the step is captured as a CUDA graph
            (:class:`trainer.training.captured_step.CapturedStep`).

    Attributes:
        step: Computes the updates.
    """

    def __init__(
        self,
        iterator: parallel.Iterator,
        optimizer: chainer.Optimizer,
        device: chainer.backend.Device,
        divide: int = 1,
        loss: Callable | None = None,
        group: Alone = processes.ALONE,
        finish: Callable[[Array], Array] | None = None,
        captured: bool = False,
    ) -> None:
        super().__init__(iterator, optimizer, device=device)
        self.step: Step = (CapturedStep if captured else Step)(
            optimizer, device, divide, loss, finish, group
        )

    def update_core(self) -> None:
        iterator = self.get_iterator('main')
        self.update_with(*self.step.group.together(iterator.next, undo=iterator.step_back))

    def update_with(self, x: np.ndarray, t: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Update from a batch (:meth:`trainer.training.step.Step.__call__`).

        It reports ``main/loss``, the mean loss over the whole batch, and ``main/accuracy``,
        weighted by the number of images.
        """
        loss, accuracy, images = self.step(x, t, rows)
        chainer.report(
            {'loss': (loss, images), 'accuracy': (accuracy, images)},
            self.get_optimizer('main').target,
        )

    def serialize(self, serializer: chainer.Serializer) -> None:
        self.step.settle()
        super().serialize(serializer)
        if isinstance(serializer, chainer.serializer.Deserializer):
            self.step.forget()
