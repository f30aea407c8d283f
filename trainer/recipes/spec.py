"""What an option of a training run is: a field of a dataclass with its flag, type and range."""

import dataclasses
from collections.abc import Callable
from typing import Any

#: The group of flags without a title.
GENERAL = ''


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of an option beside its name and default.

    Attributes:
        help: For ``--help``.
        group: The group of flags that it is shown in.
        flags: Further flags, beside '--' and its name.
        kind: An argparse type, which checks the range; ``None``: text, or a switch where the
            default is ``False``.
        choices: () -> the values that it may have.
        many: Whether it is a tuple of such values: '+' or '*', as argparse says it.
        metavar: For ``--help``.
        path: Whether it names a file; recorded so that it is of use in any folder.
        free: Whether it may differ when a run goes on; everything else shapes its result.
        size: Whether it is a size of the network.
        flag_kind: The argparse type of the flag, where it takes less than Python does.
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
    """Return the name of an option as messages have it (:class:`trainer.errors.InputError`)."""
    return f'`{name}`'


def option(default: Any, help: str, group: str = GENERAL, *flags: str, **spec: Any) -> Any:
    return dataclasses.field(default=default, metadata={'spec': Spec(help, group, flags, **spec)})
