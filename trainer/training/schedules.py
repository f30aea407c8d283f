"""Learning rates as functions of where a run is, so that going on needs no state.

A schedule is ``schedule(epoch, part)``: epochs done before an update, and the share of
the next one that is done after it, 0 < part <= 1.
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
    """Return a number of epochs: ``value``, or where it is below 1 that share of ``total``."""
    # Rounded, as 0.29 * 100 is 28.999999999999996.
    return math.floor(round(value * total, 9)) if 0 < value < 1 else value


def steps(lr: float, lr_steps: Sequence[float]) -> Schedule:
    """``lr``, divided by 10 after each of the epochs ``lr_steps``."""
    return lambda epoch, part=1.0: lr / 10 ** sum(epoch >= step for step in lr_steps)


def every(lr: float, period: float) -> Schedule:
    """``lr``, divided by 10 after every ``period`` epochs."""
    return lambda epoch, part=1.0: lr / 10 ** (epoch // period)


def cosine(lr: float, period: float, lr_min: float = 0.0) -> Schedule:
    """From ``lr`` to ``lr_min`` along half a cosine, again every ``period`` epochs.

    Cosine annealing with warm restarts (arXiv 1608.03983), epoch by epoch.
    """

    def schedule(epoch, part=1.0):
        return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * (epoch % period) / period)) / 2

    return schedule


def warming_up(schedule: Schedule, epochs: float) -> Schedule:
    """``schedule``, times what climbs from 0 to 1, update by update, in the first ``epochs``."""
    return lambda epoch, part=1.0: schedule(epoch, part) * min(1.0, (epoch + part) / epochs)


def beginning_after(schedule: Schedule, lr: float, epochs: float) -> Schedule:
    """From ``lr`` / 100 to ``lr``, epoch by epoch, in ``epochs``; then ``schedule`` begins.

    As torchvision's references/classification have it.
    """

    def warm(epoch, part=1.0):
        if epoch < epochs:
            return lr * (0.01 + 0.99 * epoch / epochs)
        return schedule(epoch - epochs, part)

    return warm


def _total(options):
    """Return the epochs that the schedule is of."""
    before = options.warmup if options.warmup_by == 'epoch' else 0
    return max(1, options.schedule_epoch - before)


def _period(options):
    """Return lr_period in epochs: 0 is the whole run, and the least is 1."""
    total = _total(options)
    return max(1, epochs_of(options.lr_period, total)) if options.lr_period else total


def of(options: Options) -> Schedule:
    """Return the schedule that the options of a run describe.

    Args:
        options: The run's.
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
    """Say in a few words what :func:`of` makes of the same options."""
    total, period = _total(options), _period(options)
    if options.lr_schedule == 'steps':
        text = _describe_steps([epochs_of(step, total) for step in options.lr_steps], options.epoch)
    elif options.lr_schedule == 'every':
        text = f'divided by 10 every {period} of {options.epoch} epochs'
    else:
        text = f'half a cosine to {options.lr_min:g} every {period} of {options.epoch} epochs'
    return text + (f', {options.warmup:g} epochs of warm-up' if options.warmup else '')
