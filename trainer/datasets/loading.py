"""From pictures to batches: which, in which order, by how many workers.

A *plan* says which pictures make up each batch of an epoch; it is a function of
(seed, epoch). A *load* function turns indices into arrays. :func:`iterator` joins
them with Chainer's iterators: an item is a piece of a batch, so that workers
share each batch, and iterating gives a list of such pieces. What is loaded does
not depend on the number of workers.
"""
import functools
import multiprocessing
import multiprocessing.connection
import os
import threading

import chainer
import numpy as np

#: A batch is loaded in at least this many pieces, however few the workers are, so
#: that a run may go on with another number of them.
MIN_PIECES = 16

# Keeps the order apart from what else is drawn from a seed (trainer.transforms).
_ORDER = 1 << 32


class InOrder:
    """Every picture once, in order.

    Args:
        size (int): Number of pictures.
        batch (int): Pictures in a batch; the last may be smaller.
    """

    def __init__(self, size, batch):
        self.size = size
        self.batch = batch

    def __len__(self):
        """Number of batches in an epoch."""
        return -(-self.size // self.batch)

    def __call__(self, epoch):
        """Return the batches of an epoch: a list of int arrays."""
        return np.split(np.arange(self.size), range(self.batch, self.size, self.batch))


class EveryPictureOnce(InOrder):
    """Every picture once, in an order that is a function of (seed, epoch)."""

    def __init__(self, size, batch, seed):
        super().__init__(size, batch)
        self.seed = seed

    @functools.lru_cache(maxsize=2)
    def __call__(self, epoch):
        order = np.random.default_rng((self.seed, epoch, _ORDER)).permutation(self.size)
        return np.split(order, range(self.batch, self.size, self.batch))


class OriginalSampling(EveryPictureOnce):
    """The 2017 program's sampling: floor(size / batch) batches, each drawn anew.

    Within a batch no picture comes twice; an epoch visits about 63 % of them.
    """

    def __len__(self):
        return self.size // self.batch

    @functools.lru_cache(maxsize=2)
    def __call__(self, epoch):
        rng = np.random.default_rng((self.seed, epoch, _ORDER))
        return [rng.choice(self.size, self.batch, replace=False) for _ in range(len(self))]


class Pieces(chainer.dataset.DatasetMixin):
    """The pieces of all batches, as a Chainer dataset.

    Item ``epoch * len(self) + i`` is the i-th piece of that epoch.

    Args:
        load (callable): ``load(indices, epoch)`` gives a tuple of arrays.
        plan: One of the plans above.
        pieces (int): Pieces in a batch.
    """

    def __init__(self, load, plan, pieces):
        self.load = load
        self.plan = plan
        self.pieces = pieces

    def __len__(self):
        return len(self.plan) * self.pieces

    def get_example(self, i):
        _end_with_parent()
        epoch, i = divmod(i, len(self))
        batch, piece = divmod(i, self.pieces)
        return self.load(np.array_split(self.plan(epoch)[batch], self.pieces)[piece], epoch)


@functools.lru_cache(maxsize=1)
def _end_with_parent():
    """Where this is a worker: end it when the main process is killed.

    Chainer's workers would wait for their next task for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Consecutive:
    """Chainer's order sampler for :class:`Pieces`: epoch after epoch, in order."""

    def __init__(self, first_epoch):
        self.first_epoch = first_epoch
        self.begun = False

    def __call__(self, order, position):
        n = len(order)
        epoch = order[0] // n + 1 if self.begun else self.first_epoch
        self.begun = True
        return np.arange(epoch * n, (epoch + 1) * n)


def iterator(load, plan, pieces=MIN_PIECES, workers=0, repeat=True, shared_mem=None,
             first_epoch=1):
    """Return a Chainer iterator whose batches are lists of what ``load`` gives.

    Args:
        load (callable): ``load(indices, epoch)`` gives a tuple of arrays; picklable.
        plan: One of the plans above.
        pieces (int): Pieces in a batch; some are empty where a batch has fewer pictures.
        workers (int): Processes that load; 0 loads in this one.
        repeat (bool): Whether to go on after an epoch.
        shared_mem (int): Bytes of the largest piece; ``None`` measures the first.
        first_epoch (int): Number of the first epoch.

    Returns:
        chainer.dataset.Iterator
    """
    dataset = Pieces(load, plan, pieces)
    order_sampler = _Consecutive(first_epoch)
    if workers:
        return chainer.iterators.MultiprocessIterator(
            dataset, pieces, repeat=repeat, n_processes=workers, n_prefetch=2,
            shared_mem=shared_mem, order_sampler=order_sampler, dataset_timeout=None)
    return chainer.iterators.SerialIterator(
        dataset, pieces, repeat=repeat, order_sampler=order_sampler)
