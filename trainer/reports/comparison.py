"""Runs side by side: a table of what differs, and one figure of their curves."""

import math
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainer import files, run_folder
from trainer.errors import InputError
from trainer.reports import figures
from trainer.text import printable

#: Options that differ from run to run without shaping it.
_ASIDE = {'save_path', 'workers', 'gpu', 'load_log', 'load_optimizer', 'quick', 'data'}

#: Told apart in any order, also by the colour-blind (Okabe and Ito).
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')

MOST = len(_COLOURS)


class Run:
    """The numbers of a run, epoch by epoch.

    Args:
        folder (str): Its folder.

    Attributes:
        folder (str): As given.
        options (dict): Its options; empty where there is only a log, as of the original.
        epochs (list of dict): For each epoch ``epoch`` and, where the log has them,
            ``test_error``, ``test_5_error`` and ``train_error`` (percent), ``test_loss``
            and ``train_loss`` (mean, in nats).

    Raises:
        trainer.errors.InputError: There is no log, or it is no log.
    """

    def __init__(self, folder):
        self.folder = folder
        self.options = {}
        if os.path.exists(os.path.join(folder, run_folder.RECORD)):
            self.options = run_folder.read_record(folder)['options']
        path = os.path.join(folder, 'log.json')
        try:
            self.epochs = _epochs(files.read_json(path))
        except OSError as e:
            raise InputError(
                f'{path}: cannot be read ({e.strerror}); a run writes it after its first epoch'
            ) from e
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ZeroDivisionError,
            OverflowError,
        ) as e:
            raise InputError(f'{path}: not a log.json of a run ({type(e).__name__}: {e})') from e
        if not any('test_error' in row for row in self.epochs):
            raise InputError(f'{path}: a log without epochs')

    @property
    def best(self):
        """dict: The epoch of the least test error."""
        return min(
            (row for row in self.epochs if 'test_error' in row), key=lambda row: row['test_error']
        )


def _epochs(entries):
    """Read a log's entries; those of the original carry no epoch, the n-th is of epoch n."""
    kinds = {}
    for entry in entries:
        kinds.setdefault(entry['_id'], []).append(entry)
    images = {
        part: kinds[part + '_parameter'][0]['parameter']
        for part in ('train', 'test')
        if part + '_parameter' in kinds
    }
    rows = {}
    for _id, key, name in (
        ('train_loss', 'train_loss', 'loss'),
        ('test_loss', 'test_loss', 'loss'),
        ('train_accuracy', 'train_error', 'accuracy'),
        ('test_accuracy', 'test_error', 'accuracy'),
        ('test_5_accuracy', 'test_5_error', 'accuracy'),
    ):
        for i, entry in enumerate(kinds.get(_id, ()), 1):
            epoch = int(entry.get('epoch', i))
            value = entry[name] / images[_id.split('_')[0]]
            if not math.isfinite(value):
                raise ValueError(f'{_id} of epoch {epoch} is not finite')
            rows.setdefault(epoch, {'epoch': epoch})[key] = (
                100 * (1 - value) if name == 'accuracy' else value
            )
    return [rows[epoch] for epoch in sorted(rows)]


def differences(compared):
    """Return the options that differ, and their values.

    Args:
        compared (sequence of Run): The runs.

    Returns:
        dict: Option -> list of its values, ``None`` for runs that have no such option.
    """
    names = sorted({name for run in compared for name in run.options} - _ASIDE)
    values = {name: [run.options.get(name) for run in compared] for name in names}
    return {name: v for name, v in values.items() if any(other != v[0] for other in v)}


def names(compared):
    """Return short names: the folders' last parts, or all of them where these are the same."""
    short = [os.path.basename(os.path.abspath(run.folder)) for run in compared]
    return short if len(set(short)) == len(short) else [run.folder for run in compared]


def _text(value):
    if isinstance(value, (list, tuple)):
        return ' '.join(map(_text, value)) or '-'
    if isinstance(value, str):
        return printable(os.path.basename(value) if os.sep in value else value)
    if value is None:
        return '-'
    return f'{value:g}' if isinstance(value, float) else str(value)


