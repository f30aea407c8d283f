"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file or flag and says how to mend it.
    Scripts print it and exit with status 2 (:func:`trainer.cli.run`).
    """
