"""Preprocessing, one module a dataset family; ``data_augmentation.py`` names the classes.

A class has ``train(img)`` and ``test(img)`` for one image, ``train_batch`` and
``test_batch`` for arrays of them, and ``draw(rng)``, which draws everything random
that ``train`` does to one image. Training draws from :func:`generator`. Where it runs on
a GPU, :mod:`trainer.transforms.gpu_images` has what is computed there.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Sample(NamedTuple):
    """A preprocessed image and what was done to it, as the original returned them.

    Attributes:
        x: An array, or :class:`trainer.transforms.resize_crop.Pixels`; of ten crops all.
        info: A dict; of ten crops a list of them.
    """

    x: Any
    info: Any


#: The original chooses one of these with equal chances: bicubic has two.
INTERPOLATIONS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BICUBIC,
)


def generator(seed: int, epoch: int, image: int) -> np.random.Generator:
    """Return the source of all that is random about one image in one epoch.

    It is a function of these three numbers alone, so that augmentation depends
    neither on the number of workers nor on where a run was interrupted.

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
