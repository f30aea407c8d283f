"""Specification of an option: a field of a dataclass with its flag, type and range."""

import dataclasses
from collections.abc import Callable
from typing import Any

#: Group of the flags without a title.
GENERAL = ''


@dataclasses.dataclass(frozen=True)
class Spec:
    """Specification of an option, besides its name and default.

    Attributes:
        help: Text for ``--help``.
        group: Group of flags in ``--help``.
        flags: Further flags, besides '--' and its name.
        kind: An argparse type, which checks the range; ``None``: text, or a switch if the
            default is ``False``.
        choices: () -> allowed values.
        many: argparse's ``nargs``, '+' or '*', if it is a tuple of such values.
        metavar: Placeholder in ``--help``.
        path: Whether it is the name of a file; the absolute path is recorded.
        free: Whether it may change when a run is resumed; all others determine the result.
        size: Whether it is a size of the network.
        flag_kind: The argparse type of the flag, if it accepts less than Python.
    """

    help: str
    group: str = GENERAL
    flags: tuple[str, ...] = ()
    kind: Callable | None = None
    choices: Callable | None = None
    many: str | None = None
    metavar: str | None = None
    path: bool = False
    free: bool = False
    size: bool = False
    flag_kind: Callable | None = None


def flag(name: str) -> str:
    """Return the name of an option in messages (:class:`trainer.errors.InputError`)."""
    return f'`{name}`'


def option(default: Any, help: str, group: str = GENERAL, *flags: str, **spec: Any) -> Any:
    return dataclasses.field(default=default, metadata={'spec': Spec(help, group, flags, **spec)})
