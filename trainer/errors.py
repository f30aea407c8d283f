"""The one exception that a user is meant to read."""

from trainer.text import printable


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file or flag and says how to mend it; what it
    tells of files is made printable and short (:func:`trainer.text.printable`).
    Scripts print it and exit with status 2 (:func:`trainer.cli.run`).

    Args:
        messages (str): The message; several where several things cannot be used
            (:func:`together`). They are its ``args``.
    """

    def __init__(self, *messages):
        super().__init__(*map(printable, messages))

    def __str__(self):
        return '; '.join(self.args)


def together(*checks):
    """Call functions one after the other, so that a user reads of all faults at once.

    Args:
        checks (callable): Without arguments.

    Returns:
        list: What they return.

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
