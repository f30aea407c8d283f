"""Plans: the images of each batch in an epoch, as a function of (seed, epoch).

:mod:`trainer.datasets.parallel` loads the batches. If an image occurs in an epoch several times,
with different augmentation, its numbers are its index plus 0, 1, 2, ... times the number of
images.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

# Distinguishes the order from other draws of the same seed (trainer.transforms).
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

    With repeated augmentation (arXiv 1902.05509; torchvision's ``RASampler``) each image of a
    batch occurs several times. An epoch has as many batches, and so uses fewer images. A batch
    lists all of its images once, then all of them again, so that no chunk has an image twice if
    there are at least as many chunks as repetitions.

    Args:
        size, batch: See :class:`InOrder`.
        seed: The run's seed.
        repetitions: How often each image occurs in its batch.
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
    """Like :class:`EveryImageOnce`, without a last, smaller batch."""

    def __len__(self) -> int:
        return self.size // self.batch

    def __call__(self, epoch: int) -> list[np.ndarray]:
        return super().__call__(epoch)[: len(self)]


#: Value of ``sampling`` -> plan of training.
PLANS = {'every-image': EveryImageOnce, 'full-batches': FullBatches, 'original': OriginalSampling}


class Share:
    """One process's part of each batch of a plan.

    A batch is split into processes x chunks chunks, as by ``numpy.array_split``; each process
    gets ``chunks`` consecutive ones. Of a last, smaller batch, some processes may get no image.

    Args:
        plan: One of the plans above.
        rank: Number of this process, from 0.
        processes: Number of processes.
        chunks: Number of chunks that each process computes, one after the other.
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


#: Type of plans: (epoch) -> batches of indices.
Plan: TypeAlias = InOrder | Share
