"""TrivialAugment (arXiv 2103.10158): one random operation per image.

It has the wide set of operations, with the strengths of
``torchvision.transforms.TrivialAugmentWide``.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from trainer.transforms import generator, uniform_int

# Distinguishes these draws from those of preprocessing (:func:`trainer.transforms.generator`).
_EPOCHS = 1 << 32


class TrivialDrawn(NamedTuple):
    """The random choices for one image.

    One of :data:`OPERATIONS`; its strength, 0..30; whether it is negated.
    """

    operation: str
    strength: int
    negated: bool


def _affine(image, resampling, *matrix):
    # Pixel (x, y) comes from (a x + b y + c, d x + e y + f).
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling)


def _shear(image, m, resampling, vertical=False):
    matrix = (1, 0, 0, m, 1, 0) if vertical else (1, m, 0, 0, 1, 0)
    return _affine(image, resampling, *matrix)


def _translate(image, m, resampling, vertical=False):
    by = (0, -int(m)) if vertical else (-int(m), 0)
    return _affine(image, resampling, 1, 0, by[0], 0, 1, by[1])


def _enhance(kind):
    return lambda image, m, resampling: kind(image).enhance(1 + m)


#: Operation -> (change of an image by m, largest m, whether m may be negated). m is
#: strength / 30 of the largest.
OPERATIONS = {
    'identity': (lambda image, m, resampling: image, 0, False),
    'shear-x': (_shear, 0.99, True),
    'shear-y': (functools.partial(_shear, vertical=True), 0.99, True),
    'translate-x': (_translate, 32, True),
    'translate-y': (functools.partial(_translate, vertical=True), 32, True),
    'rotate': (lambda image, m, resampling: image.rotate(m, resampling), 135, True),
    'brightness': (_enhance(ImageEnhance.Brightness), 0.99, True),
    'colour': (_enhance(ImageEnhance.Color), 0.99, True),
    'contrast': (_enhance(ImageEnhance.Contrast), 0.99, True),
    'sharpness': (_enhance(ImageEnhance.Sharpness), 0.99, True),
    'posterize': (lambda image, m, resampling: ImageOps.posterize(image, 8 - round(m)), 6, False),
    'solarize': (lambda image, m, resampling: ImageOps.solarize(image, 255 - m), 255, False),
    'autocontrast': (lambda image, m, resampling: ImageOps.autocontrast(image), 0, False),
    'equalize': (lambda image, m, resampling: ImageOps.equalize(image), 0, False),
}


def choose(u: Sequence[float]) -> TrivialDrawn:
    """Map three uniform numbers to a :class:`TrivialDrawn`."""
    names = list(OPERATIONS)
    return TrivialDrawn(
        names[uniform_int(u[0], 0, len(names) - 1)], uniform_int(u[1], 0, 30), u[2] < 0.5
    )


def draw(seed: int, epoch: int, image: int) -> TrivialDrawn:
    """Draw the :class:`TrivialDrawn` of one image in one epoch.

    Args:
        seed, epoch, image: See :func:`trainer.transforms.generator`; the draws are independent of
            that generator's.
    """
    return choose(generator(seed, epoch + _EPOCHS, image).random(3).tolist())


def apply(
    image: Image.Image,
    drawn: TrivialDrawn,
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Change an image.

    Args:
        image: An RGB image.
        drawn: The random choices.
        resampling: Interpolation of shears, translations and rotations. Pixels from outside the
            image are black.

    Returns:
        An image of the same size.
    """
    change, largest, signed = OPERATIONS[drawn.operation]
    m = largest * drawn.strength / 30
    return change(image, -m if signed and drawn.negated else m, resampling)


def pixels(values: np.ndarray, drawn: TrivialDrawn) -> np.ndarray:
    """Like :func:`apply`, bilinear, for an array: uint8 (height, width, 3)."""
    return np.asarray(apply(Image.fromarray(np.ascontiguousarray(values)), drawn))
