"""The original's preprocessing for CIFAR (``nutszebra_data_augmentation.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from trainer.transforms import INTERPOLATIONS, Sample, uniform_int
from trainer.transforms.decoding import load_chw

if TYPE_CHECKING:
    from trainer.types import Source

_SIDE = 32
_MOST = 36


class SmallDrawn(NamedTuple):
    """The random choices for one image.

    Interpolation (PIL.Image.Resampling), side of the square to which it is resized, offset of the
    crop, whether it is flipped.
    """

    interpolation: Image.Resampling
    side: int
    y: int
    x: int
    flip: bool


def stretch(images: np.ndarray) -> np.ndarray:
    """Stretch the contrast of each image: its minimum becomes 0, its maximum 255.

    Args:
        images: (batch, 3, height, width), uint8 or float.

    Returns:
        uint8 of the same shape, rounded half up. A constant image becomes 0.
    """
    n = len(images)
    low = images.min(axis=(1, 2, 3)).astype(np.float32)
    high = images.max(axis=(1, 2, 3)).astype(np.float32)
    scale = np.float32(255) / np.where(high > low, high - low, np.float32(1))
    if images.dtype == np.uint8:
        values = np.arange(256, dtype=np.float32)
        table = (values - low[:, None]).clip(0) * scale[:, None]
        table = (table.clip(0, 255) + np.float32(0.5)).astype(np.uint8)
        return table[np.arange(n)[:, None], images.reshape(n, -1)].reshape(images.shape)
    low, scale = low.reshape(n, 1, 1, 1), scale.reshape(n, 1, 1, 1)
    return (((images - low) * scale).clip(0, 255) + np.float32(0.5)).astype(np.uint8)


def normalize(images: np.ndarray) -> np.ndarray:
    """Compute (x - mean) / sqrt(variance + 10), with mean and variance of each image.

    Args:
        images: uint8 (batch, ...).

    Returns:
        float32 of the same shape.
    """
    flat = images.reshape(len(images), -1)
    mean = flat.mean(axis=1, dtype=np.float64)
    square = np.square(flat, dtype=np.uint32).mean(axis=1, dtype=np.float64)
    scale = 1 / np.sqrt(square - mean**2 + 10)
    shape = (len(images),) + (1,) * (images.ndim - 1)
    x = images.astype(np.float32)
    x -= mean.astype(np.float32).reshape(shape)
    x *= scale.astype(np.float32).reshape(shape)
    return x


def _bilinear(x):
    return max(0, 1 - abs(x))


def _bicubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0


#: Interpolation -> (function, support), as in Pillow.
_FILTERS = {Image.Resampling.BILINEAR: (_bilinear, 1), Image.Resampling.BICUBIC: (_bicubic, 2)}

#: Fractional bits of the weights with which Pillow resizes 8-bit images.
WEIGHT_BITS = 22


def weights(interpolation: Image.Resampling, side: int) -> np.ndarray:
    """Return the weights with which Pillow resizes 32 pixels to ``side``.

    A pixel is the weighted sum of four pixels plus 2^21, shifted right by
    :data:`WEIGHT_BITS` and clipped to 0..255: rows first, then columns.

    Args:
        interpolation: Nearest, bilinear or bicubic.
        side: 32 or more.

    Returns:
        int32 (side, 5): index of the first of four pixels, and their weights.
    """
    found = np.zeros((side, 5), np.int32)
    if interpolation == Image.Resampling.NEAREST or side == _SIDE:
        ramp = Image.fromarray(np.arange(_SIDE, dtype=np.uint8)[None])
        source = np.asarray(ramp.resize((side, 1), Image.Resampling.NEAREST))[0].astype(int)
        first = source.clip(max=_SIDE - 4)
        found[:, 0] = first
        found[np.arange(side), 1 + source - first] = 1 << WEIGHT_BITS
        return found
    function, support = _FILTERS[interpolation]
    for i, row in enumerate(found):
        centre = (i + 0.5) * (_SIDE / side)
        low, high = max(0, int(centre - support + 0.5)), min(_SIDE, int(centre + support + 0.5))
        w = [function(x - centre + 0.5) for x in range(low, high)]
        total = sum(w)
        row[0] = min(low, _SIDE - 4)
        for x, value in zip(range(low, high), w):
            value = value / total * (1 << WEIGHT_BITS)
            row[1 + x - row[0]] = int(value + math.copysign(0.5, value))
    return found


def _resize(pixels, side, interpolation):
    """Resize (height, width, 3) uint8 to a square."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), interpolation))


def _hwc(images):
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


