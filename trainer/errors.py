"""The exception whose message is meant for the user."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from trainer.text import printable

# An argument's name in a message.
_ARGUMENT = re.compile(r'`([A-Za-z]\w*)`')


class InputError(Exception):
    """The user's input cannot be used.

    The message is one line that names the file or argument and says how to fix it. Text from
    files is made printable and short (:func:`trainer.text.printable`). Scripts print the message
    and exit with status 2 (:func:`trainer.cli.run`). Arguments stand in backquotes in messages, so
    that scripts can replace them with flags: ``str`` has ``save_path`` where :meth:`for_script`
    has ``--save-path``.

    Args:
        messages: One message per fault (:func:`together`); they are the exception's ``args``.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__(*map(printable, messages))

    def __str__(self) -> str:
        return '; '.join(_ARGUMENT.sub(r'\1', message) for message in self.args)

    def for_script(self) -> list[str]:
        """Return the messages, with flags in place of arguments."""
        return [
            _ARGUMENT.sub(lambda name: '--' + name[1].replace('_', '-'), message)
            for message in self.args
        ]


def together(*checks: Callable[[], Any]) -> list[Any]:
    """Call functions one after the other, so that all faults are reported at once.

    Args:
        checks: Functions without arguments.

    Returns:
        List of what they return.

    Raises:
        InputError: At least one of them raised it; with the messages of all.
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
