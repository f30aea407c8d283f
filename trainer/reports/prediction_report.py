"""Predictions as text and JSON; :mod:`trainer.reports.drawing` draws them."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from trainer.text import printable

if TYPE_CHECKING:
    from trainer.inference.prediction import Prediction


def text(prediction: Prediction) -> str:
    """Return a prediction as lines: the name of the image, then one class per line.

    On a terminal, names are truncated to its width.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    lines = [printable(str(prediction.source))]
    for answer in prediction.answers:
        line = f'{100 * answer.probability:7.2f} %  {printable(answer.name)}'
        lines.append(line if len(line) < width else line[: width - 2] + '…')
    return '\n'.join(lines)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values.

    Returns:
        ``image``, and either ``error`` or ``classes``, a list of dicts: ``class`` (number),
        ``synset`` (or ``None``), ``name``, ``probability`` (0..1).
    """
    said = {'image': str(prediction.source)}
    if prediction.error is not None:
        return dict(said, error=prediction.error)
    return dict(
        said,
        classes=[
            {'class': a.number, 'synset': a.synset, 'name': a.name, 'probability': a.probability}
            for a in prediction.answers
        ],
    )
