"""Options given as flags, as arguments in Python, or as JSON, with the same checks."""

import argparse
from typing import Any

from trainer.recipes.options import DEFAULTS, SPECS, Options
from trainer.recipes.spec import GENERAL
from trainer.values import one_of


def add_flags(parser: argparse.ArgumentParser, usual: Options) -> None:
    """Add a flag for each option; the parser's result has only those that are given.

    Args:
        parser: A parser whose ``argument_default`` is ``argparse.SUPPRESS``, and which accepts
            dashes for underscores (:class:`trainer.arguments.ArgumentParser`).
        usual: The values that the help shows as defaults.
    """
    groups: dict[str, argparse._ActionsContainer] = {GENERAL: parser}
    for name, spec in SPECS.items():
        if spec.group not in groups:
            groups[spec.group] = parser.add_argument_group(spec.group)
        default = getattr(usual, name)
        text = spec.help
        if default not in (None, False, (), 0):
            shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
            text += f' (default: {shown})'
        more: dict[str, Any] = {'action': 'store_true'}
        if DEFAULTS[name] is not False:
            more = {'type': spec.flag_kind or spec.kind, 'nargs': spec.many}
            if spec.choices and spec.metavar:
                more['type'] = one_of(spec.choices)
            elif spec.choices:
                more['choices'] = spec.choices()
            more['metavar'] = spec.metavar
        groups[spec.group].add_argument('--' + name, *spec.flags, dest=name, help=text, **more)


def check(name: str, value: object) -> None:
    """Check an option from Python or from a file, with the same checks as its flag.

    Raises:
        ValueError: There is no such option, or the value is not allowed.
    """
    if name not in SPECS:
        raise ValueError('there is no such option')
    spec, default = SPECS[name], DEFAULTS[name]
    if value is None or (type(value) is type(default) and value == default):
        return
    if spec.many is None:
        _check_one(name, spec, value)
        return
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'it is of type {type(value).__name__}, not a list or tuple')
    for one in value:
        _check_one(name, spec, one)


def _check_one(name, spec, value):
    if spec.choices and value not in _choices(name, spec):
        raise ValueError('there are ' + ', '.join(spec.choices()))
    if spec.kind is None:
        kind = bool if isinstance(DEFAULTS[name], bool) else str
        if not isinstance(value, kind):
            raise ValueError(f'it is of type {type(value).__name__}, not a {kind.__name__}')
        return
    if isinstance(value, (str, bool)) or value is None:
        raise ValueError(f'it is of type {type(value).__name__}, not a number')
    try:
        same = spec.kind(str(value)) == value
    except argparse.ArgumentTypeError as e:
        raise ValueError(str(e)) from e
    except ValueError:
        same = False
    if not same:
        raise ValueError('it cannot have this value')


def _choices(name, spec):
    # --quick is recorded as the name of its recipe and dataset.
    return (*spec.choices(), 'quick') if name in ('recipe', 'dataset') else spec.choices()


def from_json(held: dict) -> dict:
    """Convert options from JSON to their types in Python.

    Raises:
        ValueError: There is no such option, or a value is not allowed.
    """
    if held.get('sampling') == 'every-picture':  # as version 1.0 named it
        held = held | {'sampling': 'every-image'}
    for name, value in held.items():
        try:
            check(name, value)
        except ValueError as e:
            raise ValueError(f'{name:.40} {value!r:.80}: {e}') from e
    return {
        name: tuple(value) if SPECS[name].many and value is not None else value
        for name, value in held.items()
    }
