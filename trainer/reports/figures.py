"""Draws ``loss.jpg``, ``accuracy.jpg`` and ``confusion.jpg`` of a run.

The confusion matrix of the last epoch is also in ``confusion.json``: ``epoch``,
``classes`` and ``matrix``, counts by label (rows) and answer (columns).
"""

from __future__ import annotations

import os
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from chainer.training import extension
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from trainer import files
from trainer.datasets import class_names
from trainer.reports.log import ACCURACY, Log

if TYPE_CHECKING:
    import chainer

    from trainer.metrics import Tally
    from trainer.types import When

#: Seconds between two drawings; a run's last epoch is always drawn.
INTERVAL = 30

#: Colours of training and testing, which the colour-blind can distinguish (Okabe and Ito).
TRAIN, TEST = '#0072B2', '#D55E00'


class Evaluates(Protocol):
    """The interface of :class:`trainer.training.extensions.Evaluator` after an epoch."""

    tally: Tally | None


class Figures(extension.Extension):
    """Draws the figures of a run after an epoch if the last drawing is old enough.

    Args:
        log: The log with the numbers.
        evaluator: The evaluator with the confusion matrix.
        classes: Names of the classes.
        epochs: Epochs of the whole run.
        ends: Whether the run ends before them, now.
        when: Called with the function that draws, which may be called later.
    """

    trigger: tuple[int, str] = 1, 'epoch'
    priority: int = extension.PRIORITY_READER - 20

    def __init__(
        self,
        log: Log,
        evaluator: Evaluates,
        classes: list[str],
        epochs: int,
        ends: Callable[[], bool] = lambda: False,
        when: When = files.now,
    ) -> None:
        self._log = log
        self._evaluator = evaluator
        self._classes = classes
        self._epochs = epochs
        self._ends = ends
        self._when = when
        self._drawn: float = -INTERVAL

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        tally = self._evaluator.tally
        assert tally is not None  # after an evaluation
        confusion_matrix = tally.confusion
        files.save_json(
            os.path.join(trainer.out, 'confusion.json'),
            {
                'epoch': trainer.updater.epoch,
                'classes': self._classes,
                'matrix': confusion_matrix.tolist(),
            },
        )
        now = time.monotonic()
        last = trainer.updater.epoch >= self._epochs or self._ends()
        if not last and now - self._drawn < INTERVAL:
            return
        rows, folder = list(self._log.log), trainer.out

        def draw():
            loss(rows, os.path.join(folder, 'loss.jpg'))
            accuracy(rows, os.path.join(folder, 'accuracy.jpg'), classes=len(self._classes))
            confusion(confusion_matrix, self._classes, os.path.join(folder, 'confusion.jpg'))

        self._when(draw)
        self._drawn = time.monotonic()


def plain(name: str, width: int) -> str:
    """Return a name that Matplotlib can draw, in at most ``width`` characters.

    Draw it with ``parse_math=False``.
    """
    name = ''.join(c if c.isprintable() else '?' for c in name)
    return (
        textwrap.shorten(name, width, placeholder=' …')
        if ' ' in name
        else (name if len(name) <= width else '…' + name[1 - width :])
    )


