"""Predictions as a drawing: each image with bars for the probabilities of its classes."""

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.errors import InputError
from trainer.reports import figures
from trainer.transforms import decoding

#: Images that one drawing holds, and classes for each.
MOST = 60
MOST_CLASSES = 10

_BAR, _BEST, _INK, _FAINT = '#9ecae1', '#2171b5', '#222222', '#eeeeee'


def check(path, number):
    """Check that :func:`draw` can write ``path`` with so many images.

    Raises:
        trainer.errors.InputError: It cannot.
    """
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if os.path.splitext(path)[1][1:].lower() not in known:
        raise InputError(
            '--draw {}: a name that ends in one of these is wanted: {}'.format(
                path, ', '.join('.' + suffix for suffix in known)
            )
        )
    if number > MOST:
        raise InputError(
            f'--draw {path}: {number} images do not fit one drawing, at most {MOST} do'
        )
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise InputError(f'--draw {path}: there is no such folder')


def draw(predictions, path):
    """Draw images with bars for the probabilities of their classes.

    Args:
        predictions (sequence of trainer.inference.prediction.Prediction): Up to :data:`MOST`,
            without errors.
        path (str): The image to write; its suffix is the format.
    """
    check(path, len(predictions))
    columns = 1 + (len(predictions) > 3) + (len(predictions) > 16)
    rows = -(-len(predictions) // columns)
    classes = min(MOST_CLASSES, max(len(p.answers) for p in predictions))
    height = 0.5 + 0.42 * max(classes, 3)  # below three, images would be too small
    titles = _titles([p.source for p in predictions])
    widths = [1.2 * min(height, 2.6), 5]  # inches, of the image and its bars
    figure = Figure(figsize=(sum(widths) * columns, height * rows), layout='constrained')
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=widths * columns)
    for axis in axes.flat:
        axis.axis('off')
    for i, prediction in enumerate(predictions):
        _draw_one(prediction, titles[i], classes, *axes[i // columns][2 * (i % columns) :][:2])
    figures.save(figure, path)


def _titles(sources):
    """Return what images are called: their files' names, with as many folders as tell them
    apart; of images that have no file, ``''``."""
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
        # Of a long path the end tells.
        axes.set_title(figures.plain(title, 40), fontsize=9, color=_INK, parse_math=False)
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
