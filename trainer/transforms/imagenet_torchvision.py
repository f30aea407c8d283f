"""Preprocessing of ImageNet as in torchvision's references/classification (``presets.py``)."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from trainer.transforms import Sample, imagenet, resize_crop

if TYPE_CHECKING:
    from trainer.types import Source


class TorchvisionDrawn(NamedTuple):
    """The random choices for one image.

    Attempts, float64 (10, 4), u in [0, 1): area, aspect ratio, place (y, x); flip.
    """

    attempts: np.ndarray
    flip: bool


class DataAugmentationImagenetTorchvision(imagenet.DataAugmentationImagenetLornatang):
    """torchvision's preprocessing of ImageNet, with the sizes of its newer weights.

    In training: a random crop of 8 to 100 % of the area and of aspect ratio 3/4 to 4/3, its
    logarithm uniform, resized to 176x176 (bilinear; if none of ten attempts fits, the largest
    central crop); flipping with probability 0.5; normalisation. In evaluation: short side 232
    (bilinear), the centre 224x224.

    TrivialAugment and random erasing are options of a run (``auto_augment``, ``reprob``).
    """

    train_shape: tuple[int, int, int] = (3, 176, 176)
    test_short_side: int = 232

    @staticmethod
    def draw(rng: np.random.Generator | ModuleType) -> TorchvisionDrawn:
        """Draw the random choices for one image in training: a :class:`TorchvisionDrawn`.

        Args:
            rng: From :func:`trainer.transforms.generator`.
        """
        return TorchvisionDrawn(rng.random((imagenet.ATTEMPTS, 4)), bool(rng.random() < 0.5))

    @classmethod
    def _train(cls, image, size, d):
        box = cls.crop_box(*size, d.attempts)
        side = cls.train_shape[-1]
        image = imagenet.resized_crop(image, size, box, Image.Resampling.BILINEAR, side)
        pixels = np.asarray(image)
        return resize_crop.Pixels(pixels[:, ::-1] if d.flip else pixels)

    @classmethod
    def test_pixels(cls, img: Source) -> Sample:
        """Like the base class, with a short side of 232.

        The whole image is resized, as Pillow chooses which direction comes first, and some pixels
        differ by one level otherwise.
        """
        image, (height, width) = resize_crop._load(img, cls.test_short_side)
        side = cls.shape[-1]
        y, x = (round((n - side) / 2) for n in (height, width))
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized.crop((x, y, x + side, y + side)))
        return Sample(resize_crop.Pixels(pixels), {'resized': [height, width]})
