"""One update of a network from one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer.engines import update
from trainer.training import processes
from trainer.transforms import mixing

if TYPE_CHECKING:
    from trainer.training.processes import Alone
    from trainer.types import Array


class Step:
    """Compute a batch in chunks, with the original's gradient accumulation, and update.

    Batch normalisation sees one chunk at a time and updates its running statistics with each.
    The gradients of the mean loss over the batch are accumulated; then the optimizer updates
    once. With several processes, each computes its share of the batch, and the gradients are
    those of the whole batch.

    Args:
        optimizer: An optimizer whose target is a network.
        device: Device that computes.
        divide: Number of chunks (``train_batch_divide``) of this process's share.
        loss: Computes the mean loss from scores and labels, and from the rows if images are mixed;
            ``None``: the network's loss.
        finish: Converts x on the device to the network's input; ``None``: x is the input.
        group: The processes.
    """

    def __init__(
        self,
        optimizer: chainer.Optimizer,
        device: chainer.backend.Device,
        divide: int = 1,
        loss: Callable | None = None,
        finish: Callable[[Array], Array] | None = None,
        group: Alone = processes.ALONE,
    ) -> None:
        self.optimizer = optimizer
        self.network = optimizer.target
        self.device = device
        self.divide = divide
        self.group = group
        self._loss = loss or self.network.calc_loss
        self._finish = finish

    def __call__(self, x: np.ndarray, t: np.ndarray, rows: np.ndarray | None = None) -> tuple:
        """Update from a batch of NumPy arrays: x (batch, ...), labels t, int32 (batch,), and, if
        images are mixed, rows of :mod:`trainer.transforms.mixing`, float32 (batch, fields).

        With several processes, the arrays are the share of this process, which may be empty.

        Returns:
            Mean loss and accuracy over the whole batch (numbers, or arrays of shape () on the
            device), and its number of images.
        """
        self.network.cleargrads()
        images = round(self.group.sum(len(t))[0])
        loss_sum = correct = 0.0
        chunks = self._number_of_chunks(t)
        for n, scored in enumerate(self._scores(x, t, rows, images, chunks), 1):
            y, labels, mixed, counted, share = scored
            loss = self._loss_of(y, labels, mixed)
            last = n == chunks
            with self.group.exchanging(self.network) if last else contextlib.nullcontext():
                (loss * share).backward(loss_scale=self.optimizer._loss_scale)
            loss_sum += float(loss.array) * len(counted)
            correct += int((y.array.argmax(axis=1) == counted).sum())
            loss.unchain_backward()
        self.group.mean_gradients(self.network)
        if self.device.xp is np:
            update.apply(self.optimizer)
        else:
            self.optimizer.update()
        loss_sum, correct = self.group.sum(loss_sum, correct)
        return loss_sum / images, correct / images, images

    def _number_of_chunks(self, t):
        return min(self.divide, len(t))  # no chunk is empty

    def _loss_of(self, y, labels, mixed):
        return self._loss(y, labels) if mixed is None else self._loss(y, labels, mixed)

    def _scores(self, x, t, rows, images, chunks):
        """Yield (scores, labels, rows or ``None``, labels for the accuracy, weight of the loss) of
        each chunk."""
        if not chunks:
            return
        parts = [np.array_split(array, chunks) for array in (x, t)]
        parts += [[None] * chunks if rows is None else np.array_split(rows, chunks)]
        for x_chunk, t_chunk, mixed in zip(*parts):
            x_chunk, t_chunk = self.device.send(x_chunk), self.device.send(t_chunk)
            if self._finish is not None:
                x_chunk = self._finish(x_chunk)
            counted = t_chunk
            if mixed is not None:
                mixed = self.device.send(mixed)
                x_chunk, counted = mixing.apply(x_chunk, mixed), mixing.counted(t_chunk, mixed)
            y = self.network(chainer.Variable(x_chunk, requires_grad=False))
            # Times the number of processes, as their gradients are averaged.
            share = len(t_chunk) / images * self.group.size
            yield y, t_chunk, mixed, counted, share

    def settle(self) -> None:
        """Update the optimizer's state from the steps, before the state is read."""

    def forget(self) -> None:
        """Take over the optimizer's state after it was replaced."""
