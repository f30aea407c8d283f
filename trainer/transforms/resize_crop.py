"""The original's preprocessing of ImageNet; in evaluation it is Torch7's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from trainer.errors import InputError
from trainer.transforms import INTERPOLATIONS, Sample, uniform_int
from trainer.transforms.decoding import load_rgb, load_shrunk

if TYPE_CHECKING:
    from trainer.types import Source

_SIDE = 224

#: Longest resized side: resizing a long, narrow image could make a small file huge.
MAX_LONG_SIDE = 1 << 16

#: Mean and deviation of the three channels of ImageNet's images, in 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def table(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return pixel value 0..255 of each channel -> input of the network, rounded as in the
    original: float32 (3, 256)."""
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    return ((values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).T.copy()


#: The table of ImageNet's images.
TABLE = table(MEAN, STD)


class BiggerDrawn(NamedTuple):
    """The random choices for one image.

    Interpolation (PIL.Image.Resampling); length of the resized short side; position of the crop,
    0 <= y, x < 1, as a share of the possible range; whether it is flipped.
    """

    interpolation: Image.Resampling
    short_side: int
    y: float
    x: float
    flip: bool


class Pixels(NamedTuple):
    """An image before normalisation.

    Attributes:
        values: uint8 (224, 224, 3), already flipped.
        colour: ``None``, or a linear change of colour that includes the normalisation:
            float32 (12,), a matrix (3, 3) and an offset (3,).
    """

    values: np.ndarray
    colour: np.ndarray | None = None


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) after resizing: the aspect ratio is kept, the long side truncated.

    For some square images rounding makes the long side one pixel shorter than the short
    one, as in the original; it is at least 224, the size of a crop.

    Raises:
        trainer.errors.InputError: The long side would be over :data:`MAX_LONG_SIDE`.
    """

    def long_side(short, long):
        return max(_SIDE, int(float(short_side) / short * long))

    size = (
        (short_side, long_side(height, width))
        if height <= width
        else (long_side(width, height), short_side)
    )
    if max(size) > MAX_LONG_SIDE:
        raise InputError(f'an image of {width} x {height} pixels is too long and narrow')
    return size


def _load(source, short_side, shrink=False):
    """Return an image in RGB and its (height, width) after resizing.

    With ``shrink`` it may be decoded at reduced size
    (:func:`trainer.transforms.decoding.load_shrunk`).
    """
    if shrink:
        image, size = load_shrunk(source, lambda *size: short_side / min(size))
    else:
        image = load_rgb(source)
        size = image.height, image.width
    try:
        return image, resized_size(*size, short_side)
    except InputError as e:
        if isinstance(source, (str, os.PathLike)):
            raise InputError(f'{source}: {e}') from None
        raise


def _centre(n):
    return n // 2 - _SIDE // 2


def _resize_and_crop(image, size, interpolation, y, x):
    """Resize to ``size`` (height, width) and crop to uint8 (224, 224, 3).

    The result is that of ``image.resize`` and cropping: Pillow resizes horizontally first,
    then vertically, so only the columns of the crop are needed. (Pillow 13 resizes some images
    that are more than twice as high as wide vertically first.)
    """
    box = (x, y, x + _SIDE, y + _SIDE)
    height, width = size
    whole = interpolation == Image.Resampling.NEAREST or image.size == (width, height)
    if whole or image.height > 2 * image.width:
        return np.asarray(image.resize((width, height), interpolation).crop(box))
    image = image.resize((width, image.height), interpolation)
    image = image.crop((x, 0, x + _SIDE, image.height))
    return np.asarray(image.resize((_SIDE, height), interpolation).crop((0, y, _SIDE, y + _SIDE)))


def normalize(
    pixels: np.ndarray, out: np.ndarray | None = None, table: np.ndarray = TABLE
) -> np.ndarray:
    """(x / 255 - mean) / std with :data:`MEAN` and :data:`STD`, or those of another table.

    Args:
        pixels: uint8 (height, width, 3).
        out: float32 (3, height, width) to write to.
        table: From :func:`table`.

    Returns:
        float32 (3, height, width).
    """
    if out is None:
        out = np.empty((3,) + pixels.shape[:2], np.float32)
    for channel, of_channel in enumerate(table):
        # 'clip' skips a bounds check that uint8 does not need.
        of_channel.take(pixels[:, :, channel], out=out[channel], mode='clip')
    return out


def finish(pixels: Pixels, out: np.ndarray | None = None) -> np.ndarray:
    """Normalise :class:`Pixels`, or apply their change of colour.

    Args:
        pixels: The image.
        out: float32 (3, 224, 224) to write to.

    Returns:
        float32 (3, 224, 224).
    """
    values, colour = pixels
    if colour is None:
        return normalize(values, out)
    x = colour[:9].reshape(3, 3) @ values.reshape(-1, 3).T.astype(np.float32)
    x += colour[9:, None]
    x = x.reshape((3,) + values.shape[:2])
    if out is None:
        return x
    out[...] = x
    return out


def write_row(pixels: Pixels, out: np.ndarray) -> None:
    """Write :class:`Pixels` as bytes, for :class:`trainer.transforms.gpu_images.ImageRows`.

    Args:
        pixels: The image.
        out: uint8 (row bytes,): the values, then the change of colour if there is one; see
            :meth:`DataAugmentationNormalizeBigger.row_bytes`.
    """
    values, colour = pixels
    out[: values.size].reshape(values.shape)[...] = values
    if colour is not None:
        out[values.size :] = colour.view(np.uint8)


def _info(interpolation, size, y, x, flip):
    return {
        'interpolation': interpolation.name.lower(),
        'resized': list(size),
        'keypoints': [[y, y + _SIDE], [x, x + _SIDE]],
        'flip': flip,
    }


class DataAugmentationNormalizeBigger:
    """Resizing that keeps the aspect ratio, a 224x224 crop, ImageNet's mean and deviation.

    Images are those that :func:`trainer.transforms.decoding.load_rgb` accepts: a path, a
    ``PIL.Image`` or an array (height, width, channels). The result is float32 (3, 224, 224),
    RGB.
    """

    #: Shapes of preprocessed images, in evaluation and in training.
    shape: tuple[int, int, int] = (3, _SIDE, _SIDE)
    train_shape: tuple[int, int, int] = shape
    #: Whether the preprocessing for training changes colours.
    colour: bool = False
    #: Resizing in testing: the short side in pixels, and timm's name of the interpolation.
    test_short_side: int = 256
    test_interpolation: str = 'bicubic'

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> Any:
        """Draw the random choices for one image in training.

        Args:
            rng: From :func:`trainer.transforms.generator`.

        Returns:
            Interpolation uniform over nearest, bilinear, bicubic, bicubic; short side uniform in
            224..288; position uniform; flip with probability 0.5.
        """
        u = rng.random(5)
        return BiggerDrawn(
            INTERPOLATIONS[uniform_int(u[0], 0, 3)],
            uniform_int(u[1], _SIDE, 288),
            float(u[2]),
            float(u[3]),
            bool(u[4] < 0.5),
        )

    @classmethod
    def row_bytes(cls, training: bool) -> int:
        """Return the length of a row of :func:`write_row`."""
        shape = cls.train_shape if training else cls.shape
        return math.prod(shape) + 4 * 12 * (training and cls.colour)

    @classmethod
    def train_pixels(
        cls,
        img: Source,
        rng: np.random.Generator | ModuleType = np.random,
        drawn: Any | None = None,
    ) -> Sample:
        """Like :meth:`train` without the normalisation: ``x`` is :class:`Pixels`."""
        d = cls.draw(rng) if drawn is None else drawn
        # Nearest-neighbour resizing of a reduced image would pick other pixels.
        image, size = _load(img, d.short_side, d.interpolation != Image.Resampling.NEAREST)
        y, x = (uniform_int(u, 0, n - _SIDE) for u, n in zip((d.y, d.x), size))
        pixels = _resize_and_crop(image, size, d.interpolation, y, x)
        return Sample(
            Pixels(pixels[:, ::-1] if d.flip else pixels),
            _info(d.interpolation, size, y, x, d.flip),
        )

    @classmethod
    def test_pixels(cls, img: Source) -> Sample:
        """Like :meth:`test` without the normalisation: ``x`` is :class:`Pixels`."""
        image, size = _load(img, cls.test_short_side)
        y, x = map(_centre, size)
        pixels = _resize_and_crop(image, size, Image.Resampling.BICUBIC, y, x)
        return Sample(Pixels(pixels), _info(Image.Resampling.BICUBIC, size, y, x, False))

    @classmethod
    def train(
        cls,
        img: Source,
        rng: np.random.Generator | ModuleType = np.random,
        drawn: Any | None = None,
        out: np.ndarray | None = None,
    ) -> Sample:
        """Preprocess one image for training.

        Args:
            img: See the class.
            rng: ``numpy.random`` or a Generator to draw from.
            drawn: The random choices, if drawn already; see :meth:`draw`.
            out: float32 (3, 224, 224) to write to.

        Returns:
            ``x``, float32 (3, 224, 224), and ``info``, the random choices.

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        pixels, info = cls.train_pixels(img, rng, drawn)
        return Sample(finish(pixels, out), info)

    @classmethod
    def test(cls, img: Source, out: np.ndarray | None = None) -> Sample:
        """Preprocess one image for evaluation: short side 256, bicubic unless the class overrides
        it, centre crop.

        See :meth:`train` for arguments, result and errors.
        """
        pixels, info = cls.test_pixels(img)
        return Sample(finish(pixels, out), info)

    @classmethod
    def ten_crop(cls, img: Source, out: np.ndarray | None = None) -> Sample:
        """Preprocess one image for ten-crop evaluation.

        The image is resized as for :meth:`test`. The crops are its corners and its centre
        (Krizhevsky et al. 2012): upper left, upper right, lower left, lower right, centre, then
        the same five mirrored.

        Args:
            img: See the class.
            out: float32 (10, 3, 224, 224) to write to.

        Returns:
            ``x``, float32 (10, 3, 224, 224), and ``info``, a list of ten.

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        crops, info = cls._five_crops(img)
        if out is None:
            out = np.empty((10,) + cls.shape, np.float32)
        for crop, x in zip(crops, out):
            normalize(crop, x)
        out[5:] = out[:5, :, :, ::-1]
        return Sample(out, info + [dict(i, flip=True) for i in info])

    @classmethod
    def _five_crops(cls, img):
        image, (height, width) = _load(img, cls.test_short_side)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        bottom, right = height - _SIDE, width - _SIDE
        places = [
            (0, 0),
            (0, right),
            (bottom, 0),
            (bottom, right),
            (_centre(height), _centre(width)),
        ]
        return (
            [pixels[y : y + _SIDE, x : x + _SIDE] for y, x in places],
            [_info(Image.Resampling.BICUBIC, (height, width), y, x, False) for y, x in places],
        )

    @classmethod
    def test_row(cls, img: Source, out: np.ndarray) -> None:
        """Like :meth:`test`, but write the image with :func:`write_row`."""
        write_row(cls.test_pixels(img).x, out)

    @classmethod
    def ten_crop_rows(cls, img: Source, out: np.ndarray) -> None:
        """Like :meth:`ten_crop`, but write crops with :func:`write_row`: uint8 (10, row bytes)."""
        for i, crop in enumerate(cls._five_crops(img)[0]):
            write_row(Pixels(crop), out[i])
            write_row(Pixels(crop[:, ::-1]), out[5 + i])

    @classmethod
    def train_batch(cls, images: Sequence[Source], drawn: Sequence) -> np.ndarray:
        """Preprocess images for training.

        Args:
            images: Images; see the class.
            drawn: Random choices for each image.

        Returns:
            float32 (batch, 3, 224, 224), or of the class's ``train_shape``.
        """
        x = np.empty((len(images),) + cls.train_shape, np.float32)
        for out, img, d in zip(x, images, drawn):
            cls.train(img, drawn=d, out=out)
        return x

    @classmethod
    def test_batch(cls, images: Sequence[Source]) -> np.ndarray:
        """Preprocess images for evaluation; see :meth:`train_batch` for the result."""
        x = np.empty((len(images),) + cls.shape, np.float32)
        for out, img in zip(x, images):
            cls.test(img, out=out)
        return x
