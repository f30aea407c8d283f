"""Kernels for everything around the convolutions (``kernels.cu``, ``pooling.cu``,
``channels.cu``).

cuDNN's batch normalisation stores a byte per value for the ReLU's mask; these kernels store at
most a bit. Functions are those of the same name in :mod:`trainer.engines.cudnn.generic`, for CuPy
arrays of float16 or float32 in NHWC memory.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from trainer import cuda
from trainer.engines.autograd import ADD_RELU, PLAIN, RELU, Running
from trainer.engines.cudnn import generic

if TYPE_CHECKING:
    import cupy

    from trainer.types import Shape

#: Packs of adjacent channels in a block: 128 bytes, one memory transaction.
_ACROSS = 8

#: Macros of kernels.cu.
DEFINED = {'MOST_ACROSS': _ACROSS}

_launch = cuda.kernels(__file__, 'kernels.cu', **DEFINED)
_launch_pooling = cuda.kernels(__file__, 'pooling.cu')
_launch_channels = cuda.kernels(__file__, 'channels.cu')

_THREADS = 256

#: Resident blocks per multiprocessor, as ``__launch_bounds__`` in ``kernels.cu`` ensures.
AT_ONCE = {
    'statistics': 4,
    'normalize': 4,
    'normalize_sums': 4,
    'backward_sums': 3,
    'backward_input': 3,
}


def _empty(shape, dtype):
    import cupy

    return generic.empty(cupy, shape, dtype)


@functools.cache
def _processors(device):
    import cupy

    return cupy.cuda.Device(device).attributes['MultiProcessorCount']


@functools.cache
def _counters(device, tiles):
    import cupy

    with cuda.lasting():
        return cupy.zeros(tiles, np.uint32)


def _kind(dtype, channels):
    """Return the parts of a kernel's suffix: the dtype's letter, and channels per access."""
    letter, pack = ('h', 8) if dtype == np.float16 else ('f', 4)
    return (letter, 1) if channels % pack else (letter, pack)


class _RowLaunch:
    """Distributes a map's pixels over as many blocks as are resident at once.

    The blocks advance through the map together, so the pixels read last are still in the L2 cache
    when the next kernel starts there.

    Args:
        kernel: Its name.
        x: The map.
        parts: Parts of the batch with statistics of their own.
    """

    def __init__(self, kernel, x, parts=1):
        import cupy

        self._kernel, self._parts = kernel, parts
        self._images, self.channels, *area = x.shape
        self._area = math.prod(area)
        self.rows = self._images * self._area
        letter, pack = _kind(x.dtype, self.channels)
        self._suffix = f'_{letter}{pack}'
        self.packs = self.channels // pack
        self.across = min(self.packs, _ACROSS)
        tiles = -(-self.packs // self.across)
        device = cupy.cuda.Device().id
        high = _THREADS // self.across
        # At least a few pixels per thread.
        rows = -(-self._images // parts) * self._area
        blocks = min(
            AT_ONCE[kernel] * _processors(device) // (tiles * parts), -(-rows // (4 * high))
        )
        self.grid = max(1, blocks), tiles, parts
        self.shared = _THREADS * 2 * pack * 4
        self._device = device

    def sizes(self):
        return tuple(map(np.int32, (self._images, self._area, self.channels, self.across)))

    def sums(self):
        """Return buffers for a reduction over blocks: partial sums, and a counter of blocks."""
        import cupy

        # Kernels reset the counters to 0. Powers of two keep the number of sizes small.
        tiles = 1 << (self.grid[1] - 1).bit_length()
        return (
            cupy.empty((self._parts, self.grid[0], 2, self.channels), np.float32),
            _counters(self._device, tiles),
        )

    def launch(self, *args, shared=0):
        _launch(self._kernel + self._suffix, self.grid, _THREADS, *args, shared=shared)


def _statistics(running, parts):
    """Return (results, arguments) for kernels that finish statistics."""
    import cupy

    mean, inv_std = (cupy.empty((parts, running.mean.size), np.float32) for _ in range(2))
    return (mean, inv_std), (
        *map(np.float32, (running.eps, running.decay, running.eps_in_average)),
        mean,
        inv_std,
        running.mean,
        running.var,
    )


def statistics(
    x: cupy.ndarray, running: Running, parts: int = 1
) -> tuple[cupy.ndarray, cupy.ndarray]:
    rows = _RowLaunch('statistics', x, parts)
    found, arguments = _statistics(running, parts)
    rows.launch(x, *rows.sizes(), *arguments, *rows.sums(), shared=rows.shared)
    return found


def normalize(
    x: cupy.ndarray,
    residual: cupy.ndarray | None,
    mean: cupy.ndarray,
    inv_std: cupy.ndarray,
    gamma: cupy.ndarray,
    beta: cupy.ndarray,
    kind: int,
) -> tuple[cupy.ndarray, cupy.ndarray | None]:
    return _normalize('normalize', x, residual, (mean, inv_std), len(mean), gamma, beta, kind)


def _normalize(kernel, x, residual, statistics, parts, gamma, beta, kind):
    import cupy

    rows = _RowLaunch(kernel, x, parts)
    y = _empty(x.shape, x.dtype)
    mask = None
    if kind == ADD_RELU:
        mask = cupy.empty(rows.rows * rows.packs, np.uint8)
    rows.launch(x, residual, *statistics, gamma, beta, np.int32(kind), *rows.sizes(), y, mask)
    return y, mask


def normalize_sums(
    x: cupy.ndarray,
    residual: cupy.ndarray | None,
    sums: tuple[cupy.ndarray, cupy.ndarray],
    running: Running,
    gamma: cupy.ndarray,
    beta: cupy.ndarray,
    kind: int,
) -> tuple[cupy.ndarray, cupy.ndarray | None, cupy.ndarray, cupy.ndarray]:
    """Compute :func:`statistics` and :func:`normalize`, from sums.

    Args:
        sums: Sums of each channel's values and of their squares, float32 (parts, channels).

    Returns:
        y, mask, mean and 1 / standard deviation.
    """
    parts = len(sums[0])
    found, arguments = _statistics(running, parts)
    y, mask = _normalize(
        'normalize_sums', x, residual, (*sums, *arguments), parts, gamma, beta, kind
    )
    return y, mask, *found


@functools.cache
def _identity(device, channels):
    """Return zeros and ones, as statistics and parameters of an identity normalisation."""
    import cupy

    with cuda.lasting():
        return cupy.zeros((1, channels), np.float32), cupy.ones((1, channels), np.float32)


def add_bias(x: cupy.ndarray, b: cupy.ndarray, relu: bool) -> cupy.ndarray:
    """Return x + b, then a ReLU if wanted; b is float32 (channels,)."""
    import cupy

    zero, one = _identity(cupy.cuda.Device().id, x.shape[1])
    return normalize(x, None, zero, one, one, b, RELU if relu else PLAIN)[0]


def bn_backward(
    gy: cupy.ndarray,
    mask: cupy.ndarray | None,
    x: cupy.ndarray,
    gamma: cupy.ndarray,
    beta: cupy.ndarray,
    mean: cupy.ndarray,
    inv_std: cupy.ndarray,
    kind: int,
    keep: bool,
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    import cupy

    parts = len(mean)
    rows = _RowLaunch('backward_sums', x, parts)
    of_parts = [cupy.empty((parts, gamma.size), np.float32) for _ in range(2)]
    totals = [a[0] if parts == 1 else cupy.empty(gamma.shape, np.float32) for a in of_parts]
    kept = _empty(x.shape, x.dtype) if keep and kind == ADD_RELU else None
    rows.launch(
        gy,
        x,
        mask,
        mean,
        inv_std,
        gamma,
        beta,
        np.int32(kind),
        *rows.sizes(),
        kept,
        *of_parts,
        *([None] * 2 if parts == 1 else totals),
        *rows.sums(),
        shared=rows.shared,
    )
    gx = _empty(x.shape, x.dtype)
    rows = _RowLaunch('backward_input', x, parts)
    # `kept` is masked already.
    rows.launch(
        *((gy, x, mask) if kept is None else (kept, x, None)),
        mean,
        inv_std,
        gamma,
        beta,
        *of_parts,
        np.int32(kind if kept is None else 0),
        *rows.sizes(),
        gx,
    )
    return gx, *totals, gy if kept is None else kept


def _count(threads):
    """Return a number of threads.

    Raises:
        ValueError: There are more than the 32 bits in which kernels count.
    """
    if threads >= 1 << 31:
        raise ValueError(f'{threads} threads at once')
    return threads


def _each(kernel, like, values, *args):
    """Launch a kernel with one thread per pack of ``values`` values."""
    letter, pack = _kind(like.dtype, like.shape[1])
    threads = _count(values // pack)
    _launch_pooling(f'{kernel}_{letter}{pack}', -(-threads // _THREADS), _THREADS, *args)


def _window(x_shape, y_shape, size, stride, pad):
    n, c, h, w = x_shape
    return tuple(map(np.int32, (n, h, w, c) + tuple(y_shape[2:]) + (size, stride, pad)))


def max_pooling(
    x: cupy.ndarray, y_shape: Shape, size: int, stride: int, pad: int
) -> tuple[cupy.ndarray, cupy.ndarray]:
    y, place = _empty(y_shape, x.dtype), _empty(y_shape, np.uint8)
    _each('max_pool', x, y.size, x, *_window(x.shape, y_shape, size, stride, pad), y, place)
    return y, place


def max_pooling_backward(
    gy: cupy.ndarray, place: cupy.ndarray, x_shape: Shape, size: int, stride: int, pad: int
) -> cupy.ndarray:
    gx = _empty(x_shape, gy.dtype)
    _each(
        'max_pool_backward',
        gy,
        gx.size,
        gy,
        place,
        *_window(x_shape, gy.shape, size, stride, pad),
        gx,
    )
    return gx


def average_pooling(x: cupy.ndarray) -> cupy.ndarray:
    n, c, h, w = x.shape
    y = _empty((n, c, -(-h // 2), -(-w // 2)), x.dtype)
    _each('average_pool', x, y.size, x, *map(np.int32, (n, h, w, c)), y)
    return y


def average_pooling_backward(gy: cupy.ndarray, x_shape: Shape) -> cupy.ndarray:
    n, c, h, w = x_shape
    gx = _empty(x_shape, gy.dtype)
    _each('average_pool_backward', gx, gx.size, gy, *map(np.int32, (n, h, w, c)), gx)
    return gx


def _each_image(kernel, x, inputs, outputs):
    """Launch a kernel in which each block has some channels, and all pixels, of an image."""
    n, c, h, w = x.shape
    letter, pack = _kind(x.dtype, c)
    across = min(c // pack, _ACROSS)
    _launch_channels(
        f'{kernel}_{letter}{pack}',
        (n, -(-c // pack // across)),
        _THREADS,
        *inputs,
        *map(np.int32, (h * w, c, across)),
        *outputs,
        shared=_THREADS * pack * 4,
    )


def mean_pooling(x: cupy.ndarray) -> cupy.ndarray:
    import cupy

    y = cupy.empty((*x.shape[:2], 1, 1), np.float32)
    _each_image('mean_pool', x, (x,), (y,))
    return y


def scale(x: cupy.ndarray, weights: cupy.ndarray, residual: cupy.ndarray) -> cupy.ndarray:
    y = _empty(x.shape, x.dtype)
    letter, pack = _kind(x.dtype, x.shape[1])
    all_packs = _count(x.size // pack)
    sizes = np.uint32(x.shape[1] // pack), np.uint32(x.shape[2] * x.shape[3]), np.uint32(all_packs)
    blocks = -(-all_packs // _THREADS)
    _launch_channels(
        f'scale_{letter}{pack}', blocks, _THREADS, x, weights, residual, *sizes, y
    )  # fmt: skip
    return y


def scale_backward(
    gy: cupy.ndarray, y: cupy.ndarray, x: cupy.ndarray, weights: cupy.ndarray
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    import cupy

    gx, masked = _empty(x.shape, x.dtype), _empty(x.shape, x.dtype)
    gweights = cupy.empty(weights.shape, np.float32)
    _each_image('scale_backward', x, (gy, y, x, weights), (gx, gweights, masked))
    return gx, gweights, masked


def mean_pooling_backward(gy: cupy.ndarray, x_shape: Shape, dtype: np.dtype) -> cupy.ndarray:
    gx = _empty(x_shape, dtype)
    n, c, h, w = x_shape
    _each('mean_pool_backward', gx, gx.size, gy, np.int32(n), np.int32(h * w), np.int32(c), gx)
    return gx


def accumulate(x: cupy.ndarray, y: cupy.ndarray) -> None:
    _each('accumulate', x, x.size, x, y, np.uint32(x.size // _kind(x.dtype, x.shape[1])[1]))
