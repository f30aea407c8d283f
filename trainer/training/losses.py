"""Training losses other than plain softmax cross entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer.functions as F

from trainer.transforms.mixing import FIELDS

if TYPE_CHECKING:
    import chainer

    from trainer.types import Array


class LabelSmoothing:
    """Softmax cross entropy with label smoothing.

    The target of K classes is 1 - share + share / K at the label and share / K elsewhere
    (arXiv 1512.00567; ``torch.nn.CrossEntropyLoss(label_smoothing=share)``). For mixed images it
    is the mean of both labels' targets, with the weights of the images.

    Args:
        share: 0..1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(
        self, y: chainer.Variable, t: Array, rows: Array | None = None
    ) -> chainer.Variable:
        """Return the mean loss of a chunk.

        Args:
            y: Scores, float32 (batch, classes).
            t: Labels, int32 (batch,).
            rows: Rows of :mod:`trainer.transforms.mixing`, float32 (batch, fields); ``None``:
                images were not mixed.
        """
        xp, classes = y.xp, y.shape[1]
        target = self._target(t, xp.arange(classes))
        if rows is not None:
            own = rows[:, FIELDS.index('share'), None]
            other = self._target(rows[:, FIELDS.index('other')], xp.arange(classes))
            target = own * target + (1 - own) * other
        return F.softmax_cross_entropy(y, target.astype(y.dtype))

    def _target(self, t, classes):
        return (t[:, None] == classes) * (1 - self.share) + self.share / len(classes)
