"""Plans: which images make up each batch of an epoch, as a function of (seed, epoch).

:mod:`trainer.datasets.parallel` loads them. Where an image is in an epoch several times, each
time with other augmentation, its numbers are its index plus 0, 1, 2, ... times the images.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

# Keeps the order apart from what else is drawn from a seed (trainer.transforms).
_ORDER = 1 << 32


class InOrder:
    """Every image once, in order.

    Args:
        size: Number of images.
        batch: Images in a batch; the last may be smaller.
    """

    def __init__(self, size: int, batch: int) -> None:
        self.size = size
        self.batch = batch

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.size // self.batch)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch: a list of int arrays."""
        return np.split(np.arange(self.size), range(self.batch, self.size, self.batch))


class EveryImageOnce(InOrder):
    """Every image once, in an order that is a function of (seed, epoch).

    With repeated augmentation (arXiv 1902.05509; torchvision's ``RASampler``) a batch has each
    of its images several times, and an epoch is as long, so that it has that many fewer images.
    A batch has first all of its images once, then all of them again: its chunks, of which
    there are as many as repetitions or more, have no image twice.

    Args:
        size, batch: See :class:`InOrder`.
        seed: The run's.
        repetitions: How often a batch has an image.
    """

    def __init__(self, size: int, batch: int, seed: int, repetitions: int = 1) -> None:
        super().__init__(size, batch)
        self.seed = seed
        self.repetitions = repetitions

    def __call__(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((self.seed, epoch, _ORDER)).permutation(self.size)
        places = range(self.batch, self.size, self.batch)
        if self.repetitions == 1:
            return np.split(order, places)
        place = np.arange(self.size)
        repetition = place % self.repetitions
        numbers = order[place // self.repetitions] + self.size * repetition
        return [
            batch[np.argsort(again, kind='stable')]
            for batch, again in zip(np.split(numbers, places), np.split(repetition, places))
        ]


class OriginalSampling(EveryImageOnce):
    """The 2017 program's sampling: floor(size / batch) batches, each drawn anew.

    Within a batch no image comes twice; an epoch visits about 63 % of them.
    """

    def __len__(self) -> int:
        return self.size // self.batch

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch, _ORDER))
        return [rng.choice(self.size, self.batch, replace=False) for _ in range(len(self))]


class FullBatches(EveryImageOnce):
    """As :class:`EveryImageOnce`, without a last, smaller batch."""

    def __len__(self) -> int:
        return self.size // self.batch

    def __call__(self, epoch: int) -> list[np.ndarray]:
        return super().__call__(epoch)[: len(self)]


#: What ``sampling`` calls the plans of training -> the plan.
PLANS = {'every-image': EveryImageOnce, 'full-batches': FullBatches, 'original': OriginalSampling}


class Share:
    """One process's part of each batch of a plan.

    A batch is parted into processes x chunks chunks, as ``numpy.array_split`` parts it; each
    process has ``chunks`` of them in a row. A last, smaller batch may leave some with none.

    Args:
        plan: One of the plans above.
        rank: Which process this is, from 0.
        processes: How many there are.
        chunks: Chunks that each computes one after the other.
    """

    size: int
    batch: int

    def __init__(self, plan: Plan, rank: int, processes: int, chunks: int = 1) -> None:
        self.plan = plan
        self.size = plan.size
        self.batch = -(-plan.batch // (processes * chunks)) * chunks
        self._ends = rank * chunks, (rank + 1) * chunks
        self._parts = processes * chunks

    def __len__(self) -> int:
        return len(self.plan)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        return [
            batch[slice(*(part_start(len(batch), self._parts, end) for end in self._ends))]
            for batch in self.plan(epoch)
        ]


def part_start(size: int, parts: int, part: int) -> int:
    """Return where ``numpy.array_split`` of ``size`` into ``parts`` begins one, from 0."""
    length, longer = divmod(size, parts)
    return part * length + min(part, longer)


#: What plans are: (epoch) -> batches of indices.
Plan: TypeAlias = InOrder | Share
