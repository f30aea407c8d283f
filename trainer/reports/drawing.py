"""Draws predictions: images with bars for the probabilities of their classes, or with class
activation maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from trainer.errors import InputError
from trainer.reports import figures
from trainer.transforms import decoding

if TYPE_CHECKING:
    from trainer.inference.cam import Explanation
    from trainer.inference.prediction import Prediction

#: Most images of a drawing, and most classes per image.
MOST = 60
MOST_CLASSES = 10

_BAR, _BEST, _INK, _FAINT = '#9ecae1', '#2171b5', '#222222', '#eeeeee'


def check(path: str, number: int = 0, flag: str = '`draw`') -> None:
    """Check that a drawing can be written.

    Args:
        path: The file to write.
        number: Number of images.
        flag: The flag or argument with the path, for messages.

    Raises:
        trainer.errors.InputError: It cannot be written.
    """
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if os.path.splitext(path)[1][1:].lower() not in known:
        raise InputError(
            '{} {}: a name that ends in one of these is wanted: {}'.format(
                flag, path, ', '.join('.' + suffix for suffix in known)
            )
        )
    if number > MOST:
        raise InputError(
            f'{flag} {path}: {number} images do not fit one drawing, at most {MOST} do'
        )
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise InputError(f'{flag} {path}: there is no such folder')


def draw(predictions: Sequence[Prediction], path: str) -> None:
    """Draw images with bars for the probabilities of their classes.

    Args:
        predictions: Predictions without errors, at most :data:`MOST`.
        path: The file to write; its suffix determines the format.
    """
    check(path, len(predictions))
    columns = 1 + (len(predictions) > 3) + (len(predictions) > 16)
    rows = -(-len(predictions) // columns)
    classes = min(MOST_CLASSES, max(len(p.answers) for p in predictions))
    height = 0.5 + 0.42 * max(classes, 3)  # with fewer than three, images would be too small
    titles = _titles([p.source for p in predictions])
    widths = [1.2 * min(height, 2.6), 5]  # inches, for the image and its bars
    figure = Figure(figsize=(sum(widths) * columns, height * rows))
    figure.set_layout_engine('constrained', w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=widths * columns)
    for axis in axes.flat:
        axis.axis('off')
    for i, prediction in enumerate(predictions):
        _draw_one(prediction, titles[i], classes, *axes[i // columns][2 * (i % columns) :][:2])
    figures.save(figure, path)


def _titles(sources):
    """Return the names of images: file names, with as many folders as distinguish them; ``''`` for
    images without a file."""
    paths = [
        os.path.abspath(os.fspath(source)).split(os.sep)
        if isinstance(source, (str, os.PathLike))
        else None
        for source in sources
    ]
    titles = []
    for path in paths:
        known = 1
        others = [other for other in paths if other and path and other != path]
        while any(other[-known:] == path[-known:] for other in others):
            known += 1
        titles.append('/'.join(path[-known:]) if path else '')
    return titles


def _draw_one(prediction, title, classes, axes, bars):
    image = decoding.load_rgb(decoding.upright(prediction.source)).copy()
    image.thumbnail((640, 640))
    axes.imshow(image)
    if title:
        # The end of a long path is the informative part.
        _title(axes, figures.plain(title, 40))
    bars.set(xlim=(0, 1), ylim=(classes - 0.6, -0.6))
    for i, answer in enumerate(prediction.answers[:classes]):
        bars.barh(i + 0.12, 1, 0.3, color=_FAINT)
        bars.barh(i + 0.12, answer.probability, 0.3, color=_BAR if i else _BEST)
        bars.text(
            0,
            i - 0.1,
            figures.plain(answer.name, 52),
            va='bottom',
            fontsize=9,
            color=_INK,
            fontweight='normal' if i else 'bold',
            parse_math=False,
        )
        bars.text(
            1,
            i - 0.1,
            f'{100 * answer.probability:.2f} %',
            va='bottom',
            ha='right',
            fontsize=9,
            color=_INK,
            fontweight='normal' if i else 'bold',
        )


#: Most maps per image.
MOST_MAPS = 3


def draw_maps(explanations: Sequence[Explanation], path: str) -> None:
    """Draw images with a class activation map for each class.

    Brighter places contribute more to the class; the maps of an image have the same scale.

    Args:
        explanations: The maps, of at most :data:`MOST` images.
        path: The file to write; its suffix determines the format.
    """
    check(path, len(explanations), '`cam`')
    columns = 1 + min(MOST_MAPS, max(len(e.maps) for e in explanations))
    figure = Figure(figsize=(3 * columns, 3.35 * len(explanations)), layout='constrained')
    axes = figure.subplots(len(explanations), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    titles = _titles([e.prediction.source for e in explanations])
    for row, title, explained in zip(axes, titles, explanations):
        row[0].imshow(explained.image)
        _title(row[0], figures.plain(title, 28))
        scale = float(explained.maps[:MOST_MAPS].max())
        for axis, answer, values in zip(row[1:], explained.prediction.answers, explained.maps):
            _draw_map(axis, explained.image, values, scale)
            name = figures.plain(answer.name, 28)
            _title(axis, f'{name}\n{100 * answer.probability:.2f} %')
    figures.save(figure, path)


def _title(axis, text):
    axis.set_title(text, fontsize=9, color=_INK, parse_math=False)


def _draw_map(axis, image, values, scale):
    height, width = image.shape[:2]
    axis.imshow(image.mean(axis=2), cmap='gray', vmin=-60, vmax=255)
    # Each value covers its share of the image.
    smooth = Image.fromarray(values.astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    share = np.clip(np.asarray(smooth) / max(scale, 1e-12), 0, 1)
    axis.imshow(share, cmap='inferno', vmin=0, vmax=1, alpha=0.75 * share)
