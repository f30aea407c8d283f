"""Splits arrays into pieces that stay in the CPU's cache across several NumPy calls."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import threadpoolctl

from trainer.settings import settings

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import R, T

# Values in a piece: 512 KiB in float32. Less, and threads wait for the interpreter's lock.
_VALUES = 1 << 17


@functools.cache
def _threads(n):
    return concurrent.futures.ThreadPoolExecutor(n)


if hasattr(os, 'register_at_fork'):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_threads.cache_clear)


@functools.cache
def _blas():
    return threadpoolctl.ThreadpoolController().select(user_api='blas')


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run(function: Callable[[T], R], arguments: Iterable[T]) -> list[R]:
    """Map a function over arguments on several threads; return the list of results.

    BLAS computes on the calling thread only: its own threads would compete with these, and the
    order of its sums would depend on their number.
    """
    arguments = list(arguments)
    results: list = [None] * len(arguments)
    remaining = enumerate(arguments)

    def work():
        for i, argument in remaining:
            results[i] = function(argument)

    threads = min(settings.threads or _cores(), len(arguments))
    with _blas().limit(limits=1):
        others = [_threads(threads - 1).submit(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            for other in others:
                other.result()
    return results


def pieces(length: int, values: int = 1) -> list[slice]:
    """Return slices that split ``length`` rows of ``values`` values each into pieces."""
    size = max(1, _VALUES // values)
    return [slice(i, i + size) for i in range(0, length, size)]


def each(function: Callable[[slice], R], rows: np.ndarray) -> list[R]:
    """Map a function over pieces of a matrix's rows on several threads.

    The pieces do not depend on the number of threads, so results repeat bit for bit.
    """
    return run(function, pieces(*rows.shape))


def of_images(batch: int, height: int, width: int, pixels: int) -> Iterator[tuple[slice, slice]]:
    """Yield (slice of the batch, slice of rows) that cover about ``pixels`` pixels each.

    Each covers several whole images or some rows of one.
    """
    rows = max(1, pixels // width)
    if rows >= height:
        images = rows // height
        for i in range(0, batch, images):
            yield slice(i, i + images), slice(0, height)
        return
    for i in range(batch):
        for row in range(0, height, rows):
            yield slice(i, i + 1), slice(row, min(row + rows, height))
