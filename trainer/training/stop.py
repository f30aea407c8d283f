"""Ctrl-C during a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import chainer

    from trainer.training.processes import Alone


class Stop:
    """Ctrl-C: finish the update, take a snapshot, stop. A second Ctrl-C stops at once.

    Several processes stop after the same update, as soon as one of them was interrupted.
    """

    def __init__(self, say: Callable[[str], object], group: Alone) -> None:
        self._say = say
        self._group = group
        self._asked = self._agreed = self._told = False

    @property
    def wanted(self) -> bool:
        return self._asked if self._group.size == 1 else self._agreed

    def agree(self) -> None:
        """Check, after an update, whether one of the processes was interrupted."""
        self._agreed = self._group.sum(self._asked) != [0.0]

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number, frame):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        with contextlib.suppress(RuntimeError):  # raised in the middle of printing
            self._tell()

    def _tell(self):
        if self._asked and not self._told:
            self._say('\nstopping after this update, with a snapshot; again to stop at once')
            self._told = True

    def before(self, trigger: Callable) -> Callable[[chainer.training.Trainer], bool]:
        """Return a stop trigger: after an interrupt, or when ``trigger`` fires."""

        def stop(trainer):
            self._tell()
            return self.wanted or trigger(trainer)

        return stop
