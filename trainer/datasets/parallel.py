"""Loads batches of images by several processes that do not wait for each other.

Chainer's MultiprocessIterator starts a batch only when the previous one is done, copies it
twice, and hangs if a process is killed. Here several batches are loaded at a time, each
process writes its images directly into the batch, and a killed process ends in an error.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import operator
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterable
from multiprocessing import sharedctypes
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import chainer
import numpy as np

from trainer.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from trainer.datasets.loading import Plan


class Batch(NamedTuple):
    """A batch.

    Attributes:
        items: The items that were loaded.
        x: Array (items, ...).
        errors: Place in the batch -> error of the image there, whose x is undefined.
    """

    items: Any
    x: np.ndarray
    errors: dict[int, str]


#: Loads some items of a batch: see :func:`batches`.
LoadItems: TypeAlias = Callable[[Any, np.ndarray], dict[int, str]]


class Unreadable(InputError):
    """An image cannot be read during a run."""


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_by_one(load: Callable[[Any, np.ndarray], None]) -> LoadItems:
    """Turn a function that loads one image into one for :func:`batches`.

    Args:
        load: ``load(item, out)`` writes one preprocessed image to ``out``, or raises
            :class:`~trainer.errors.InputError`; picklable.
    """
    return functools.partial(_load_each, load)


def _load_each(load, items, out):
    errors = {}
    for i, item in enumerate(items):
        try:
            load(item, out[i])
        except InputError as e:
            errors[i] = str(e)
    return errors


def batches(
    load: LoadItems,
    plan: Iterable[Any],
    size: int,
    shape: tuple[int, ...],
    workers: int | None = None,
    dtype: npt.DTypeLike = np.float32,
    piece: int = 8,
) -> Generator[Batch]:
    """Load batches ahead of their use, in order.

    Args:
        load: ``load(items, out)`` writes the preprocessed images of some items of a batch to
            ``out``, an array of (items,) + ``shape`` and ``dtype``, and returns the errors of
            those that cannot be read, like :class:`Batch`; picklable.
        plan: The batches, each a sequence of items. It is advanced only as batches are started.
        size: Number of items in the largest batch.
        shape: Shape of one preprocessed image.
        workers: Number of processes; ``None``: one per core; 0: this process loads.
        dtype: dtype of the images.
        piece: Most items that a process loads at a time.

    Yields:
        Batches; ``x`` of a batch is overwritten once the next batch is requested.

    Raises:
        trainer.errors.InputError: A process was killed.
    """
    workers = cores() if workers is None else workers
    given = load, plan, size, tuple(shape), dtype
    return _batches_of_workers(*given, piece, workers) if workers else _batches_of_ours(*given)


def _batches_of_ours(load, plan, size, shape, dtype):
    x = np.empty((size, *shape), dtype)
    for items in plan:
        part = x[: len(items)]
        yield Batch(items, part, load(items, part) if len(items) else {})


def _batches_of_workers(load, plan, size, shape, dtype, piece, workers):
    # Enough pieces for all workers.
    piece = max(1, min(piece, size // (2 * workers)))
    ahead = 2 + math.ceil(2 * workers * piece / size)
    ahead = min(ahead, operator.length_hint(plan, ahead))
    places = (ahead + 1, size, *shape)
    shared = sharedctypes.RawArray('B', np.dtype(dtype).itemsize * math.prod(places))
    memory = _as_array(shared, places, dtype)
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, initializer=_begin, initargs=(load, shared, places, dtype)
    )
    forked = multiprocessing.get_start_method() == 'fork'
    alone = not forked and not _refers_to_script(load)
    under_way = collections.deque()
    free = collections.deque(range(ahead + 1))
    plan = iter(plan)
    try:
        while True:
            for items in itertools.islice(plan, ahead - len(under_way)):
                place = free.popleft()
                with _starting(alone):  # submitting starts processes
                    pieces = [
                        (at, executor.submit(_load_at, place, at, items[at : at + piece]))
                        for at in range(0, len(items), piece)
                    ]
                under_way.append((items, place, pieces))
            if not under_way:
                break
            items, place, pieces = under_way.popleft()
            errors = {
                at + i: error for at, future in pieces for i, error in future.result().items()
            }
            yield Batch(items, memory[place, : len(items)], errors)
            free.append(place)
    except concurrent.futures.process.BrokenProcessPool as e:
        if not alone and not forked:
            raise InputError(
                'a process that loads images ended. It imports the script, which defines some of '
                'the loading: put what else the script does under `if __name__ == "__main__":`, '
                'or set `workers` to 0'
            ) from e
        raise InputError(
            'a process that loads images was killed, perhaps for want of memory; '
            'fewer `workers` or a smaller batch (-b) need less'
        ) from e
    finally:
        executor.shutdown(cancel_futures=True)


def _refers_to_script(load):
    """Return whether a process that loads needs what the running script defines."""
    try:
        return b'__main__' in pickle.dumps(load, 5, buffer_callback=lambda buffer: None)
    except Exception:  # some things can be pickled only for a process that is being started
        return True


@contextlib.contextmanager
def _starting(alone):
    """Start processes within the ``with`` block that do not import the running script if they are
    ``alone``: all that are not forked do, and it may have no ``if __name__ == '__main__':``."""
    main = sys.modules['__main__']
    if alone:
        sys.modules['__main__'] = types.ModuleType('__main__')
    try:
        with _interrupts_held():
            yield
    except (ConnectionError, EOFError) as e:  # Python 3.14's fork server ended
        raise concurrent.futures.process.BrokenProcessPool from e
    finally:
        sys.modules['__main__'] = main


@contextlib.contextmanager
def _interrupts_held():
    """Block Ctrl-C for processes that are started within the ``with`` block, and for Python 3.14's
    fork server, as they inherit blocked signals. In this process it is handled afterwards."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Iterator(chainer.dataset.Iterator):
    """A Chainer iterator over the batches of a plan, several of which are loaded ahead.

    A batch is (x, t), arrays of images and labels, or (x, t, result of ``beside``); its x is
    overwritten once the next batch is requested. Batches and saved state depend neither on the
    number of workers nor on where a run was interrupted.

    Args:
        load: See :func:`batches`; items are (epoch, image). Epochs count from 1; image numbers
            exceed the number of images if an image occurs in an epoch several times
            (:mod:`trainer.datasets.loading`).
        plan: One of the plans of :mod:`trainer.datasets.loading`.
        labels: int32 (images,).
        shape: Shape of one preprocessed image.
        workers: Number of processes that load; 0: this process.
        repeat: Whether to continue after an epoch.
        leave_out: ``True`` skips images that cannot be read and collects their errors of this
            epoch in ``unreadable``. ``False``: they raise :class:`Unreadable`; the iterator is then
            in the state before that batch.
        dtype: dtype of the images.
        piece: See :func:`batches`.
        beside: ``beside(items, position of the batch in its epoch)``.

    Attributes:
        plan: The plan.

    Raises:
        trainer.errors.InputError: See ``leave_out``; or no image could be read.
    """

    def __init__(
        self,
        load: LoadItems,
        plan: Plan,
        labels: np.ndarray,
        shape: tuple[int, ...],
        workers: int = 0,
        repeat: bool = True,
        leave_out: bool = False,
        dtype: npt.DTypeLike = np.float32,
        piece: int = 8,
        beside: Callable[[list, int], np.ndarray] | None = None,
    ) -> None:
        self.plan = plan
        self.batch_size = plan.batch
        self._load = load
        self._piece = piece
        self._labels = labels
        self._shape = shape
        self._dtype = dtype
        self._workers = workers
        self._repeat = repeat
        self._leave_out = leave_out
        self._beside = beside
        self._ahead: Generator[Batch] | None = None
        self.reset()

    def reset(self) -> None:
        """Restart with the first epoch."""
        self.finalize()
        self.epoch = self.current_position = 0
        self.is_new_epoch = False
        self._previous_epoch_detail = -1.0
        self.unreadable: list[str] = []

    def skip(self, epochs: int) -> None:
        """Start after a number of epochs."""
        self.reset()
        self.epoch, self._previous_epoch_detail = epochs, float(epochs)

    @property
    def epoch_detail(self) -> float:
        return self.epoch + self.current_position / len(self.plan)

    @property
    def previous_epoch_detail(self) -> float | None:
        return None if self._previous_epoch_detail < 0 else self._previous_epoch_detail

    def _items(self):
        first = self.current_position
        for epoch in itertools.count(self.epoch + 1) if self._repeat else (1,):
            for indices in self.plan(epoch)[first:]:
                yield [(epoch, i) for i in indices.tolist()]
            first = 0

    def __next__(self) -> tuple[np.ndarray, ...]:
        if not self._repeat and self.epoch:
            self.finalize()
            raise StopIteration
        if self._ahead is None:
            self._ahead = batches(
                self._load,
                self._items(),
                self.batch_size,
                self._shape,
                self._workers,
                self._dtype,
                self._piece,
            )
        batch = next(self._ahead)
        t = self._labels[[image % len(self._labels) for _, image in batch.items]]
        x = batch.x
        beside = () if self._beside is None else (self._beside(batch.items, self.current_position),)
        if batch.errors:
            if not self._leave_out:
                self.finalize()
                raise Unreadable(batch.errors[min(batch.errors)])
            read = [i for i in range(len(t)) if i not in batch.errors]
            x, t = x[read], t[read]
        self._count(batch)
        # A process's share of a batch may have no images, and so none that could be read.
        return (x, t, *beside) if len(t) or not batch.items else next(self)

    def step_back(self) -> None:
        """Return the iterator to the state before the last batch."""
        state = self._before
        self.reset()
        self.epoch, self.current_position, self.is_new_epoch, self._previous_epoch_detail = state

    def _count(self, batch):
        self._before = (
            self.epoch,
            self.current_position,
            self.is_new_epoch,
            self._previous_epoch_detail,
        )
        if self.is_new_epoch:
            self.unreadable = []
        self.unreadable += [batch.errors[i] for i in sorted(batch.errors)]
        self._previous_epoch_detail = self.epoch_detail
        self.current_position += 1
        self.is_new_epoch = self.current_position == len(self.plan)
        if self.is_new_epoch:
            self.current_position = 0
            self.epoch += 1
            if len(self.unreadable) == self.plan.size:
                raise InputError(
                    f'none of the {len(self.unreadable)} images could be read; the first: '
                    f'{self.unreadable[0]}'
                )

    def finalize(self) -> None:
        """End the processes; requesting a batch starts them again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def serialize(self, serializer: chainer.Serializer) -> None:
        position = serializer('current_position', self.current_position)
        epoch = serializer('epoch', self.epoch)
        is_new = serializer('is_new_epoch', self.is_new_epoch)
        before = serializer('previous_epoch_detail', self._previous_epoch_detail)
        if isinstance(serializer, chainer.serializer.Deserializer):
            self.reset()
            self.current_position, self.epoch = int(position), int(epoch)
            self.is_new_epoch, self._previous_epoch_detail = bool(is_new), float(before)


def _as_array(shared, places, dtype):
    return np.frombuffer(shared, dtype).reshape(places)


# In a worker: its load function and the memory of the batches.
_load = _memory = None


def _begin(load, shared, places, dtype):
    global _load, _memory
    # Only the main process handles interrupts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _load, _memory = load, _as_array(shared, places, dtype)


def _end_with_parent():
    # If the main process is killed, workers would wait for their next piece forever.
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _load_at(place, at, items):
    return _load(items, _memory[place, at : at + len(items)])
