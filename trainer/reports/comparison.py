"""Compares runs: a table of results and differing options, and a figure of their curves."""

import math
import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainer import files, run_folder
from trainer.errors import InputError
from trainer.recipes.options import DEFAULTS
from trainer.reports import drawing, figures
from trainer.text import WIDTH, printable

#: Options that may differ without affecting the result of a run.
_ASIDE = {'save_path', 'workers', 'gpu', 'load_log', 'load_optimizer', 'quick', 'data'}

#: Colours that the colour-blind can distinguish, too (Okabe and Ito).
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')

MOST = len(_COLOURS)


class Run:
    """The results of a run, epoch by epoch.

    Args:
        folder: Folder of the run.

    Attributes:
        folder: See above.
        options: Its options; empty if there is only a log, as from the original.
        epochs: For each epoch ``epoch`` and, if the log has them, ``test_error``,
            ``test_5_error`` and ``train_error`` (percent), ``test_loss`` and ``train_loss`` (mean,
            in nats).
        classes: Number of classes, ``None`` if the log does not tell.

    Raises:
        trainer.errors.InputError: There is no log, or the file is not a log.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.options: dict[str, Any] = {}
        if os.path.exists(os.path.join(folder, run_folder.RECORD)):
            self.options = run_folder.read_record(folder)['options']
        path = os.path.join(folder, 'log.json')
        try:
            entries = files.read_json(path)
            self.epochs: list[dict[str, Any]] = _epochs(entries)
            named = (e['are'] for e in entries if e['_id'] == 'categories')
            self.classes: int | None = len(next(named, [])) or None
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
    def best(self) -> dict[str, Any]:
        """The epoch with the lowest test error."""
        return min(
            (row for row in self.epochs if 'test_error' in row), key=lambda row: row['test_error']
        )


def _epochs(entries):
    """Read the entries of a log; in the original's logs the n-th of a kind is of epoch n."""
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


def differences(compared: Sequence[Run]) -> dict[str, list]:
    """Return the options that differ between runs.

    Args:
        compared: The runs.

    Returns:
        Option -> list of its values; ``None`` for runs without the option.
    """
    names = sorted({name for run in compared for name in run.options} - _ASIDE)
    # Records of earlier versions lack newer options.
    values = {
        name: [
            run.options.get(name, DEFAULTS.get(name)) if run.options else None for run in compared
        ]
        for name in names
    }
    return {name: v for name, v in values.items() if any(other != v[0] for other in v)}


def names(compared: Sequence[Run]) -> list[str]:
    """Return short names: the last parts of the folders, or whole paths if those are equal."""
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


