"""Pieces of arrays that stay in a CPU's cache while several NumPy functions go over them."""

import concurrent.futures
import functools
import os

import chainer

# Values of a piece: 256 KiB in float32, of which a second-level cache holds several.
_VALUES = 1 << 16

# The same for the matrix of a convolution, of which there is one.
_MATRIX = 1 << 18


# How many threads there are; None is one for each core.
chainer.global_config.threads = None


@functools.cache
def _threads(n):
    return concurrent.futures.ThreadPoolExecutor(n)


if hasattr(os, 'register_at_fork'):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run(function, arguments):
    """Call a function with each of the arguments, on several threads; return what it returned."""
    threads = chainer.config.threads or _cores()
    return list((_threads(threads).map if threads > 1 else map)(function, arguments))


def pieces(length, values=1):
    """Return slices of that many rows, of so many values each."""
    size = max(1, _VALUES // values)
    return [slice(i, i + size) for i in range(0, length, size)]


def each(function, rows):
    """Call a function with slices of a matrix's rows, on several threads; return what it returned.

    The slices do not depend on how many.
    """
    return run(function, pieces(*rows.shape))


def of_images(batch, height, width, values):
    """Yield slices of a batch and of its images' height, for ``values`` of each pixel.

    They are of several whole images, or of some rows of one.
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
