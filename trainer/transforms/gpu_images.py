"""Preprocessing that ends on a GPU.

Little data is sent there: for images in memory, their index and random choices; for images in
files, the bytes of the crop. Kernels (``gpu_images.cu``) then compute what ``train_batch`` and
``test_batch`` compute on the CPU. Random choices and roundings are the same: results are
identical for CIFAR and for other images without a change of colours, and equal to 1e-6 of their
range with one.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from trainer import cuda, settings  # noqa: F401  the defaults of Chainer's configuration
from trainer.transforms import draws, resize_crop, table
from trainer.transforms.geometry import Geometry
from trainer.transforms.resize_crop import DataAugmentationNormalizeBigger

if TYPE_CHECKING:
    import cupy

    from trainer.networks.base import Network
    from trainer.transforms.cifar import OneImage

_launch = cuda.kernels(__file__, 'gpu_images.cu')

_THREADS = 192

#: Parts of an image that are computed side by side, of 49 where it is of 224x224.
_PARTS = 7


def available(
    preprocessing: type[OneImage] | type[DataAugmentationNormalizeBigger], part: Any
) -> bool:
    """Return whether images can be preprocessed on a GPU.

    Args:
        preprocessing: A class of :mod:`data_augmentation`.
        part: The images.
    """
    if hasattr(part, 'paths'):
        return hasattr(preprocessing, 'train_pixels')
    return hasattr(preprocessing, 'kernel') and part.images.shape[1:] == preprocessing.shape


@functools.lru_cache(maxsize=2)
def drawn(preprocessing: type[OneImage], seed: int, epoch: int, images: int) -> np.ndarray:
    """Return the random choices for all images of a dataset in one epoch.

    Args:
        preprocessing: A class of :class:`trainer.transforms.cifar.OneImage`.
        seed: The run's seed.
        epoch: Epoch, from 1.
        images: Number of images.

    Returns:
        int32 (images, fields), from ``choose`` of the class.
    """
    u = draws.uniforms(seed, epoch, np.arange(images), preprocessing.uniforms)
    return np.stack(preprocessing.choose(u), axis=1).astype(np.int32)


def _compute(kernel, grid, shape, *args):
    """Return the output of a kernel: (batch, 3, height, width) in NHWC memory, of the engine's
    dtype."""
    import cupy

    half = (chainer.config.engine, chainer.config.precision) == ('cudnn', 'mixed')
    n, channels, height, width = shape
    y = cupy.empty((n, height, width, channels), np.float16 if half else np.float32)
    if n:
        _launch(kernel + ('_h' if half else '_f'), grid, _THREADS, *args, y)
    return y.transpose(0, 3, 1, 2)


class _OnDevice:
    """Arrays that are copied to the GPU on first use; ``make`` returns them."""

    def __init__(self, make):
        self._make = make
        self._there = None

    def __call__(self):
        import cupy

        if self._there is None:
            with cuda.lasting():
                self._there = [cupy.asarray(array) for array in self._make()]
            # Whatever stream uses them next.
            cupy.cuda.get_current_stream().synchronize()
        return self._there


class StoredImages:
    """Preprocesses images of CIFAR on the GPU, which holds all of them.

    Args:
        preprocessing: A class of :class:`trainer.transforms.cifar.OneImage`.
        images: Arrays of uint8 (images, 3, 32, 32); rows count the images of all, in order.
    """

    def __init__(self, preprocessing: type[OneImage], *images: np.ndarray) -> None:
        self.preprocessing = preprocessing
        self._arrays = _OnDevice(lambda: (np.concatenate(images), preprocessing.constants()))

    def __call__(self, rows: cupy.ndarray) -> cupy.ndarray:
        """Return the images of rows, on the current stream.

        Args:
            rows: int32 (batch, 1 + fields): index of the image, and the values of ``choose``. Zeros
                are valid.

        Returns:
            (batch, 3, 32, 32) with NHWC memory, float32; float16 where the cuDNN engine computes in
            'mixed' precision.
        """
        images, constants = self._arrays()
        n = len(rows)
        return _compute(
            self.preprocessing.kernel, n, (n,) + self.preprocessing.shape, images, rows, constants
        )


def of(network: Network) -> ImageRows | None:
    """Return :class:`ImageRows` for the images of a network on a GPU.

    Args:
        network: The network.

    Returns:
        ``None`` if its preprocessing is of another kind or size.
    """
    preprocessing = table.of(network)
    if isinstance(preprocessing, type) and not issubclass(
        preprocessing, DataAugmentationNormalizeBigger
    ):
        return None
    if preprocessing is None or preprocessing.shape != DataAugmentationNormalizeBigger.shape:
        return None
    return ImageRows(preprocessing)


class ImageRows:
    """Normalises images of 224x224 (or of the class's ``train_shape``) on the GPU, and changes
    their colours there.

    Args:
        preprocessing: A preprocessing with
            :meth:`~trainer.transforms.resize_crop.DataAugmentationNormalizeBigger.row_bytes`.
    """

    def __init__(self, preprocessing: type[DataAugmentationNormalizeBigger] | Geometry) -> None:
        self.preprocessing = preprocessing
        self._arrays = _OnDevice(lambda: (getattr(preprocessing, 'table', resize_crop.TABLE),))

    def __call__(self, rows: cupy.ndarray) -> cupy.ndarray:
        """Return the images of rows, on the current stream.

        Args:
            rows: uint8 (batch, row bytes), as :func:`trainer.transforms.resize_crop.write_row`
                writes them, aligned to 16 bytes; or images, float32 or float16, which are returned
                unchanged.

        Returns:
            (batch, 3, height, width) with NHWC memory, float32; float16 where the cuDNN engine
            computes in 'mixed' precision.
        """
        if rows.dtype != np.uint8:
            return rows if rows.dtype == np.float16 else rows.astype(np.float32, copy=False)
        n, length = rows.shape
        training = length != self.preprocessing.row_bytes(training=False)
        shape = self.preprocessing.shape
        if training and not isinstance(self.preprocessing, Geometry):
            shape = self.preprocessing.train_shape
        values = math.prod(shape)
        kernel, table = ('normalized', self._arrays()) if length == values else ('coloured', [])
        return _compute(
            kernel, (_PARTS, n), (n,) + shape, rows, np.int32(length), np.int32(values), *table
        )
