"""Preprocessing of ImageNet for training as in Torch7, the paper, and Lornatang.

Images are those that :func:`trainer.transforms.decoding.load_rgb` accepts: a path, a
``PIL.Image`` or an array (height, width, channels). The result is float32 (3, 224, 224),
RGB, normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from trainer.errors import InputError
from trainer.transforms import Sample, resize_crop, trivial_augment, uniform_int
from trainer.transforms.decoding import load_shrunk
from trainer.transforms.resize_crop import MEAN, STD

if TYPE_CHECKING:
    from trainer.types import Source

_SIDE = 224

#: Number of crops that are tried for an image.
ATTEMPTS = 10

#: Share of each channel in the grey of an image (ITU-R BT.601).
_GREY = np.array([0.299, 0.587, 0.114])

#: Principal components (columns) of the colours of ImageNet's images in 0..1, and their
#: standard deviations, from ``datasets/imagenet.lua``.
PCA_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])


class _Preprocessing(resize_crop.DataAugmentationNormalizeBigger):
    """Base class; evaluation is that of the 2017 program and Torch7.

    A derived class has :meth:`draw`, ``_share(height, width, drawn)``, the factor by which an
    image's sides are reduced, and ``_train(image, full size, drawn)``, which returns
    :class:`trainer.transforms.resize_crop.Pixels`.
    """

    _share: ClassVar[Callable[[int, int, Any], float]]
    _train: ClassVar[Callable[[Image.Image, tuple[int, int], Any], resize_crop.Pixels]]

    @classmethod
    def train_pixels(
        cls, img: Source, rng: np.random.Generator | ModuleType = np.random, drawn: Any = None
    ) -> Sample:
        """Like :meth:`train` without the normalisation: ``x`` is
        :class:`trainer.transforms.resize_crop.Pixels`."""
        d = cls.draw(rng) if drawn is None else drawn
        image, size = load_shrunk(img, lambda height, width: cls._share(height, width, d))
        try:
            pixels = cls._train(image, size, d)
        except InputError as e:
            if isinstance(img, (str, os.PathLike)):
                raise InputError(f'{img}: {e}') from None
            raise
        return Sample(pixels, d._asdict())


def resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: Image.Resampling,
    side: int = _SIDE,
) -> Image.Image:
    """Crop ``box`` (y, x, height, width) from an image and resize it to side x side.

    The box refers to the image's full ``size`` (height, width); the image may be smaller.
    """
    y, x, h, w = box
    if (image.height, image.width) == size:
        return image.crop((x, y, x + w, y + h)).resize((side, side), interpolation)
    times = round(size[0] / image.height)  # the last row and column may extend beyond the edge
    return image.resize(
        (side, side), interpolation, (x / times, y / times, (x + w) / times, (y + h) / times)
    )


def lighting(normals: Sequence[float]) -> np.ndarray:
    """Return AlexNet's colour shift, float64 (3,), of an image in 0..1.

    It is the sum of the principal components times their deviations times ``normals``.

    Args:
        normals: Three numbers from a normal distribution of deviation 0.1.
    """
    return PCA_VECTORS @ (PCA_VALUES * normals)


class _Colour:
    """Linear changes of colour, combined into one matrix and one offset for all pixels."""

    def __init__(self, mean):
        self.matrix, self.offset = np.eye(3), np.zeros(3)
        self._mean = np.asarray(mean)  # means of the unchanged image's channels

    def blend(self, alpha, grey):
        """Mix the image, times alpha, with ``grey`` ('none', 'own' or 'mean'), times 1 - alpha."""
        rows = np.tile(_GREY, (3, 1))
        matrix, offset = alpha * self.matrix, alpha * self.offset
        if grey == 'own':
            matrix = matrix + (1 - alpha) * rows @ self.matrix
            offset = offset + (1 - alpha) * rows @ self.offset
        elif grey == 'mean':
            offset = offset + (1 - alpha) * rows @ (self.matrix @ self._mean + self.offset)
        self.matrix, self.offset = matrix, offset

    def pixels(self, values):
        """Return :class:`~trainer.transforms.resize_crop.Pixels` of uint8 (height, width, 3), with
        this change and then normalisation by ImageNet's mean and deviation."""
        std = np.array(STD)
        return resize_crop.Pixels(
            values,
            np.concatenate(
                [(self.matrix / 255 / std[:, None]).ravel(), (self.offset - MEAN) / std],
                dtype=np.float32,
                casting='same_kind',
            ),
        )


