"""Metrics of scores: log-softmax, the best classes, loss, accuracy, confusion."""

import numpy as np


def log_softmax(y: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of scores (..., classes), float64."""
    y = np.subtract(y, y.max(axis=-1, keepdims=True), dtype=np.float64)
    return y - np.log(np.exp(y).sum(axis=-1, keepdims=True))


def top_k(y: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` best classes of scores (batch, classes), best first: int (batch, k).

    Among equal scores the lower class comes first. With fewer than ``k`` classes, all are
    returned.
    """
    return np.argsort(-np.asarray(y), axis=1, kind='stable')[:, :k]


class Tally:
    """Loss, top-1 and top-5 accuracy, and the confusion matrix of many batches.

    Args:
        category_num: Number of classes.

    Attributes:
        images: Images counted.
        confusion: int64 (classes, classes): [label, answer].
        top5: int64 (classes,): number of images whose label is among the five best classes.
    """

    def __init__(self, category_num: int) -> None:
        self.loss_sum = 0.0
        self.confusion: np.ndarray = np.zeros((category_num, category_num), np.int64)
        self.top5: np.ndarray = np.zeros(category_num, np.int64)

    def add(self, y: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Count a batch.

        Args:
            y: Scores before softmax (batch, classes).
            t: Labels (batch,), int.

        Returns:
            int (batch, up to 5), the best classes, best first.
        """
        self.loss_sum -= float(np.take_along_axis(log_softmax(y), t[:, None], axis=1).sum())
        best = top_k(y, 5)
        np.add.at(self.confusion, (t, best[:, 0]), 1)
        np.add.at(self.top5, t, (best == t[:, None]).any(axis=1))
        return best

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean softmax cross entropy, in nats."""
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0..1."""
        return float(self.confusion.trace() / self.images)

    @property
    def top5_accuracy(self) -> float:
        """Share of images whose label is among the five best, 0..1."""
        return float(self.top5.sum() / self.images)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy of each class, float64 (classes,); nan where it has no images."""
        with np.errstate(invalid='ignore'):
            return self.confusion.diagonal() / self.confusion.sum(axis=1)
