"""Writes files while training goes on."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Self

#: Most writes that wait: an epoch's model, the best model, figures and a snapshot.
MOST = 4


class Background:
    """A thread that writes files, one after the other, in the order in which they are given.

    The ``with`` block ends when all are written.

    Raises:
        OSError: A file cannot be written: from a later call, or at the end of the block.
    """

    def __init__(self) -> None:
        self._writing: collections.deque[concurrent.futures.Future[None]] = collections.deque()

    def __enter__(self) -> Self:
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        return self

    def __call__(self, write: Callable[[], None]) -> None:
        """Call ``write()`` on the thread, after the writes before it.

        It must not read arrays that change meanwhile.
        """
        while self._writing and (self._writing[0].done() or len(self._writing) == MOST):
            self._writing.popleft().result()
        self._writing.append(self._thread.submit(write))

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown()
        for writing in self._writing:
            writing.result()