def save(figure: Figure, path: str) -> None:
    """Write a Matplotlib figure to a file that appears whole or not at all."""
    FigureCanvasAgg(figure)
    with files.replacing(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing', UserWarning)
        figure.savefig(unfinished, dpi=120)


def _curves(log, path, title, unit, curves, scale=1.0):
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot()
    for key, label, colour, style in curves:
        points = [(row['epoch'], scale * row[key]) for row in log if key in row]
        if points:
            axes.plot(
                *zip(*points),
                style,
                color=colour,
                label=label,
                # Epochs are dots if there are few.
                marker='o' if len(points) < 40 else None,
                markersize=3,
            )
    axes.set(title=title, xlabel='epoch', ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(log) < 3:
        axes.set_xlim(log[0]['epoch'] - 0.5, log[-1]['epoch'] + 0.5)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=len(curves), frameon=False)
    save(figure, path)


def loss(log: Sequence[dict[str, Any]], path: str) -> None:
    """Draw training and test loss over the epochs.

    Args:
        log: Epochs, as in Chainer's LogReport.
        path: The file to write.
    """
    curves = [('main/loss', 'train', TRAIN, '-'), ('validation/main/loss', 'test', TEST, '-')]
    _curves(log, path, 'Loss (softmax cross entropy)', 'nats', curves)


def accuracy(log: Sequence[dict[str, Any]], path: str, classes: int) -> None:
    """Draw total, top-5 and training accuracy over the epochs.

    Args:
        log, path: See :func:`loss`.
        classes: Number of classes; with five or fewer, top-5 accuracy is not drawn.
    """
    best = max(log, key=lambda row: row.get(ACCURACY, 0))
    curves = [('main/accuracy', 'train', TRAIN, '-'), (ACCURACY, 'test', TEST, '-')]
    if classes > 5:
        curves.append(('validation/main/top5_accuracy', 'test, top-5', TEST, '--'))
    title = 'Accuracy (best in testing {:.2f} % after epoch {})'.format(
        100 * best.get(ACCURACY, 0), best['epoch']
    )
    _curves(log, path, title, '%', curves, 100.0)


def confusion(matrix: np.ndarray, classes: list[str], path: str) -> None:
    """Draw a confusion matrix as shares of each label's images.

    With up to 20 classes it has the shares as numbers, with up to 100 the names of the
    classes; from 21 on, the most frequent confusions are listed next to it. With more than
    200, a point is the largest share of several labels and answers, as single ones would be
    invisible.

    Args:
        matrix: Counts (classes, classes): [label, answer].
        classes: Names of the classes.
        path: The file to write.
    """
    n = len(classes)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.16 * n if n <= 100 else 9, 3.5 if n < 5 else 6, 16))
    figure = Figure(figsize=(side + (4 if n > 20 else 1.5), side), layout='constrained')
    axes = figure.add_subplot(anchor='W' if n > 20 else 'C')
    classes = class_names.named(classes)
    # With many classes each confusion has a small share.
    norm = PowerNorm(0.5 if n > 20 else 1, 0, 100)
    extent = -0.5, n - 0.5, n - 0.5, -0.5
    shown = _largest(share, -(-n // 200))
    image = axes.imshow(shown, cmap='Blues', norm=norm, interpolation='nearest', extent=extent)
    axes.set(xlabel='answer', ylabel='label')
    if n <= 100:
        size = 10 if n <= 20 else 7
        names = [plain(name, 30) for name in classes]
        axes.set_xticks(range(n), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(n), names, fontsize=size, parse_math=False)
    else:
        axes.set(xlabel='number of the answer', ylabel='number of the label')
    total = 100 * matrix.trace() / max(matrix.sum(), 1)
    axes.set_title(f'Answers for each label, %\n(accuracy {total:.2f} %)', fontsize=11)
    if n <= 20:
        for i, j in np.ndindex(n, n):
            colour = 'white' if share[i, j] > 50 else 'black'
            text = f'{share[i, j]:.0f}'
            axes.text(j, i, text, ha='center', va='center', fontsize=8, color=colour)
    where = {'location': 'bottom', 'shrink': 0.5, 'aspect': 40} if n > 20 else {'shrink': 0.8}
    figure.colorbar(image, ax=axes, label='%', **where)
    if n > 20:
        _list_confusions(axes, share, classes)
    save(figure, path)


def _largest(share, size):
    """Return the largest of each size x size values of a square array."""
    n = -(-len(share) // size)
    padded = np.zeros((n * size, n * size))
    padded[: len(share), : len(share)] = share
    return padded.reshape(n, size, n, size).max(axis=(1, 3))


def _list_confusions(axes, share, classes, most=15):
    """List the most frequent confusions next to a matrix."""
    wrong = share - np.diag(share.diagonal())
    order = np.argsort(-wrong, axis=None, kind='stable')[:most]
    lines = ['most frequent confusions', '']
    for label, answer in zip(*np.unravel_index(order, wrong.shape)):
        if wrong[label, answer] > 0:
            lines += [
                f'{wrong[label, answer]:3.0f} %  {plain(classes[label], 40)}',
                f'          as {plain(classes[answer], 40)}',
            ]
    axes.annotate(
        '\n'.join(lines),
        (1, 1),
        (12, 0),
        xycoords='axes fraction',
        textcoords='offset points',
        va='top',
        fontsize=9,
        parse_math=False,
        annotation_clip=False,
    )