def table(compared: Sequence[Run]) -> str:
    """Return a table of runs as lines: results first, then the options that differ.

    Args:
        compared: The runs.
    """
    rows = [
        ('run', [printable(name) for name in names(compared)]),
        ('epochs', [str(run.epochs[-1]['epoch']) for run in compared]),
        ('best test error', ['{:.2f} %'.format(run.best['test_error']) for run in compared]),
        ('  in epoch', [str(run.best['epoch']) for run in compared]),
    ]
    top5 = [('last top-5 error', 'test_5_error', '{:.2f} %')]
    for title, key, form in (
        ('last test error', 'test_error', '{:.2f} %'),
        # With five classes or fewer it is always 0.
        *(top5 if any((run.classes or 6) > 5 for run in compared) else []),
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
    return _laid_out(rows)


def _laid_out(rows):
    """Lay out rows of (title, values) in blocks of columns that fit a terminal."""
    first = max(len(title) for title, _ in rows)
    most = WIDTH - first - 2
    rows = [
        (title, [v if len(v) <= most else v[: most - 1] + '…' for v in values])
        for title, values in rows
    ]
    widths = [max(map(len, column)) for column in zip(*(values for _, values in rows))]
    blocks, room = [[]], most + 2
    for i, width in enumerate(widths):
        if width + 2 > room:
            blocks.append([])
            room = most + 2
        blocks[-1].append(i)
        room -= width + 2
    return '\n\n'.join(
        '\n'.join(
            title.ljust(first) + ''.join('  ' + values[i].rjust(widths[i]) for i in block)
            for title, values in rows
        )
        for block in blocks
    )


def check(folders: Sequence[Any], path: str) -> None:
    """Check that :func:`draw` can draw these runs to ``path``.

    Raises:
        trainer.errors.InputError: It cannot.
    """
    drawing.check(path, flag='-o')
    if len(folders) > MOST:
        raise InputError(f'{len(folders)} runs do not fit one figure, at most {MOST} do')


def draw(compared: Sequence[Run], path: str) -> None:
    """Draw error and loss of runs over the epochs: testing as lines, training dotted.

    Args:
        compared: The runs, at most :data:`MOST`.
        path: The file to write; its suffix determines the format.
    """
    check(compared, path)
    labels = _labels(compared)
    lines = sum(label.count('\n') + 1 for label in labels) + 1
    figure = Figure(figsize=(12, 4.4 + 0.2 * lines), layout='constrained')
    error, loss = figure.subplots(1, 2)
    _draw_panel(error, compared, 'Top-1 error', '%', 'error')
    _draw_panel(loss, compared, 'Loss', 'nats', 'loss')
    for run, colour, wider in zip(compared, _COLOURS, _wider(compared)):
        error.plot(
            run.best['epoch'],
            run.best['test_error'],
            'o',
            color=colour,
            markersize=6 + wider,
            markeredgecolor='white',
            zorder=5,
        )
    handles = [
        Line2D([], [], color=colour, linewidth=2.5, marker='o', label=label)
        for label, colour in zip(labels, _COLOURS)
    ]
    label = 'in testing; the dot is the least error'
    handles += [
        Line2D([], [], linestyle='-', color='#555555', label=label),
        Line2D([], [], linestyle=':', color='#555555', label='in training'),
    ]
    legend = figure.legend(handles=handles, loc='outside lower left', frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figures.save(figure, path)


def _draw_panel(axes, compared, title, unit, key):
    for run, colour, wider in zip(compared, _COLOURS, _wider(compared)):
        _curve(axes, run.epochs, 'train_' + key, colour, ':', 1.4 + wider)
        _curve(axes, run.epochs, 'test_' + key, colour, '-', 1.6 + wider)
    axes.set_title(title, loc='left', fontweight='bold')
    axes.set(xlabel='epoch', ylabel=unit)
    # The first epochs would flatten the rest of the curve.
    tops = [
        min(1.05 * max(values), 3 * float(np.median(values)))
        for run in compared
        if (values := [row['test_' + key] for row in run.epochs if 'test_' + key in row])
    ]
    axes.set_ylim(0, max(tops, default=0) or 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)


def _wider(compared):
    """Return the extra line width of each run, so that it stays visible below later runs with the
    same numbers."""
    return [
        2.5 * sum(run.epochs == other.epochs for other in compared[i + 1 :])
        for i, run in enumerate(compared)
    ]


def _labels(compared):
    """Return the lines of each run in the key: its name, best epoch, and differing options."""
    differ, labels, short = differences(compared), [], names(compared)
    for i, (run, name) in enumerate(zip(compared, short)):
        told = [f'{option} {_text(values[i])}' for option, values in differ.items()]
        same = next((j for j in range(i) if compared[j].epochs == run.epochs), None)
        text = '{}: least test error {:.2f} % in epoch {}{}{}'.format(
            figures.plain(name, 60),
            run.best['test_error'],
            run.best['epoch'],
            '' if same is None else f', the same numbers as {figures.plain(short[same], 60)}',
            f'; {", ".join(told)}' if told else '',
        )
        labels.append('\n'.join(textwrap.wrap(text, 150, subsequent_indent='    ')))
    return labels


def _curve(axes, rows, key, colour, style, width):
    points = [(row['epoch'], row[key]) for row in rows if key in row]
    if points:
        # A single epoch makes no line.
        axes.plot(
            *zip(*points),
            style,
            color=colour,
            linewidth=width,
            marker='.' if len(points) < 3 else None,
        )
