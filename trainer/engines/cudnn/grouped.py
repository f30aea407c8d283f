"""Grouped 3x3 convolutions on tensor cores, by kernels of this project (``grouped.cu``).

For narrow groups, cuDNN takes three times as long as the memory traffic of such a convolution,
and ten times with bias and ReLU. Functions are those of the same name in
:mod:`trainer.engines.cudnn.generic`, for CuPy arrays of float16 in NHWC memory.
"""

from __future__ import annotations

import functools
import typing
from typing import TYPE_CHECKING

import numpy as np

from trainer import cuda
from trainer.engines.cudnn import generic, library

if TYPE_CHECKING:
    import cupy

    from trainer.types import Shape

#: The files, which are compiled as one source; PRODUCT_DEPTH is 8, 16 or 32.
SOURCES = 'tiles.cuh', 'fragments.cuh', 'grouped.cu'

#: Channels of a group.
WIDTHS = (4, 8, 16, 32)

# As in grouped.cu: channels of a block, bytes per pixel in shared memory, threads.
_CHANNELS, _PIXEL, _THREADS = 64, 144, 256

#: Most shared memory of a block, in bytes, with which two blocks fit on a multiprocessor.
_SHARED = 112 * 1024

#: Costs for the choice of tiles: cycles of a multiprocessor per tile, per pixel copied to shared
#: memory, and per computed pixel.
_TILE, _COPY, _COMPUTE = 800, 4, 6


def supports(w_shape: tuple, stride: int, pad: int, groups: int, dtype: np.dtype) -> bool:
    """Return whether there are kernels for a convolution on the current GPU.

    Args:
        w_shape: Shape of the weights, (out, in / groups, height, width).
    """
    out, width, *window = w_shape
    return (
        np.dtype(dtype) == np.float16
        and groups > 1
        and width in WIDTHS
        and out == groups * width
        and out % _CHANNELS == 0
        and (*window, pad) == (3, 3, 1)
        and stride in (1, 2)
        and library.device().sm_version >= 80
    )


class Tiles(typing.NamedTuple):
    """Distribution of the output's pixels over blocks; see ``grouped.cu``.

    Attributes:
        together: Number of images of which a tile has a part.
        rows, columns: Size of these parts in pixels.
        blocks: Blocks per 64 channels.
        shared: Shared memory of a block, in bytes.
    """

    together: int
    rows: int
    columns: int
    blocks: int
    shared: int


def _window(n, stride, more):
    return (n - 1) * stride + 1 + more


