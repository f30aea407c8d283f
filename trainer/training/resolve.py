"""Resolves the options of a run: given ones, over those of the record, over the recipe's."""

import difflib
import os
from collections.abc import Callable

from trainer import recipes, run_folder
from trainer.errors import InputError, together
from trainer.networks import table as networks
from trainer.recipes.flags import check, from_json
from trainer.recipes.options import FREE, PATHS, SIZES, SPECS, Options
from trainer.recipes.spec import flag
from trainer.weights import sources


def resolve(folder: str, resume: bool, say: Callable, given: dict) -> tuple[Options, dict | None]:
    """Resolve the options of a run: given ones, over those of the record, over the recipe's.

    Args:
        folder: The run's folder.
        resume: Whether to resume the run in the folder.
        say: Receives messages.
        given: The options that the user gave.

    Returns:
        The complete options, and the record's description of the network, or ``None`` for a new
        run.

    Raises:
        trainer.errors.InputError: An option cannot be used, or differs from that of the run.
    """
    record = run_folder.read_record(folder) if resume else None
    given = _checked(given)
    if record is None:
        return _new(given, say), None
    used = _usual(record['options'])[0].replace(**_anywhere(record['options']))
    used = used.replace(schedule_epoch=used.schedule_epoch or used.epoch)
    for name, value in given.items():
        held = getattr(used, name)
        if name not in FREE and value != held:
            raise InputError(
                f'{flag(name)} {value}: the run in {folder} has {held}; leave the flag out, '
                'or start another run in another folder (-p)'
            )
    return used.replace(**given), record['network']


def _checked(given):
    given = {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in given.items()}
    together(*(lambda item=item: _check(*item) for item in given.items()))
    return _anywhere(from_json(given))


def _check(name, value):
    if name not in Options.__dataclass_fields__:
        close = difflib.get_close_matches(name, Options.__dataclass_fields__, 1)
        raise TypeError(f'no option {name!r}' + (f'; {close[0]!r} may be meant' if close else ''))
    try:
        check(name, value)
    except ValueError as e:
        shown = repr(value) if isinstance(value, str) and SPECS[name].kind else value
        raise InputError(f'{flag(name)} {shown}: {e}') from e


def _anywhere(given):
    """Make the paths in options absolute."""
    paths = (n for n in PATHS if given.get(n) and not sources.is_name(given[n]))
    return given | {name: os.path.abspath(given[name]) for name in paths}


def _usual(given):
    """Return the recipe's options for the chosen network, and the recipe."""
    quick, name = given.get('quick'), given.get('recipe')
    if quick and name not in (None, 'quick'):
        raise InputError(
            f'`quick` and `recipe` {name}: `quick` is a recipe of its own; leave one of the two out'
        )
    name = 'quick' if quick else name or _default(given)
    recipe = recipes.get(name)
    network = given.get('network', recipe.network)
    usual = networks.get(network).sizes
    sizes = {size: usual.get(size) for size in SIZES}
    if network == recipe.network:
        own = {size: getattr(recipe, size) for size in SIZES}
        sizes |= {size: value for size, value in own.items() if value is not None}
    return recipe.replace(recipe=name, network=network, **sizes), recipe


def _default(given):
    """Return the default recipe; resuming by hand, as in 2017, has the usual one."""
    fine_tunes = given.get('load_model') is not None and given.get('dataset') == 'folder'
    by_hand = {'load_optimizer', 'load_log', 'start_epoch'} & set(given)
    return recipes.FINE_TUNE if fine_tunes and not by_hand else Options.recipe


def _new(given, say):
    used, recipe = _usual(given)
    _check_sizes(given, used.network)
    if 'block_num' in given:
        used = used.replace(depth=None)
    used = used.replace(**given)
    if used.reset_classifier and used.load_model is None:
        which = '`reset_classifier`' if 'reset_classifier' in given else f'`recipe` {used.recipe}'
        raise InputError(
            f'{which}: there is no model whose classifier could be replaced; name it with --retrain'
        )
    if used.repeated_augmentation > 1 and used.sampling == 'original':
        raise InputError(
            f'`repeated_augmentation` {used.repeated_augmentation}: `sampling` original draws each '
            'batch anew, without repetitions; take every-image or full-batches'
        )
    if used.depth is not None:
        used = used.replace(block_num=_blocks(used.network, used.depth))
    used = _scale(used, recipe, given, say)
    return used.replace(schedule_epoch=used.schedule_epoch or used.epoch)


def _check_sizes(given, network):
    entry = networks.get(network)
    known = {*entry.sizes, *entry.further_sizes}
    for size in SIZES:
        if size in given and size not in known and given.get('load_model') is None:
            raise InputError(
                f'{flag(size)} {given[size]}: `network` {network} has no such size; it has '
                + ', '.join(flag(s) for s in SIZES if s in known)
            )
    if 'block_num' in given and 'depth' in given:
        raise InputError(
            f'`depth` {given["depth"]} and `block_num`: either of them says how deep the network '
            'is; leave one out'
        )


def _blocks(network, depth):
    """Return the blocks in each stage of a network, given its number of layers."""
    try:
        return networks.get(network).cls.blocks_of_depth(depth)
    except InputError as e:
        raise InputError(f'`depth` {str(e).removeprefix("depth ")}') from None


def _scale(used, recipe, given, say):
    """Adapt options to another batch size than the recipe's, as its source does."""
    batch, usual = used.batch, recipe.batch
    if batch == usual or used.batch_scaling == 'none':
        return used
    if used.batch_scaling == 'lr':
        if 'lr' in given:
            return used
        lr = recipe.lr * batch / usual
        say(
            f'learning rate {lr:g} = {recipe.lr:g} x {batch} / {usual}: the recipe scales it with '
            'the batch; --lr sets it'
        )
        return used.replace(lr=lr)
    if 'epoch' not in given:
        used = used.replace(epoch=max(1, recipe.epoch * usual // batch))
    if 'lr_steps' not in given:
        steps = (step if 0 < step < 1 else step * usual // batch for step in recipe.lr_steps)
        used = used.replace(lr_steps=tuple(steps))
    say(
        f'{used.epoch} epochs, divided by 10 after {", ".join(map(str, used.lr_steps))}: the '
        f'recipe scales them with {usual} / batch; --epoch and --lr-steps set them'
    )
    return used