class OneImage:
    """Base class: ``train`` and ``test`` of one image, by ``draw``, ``train_batch`` and
    ``test_batch`` of the derived class.

    For :class:`trainer.transforms.gpu_images.StoredImages` a class also has ``uniforms``, the
    number of uniform numbers per image; ``choose(u)``, which maps them, or arrays of them, to
    integers, the last of which tells whether to flip; ``untouched``, the integers of a test image;
    ``kernel``, the name of the kernel that applies them on a GPU; and ``constants()``, the array
    that the kernel takes.
    """

    #: Shape of what comes out.
    shape: tuple[int, int, int]
    #: ``train_batch`` and ``test_batch`` take arrays.
    arrays: bool
    uniforms: int
    untouched: tuple
    kernel: str

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> Any:
        """Draw the random choices for one image in training."""
        raise NotImplementedError

    @staticmethod
    def choose(u: np.ndarray) -> tuple:
        """See the class."""
        raise NotImplementedError

    @staticmethod
    def constants() -> np.ndarray:
        """See the class."""
        raise NotImplementedError

    @staticmethod
    def train_batch(images: np.ndarray, drawn: Sequence[Any]) -> np.ndarray:
        """Preprocess images for training."""
        raise NotImplementedError

    @staticmethod
    def test_batch(images: np.ndarray) -> np.ndarray:
        """Preprocess images for evaluation."""
        raise NotImplementedError

    @staticmethod
    def _told(drawn):
        """Return ``info`` for random choices; ``None``: a test image."""
        raise NotImplementedError

    @classmethod
    def train(
        cls, img: Source, rng: np.random.Generator | ModuleType = np.random, drawn: Any = None
    ) -> Sample:
        """Preprocess one image for training.

        Args:
            img: See the class.
            rng: ``numpy.random`` or a Generator to draw from.
            drawn: The random choices, if drawn already.

        Returns:
            ``x``, float32 (3, 32, 32), and ``info``, the random choices.
        """
        d = cls.draw(rng) if drawn is None else drawn
        return Sample(cls.train_batch(load_chw(img)[None], [d])[0], cls._told(d))

    @classmethod
    def test(cls, img: Source, out: np.ndarray | None = None) -> Sample:
        """Preprocess one image for evaluation.

        Args:
            img: See the class.
            out: float32 (3, 32, 32) to write to.

        Returns:
            See :meth:`train`.
        """
        x = cls.test_batch(load_chw(img)[None])[0]
        if out is not None:
            out[...] = x
            x = out
        return Sample(x, cls._told(None))


class DataAugmentationCifar10NormalizeSmall(OneImage):
    """Contrast stretching, resizing, cropping, normalisation of each image, flipping.

    Images are RGB, (3, height, width), values 0..255, uint8 or float, or a path or
    ``PIL.Image``. The result is float32 (3, 32, 32).
    """

    #: Shape of what comes out.
    shape: tuple[int, int, int] = (3, _SIDE, _SIDE)
    #: ``train_batch`` and ``test_batch`` take arrays.
    arrays: bool = True
    uniforms: int = 5
    untouched: tuple = 1, 0, 0, 0, False
    kernel: str = 'stretched'

    @staticmethod
    def choose(u: np.ndarray) -> tuple:
        """Return index in :data:`INTERPOLATIONS`, pixels added to the side, y, x, flip; see
        :class:`OneImage`."""
        more = uniform_int(u[1], 0, _MOST - _SIDE)
        return (
            uniform_int(u[0], 0, len(INTERPOLATIONS) - 1),
            more,
            uniform_int(u[2], 0, more),
            uniform_int(u[3], 0, more),
            u[4] < 0.5,
        )

    @staticmethod
    def constants() -> np.ndarray:
        """Return :func:`weights`, int32 (interpolations, sides 32..36, 36, 5)."""
        found = np.zeros((len(INTERPOLATIONS), _MOST - _SIDE + 1, _MOST, 5), np.int32)
        for interpolation, of_sides in zip(INTERPOLATIONS, found):
            for side, of_side in enumerate(of_sides, _SIDE):
                of_side[:side] = weights(interpolation, side)
        return found

    @classmethod
    def draw(cls, rng: np.random.Generator | ModuleType) -> SmallDrawn:
        """Draw the random choices for one image in training.

        Args:
            rng: From :func:`trainer.transforms.generator`.

        Returns:
            Interpolation uniform over nearest, bilinear, bicubic, bicubic; side uniform in 32..36;
            offsets uniform; flip with probability 0.5.
        """
        interpolation, more, y, x, flip = cls.choose(rng.random(cls.uniforms))
        return SmallDrawn(INTERPOLATIONS[interpolation], _SIDE + more, y, x, bool(flip))

    @staticmethod
    def train_batch(images: np.ndarray, drawn: Sequence[SmallDrawn]) -> np.ndarray:
        """Preprocess images for training.

        Args:
            images: (batch, 3, height, width), uint8 or float, 0..255.
            drawn: Random choices for each image.

        Returns:
            float32 (batch, 3, 32, 32).
        """
        crops = np.empty((len(images), _SIDE, _SIDE, 3), np.uint8)
        for crop, pixels, d in zip(crops, _hwc(stretch(images)), drawn):
            resized = _resize(pixels, d.side, d.interpolation)
            resized = resized[d.y : d.y + _SIDE, d.x : d.x + _SIDE]
            crop[...] = resized[:, ::-1] if d.flip else resized
        return normalize(crops.transpose(0, 3, 1, 2))

    @staticmethod
    def test_batch(images: np.ndarray) -> np.ndarray:
        """Preprocess images for evaluation: stretch, resize to 32x32, normalise.

        Args:
            images: (batch, 3, height, width), uint8 or float, 0..255.

        Returns:
            float32 (batch, 3, 32, 32).
        """
        images = stretch(images)
        if images.shape[2:] != (_SIDE, _SIDE):
            images = np.stack(
                [_resize(pixels, _SIDE, Image.Resampling.BILINEAR) for pixels in _hwc(images)]
            ).transpose(0, 3, 1, 2)
        return normalize(images)

    @staticmethod
    def _told(drawn):
        d = drawn or SmallDrawn(Image.Resampling.BILINEAR, _SIDE, 0, 0, False)
        return {
            'interpolation': d.interpolation.name.lower(),
            'resized': [d.side, d.side],
            'keypoints': [[d.y, d.y + _SIDE], [d.x, d.x + _SIDE]],
            'flip': d.flip,
        }
