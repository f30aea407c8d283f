"""Recipes: the options with which a source trains its network. Each is one module with a value of
:class:`trainer.recipes.options.Options`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.recipes.options import Options

# Modules of this package that are not recipes.
_OTHERS = {'flags', 'options', 'spec'}

#: The recipe of a run that starts from trained weights with the user's own images.
FINE_TUNE = 'fine_tune'


def available() -> list[str]:
    """Return the names of the recipes."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _OTHERS)


def get(name: str) -> Options:
    """Return the :class:`~trainer.recipes.options.Options` of a recipe by its name.

    Raises:
        trainer.errors.InputError: There is no such recipe.
    """
    if name not in available():
        raise InputError(f'`recipe` {name}: there are {", ".join(available())}')
    return importlib.import_module(f'{__name__}.{name}').RECIPE