def table(compared):
    """Return lines that compare runs: results first, then the options that differ.

    Args:
        compared (sequence of Run): The runs.
    """
    rows = [
        ('run', [printable(name) for name in names(compared)]),
        ('epochs', [str(run.epochs[-1]['epoch']) for run in compared]),
        ('best test error', ['{:.2f} %'.format(run.best['test_error']) for run in compared]),
        ('  in epoch', [str(run.best['epoch']) for run in compared]),
    ]
    for title, key, form in (
        ('last test error', 'test_error', '{:.2f} %'),
        ('last top-5 error', 'test_5_error', '{:.2f} %'),
        ('last test loss', 'test_loss', '{:.4f}'),
        ('last train loss', 'train_loss', '{:.4f}'),
    ):
        rows.append(
            (
                title,
                [
                    form.format(run.epochs[-1][key]) if key in run.epochs[-1] else '-'
                    for run in compared
                ],
            )
        )
    rows += [
        (name, [_text(value) for value in values]) for name, values in differences(compared).items()
    ]
    widths = [max(len(row[1][i]) for row in rows) for i in range(len(compared))]
    first = max(len(title) for title, _ in rows)
    return '\n'.join(
        title.ljust(first)
        + ''.join('  ' + value.rjust(width) for value, width in zip(values, widths))
        for title, values in rows
    )


def check(folders, path):
    """Check that :func:`draw` can draw so many runs to ``path``.

    Raises:
        trainer.errors.InputError: It cannot.
    """
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if os.path.splitext(path)[1][1:].lower() not in known:
        raise InputError(
            '-o {}: a name that ends in one of these is wanted: {}'.format(
                path, ', '.join('.' + suffix for suffix in known)
            )
        )
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise InputError(f'-o {path}: there is no such folder')
    if len(folders) > MOST:
        raise InputError(f'{len(folders)} runs do not fit one figure, at most {MOST} do')


def draw(compared, path):
    """Draw error and loss of runs over their epochs: testing as lines, training dotted.

    Args:
        compared (sequence of Run): Up to :data:`MOST`.
        path (str): The image to write; its suffix is the format.
    """
    check(compared, path)
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    error, loss = figure.subplots(1, 2)
    _draw_panel(error, compared, 'Top-1 error', '%', 'error')
    _draw_panel(loss, compared, 'Loss', 'nats', 'loss')
    for run, colour in zip(compared, _COLOURS):
        error.plot(
            run.best['epoch'],
            run.best['test_error'],
            'o',
            color=colour,
            markersize=6,
            markeredgecolor='white',
            zorder=5,
        )
    handles = [
        Line2D([], [], color=colour, linewidth=2.5, marker='o', label=label)
        for label, colour in zip(_labels(compared), _COLOURS)
    ]
    legend = figure.legend(handles=handles, loc='outside lower left', frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figures.save(figure, path)


def _draw_panel(axes, compared, title, unit, key):
    for run, colour in zip(compared, _COLOURS):
        _curve(axes, run.epochs, 'train_' + key, colour, ':', 1.4)
        _curve(axes, run.epochs, 'test_' + key, colour, '-', 1.6)
    axes.set_title(title, loc='left', fontweight='bold')
    axes.set(xlabel='epoch', ylabel=unit)
    # The first epochs of a run would press its others flat.
    tops = [
        min(1.05 * max(values), 3 * float(np.median(values)))
        for run in compared
        if (values := [row['test_' + key] for row in run.epochs if 'test_' + key in row])
    ]
    axes.set_ylim(0, max(tops, default=0) or 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(
        handles=[
            Line2D([], [], linestyle=style, color='#555555', label=label)
            for style, label in (('-', 'test'), (':', 'train'))
        ],
        frameon=False,
        loc='upper right',
    )


def _labels(compared):
    """Return a line on each run: its name, its best epoch, the options that differ."""
    differ, labels = differences(compared), []
    for i, (run, name) in enumerate(zip(compared, names(compared))):
        told = [f'{option} {_text(values[i])}' for option, values in differ.items()]
        labels.append(
            '{}: least test error {:.2f} % in epoch {}{}'.format(
                figures.plain(name, 60),
                run.best['test_error'],
                run.best['epoch'],
                '  ({})'.format(', '.join(told[:6]) + ', ...' * (len(told) > 6)) if told else '',
            )
        )
    return labels


def _curve(axes, rows, key, colour, style, width):
    points = [(row['epoch'], row[key]) for row in rows if key in row]
    if points:
        # A single epoch is no line.
        axes.plot(
            *zip(*points),
            style,
            color=colour,
            linewidth=width,
            marker='.' if len(points) < 3 else None,
        )