def _round(x):
    """Round half up, as Torch does."""
    return math.floor(x + 0.5)


class Torch7Drawn(NamedTuple):
    """The random choices for one image.

    Attempts, float64 (10, 5), u in [0, 1): area, aspect ratio, whether sides are exchanged, place
    (y, x); order, the permutation of brightness, contrast, saturation; alphas, the weight of the
    image in each; lighting (3,), normal with deviation 0.1; flip.
    """

    attempts: np.ndarray
    order: tuple[int, ...]
    alphas: tuple[float, ...]
    lighting: tuple[float, ...]
    flip: bool


class DataAugmentationImagenetTorch7(_Preprocessing):
    """facebookresearch/ResNeXt's preprocessing of ImageNet (``datasets/imagenet.lua``).

    In training: a random crop of 8 to 100 % of the area and of aspect ratio 3/4 to 4/3,
    resized to 224x224 (bicubic; if none of ten attempts fits, the centre of the image with
    its short side at 224); brightness, contrast and saturation times 0.6 to 1.4 in random
    order; a colour shift; normalisation; flipping with probability 0.5. In evaluation:
    short side 256, the centre 224x224.

    Resizing is Pillow's, which averages over all the pixels that a new pixel covers.
    """

    colour: bool = True

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> Torch7Drawn:
        """Draw the random choices for one image in training: a :class:`Torch7Drawn`.

        Args:
            rng: From :func:`trainer.transforms.generator`.
        """
        attempts = rng.random((ATTEMPTS, 5))
        order = tuple(rng.permutation(3).tolist())
        alphas = tuple((0.6 + 0.8 * rng.random(3)).tolist())
        return Torch7Drawn(
            attempts, order, alphas, tuple(rng.normal(0, 0.1, 3).tolist()), bool(rng.random() < 0.5)
        )

    @staticmethod
    def crop_box(height: int, width: int, attempts: np.ndarray) -> tuple[int, int, int, int] | None:
        """Return (y, x, height, width) of the first attempt that fits, or ``None``."""
        for area, aspect, exchange, y, x in attempts.tolist():
            area = (0.08 + 0.92 * area) * height * width
            aspect = 3 / 4 + (4 / 3 - 3 / 4) * aspect
            w, h = _round(math.sqrt(area * aspect)), _round(math.sqrt(area / aspect))
            if exchange < 0.5:
                w, h = h, w
            if 0 < h <= height and 0 < w <= width:
                return uniform_int(y, 0, height - h), uniform_int(x, 0, width - w), h, w
        return None

    @classmethod
    def _share(cls, height, width, d):
        box = cls.crop_box(height, width, d.attempts)
        return _SIDE / min((height, width) if box is None else box[2:])

    @classmethod
    def _train(cls, image, size, d):
        box = cls.crop_box(*size, d.attempts)
        if box is None:
            size = resize_crop.resized_size(*size, _SIDE)
            y, x = (-(-(n - _SIDE) // 2) for n in size)
            pixels = resize_crop._resize_and_crop(image, size, Image.Resampling.BICUBIC, y, x)
        else:
            pixels = np.asarray(resized_crop(image, size, box, Image.Resampling.BICUBIC))
        colour = _Colour(pixels.mean(axis=(0, 1), dtype=np.float64) / 255)
        for which in d.order:
            colour.blend(d.alphas[which], ('none', 'mean', 'own')[which])
        colour.offset = colour.offset + lighting(d.lighting)
        return colour.pixels(pixels[:, ::-1] if d.flip else pixels)


class PaperDrawn(NamedTuple):
    """The random choices for one image.

    Length of the short side; position of the crop, 0 <= y, x < 1, as a share of the possible range;
    lighting (3,), normal with deviation 0.1; flip.
    """

    short_side: int
    y: float
    x: float
    lighting: tuple[float, ...]
    flip: bool


class DataAugmentationImagenetPaper(_Preprocessing):
    """Scale augmentation and colour shift (arXiv 1512.03385, section 3.4).

    In training: short side uniform in 256..480 (bicubic), a random 224x224 crop, flipping
    with probability 0.5, AlexNet's colour shift, normalisation. In evaluation: short side
    256, the centre 224x224.

    The mean of each channel is subtracted; the paper subtracts a mean per pixel.
    """

    colour: bool = True

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> PaperDrawn:
        """Draw the random choices for one image in training: a :class:`PaperDrawn`.

        Args:
            rng: From :func:`trainer.transforms.generator`.
        """
        u = rng.random(4).tolist()
        return PaperDrawn(
            uniform_int(u[0], 256, 480),
            u[1],
            u[2],
            tuple(rng.normal(0, 0.1, 3).tolist()),
            u[3] < 0.5,
        )

    @classmethod
    def _share(cls, height, width, d):
        return d.short_side / min(height, width)

    @classmethod
    def _train(cls, image, size, d):
        size = resize_crop.resized_size(*size, d.short_side)
        y, x = (uniform_int(u, 0, n - _SIDE) for u, n in zip((d.y, d.x), size))
        pixels = resize_crop._resize_and_crop(image, size, Image.Resampling.BICUBIC, y, x)
        colour = _Colour((0, 0, 0))
        colour.offset = lighting(d.lighting)
        return colour.pixels(pixels[:, ::-1] if d.flip else pixels)


class LornatangDrawn(NamedTuple):
    """The random choices for one image.

    Attempts, float64 (10, 4), u in [0, 1): area, aspect ratio, place (y, x); operation, strength
    and whether it is negated, see :class:`trainer.transforms.trivial_augment.TrivialDrawn`; angle
    in degrees, 0..270; whether it is flipped left to right, and top to bottom.
    """

    attempts: np.ndarray
    operation: str
    strength: int
    negated: bool
    angle: float
    flip: bool
    upside_down: bool


class DataAugmentationImagenetLornatang(_Preprocessing):
    """Lornatang/ResNetXt-PyTorch's preprocessing (``dataset.py``), which is torchvision's.

    In training: a random crop of 8 to 100 % of the area, the logarithm of its aspect ratio
    uniform between those of 3/4 and 4/3, resized to 224x224 (bilinear; if none of ten
    attempts fits, the largest central crop); one operation of TrivialAugment
    (:data:`trainer.transforms.trivial_augment.OPERATIONS`);
    rotation by 0 to 270 degrees; both flips, each with probability 0.5; normalisation.
    In evaluation: short side 256 (bilinear), the centre 224x224.
    """

    test_short_side: int = 256
    test_interpolation: str = 'bilinear'

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> Any:
        """Draw the random choices for one image in training: a :class:`LornatangDrawn`.

        Args:
            rng: From :func:`trainer.transforms.generator`.
        """
        attempts = rng.random((ATTEMPTS, 4))
        u = rng.random(6).tolist()
        return LornatangDrawn(
            attempts, *trivial_augment.choose(u), 270 * u[3], u[4] < 0.5, u[5] < 0.5
        )

    @staticmethod
    def crop_box(height: int, width: int, attempts: np.ndarray) -> tuple[int, int, int, int]:
        """Return (y, x, height, width) of the first attempt that fits, or of the fallback."""
        low, high = 3 / 4, 4 / 3
        for area, aspect, y, x in attempts.tolist():
            area = (0.08 + 0.92 * area) * height * width
            aspect = low * (high / low) ** aspect
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h <= height and 0 < w <= width:
                return uniform_int(y, 0, height - h), uniform_int(x, 0, width - w), h, w
        h, w = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
        return (height - h) // 2, (width - w) // 2, h, w

    @classmethod
    def _share(cls, height, width, d):
        return cls.train_shape[-1] / min(cls.crop_box(height, width, d.attempts)[2:])

    @classmethod
    def _train(cls, image, size, d):
        image = resized_crop(
            image, size, cls.crop_box(*size, d.attempts), Image.Resampling.BILINEAR
        )
        image = trivial_augment.apply(image, d, Image.Resampling.NEAREST).rotate(d.angle)
        pixels = np.asarray(image)[:: -1 if d.upside_down else 1, :: -1 if d.flip else 1]
        return resize_crop.Pixels(pixels)

    @classmethod
    def test_pixels(cls, img: Source) -> Sample:
        """Like the base class, but bilinear."""
        image, size = resize_crop._load(img, cls.test_short_side)
        y, x = (round((n - _SIDE) / 2) for n in size)
        pixels = resize_crop._resize_and_crop(image, size, Image.Resampling.BILINEAR, y, x)
        return Sample(resize_crop.Pixels(pixels), {'resized': list(size)})
