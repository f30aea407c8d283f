"""The summary at the end of a run: results, models, next commands."""

import os
import shlex
from collections.abc import Sequence
from typing import Any

from trainer.reports.console import clock
from trainer.reports.log import ACCURACY
from trainer.text import printable


def text(
    rows: Sequence[dict[str, Any]], folder: str, best: str, seconds: float, images: int
) -> str:
    """Return the summary of a run as lines.

    Args:
        rows: Its epochs, at least one, as in Chainer's LogReport.
        folder: The run's folder.
        best: The file of the best model.
        seconds: Duration of the run, without interruptions.
        images: Number of images for testing.
    """
    top, last = max(rows, key=lambda row: row[ACCURACY]), rows[-1]
    here = shlex.quote(os.path.normpath(folder))
    after = last['epoch'] + max(1, last['epoch'] // 2)
    lines = (
        ('done', f'{last["epoch"]} epoch{"s" * (last["epoch"] > 1)} in {clock(seconds)}'),
        ('best accuracy', f'{_percent(top)} of {images:,} test images, epoch {top["epoch"]}'),
        ('last accuracy', _percent(last)),
        ('best model', printable(best)),
        ('to predict', printable(f'python predict.py IMAGE -m {here}')),
        ('to test', printable(f'python test.py {here}')),
        ('to go on', printable(f'python main.py --resume {here} -e {after}')),
    )
    return '\n'.join(['', *(f'{name:15s}{value}' for name, value in lines)])


def _percent(row):
    return f'{100 * row[ACCURACY]:.2f} %'
