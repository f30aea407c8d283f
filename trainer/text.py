"""Text from outside: from files, their names, and servers."""

import re
import textwrap
from typing import Any, TextIO

#: Characters of a message. With a script's name before it, a line has at most 500.
MOST = 450

#: Columns of a terminal that are always there.
WIDTH = 80

_BREAK = re.compile(r'\s*[^\S ]\s*')


def printable(text: str) -> str:
    """Return text as one line that a terminal shows as it is.

    Line breaks and tabs become blanks; control characters, which could move the cursor
    or hide text, become escapes (``\\x1b``); a long text loses its middle.

    Args:
        text: Anything; messages end with the mend, names with what tells them apart.

    Returns:
        At most :data:`MOST` characters.
    """
    line = _BREAK.sub(' ', text.strip())
    line = escaped(line)
    if len(line) > MOST:
        line = f'{line[: MOST - 203]} ... {line[-198:]}'
    return line


def escaped(text: str) -> str:
    """Return text with escapes for control characters, but for ends of lines."""
    return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text)


class Printable:
    """A text stream that shows names and contents of files as they are: what is written
    passes :func:`escaped`.

    Args:
        stream: The stream behind it, whose other methods and attributes are its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, as the stream does."""
        return self._stream.write(escaped(text))


def wrapped(text: str) -> str:
    """Return a line as lines of at most :data:`WIDTH` characters, broken at blanks.

    What has no blank, such as a long path, stays whole.

    Args:
        text: The line.
    """
    return textwrap.fill(
        text, WIDTH, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
    )
