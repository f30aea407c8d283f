"""Text from outside: from files, file names and servers."""

import re
import textwrap
from typing import Any, TextIO

#: Longest message, in characters: with the script's name, a line has at most 500.
MOST = 450

#: Columns that every terminal has.
WIDTH = 80

_BREAK = re.compile(r'\s*[^\S ]\s*')


def printable(text: str) -> str:
    """Return text as one printable line.

    Line breaks and tabs become blanks; control characters, which could move the cursor
    or hide text, become escapes (``\\x1b``); the middle of a long text is left out, as
    messages end with the fix, and names with what distinguishes them.

    Args:
        text: Any object.

    Returns:
        At most :data:`MOST` characters.
    """
    line = _BREAK.sub(' ', text.strip())
    line = escaped(line)
    if len(line) > MOST:
        line = f'{line[: MOST - 203]} ... {line[-198:]}'
    return line


def escaped(text: str) -> str:
    """Return text with control characters, except line ends, replaced by escapes."""
    return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text)


class Printable:
    """A text stream that passes what is written through :func:`escaped`.

    Args:
        stream: The underlying stream; all other methods and attributes are this stream's.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, escaped."""
        return self._stream.write(escaped(text))


def wrapped(text: str) -> str:
    """Break a line at blanks into lines of at most :data:`WIDTH` characters.

    Words without a blank, such as a long path, stay whole.

    Args:
        text: The line.
    """
    return textwrap.fill(
        text, WIDTH, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
    )
