"""``loss.jpg``, ``accuracy.jpg`` and ``confusion.jpg``, drawn from a run's numbers.

The confusion matrix of the last epoch is in ``confusion.json`` too: ``epoch``,
``classes`` and ``matrix``, counts by label (rows) and answer (columns).
"""

import os
import textwrap
import time
import warnings

import numpy as np
from chainer.training import extension
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer import files
from trainer.reports.log import ACCURACY

#: Seconds between two drawings; a run's last epoch is always drawn.
INTERVAL = 30


class Figures(extension.Extension):
    """Draw the figures of a run after an epoch, where the last drawing is old enough.

    Args:
        log (trainer.reports.log.Log): Where the numbers are.
        evaluator (trainer.training.extensions.Evaluator): Where the confusion matrix is.
        classes (list of str): Names of the classes.
        epochs (int): Epochs of the whole run.
    """

    trigger = 1, 'epoch'
    priority = extension.PRIORITY_READER - 20

    def __init__(self, log, evaluator, classes, epochs):
        self._log = log
        self._evaluator = evaluator
        self._classes = classes
        self._epochs = epochs
        self._drawn = -INTERVAL

    def __call__(self, trainer):
        confusion_matrix = self._evaluator.tally.confusion
        files.save_json(
            os.path.join(trainer.out, 'confusion.json'),
            {
                'epoch': trainer.updater.epoch,
                'classes': self._classes,
                'matrix': confusion_matrix.tolist(),
            },
        )
        now = time.monotonic()
        if trainer.updater.epoch < self._epochs and now - self._drawn < INTERVAL:
            return
        loss(self._log.log, os.path.join(trainer.out, 'loss.jpg'))
        accuracy(self._log.log, os.path.join(trainer.out, 'accuracy.jpg'))
        confusion(confusion_matrix, self._classes, os.path.join(trainer.out, 'confusion.jpg'))
        self._drawn = time.monotonic()


def plain(name, width):
    """Return what Matplotlib can draw of anybody's name, in at most so many characters.

    It is to be drawn with ``parse_math=False``.
    """
    name = ''.join(c if c.isprintable() else '?' for c in name)
    return (
        textwrap.shorten(name, width, placeholder=' …')
        if ' ' in name
        else (name if len(name) <= width else '…' + name[1 - width :])
    )


def save(figure, path):
    """Write a Matplotlib figure to a file that appears whole or not at all."""
    FigureCanvasAgg(figure)
    with files.replacing(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing', UserWarning)
        figure.savefig(unfinished, dpi=120)


def _curves(log, path, title, unit, curves, scale=1.0):
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot()
    for key, label, style in curves:
        points = [(row['epoch'], scale * row[key]) for row in log if key in row]
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=3)
    axes.set(title=title, xlabel='epoch', ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def loss(log, path):
    """Draw training and test loss over the epochs.

    Args:
        log (list of dict): Epochs, as Chainer's LogReport keeps them.
        path (str): The image to write.
    """
    _curves(
        log,
        path,
        'Softmax cross entropy',
        'nats',
        [('main/loss', 'train', '.-'), ('validation/main/loss', 'test', '.-')],
    )


def accuracy(log, path):
    """Draw total, top-5 and training accuracy over the epochs; arguments as :func:`loss`."""
    best = max(log, key=lambda row: row.get(ACCURACY, 0))
    _curves(
        log,
        path,
        'Accuracy (best total {:.2f} % in epoch {})'.format(
            100 * best.get(ACCURACY, 0), best['epoch']
        ),
        '%',
        [
            (ACCURACY, 'test, total', '.-'),
            ('validation/main/top5_accuracy', 'test, top-5', '.-'),
            ('main/accuracy', 'train', '.:'),
        ],
        100.0,
    )


def confusion(matrix, classes, path):
    """Draw a confusion matrix as shares of each label's images.

    Args:
        matrix (numpy.ndarray): Counts (classes, classes): [label, answer].
        classes (list of str): Their names.
        path (str): The image to write.
    """
    n = len(classes)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(6, 0.16 * n), 20)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=100)
    size = 10 if n <= 20 else 5
    names = [plain(name, 30) for name in classes]
    axes.set_xticks(range(n), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(n), names, fontsize=size, parse_math=False)
    axes.set(xlabel='answer', ylabel='label')
    axes.set_title(
        'Answers for each label, % (total accuracy '
        f'{100 * matrix.trace() / max(matrix.sum(), 1):.2f} %)'
    )
    if n <= 20:
        for i in range(n):
            for j in range(n):
                axes.text(
                    j,
                    i,
                    f'{share[i, j]:.0f}',
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='white' if share[i, j] > 50 else 'black',
                )
    figure.colorbar(image, shrink=0.8, label='%')
    save(figure, path)
