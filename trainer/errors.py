"""The one exception that a user is meant to read."""

from trainer.text import printable


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file or flag and says how to mend it; what it
    tells of files is made printable and short (:func:`trainer.text.printable`).
    Scripts print it and exit with status 2 (:func:`trainer.cli.run`).

    Args:
        message (str): The message.
    """

    def __init__(self, message):
        super().__init__(printable(message))
