"""Results of an evaluation per image: a table, and a figure of the mistakes."""

from __future__ import annotations

import contextlib
import csv
import heapq
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from matplotlib.figure import Figure

from trainer import files
from trainer.datasets import class_names
from trainer.errors import InputError
from trainer.metrics import log_softmax
from trainer.reports import drawing, figures
from trainer.text import printable
from trainer.transforms import decoding

if TYPE_CHECKING:
    from trainer.datasets.folder import ImageFiles
    from trainer.networks.base import Network

#: Columns of the table. label and answer are indices of classes; probability is that of the
#: answer, label_probability that of the label (0..1); rank is the label's rank, from 1; error is
#: why an image could not be read, in which case the columns before it are empty.
COLUMNS = (
    'image',
    'label',
    'label_name',
    'answer',
    'answer_name',
    'probability',
    'label_probability',
    'rank',
    'error',
)

#: Most mistakes in the figure, and mistakes per row.
MOST_MISTAKES = 24
_COLUMNS = 6

_INK, _WRONG = '#222222', '#c0392b'


def check(table: str, mistakes: str) -> None:
    """Check that :class:`Results` can be written.

    Args:
        table, mistakes: See :class:`Results`.

    Raises:
        trainer.errors.InputError: They cannot be written.
    """
    if table is not None and not table.lower().endswith('.csv'):
        raise InputError(f'`results` {table}: a name that ends in .csv is wanted')
    if table is not None and not os.path.isdir(os.path.dirname(table) or '.'):
        raise InputError(f'`results` {table}: there is no such folder')
    if mistakes is not None:
        drawing.check(mistakes, MOST_MISTAKES, '`mistakes`')


class Results:
    """Writes the results of an evaluation per image; a context manager, to be called within it.

    Args:
        network: The network, for the names of the classes.
        images: The evaluated images.
        table: CSV file of :data:`COLUMNS`, one line per image; ``None``: no table.
        mistakes: Figure of the most confident mistakes; ``None``: no figure.
    """

    def __init__(
        self,
        network: Network,
        images: ImageFiles,
        table: str | None = None,
        mistakes: str | None = None,
    ) -> None:
        self._names = class_names.of(network)
        self._images = images
        self._table, self._mistakes = table, mistakes
        self._worst: list[Any] = []
        self._open = contextlib.ExitStack()
        self._writer: Any = None  # a writer of the csv module

    def __enter__(self) -> Self:
        if self._table is not None:
            path = self._open.enter_context(files.replacing(self._table))
            f = self._open.enter_context(
                open(path, 'w', newline='', encoding='utf-8', errors='backslashreplace')
            )
            self._writer = csv.writer(f)
            self._writer.writerow(COLUMNS)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def __call__(self, items: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
        """Add a batch.

        Args:
            items: Indices of the images, int (batch,).
            labels: Labels, int (batch,).
            scores: Scores before softmax, (batch, classes).
        """
        p = np.exp(log_softmax(scores))
        answers, each = p.argmax(axis=1), np.arange(len(p))
        own = p[each, labels]
        # Among equal scores the answer ranks first and the label last.
        ranks = np.where(answers == labels, 1, (p >= own[:, None]).sum(axis=1))
        for row in zip(
            items.tolist(),
            labels.tolist(),
            answers.tolist(),
            p[each, answers].tolist(),
            own.tolist(),
            ranks.tolist(),
        ):
            self._one(*row)

    def _one(self, item, label, answer, probability, own, rank):
        if self._writer is not None:
            self._writer.writerow(
                [
                    self._name(item),
                    label,
                    self._names[label],
                    answer,
                    self._names[answer],
                    f'{probability:.6f}',
                    f'{own:.6f}',
                    rank,
                    '',
                ]
            )
        if self._mistakes is not None and answer != label:
            mistake = probability, -item, label, answer
            if len(self._worst) < MOST_MISTAKES:
                heapq.heappush(self._worst, mistake)
            else:
                heapq.heappushpop(self._worst, mistake)

    def _name(self, item):
        source = self._images.paths[item]
        return os.fspath(source) if isinstance(source, (str, os.PathLike)) else str(item)

    def end(self, unreadable: list[tuple[str, str]]) -> list[str]:
        """Write the images that could not be read, and draw the mistakes.

        Args:
            unreadable: (path, error) of these images.

        Returns:
            Lines about the written files.
        """
        told = []
        if self._writer is not None:
            for path, error in unreadable:
                self._writer.writerow([path] + (len(COLUMNS) - 2) * [''] + [error])
            told.append(f'{printable(str(self._table))}: one line per image')
        if self._mistakes is not None and self._worst:
            self._draw()
            told.append(
                f'{printable(self._mistakes)}: the {len(self._worst)} most confident mistakes'
            )
        elif self._mistakes is not None:
            told.append(f'{printable(self._mistakes)}: not drawn, as there is no mistake')
        return told

    def _draw(self):
        columns = min(_COLUMNS, len(self._worst))
        rows = -(-len(self._worst) // columns)
        figure = Figure(figsize=(2.3 * columns, 2.75 * rows), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis('off')
        worst = sorted(self._worst, reverse=True)
        for axis, (probability, item, label, answer) in zip(axes.flat, worst):
            image = decoding.load_rgb(self._images.paths[-item]).copy()
            image.thumbnail((320, 320))
            axis.imshow(image)
            said, real = (figures.plain(self._names[i], 24) for i in (answer, label))
            axis.set_title(
                f'{said} {100 * probability:.0f} %', fontsize=8, color=_WRONG, parse_math=False
            )
            axis.text(
                0.5,
                -0.02,
                f'is {real}',
                transform=axis.transAxes,
                ha='center',
                va='top',
                fontsize=8,
                color=_INK,
                parse_math=False,
            )
        figures.save(figure, self._mistakes)
