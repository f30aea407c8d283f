"""The one exception that a user is meant to read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from trainer.text import printable

# An argument's name in a message.
_ARGUMENT = re.compile(r'`([A-Za-z]\w*)`')


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file or argument and says how to mend it; what it
    tells of files is made printable and short (:func:`trainer.text.printable`).
    Scripts print it and exit with status 2 (:func:`trainer.cli.run`). Names of arguments are
    in backquotes in the messages, so that scripts can name flags in their place: ``str`` has
    ``save_path`` where :meth:`for_script` has ``--save-path``.

    Args:
        messages: The message; several where several things cannot be used (:func:`together`). They
            are its ``args``.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__(*map(printable, messages))

    def __str__(self) -> str:
        return '; '.join(_ARGUMENT.sub(r'\1', message) for message in self.args)

    def for_script(self) -> list[str]:
        """Return the messages with flags in the place of arguments."""
        return [
            _ARGUMENT.sub(lambda name: '--' + name[1].replace('_', '-'), message)
            for message in self.args
        ]


def together(*checks: Callable[[], Any]) -> list[Any]:
    """Call functions one after the other, so that a user reads of all faults at once.

    Args:
        checks: Without arguments.

    Returns:
        What they return.

    Raises:
        InputError: Of those that raise one, with all their messages.
    """
    found, faults = [], []
    for check in checks:
        try:
            found.append(check())
        except InputError as e:
            faults.append(e)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        messages = dict.fromkeys(message for fault in faults for message in fault.args)
        raise InputError(*messages) from faults[0]
    return found
