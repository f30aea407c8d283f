"""Numbers in flags and files: argparse types with a range."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.types import N

#: Upper limits of whole numbers: sizes fit NumPy's integers, seeds fit JSON.
_MOST = 1 << 31
_MOST_SEED = 1 << 63

#: Ways to resize images, by timm's names (:mod:`trainer.transforms.geometry`).
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


def one_of(find: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """Return an argparse type: one of the names that ``find()`` returns.

    ``find`` is called only if the flag is given; argparse's ``choices`` would be read for the
    help as well.
    """

    def parse(text):
        if text not in (known := list(find())):
            raise argparse.ArgumentTypeError(f'{text}: there are {", ".join(known)}')
        return text

    return parse


def _number(kind, name, most, fits, wrong):
    def parse(text):
        value = kind(text)
        if value != value:
            raise argparse.ArgumentTypeError(f'{text} is no number')
        if not -most < value < most:
            raise argparse.ArgumentTypeError(f'{text:.20} is too large')
        if not fits(value):
            raise argparse.ArgumentTypeError(f'{text} is {wrong}')
        return value

    parse.__name__ = name  # argparse shows this name if the text is not a number
    return parse


def positive(kind: type[N]) -> Callable[[str], N]:
    """Return an argparse type: ``kind`` (int or float) above zero."""
    name = 'positive ' + kind.__name__
    return _number(kind, name, _MOST, lambda value: value > 0, 'not above zero')


def not_negative(kind: type[N]) -> Callable[[str], N]:
    """Return an argparse type: ``kind`` (int or float), 0 or more."""
    return _number(kind, kind.__name__, _MOST_SEED, lambda value: value >= 0, 'below zero')


def share(text: str) -> float:
    """argparse type: a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not from 0 to below 1')
    return value


def epochs(text: str) -> float:
    """argparse type: a positive whole number of epochs, or a share of the epochs below 1."""
    value = float(text)
    if 0 < value < 1:
        return value
    if not 0 < value < _MOST or value != int(value):
        raise argparse.ArgumentTypeError(
            f'{text} is neither a number of epochs nor a share of them below 1'
        )
    return int(value)
