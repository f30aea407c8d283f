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

    @functools.lru_cache(maxsize=2)  # each piece of a batch asks
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


class Share:
    """One process's part of each batch of a plan.

    A batch is parted into processes x chunks chunks, as ``numpy.array_split`` parts it; each
    process has ``chunks`` of them in a row. A last, smaller batch may leave some with none.

    Args:
        plan: One of the plans above.
        rank (int): Which process this is, from 0.
        processes (int): How many there are.
        chunks (int): Chunks that each computes one after the other.
    """

    def __init__(self, plan, rank, processes, chunks=1):
        self.plan = plan
        self.size = plan.size
        self.batch = -(-plan.batch // (processes * chunks)) * chunks
        self._ends = rank * chunks, (rank + 1) * chunks
        self._parts = processes * chunks

    def __len__(self):
        return len(self.plan)

    @functools.lru_cache(maxsize=2)
    def __call__(self, epoch):
        return [
            batch[slice(*(part_start(len(batch), self._parts, end) for end in self._ends))]
            for batch in self.plan(epoch)
        ]


def part_start(size, parts, part):
    """Return where ``numpy.array_split`` of ``size`` into ``parts`` begins one, from 0."""
    length, longer = divmod(size, parts)
    return part * length + min(part, longer)


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
        end_with_parent(os.getpid())
        epoch, i = divmod(i, len(self))
        batch, piece = divmod(i, self.pieces)
        indices = self.plan(epoch)[batch]
        return self.load(
            indices[
                slice(*(part_start(len(indices), self.pieces, part) for part in (piece, piece + 1)))
            ],
            epoch,
        )


@functools.cache
def end_with_parent(process):
    """Where this is a worker: end it when the main process is killed.

    Chainer's workers would wait for their next task for ever. ``process`` is the
    worker's number: once for each.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _next_epoch(order, position):
    """Chainer's order sampler for :class:`Pieces`: epoch after epoch, each in order.

    The order that Chainer begins with is 0, 1, 2, ..., so that epochs count from 1.
    """
    return order_of(order[0] // len(order) + 1, len(order))


def order_of(epoch, pieces):
    """Return the items of :class:`Pieces` that make up an epoch of so many pieces."""
    return np.arange(epoch * pieces, (epoch + 1) * pieces)


def iterator(load, plan, pieces=MIN_PIECES, workers=0, repeat=True, shared_mem=None):
    """Return a Chainer iterator whose batches are lists of what ``load`` gives.

    Args:
        load (callable): ``load(indices, epoch)`` gives a tuple of arrays; picklable.
        plan: One of the plans above.
        pieces (int): Pieces in a batch; some are empty where a batch has fewer pictures.
        workers (int): Processes that load; 0 loads in this one.
        repeat (bool): Whether to go on after an epoch.
        shared_mem (int): Bytes of the largest piece; ``None`` measures the first.

    Returns:
        chainer.dataset.Iterator
    """
    dataset = Pieces(load, plan, pieces)
    if workers:
        return chainer.iterators.MultiprocessIterator(
            dataset,
            pieces,
            repeat=repeat,
            n_processes=workers,
            n_prefetch=2,
            shared_mem=shared_mem,
            order_sampler=_next_epoch,
        )
    return chainer.iterators.SerialIterator(
        dataset, pieces, repeat=repeat, order_sampler=_next_epoch
    )


def skip_epochs(iterator, epochs):
    """Make a new iterator begin after so many epochs."""
    pieces = len(iterator.dataset)
    iterator.serialize(
        chainer.serializers.NpzDeserializer(
            {
                name: np.asarray(value)
                for name, value in {
                    'current_position': 0,
                    'epoch': epochs,
                    'is_new_epoch': False,
                    'order': order_of(epochs + 1, pieces),
                    'previous_epoch_detail': float(epochs),
                }.items()
            }
        )
    )


def join(pieces, copy=True):
    """Join the pieces of a batch: a tuple of arrays, as ``load`` gives them.

    Where there is but one piece, ``copy=False`` gives the piece itself, which may be
    overwritten after the iterator has been asked for the next.
    """
    pieces = [piece for piece in pieces if len(piece[0])] or pieces[:1]
    if len(pieces) == 1 and not copy:
        return tuple(pieces[0])
    return tuple(np.concatenate(parts) for parts in zip(*pieces))
