"""Losses of a chunk of images, and how many of them are correct, in one kernel each.

Totals are float64 (2,) on the device: sum of the losses, number of correct images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainer import cuda

if TYPE_CHECKING:
    import cupy

_launch = cuda.kernels(__file__, 'loss_kernels.cu')

_THREADS = 256

#: Images of a block.
_IMAGES = 8


def _run(kernel, scores, labels, inputs, outputs):
    import cupy

    scores = cupy.ascontiguousarray(scores, np.float32)
    blocks = -(-len(scores) // _IMAGES)
    sizes = map(np.int32, scores.shape)
    _launch(kernel, blocks, _THREADS, scores, labels, *inputs, *sizes, *outputs)


def tally(
    scores: cupy.ndarray, labels: cupy.ndarray, loss: cupy.ndarray, totals: cupy.ndarray
) -> None:
    """Add a chunk's loss and its correct images to the totals of a batch.

    Args:
        scores: (images, classes).
        labels: int32 (images,).
        loss: Mean over the images, ().
        totals: See the module.
    """
    _run('tally', scores, labels, [loss.astype(np.float32, copy=False)], [totals])


def cross_entropy(
    scores: cupy.ndarray,
    labels: cupy.ndarray,
    scale: cupy.ndarray,
    share: float,
    totals: cupy.ndarray,
) -> cupy.ndarray:
    """Add the softmax cross entropy of a chunk, and its correct images, to the totals of a batch.

    Args:
        scores: (images, classes).
        labels: int32 (images,), in 0..classes - 1.
        scale: Loss scale, float64 ().
        share: Weight of the chunk's mean loss.
        totals: See the module.

    Returns:
        The gradient of the scores, of the mean loss times ``scale`` and ``share``.
    """
    import cupy

    gradient = cupy.empty(scores.shape, np.float32)
    factor = np.float32(share / len(scores))
    _run('cross_entropy', scores, labels, [scale, factor], [totals, gradient])
    return gradient.astype(scores.dtype, copy=False)
