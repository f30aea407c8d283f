"""Mixes images and labels of a batch, and erases parts of images.

Mixup (arXiv 1710.09412) and CutMix (1905.04899) mix an image with the previous one of the same
chunk; random erasing (1708.04896) fills a rectangle with the mean colour. As in torchvision's
references/classification, all images of a chunk (there: of a process) are mixed in the same way.

The random choices for an image are a row of numbers, :data:`FIELDS`, drawn on the CPU;
:func:`apply` applies them on the device of the images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer import cuda
from trainer.transforms import draws

if TYPE_CHECKING:
    from trainer.types import Array

_launch = cuda.kernels(__file__, 'mixing.cu')

_THREADS = 256

#: Fields of a row. partner: index of the other image in the chunk. own: weight of the image itself
#: inside the box top, bottom, left, right (pixels, exclusive ends); outside it is 1. erased_...:
#: the box that is erased first. share: weight of the image's own label; other: the partner's label.
#: mixing.cu relies on this order.
FIELDS = (
    'partner',
    'own',
    'top',
    'bottom',
    'left',
    'right',
    'erased_top',
    'erased_bottom',
    'erased_left',
    'erased_right',
    'share',
    'other',
)

# Distinguish these draws from each other and from other draws of the same seed
# (:func:`trainer.transforms.generator`).
_ERASING = 2 << 32
_MIXING = 3 << 32

#: Random erasing: attempts per image, share of the area, logarithm of the aspect ratio.
_ATTEMPTS = 10
_AREA = 0.02, 0.33
_LOG_RATIO = math.log(0.3), math.log(3.3)


class Mixing:
    """Draws the rows of batches.

    Args:
        mixup: Both parameters of mixup's beta distribution; 0: no mixup.
        cutmix: The same for CutMix. With both, each chunk gets one of them with equal probability.
        reprob: Probability that a part of an image is erased.
        seed: The run's seed.
        size: Height and width of the images.
        labels: int32 (images,), of the whole dataset.
        chunks: Chunks of a batch that this process computes.
        first: Number of its first chunk among those of the whole batch.
    """

    def __init__(
        self,
        mixup: float,
        cutmix: float,
        reprob: float,
        seed: int,
        size: tuple[int, ...],
        labels: np.ndarray,
        chunks: int = 1,
        first: int = 0,
    ) -> None:
        self.mixup, self.cutmix, self.reprob = mixup, cutmix, reprob
        self.seed = seed
        self.size = size
        self.labels = labels
        self.chunks, self.first = chunks, first

    def __call__(self, items: list[tuple[int, int]], position: int) -> np.ndarray:
        """Return the rows of a batch, float32 (items, :data:`FIELDS`).

        Args:
            items: (epoch, number) of each image, with the plan's numbers
                (:mod:`trainer.datasets.loading`).
            position: Index of the batch in its epoch.
        """
        rows = np.zeros((len(items), len(FIELDS)), np.float32)
        if not items:
            return rows
        epoch = items[0][0]
        numbers = np.array([number for _, number in items])
        rows[:, 6:10] = self._erased(epoch, numbers)
        labels = self.labels[numbers % len(self.labels)]
        begin = 0
        for chunk, of in enumerate(np.array_split(np.arange(len(items)), self.chunks)):
            if len(of):
                own, box, share = self._mixed(epoch, position, self.first + chunk)
                part = rows[begin : begin + len(of)]
                part[:, 0] = np.roll(np.arange(len(of)), 1)
                part[:, 1:6] = own, *box
                part[:, 10], part[:, 11] = share, np.roll(labels[of], 1)
                begin += len(of)
        return rows

    def _erased(self, epoch, numbers):
        """Return boxes to erase, int (images, 4)."""
        height, width = self.size
        boxes = np.zeros((len(numbers), 4), int)
        if not self.reprob:
            return boxes
        u = draws.uniforms(self.seed, epoch + _ERASING, numbers, 1 + 4 * _ATTEMPTS)
        for i in np.flatnonzero(u[0] < self.reprob):
            for area, ratio, y, x in u[1:, i].reshape(_ATTEMPTS, 4).tolist():
                area = (_AREA[0] + (_AREA[1] - _AREA[0]) * area) * height * width
                ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio)
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if h < height and w < width:
                    top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
                    boxes[i] = top, top + h, left, left + w
                    break
        return boxes

    def _mixed(self, epoch, position, chunk):
        """Return the weight of the image itself inside the box, the box, and the label's share."""
        kinds = [alpha for alpha in (self.mixup, self.cutmix) if alpha]
        if not kinds:
            return 1.0, (0, 0, 0, 0), 1.0
        rng = np.random.default_rng((self.seed, epoch + _MIXING, position, chunk))
        is_cutmix = not self.mixup or (bool(self.cutmix) and rng.random() < 0.5)
        alpha = self.cutmix if is_cutmix else self.mixup
        kept = float(rng.beta(alpha, alpha))
        height, width = self.size
        if not is_cutmix:
            return kept, (0, height, 0, width), kept
        x, y = int(rng.integers(width)), int(rng.integers(height))
        half = 0.5 * math.sqrt(1 - kept)
        half_width, half_height = int(half * width), int(half * height)
        box = (
            max(0, y - half_height),
            min(height, y + half_height),
            max(0, x - half_width),
            min(width, x + half_width),
        )
        area = (box[1] - box[0]) * (box[3] - box[2])
        return 0.0, box, 1 - area / (width * height)


