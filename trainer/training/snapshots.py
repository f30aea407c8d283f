"""Snapshots: the complete state of a run, with which it resumes exactly."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import chainer
import numpy as np
from chainer.training import extensions, triggers

from trainer import files, run_folder
from trainer.errors import InputError
from trainer.training import processes
from trainer.weights import npz

if TYPE_CHECKING:
    from trainer.training.processes import Alone
    from trainer.types import When

_NAME = 'snapshot_iter_{.updater.iteration}'

#: Number of snapshots kept: a second one, in case the newest is damaged.
RETAINED = 2


class Trigger(triggers.IntervalTrigger):
    """Trigger: at the end of each epoch, and when ``stopping()`` returns true."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(1, 'epoch')
        self.stopping = stopping

    def __call__(self, trainer: chainer.training.Trainer) -> bool:
        return super().__call__(trainer) or self.stopping()


class _Writer(extensions.snapshot_writers.Writer):
    """Keeps the two newest snapshots, uncompressed: compression takes seconds and saves little."""

    def __init__(self, when):
        super().__init__()
        self._when = when

    def __call__(self, filename, outdir, target):
        self._when(lambda: self._write(filename, outdir, target))

    def _write(self, filename, outdir, target):
        with files.replacing(os.path.join(outdir, filename)) as unfinished:
            chainer.serializers.save_npz(unfinished, target, compression=False)
        # By number, as a clock may be set back. Damaged snapshots of later updates, which the run
        # has skipped, are not counted.
        found = run_folder.snapshots(outdir)
        for stale in found[found.index(os.path.join(outdir, filename)) + RETAINED :]:
            os.remove(stale)


def extension(when: When = files.now) -> chainer.training.Extension:
    """Return Chainer's snapshot extension, which keeps the two newest snapshots.

    Args:
        when: Called with the function that writes a snapshot.
    """
    return extensions.snapshot(filename=_NAME, writer=_Writer(when))


def restore(
    trainer: chainer.training.Trainer,
    folder: str,
    say: Callable[[str], object] = print,
    group: Alone = processes.ALONE,
) -> str | None:
    """Restore a trainer from the newest snapshot that is whole and fits.

    With several processes, the first reads it and sends it to the others.

    Args:
        trainer: A trainer built like the run's.
        folder: The run's folder.
        say: Receives a message about each skipped snapshot.
        group: The processes.

    Returns:
        The snapshot used, or ``None`` if there is none yet.

    Raises:
        trainer.errors.InputError: There are snapshots, but none that is whole and fits.
    """
    found = group.first(lambda: run_folder.snapshots(folder))
    for path in found:
        try:
            arrays = group.first(functools.partial(_writable, path))
            with warnings.catch_warnings():
                # If a trigger's state is missing, Chainer warns and guesses it.
                warnings.filterwarnings('error', category=UserWarning, module='chainer')
                chainer.serializers.NpzDeserializer(arrays).load(trainer)
            return path
        except InputError as e:
            say(f'{e}; skipping it')
        except (KeyError, ValueError, TypeError, UserWarning) as e:
            say(f'{path}: does not fit the network or the options ({e}); skipping it')
    if found:
        raise InputError(
            f'{folder}: none of the {len(found)} snapshots is whole and of this run; start anew '
            'without --resume (what is there is moved aside)'
        )
    return None


def optimizer_arrays(path: str) -> dict[str, np.ndarray]:
    """Read an optimizer's state from a snapshot or from a file of Chainer's ``save_npz``.

    Returns:
        Name -> array, for Chainer's ``NpzDeserializer``.
    """
    arrays = _writable(path)
    prefix = 'updater/optimizer:main/'
    inside = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    if not inside and not ({'t', 'epoch'} <= set(arrays)):
        raise InputError(f'-o {path}: neither a snapshot nor an optimizer saved by Chainer')
    return inside or arrays


def _writable(path):
    # Chainer uses the arrays of an optimizer without copying them.
    return {name: np.array(array) for name, array in npz.read_arrays(path).items()}