@functools.lru_cache(maxsize=1024)
def _tiles(images, height, width, channels, stride, more, outputs, processors):
    """Return the tiles with the lowest estimated time, from a rough count of cycles.

    Args:
        height, width (int): Size of the map that is divided into tiles.
        more (int): Rows and columns of a window beyond its stride.
        outputs (bool): Whether the outputs are in shared memory too.
        processors (int): Multiprocessors of the GPU.
    """
    most = max(1, 2 * processors // (channels // _CHANNELS))
    found = []
    for columns in range(8, width + 8, 8):
        for rows in range(2, height + 2, 2):
            whole = rows >= height and columns >= width
            for together in range(1, images + 1 if whole else 2):
                window = _window(rows, stride, more), _window(columns, stride, more)
                if stride == 2:
                    window = window[0], (window[1] + 1) // 2 * 2
                pixels = together * rows * columns
                copied = together * window[0] * window[1] + outputs * pixels
                shared = 2 * _PIXEL * copied
                if shared > _SHARED:
                    break
                # Four warps share a tile's patches.
                computed = -(-pixels // 64) * 64
                count = -(-images // together) * -(-height // rows) * -(-width // columns)
                blocks = min(count, most)
                cycles = -(-count // blocks) * (_TILE + _COPY * copied + _COMPUTE * computed)
                found.append((cycles, shared, Tiles(together, rows, columns, blocks, shared)))
    return min(found)[2]


def _deal(x_shape, y_shape, stride, more, outputs=False):
    """Return tiles of y, and the corresponding arguments of kernels."""
    import cupy

    n, channels, height, width = x_shape
    device = cupy.cuda.Device()
    tiles = _tiles(
        n, *y_shape[2:], channels, stride, more, outputs, device.attributes['MultiProcessorCount']
    )
    sizes = n, channels, height, width, *y_shape[2:], *tiles[:3]
    return tiles, (tiles.blocks, channels // _CHANNELS), tuple(map(np.int32, sizes))


def _launch(width, *args, **kwargs):
    """Launch the kernel for groups of this many channels."""
    launch = cuda.kernels(__file__, *SOURCES, PRODUCT_DEPTH=max(width, 8))
    launch(*args, **kwargs)


def _empty(shape, dtype=np.float16):
    import cupy

    return generic.empty(cupy, shape, dtype)


def _out_shape(x_shape, stride):
    return *x_shape[:2], *((n - 1) // stride + 1 for n in x_shape[2:])


@functools.cache
def _counters(device, count):
    import cupy

    with cuda.lasting():
        return cupy.zeros(count, np.uint32)


def _convolve(x, w, bias, stride, backward, relu, summed):
    """Return y and, if wanted, its sums, float32 (2, channels)."""
    import cupy

    width = w.shape[1]
    y = _empty(_out_shape(x.shape, stride))
    tiles, grid, sizes = _deal(x.shape, y.shape, stride, 2)
    sums, mode = (None,) * 3, '' if bias is None else '_biased'
    if summed:
        mode = '_summed'
        channels = x.shape[1]
        sums = (
            cupy.empty((tiles.blocks, 2, channels), np.float32),
            cupy.empty((2, channels), np.float32),
            _counters(cupy.cuda.Device().id, grid[1]),
        )
    flags = map(np.int32, (width, backward, relu))
    _launch(
        width,
        f'convolve{mode}_{stride}',
        grid,
        _THREADS,
        x,
        w,
        bias,
        *flags,
        *sizes,
        y,
        *sums,
        shared=tiles.shared,
    )
    return y, sums[1]


def conv_forward(x: cupy.ndarray, w: cupy.ndarray, stride: int) -> cupy.ndarray:
    return _convolve(x, w, None, stride, False, False, False)[0]


def conv_with_sums(
    x: cupy.ndarray, w: cupy.ndarray, stride: int
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Compute :func:`conv_forward`; return its result, and the sums of each channel's values and
    of their squares, float32 (channels,)."""
    y, sums = _convolve(x, w, None, stride, False, False, True)
    return y, sums[0], sums[1]


def conv_bias(
    x: cupy.ndarray, w: cupy.ndarray, bias: cupy.ndarray, stride: int, relu: bool
) -> cupy.ndarray:
    return _convolve(x, w, bias, stride, False, relu, False)[0]


def conv_backward_data(
    gy: cupy.ndarray, w: cupy.ndarray, x_shape: Shape, stride: int
) -> cupy.ndarray:
    if stride == 1:
        return _convolve(gy, w, None, 1, True, False, False)[0]
    gx = _empty(x_shape)
    tiles, grid, sizes = _deal(x_shape, gy.shape, 1, 1)
    _launch(
        w.shape[1],
        'spread',
        grid,
        _THREADS,
        gy,
        w,
        np.int32(w.shape[1]),
        *sizes,
        gx,
        shared=tiles.shared,
    )
    return gx


def conv_backward_weights(
    x: cupy.ndarray, gy: cupy.ndarray, w_shape: Shape, stride: int
) -> cupy.ndarray:
    import cupy

    width = w_shape[1]
    tiles, grid, sizes = _deal(x.shape, gy.shape, stride, 2, outputs=True)
    gw = _empty(w_shape, np.float32)
    slices = tiles.blocks * (2 if width == 16 else 1)
    partial = cupy.empty((slices, gw.size), np.float32)
    _launch(
        width,
        f'correlate_{stride}',
        grid,
        _THREADS,
        x,
        gy,
        np.int32(width),
        *sizes,
        partial,
        shared=tiles.shared,
    )
    _launch(
        width,
        'add_slices',
        -(-gw.size // 128),
        256,
        partial,
        np.int32(slices),
        np.int32(gw.size),
        gw,
    )
    return gw