def of(
    options: Any, size: tuple[int, int], labels: np.ndarray, chunks: int = 1, first: int = 0
) -> Mixing | None:
    """Return the :class:`Mixing` for the options of a run, or ``None``.

    Args:
        options: The run's options.
        size, labels, chunks, first: See :class:`Mixing`.
    """
    if not (options.mixup or options.cutmix or options.reprob):
        return None
    return Mixing(
        options.mixup, options.cutmix, options.reprob, options.seed, size, labels, chunks, first
    )


def joined(rows: np.ndarray, chunks: int) -> np.ndarray:
    """Return the rows of a batch whose chunks are one: partners are counted from its first image.

    Args:
        rows: (batch, :data:`FIELDS`).
        chunks: Number of chunks.
    """
    joined = rows.copy()
    for chunk in np.array_split(np.arange(len(rows)), chunks):
        joined[chunk, 0] += chunk[0]
    return joined


def apply(x: Array, rows: Array) -> Array:
    """Return the images of a chunk, erased and mixed.

    Args:
        x: (batch, channels, height, width), normalised; on a GPU float32 or float16, of NCHW or
            NHWC memory.
        rows: float32 (batch, :data:`FIELDS`), on the same device.

    Returns:
        Images of the same dtype, shape and memory layout.
    """
    if isinstance(x, np.ndarray):
        return _apply(x, rows)
    y = cuda.empty_like(x)
    _, channels, height, width = x.shape
    nhwc = not x.flags.c_contiguous
    _launch(
        'mix_h' if x.dtype == np.float16 else 'mix_f',
        -(-x.size // _THREADS),
        _THREADS,
        x,
        rows,
        y,
        np.int32(x.size),
        np.int32(channels),
        np.int32(height),
        np.int32(width),
        np.int32(nhwc),
    )
    return y


def _apply(x, rows):
    partner = rows[:, 0].astype(int)
    boxes, erased = rows[:, 2:6].astype(int).tolist(), rows[:, 6:10].astype(int).tolist()
    x = x.copy()
    for image, (top, bottom, left, right) in zip(x, erased):
        image[:, top:bottom, left:right] = 0
    y = x.copy()
    for i, (top, bottom, left, right) in enumerate(boxes):
        here = np.s_[:, top:bottom, left:right]
        own = rows[i, 1]
        y[i][here] = own * x[i][here] + (1 - own) * x[partner[i]][here]
    return y


def counted(t: Array, rows: Array) -> Array:
    """Return the labels that count for accuracy: those with the larger share.

    Args:
        t: Labels, int32 (batch,), NumPy's or CuPy's.
        rows: See :func:`apply`.
    """
    other = rows[:, FIELDS.index('other')].astype(t.dtype)
    own = (rows[:, FIELDS.index('share')] >= 0.5).astype(t.dtype)
    return own * t + (1 - own) * other
