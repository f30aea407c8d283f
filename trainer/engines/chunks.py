"""Splits arrays into pieces that stay in the CPU's cache across several NumPy calls."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import chainer

if TYPE_CHECKING:
    import numpy as np

    from trainer.types import R, T

# Values in a piece: 256 KiB in float32; a second-level cache holds several.
_VALUES = 1 << 16

# Values in a convolution's matrix; only one exists at a time.
_MATRIX = 1 << 18


# Number of threads; None means one per core.
chainer.global_config.threads = None


@functools.cache
def _threads(n):
    return concurrent.futures.ThreadPoolExecutor(n)


if hasattr(os, 'register_at_fork'):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run(function: Callable[[T], R], arguments: Iterable[T]) -> list[R]:
    """Map a function over arguments on several threads; return the list of results."""
    threads = chainer.config.threads or _cores()
    return list((_threads(threads).map if threads > 1 else map)(function, arguments))


def pieces(length: int, values: int = 1) -> list[slice]:
    """Return slices that split ``length`` rows of ``values`` values each into pieces."""
    size = max(1, _VALUES // values)
    return [slice(i, i + size) for i in range(0, length, size)]


def each(function: Callable[[slice], R], rows: np.ndarray) -> list[R]:
    """Map a function over pieces of a matrix's rows on several threads.

    The pieces do not depend on the number of threads, so results repeat bit for bit.
    """
    return run(function, pieces(*rows.shape))


def of_images(batch: int, height: int, width: int, values: int) -> Iterator[tuple[slice, slice]]:
    """Yield (slice of the batch, slice of rows) for matrices of ``values`` values per pixel.

    Each covers several whole images or some rows of one.
    """
    rows = max(1, _MATRIX // (width * values))
    if rows >= height:
        images = rows // height
        for i in range(0, batch, images):
            yield slice(i, i + images), slice(0, height)
        return
    for i in range(batch):
        for row in range(0, height, rows):
            yield slice(i, i + 1), slice(row, row + rows)
