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

    Batch normalisation sees one chunk at a time and updates its running statistics at
    each; the gradients of the mean loss over the batch are added up, then the optimizer
    updates once. Of several processes each computes its share of the batch; the gradients
    are those of all of it.

    Args:
        optimizer: Its target is a network.
        device: Where to compute.
        divide: Number of chunks (``train_batch_divide``) of this process's share.
        loss: Mean loss from scores and labels, and where images are mixed from their rows;
            ``None``: the network's.
        finish: Makes what the network takes, on the device, of what is given; ``None``: it is given
            that.
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
        """Update from a batch: x (batch, ...), t int32 (batch,), and how images are mixed, rows
        float32 (batch, fields) of :mod:`trainer.transforms.mixing` or ``None``; NumPy arrays.

        Of several processes each gives its share, which may be empty.

        Returns:
            Mean loss and accuracy over the whole batch (numbers, or arrays of no dimension on the
            device), and its images.
        """
        self.network.cleargrads()
        images = round(self.group.sum(len(t))[0])
        loss_sum = correct = 0.0
        for n, (loss, y, t_chunk, share) in enumerate(self._chunks(x, t, rows, images), 1):
            last = n == min(self.divide, len(t))
            with self.group.exchanging(self.network) if last else contextlib.nullcontext():
                (loss * share).backward(loss_scale=self.optimizer._loss_scale)
            loss_sum += float(loss.array) * len(t_chunk)
            correct += int((y.array.argmax(axis=1) == t_chunk).sum())
            loss.unchain_backward()
        self.group.mean_gradients(self.network)
        if self.device.xp is np:
            update.apply(self.optimizer)
        else:
            self.optimizer.update()
        loss_sum, correct = self.group.sum(loss_sum, correct)
        return loss_sum / images, correct / images, images

    def _chunks(self, x, t, rows, images):
        """Yield of each chunk the loss, the scores, the labels that count, and by what its
        loss contributes to the gradients."""
        chunks = min(self.divide, len(t))
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
            loss = self._loss(y, t_chunk) if mixed is None else self._loss(y, t_chunk, mixed)
            # Times the processes: their gradients are averaged.
            share = len(t_chunk) / images * self.group.size
            yield loss, y, counted, share

    def settle(self) -> None:
        """Bring the optimizer up to date with what the steps did, before its state is read."""

    def forget(self) -> None:
        """Look at the optimizer anew, after its state was replaced."""
