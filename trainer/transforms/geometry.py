"""Test geometry as data: how images are resized and cropped for a network.

A network is best tested with the geometry of its weights: torchvision's ResNeXt-101 64x4d has an
error of 16.754 % with a short side of 232, and 17.022 % with 256.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trainer import values
from trainer.errors import InputError
from trainer.transforms import Sample, resize_crop
from trainer.transforms.decoding import load_rgb

if TYPE_CHECKING:
    from trainer.types import Source

#: timm's name of an interpolation -> Pillow's filter.
INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in values.INTERPOLATIONS}

#: Largest image; a batch of larger ones would take gigabytes.
MAX_IMG_SIZE = 1024

# Most pixels of a resized image, as of a decoded one.
_MAX_PIXELS = 1 << 26


def _three(numbers):
    if isinstance(numbers, str) or len(numbers) != 3:
        raise ValueError(f'{numbers!r} is not a number for each of three channels')
    return tuple(map(float, numbers))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Preprocessing for testing, as in timm and torchvision.

    The short side becomes floor(img_size / crop_pct); the long side keeps the aspect ratio and
    is truncated; then the centre is cropped. Images are those that
    :func:`trainer.transforms.decoding.load_rgb` accepts. It has the methods for testing of
    :class:`trainer.transforms.resize_crop.DataAugmentationNormalizeBigger`.

    Attributes:
        img_size: Height and width of the network's input, pixels.
        crop_pct: Crop size as a share of the resized short side, above 0 and at most 1.
        interpolation: One of :data:`INTERPOLATIONS`.
        mean, std: Of the three channels, in 0..1: the input is (x / 255 - mean) / std.

    Raises:
        ValueError: A value cannot be used.
    """

    img_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = 'bicubic'
    mean: tuple[float, float, float] = resize_crop.MEAN
    std: tuple[float, float, float] = resize_crop.STD

    def __post_init__(self) -> None:
        if type(self.img_size) is not int or not 0 < self.img_size <= MAX_IMG_SIZE:
            raise ValueError(f'img_size {self.img_size!r}: not 1..{MAX_IMG_SIZE} pixels')
        object.__setattr__(self, 'crop_pct', float(self.crop_pct))
        if not 0.1 <= self.crop_pct <= 1:
            raise ValueError(f'crop_pct {self.crop_pct}: not between 0.1 and 1')
        if self.interpolation not in INTERPOLATIONS:
            names = ', '.join(INTERPOLATIONS)
            raise ValueError(f'interpolation {self.interpolation!r}: there are {names}')
        for name in ('mean', 'std'):
            object.__setattr__(self, name, _three(getattr(self, name)))
        if not all(-10 < m < 10 for m in self.mean):
            raise ValueError(f'mean {self.mean}: not of channels in 0..1')
        if not all(1e-6 < s < 1e6 for s in self.std):
            raise ValueError(f'std {self.std}: not above 0')

    @property
    def short_side(self) -> int:
        """Short side of the resized image, pixels."""
        return math.floor(self.img_size / self.crop_pct)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a preprocessed image."""
        return 3, self.img_size, self.img_size

    @property
    def __name__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        text = f'{self.img_size} of {self.short_side} pixels, {self.interpolation}'
        if (self.mean, self.std) != (resize_crop.MEAN, resize_crop.STD):
            text += ', mean {}, std {}'.format(
                *(' '.join(f'{n:.4g}' for n in three) for three in (self.mean, self.std))
            )
        return text

    @functools.cached_property
    def table(self) -> np.ndarray:
        """Pixel value 0..255 of each channel -> input of the network: float32 (3, 256)."""
        return resize_crop.table(self.mean, self.std)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing, as torchvision's Resize computes them.

        Raises:
            trainer.errors.InputError: The image is too long and narrow.
        """
        short, long = sorted((height, width))
        other = int(self.short_side * long / short)
        if other > resize_crop.MAX_LONG_SIDE or other * self.short_side > _MAX_PIXELS:
            raise InputError(f'an image of {width} x {height} pixels is too long and narrow')
        return (self.short_side, other) if height <= width else (other, self.short_side)

    def _load(self, source):
        image = load_rgb(source)
        try:
            return image, self.resized_size(image.height, image.width)
        except InputError as e:
            if isinstance(source, (str, os.PathLike)):
                raise InputError(f'{source}: {e}') from None
            raise

    def _info(self, size, y, x):
        side = self.img_size
        return {
            'interpolation': self.interpolation,
            'resized': list(size),
            'keypoints': [[y, y + side], [x, x + side]],
            'flip': False,
        }

    def test_pixels(self, img: Source) -> Sample:
        """Like :meth:`test` without the normalisation: ``x`` is
        :class:`trainer.transforms.resize_crop.Pixels`."""
        image, size = self._load(img)
        side = self.img_size
        y, x = (round((n - side) / 2) for n in size)
        # The whole image, as Pillow chooses which direction comes first, and rounds in between.
        resized = image.resize(size[::-1], INTERPOLATIONS[self.interpolation])
        pixels = np.asarray(resized.crop((x, y, x + side, y + side)))
        return Sample(resize_crop.Pixels(pixels), self._info(size, y, x))

    def test(self, img: Source, out: np.ndarray | None = None) -> Sample:
        """Preprocess one image.

        Args:
            img: See the class.
            out: float32 (3, img_size, img_size) to write to.

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        pixels, info = self.test_pixels(img)
        return Sample(resize_crop.normalize(pixels.values, out, self.table), info)

    def test_batch(self, images: Sequence[Source]) -> np.ndarray:
        """Preprocess images: float32 (batch, 3, img_size, img_size)."""
        x = np.empty((len(images), *self.shape), np.float32)
        for out, img in zip(x, images):
            self.test(img, out)
        return x

    def _five_crops(self, img):
        image, (height, width) = self._load(img)
        pixels = np.asarray(image.resize((width, height), INTERPOLATIONS[self.interpolation]))
        bottom, right = height - self.img_size, width - self.img_size
        centre = round(bottom / 2), round(right / 2)
        places = [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
        side = self.img_size
        return (
            [pixels[y : y + side, x : x + side] for y, x in places],
            [self._info((height, width), y, x) for y, x in places],
        )

    def ten_crop(self, img: Source, out: np.ndarray | None = None) -> Sample:
        """Preprocess one image for ten-crop evaluation: four corners and the centre, then the
        same mirrored.

        Args:
            img: See the class.
            out: float32 (10, 3, img_size, img_size) to write to.
        """
        crops, info = self._five_crops(img)
        if out is None:
            out = np.empty((10, *self.shape), np.float32)
        for crop, x in zip(crops, out):
            resize_crop.normalize(crop, x, self.table)
        out[5:] = out[:5, :, :, ::-1]
        return Sample(out, info + [dict(i, flip=True) for i in info])

    # Rows of bytes, for trainer.transforms.gpu_images.ImageRows.

    def row_bytes(self, training: bool = False) -> int:
        """Return the length of a row of :func:`trainer.transforms.resize_crop.write_row`."""
        return math.prod(self.shape)

    def test_row(self, img: Source, out: np.ndarray) -> None:
        """Like :meth:`test`, but write the image as a row."""
        resize_crop.write_row(self.test_pixels(img).x, out)

    def ten_crop_rows(self, img: Source, out: np.ndarray) -> None:
        """Like :meth:`ten_crop`, but write each crop as a row: uint8 (10, row bytes)."""
        for i, crop in enumerate(self._five_crops(img)[0]):
            resize_crop.write_row(resize_crop.Pixels(crop), out[i])
            resize_crop.write_row(resize_crop.Pixels(crop[:, ::-1]), out[5 + i])

    def as_json(self) -> dict:
        """Return the geometry as JSON values, for :meth:`from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, held: dict) -> Geometry:
        """Return the geometry that JSON describes.

        Raises:
            TypeError, ValueError: The JSON does not describe a geometry.
        """
        if not isinstance(held, dict):
            raise TypeError(f'geometry {held!r:.80}')
        return cls(**held)


def of_class(preprocessing: type[resize_crop.DataAugmentationNormalizeBigger]) -> Geometry:
    """Return the geometry that is closest to the test preprocessing of a class.

    Args:
        preprocessing: :class:`trainer.transforms.resize_crop.DataAugmentationNormalizeBigger`,
            or a class derived from it. Some round the position of the centre differently.
    """
    side = preprocessing.shape[-1]
    return Geometry(side, side / preprocessing.test_short_side, preprocessing.test_interpolation)
