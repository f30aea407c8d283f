"""Moves an earlier run out of the way of a new one, as a whole or not at all."""

import os
from collections.abc import Callable

from trainer.errors import InputError

# The files are first gathered in this folder, which is renamed once it is complete.
_MOVING = '.resnext-unfinished'


def move_aside(folder: str, names: list[str], say: Callable[[str], object]) -> None:
    """Move the files of an earlier run into ``earlier/<n>/``.

    Args:
        folder: The run's folder.
        names: Names of the files to move.
        say: Receives one line that says where they went.
    """
    moving, n = _moving(folder), 1
    while os.path.lexists(aside := os.path.join(folder, 'earlier', str(n))):
        n += 1
    os.makedirs(moving)
    for name in names:
        os.rename(os.path.join(folder, name), os.path.join(moving, name))
    os.rename(moving, aside)
    say(f'moved an earlier run to {aside}')


def is_split(folder: str) -> bool:
    """Return whether a process was killed while it was moving the run in a folder."""
    return os.path.isdir(_moving(folder))


def put_back(folder: str) -> None:
    """Move back the files of a run that a killed process had started to move.

    Raises:
        trainer.errors.InputError: There are other files of these names by now.
    """
    moving = _moving(folder)
    names = os.listdir(moving)
    for name in names:
        if os.path.lexists(os.path.join(folder, name)):
            raise InputError(
                f'{moving}: holds files of an earlier run, which was being moved when its '
                f'process was killed, but there is another {name} in {folder}; move one away'
            )
    for name in names:
        os.rename(os.path.join(moving, name), os.path.join(folder, name))
    os.rmdir(moving)


def _moving(folder):
    return os.path.join(folder, 'earlier', _MOVING)
