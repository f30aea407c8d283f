"""Preprocessing, one module per family of datasets; ``data_augmentation.py`` lists the classes.

A class has ``train(img)`` and ``test(img)`` for one image, ``train_batch`` and
``test_batch`` for arrays of images, and ``draw(rng)``, which makes all random choices of
``train`` for one image. Training draws from :func:`generator`. On a GPU,
:mod:`trainer.transforms.gpu_images` does part of the preprocessing.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Sample(NamedTuple):
    """A preprocessed image and a description of the changes, as in the original.

    Attributes:
        x: An array, or :class:`trainer.transforms.resize_crop.Pixels`; all of ten crops.
        info: A dict; for ten crops, a list of dicts.
    """

    x: Any
    info: Any


#: The original draws one of these uniformly; bicubic is listed twice.
INTERPOLATIONS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BICUBIC,
)


def generator(seed: int, epoch: int, image: int) -> np.random.Generator:
    """Return the random generator of one image in one epoch.

    It depends only on the arguments, so that augmentation depends neither on the number of
    workers nor on where a run was interrupted.

    Args:
        seed: The run's seed, 0 or more.
        epoch: Epoch, from 1.
        image: Index of the image in its dataset.

    Returns:
        numpy.random.Generator
    """
    return np.random.default_rng((seed, epoch, image))


def uniform_int(u: Any, low: int, high: int) -> Any:
    """Map u, uniform in [0, 1), to an integer uniform in low..high inclusive; arrays likewise."""
    u = u * (high - low + 1)
    return low + (u.astype(np.int64) if isinstance(u, np.ndarray) else int(u))
