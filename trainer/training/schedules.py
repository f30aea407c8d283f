"""Learning rates as functions of the position in a run, so that they need no state.

A schedule is ``schedule(epoch, part)``: the number of epochs completed before an update, and
the share of the current epoch that is completed by it, 0 < part <= 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from trainer.recipes.options import Options


#: (epoch, part=1.0) -> learning rate.
Schedule: TypeAlias = Callable[..., float]


def epochs_of(value: float, total: int) -> float:
    """Return a number of epochs: ``value``, or that share of ``total`` if it is below 1."""
    # Rounded first, as 0.29 * 100 is 28.999999999999996.
    return math.floor(round(value * total, 9)) if 0 < value < 1 else value


def steps(lr: float, lr_steps: Sequence[float]) -> Schedule:
    """``lr``, divided by 10 after each epoch in ``lr_steps``."""
    return lambda epoch, part=1.0: lr / 10 ** sum(epoch >= step for step in lr_steps)


def every(lr: float, period: float) -> Schedule:
    """``lr``, divided by 10 after every ``period`` epochs."""
    return lambda epoch, part=1.0: lr / 10 ** (epoch // period)


def cosine(lr: float, period: float, lr_min: float = 0.0) -> Schedule:
    """Half a cosine from ``lr`` to ``lr_min``, restarted every ``period`` epochs.

    Cosine annealing with warm restarts (arXiv 1608.03983), epoch by epoch.
    """

    def schedule(epoch, part=1.0):
        return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * (epoch % period) / period)) / 2

    return schedule


def warming_up(schedule: Schedule, epochs: float) -> Schedule:
    """``schedule``, times a factor that rises from 0 to 1 in the first ``epochs``, per update."""
    return lambda epoch, part=1.0: schedule(epoch, part) * min(1.0, (epoch + part) / epochs)


def beginning_after(schedule: Schedule, lr: float, epochs: float) -> Schedule:
    """A rise from ``lr`` / 100 to ``lr`` in ``epochs``, per epoch; then ``schedule`` starts.

    As in torchvision's references/classification.
    """

    def warm(epoch, part=1.0):
        if epoch < epochs:
            return lr * (0.01 + 0.99 * epoch / epochs)
        return schedule(epoch - epochs, part)

    return warm


def _total(options):
    """Return the number of epochs of the schedule."""
    before = options.warmup if options.warmup_by == 'epoch' else 0
    return max(1, options.schedule_epoch - before)


def _period(options):
    """Return lr_period in epochs, at least 1; 0 is the whole run."""
    total = _total(options)
    return max(1, epochs_of(options.lr_period, total)) if options.lr_period else total


def of(options: Options) -> Schedule:
    """Return the schedule for the options of a run.

    Args:
        options: The run's options.
    """
    lr, total, period = options.lr, _total(options), _period(options)
    assert lr is not None  # resolved
    if options.lr_schedule == 'steps':
        schedule = steps(lr, [epochs_of(step, total) for step in options.lr_steps])
    elif options.lr_schedule == 'every':
        schedule = every(lr, period)
    else:
        schedule = cosine(lr, period, options.lr_min)
    if not options.warmup:
        return schedule
    if options.warmup_by == 'epoch':
        return beginning_after(schedule, lr, options.warmup)
    return warming_up(schedule, options.warmup)


def _describe_steps(steps, epochs):
    shown = {
        late: ', '.join(f'{step:g}' for step in steps if (step >= epochs) == late)
        for late in (False, True)
    }
    text = f'divided by 10 after {shown[False]} of {epochs} epochs' if shown[False] else 'constant'
    if shown[True]:
        text += f'; the steps after {shown[True]} epochs are not reached'
    return text


def describe(options: Options) -> str:
    """Describe the schedule of :func:`of` in a few words."""
    total, period = _total(options), _period(options)
    if options.lr_schedule == 'steps':
        text = _describe_steps([epochs_of(step, total) for step in options.lr_steps], options.epoch)
    elif options.lr_schedule == 'every':
        text = f'divided by 10 every {period} of {options.epoch} epochs'
    else:
        text = f'half a cosine to {options.lr_min:g} every {period} of {options.epoch} epochs'
    return text + (f', {options.warmup:g} epochs of warm-up' if options.warmup else '')
