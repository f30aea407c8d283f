"""Torch7's and prlz77's preprocessing of CIFAR: channels normalised, four pixels of padding."""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from trainer.transforms import uniform_int
from trainer.transforms.cifar import OneImage

_SIDE = 32
_PAD = 4


class ChannelsDrawn(NamedTuple):
    """The random choices for one image.

    Offset of the crop in the padded image, 0..8, and whether it is flipped.
    """

    y: int
    x: int
    flip: bool


class DataAugmentationCifarTorch7(OneImage):
    """facebookresearch/ResNeXt's preprocessing of CIFAR-10 (``datasets/cifar10.lua``).

    Each channel is normalised by CIFAR-10's mean and standard deviation; in training the
    image is flipped with probability 0.5, padded by 4 pixels of zeros (the mean colour),
    and cropped to 32x32 at random.

    Images are RGB, (3, height, width), values 0..255, uint8 or float, or a path or
    ``PIL.Image``. The result is float32 (3, 32, 32); images of other sizes are first resized
    to 32x32, bilinearly.
    """

    #: Shape of what comes out.
    shape: tuple[int, int, int] = (3, _SIDE, _SIDE)
    #: ``train_batch`` and ``test_batch`` take arrays.
    arrays: bool = True
    uniforms: int = 3
    untouched: tuple = _PAD, _PAD, False
    kernel: str = 'channels'
    #: Of each channel, in 0..255.
    mean: tuple[float, float, float] = (125.3, 123.0, 113.9)
    std: tuple[float, float, float] = (63.0, 62.1, 66.7)
    #: Other datasets -> the class with their means.
    of_dataset: dict[str, str] = {'cifar100': 'DataAugmentationCifar100Torch7'}

    @staticmethod
    def choose(u: np.ndarray) -> tuple:
        """Return (y, x, flip); see :class:`~trainer.transforms.cifar.OneImage`."""
        return uniform_int(u[0], 0, 2 * _PAD), uniform_int(u[1], 0, 2 * _PAD), u[2] < 0.5

    @classmethod
    def constants(cls) -> np.ndarray:
        """Return each channel's 256 values normalised, and the padding: float32 (3, 257)."""
        values = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        return np.concatenate([cls.normalize(values), cls._padding()], axis=2)[:, 0]

    @classmethod
    def draw(cls, rng: np.random.Generator | ModuleType) -> ChannelsDrawn:
        """Draw the random choices for one image in training.

        Args:
            rng: From :func:`trainer.transforms.generator`.

        Returns:
            Offsets uniform in 0..8; flip with probability 0.5.
        """
        y, x, flip = cls.choose(rng.random(cls.uniforms))
        return ChannelsDrawn(y, x, bool(flip))

    @classmethod
    def normalize(cls, images: np.ndarray) -> np.ndarray:
        """Return (x - mean) / std per channel: float32 (..., 3, height, width)."""
        mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (cls.mean, cls.std))
        return (images - mean) / std

    @classmethod
    def _padding(cls):
        """Return the colour of the padding after normalisation, float32 (3, 1, 1)."""
        return np.zeros((3, 1, 1), np.float32)

    @classmethod
    def train_batch(cls, images: np.ndarray, drawn: Sequence[ChannelsDrawn]) -> np.ndarray:
        """Preprocess images for training.

        Args:
            images: (batch, 3, height, width), uint8 or float, 0..255.
            drawn: Random choices for each image.

        Returns:
            float32 (batch, 3, 32, 32).
        """
        x = cls.test_batch(images)
        wide = np.empty((len(x), 3, _SIDE + 2 * _PAD, _SIDE + 2 * _PAD), np.float32)
        wide[...] = cls._padding()
        wide[:, :, _PAD:-_PAD, _PAD:-_PAD] = x
        for out, padded, d in zip(x, wide, drawn):
            # Flipping the padded image pads the flipped one: the padding is symmetric.
            padded = padded[:, :, ::-1] if d.flip else padded
            out[...] = padded[:, d.y : d.y + _SIDE, d.x : d.x + _SIDE]
        return x

    @classmethod
    def test_batch(cls, images: np.ndarray) -> np.ndarray:
        """Preprocess images for evaluation: normalise; see :meth:`train_batch` for arguments."""
        if images.shape[2:] != (_SIDE, _SIDE):
            images = np.stack(
                [
                    np.asarray(
                        Image.fromarray(
                            np.ascontiguousarray(i.transpose(1, 2, 0), np.uint8)
                        ).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
                    )
                    for i in images
                ]
            ).transpose(0, 3, 1, 2)
        return cls.normalize(images)

    @staticmethod
    def _told(drawn):
        return {} if drawn is None else drawn._asdict()


class DataAugmentationCifar100Torch7(DataAugmentationCifarTorch7):
    """The same with CIFAR-100's means and deviations (``datasets/cifar100.lua``)."""

    mean: tuple[float, float, float] = (129.3, 124.1, 112.4)
    std: tuple[float, float, float] = (68.2, 65.4, 70.4)


class DataAugmentationCifarPrlz77(DataAugmentationCifarTorch7):
    """prlz77/ResNeXt.pytorch's preprocessing of CIFAR-10 and CIFAR-100 (``train.py``).

    The padding is black, as it is added before normalisation. Means and deviations are
    CIFAR-10's for both datasets.
    """

    of_dataset: dict[str, str] = {}

    @classmethod
    def _padding(cls):
        return cls.normalize(np.zeros((3, 1, 1), np.float32))
