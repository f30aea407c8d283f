"""The table of all networks, one module each: its name in flags, its class, its default sizes.

A module has an ``ENTRY``; the module's name is the value of ``--network`` and of recipes. The
classes are in the top-level modules, where users expect them, and derive from
:mod:`trainer.inference`: an entry names its class, which is imported on demand.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.networks.base import Network


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network.

    Attributes:
        name: Its name in flags and recipes.
        kind: Its name in files of weights, the ``kind`` of the class.
        cls_path: Its class, as 'module:class'.
        title: Its name in messages about files.
        sizes: Size -> default value.
        further_sizes: Names of further sizes, which are derived if not given.
        variant: Further arguments of the class; several entries may share a class.
    """

    name: str
    kind: str
    cls_path: str
    title: str
    sizes: dict[str, object]
    further_sizes: tuple[str, ...] = ()
    variant: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def cls(self) -> type[Network]:
        """The class, a :class:`trainer.networks.base.Network`."""
        module, name = self.cls_path.split(':')
        return getattr(importlib.import_module(module), name)


def available() -> list[str]:
    """Return the names of the networks: the modules here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Entry:
    """Return the entry of a network by its name.

    Raises:
        KeyError: There is no such network.
    """
    if name not in available():
        raise KeyError(name)
    return importlib.import_module(f'{__name__}.{name}').ENTRY


def of_kind(kind: str) -> Entry:
    """Return the entry of a network by its name in files.

    Raises:
        KeyError: There is no such network.
    """
    entries = {entry.kind: entry for entry in map(get, available()) if not entry.variant}
    return entries[kind]


def of(network: Network) -> Entry:
    """Return the entry of a network: that of its variant, or of its class's plain network.

    Args:
        network: The network.
    """
    variants = (get(name) for name in available())
    found = (e for e in variants if (e.kind, e.variant) == (network.kind, network.variant))
    return next(found, None) or of_kind(network.kind)
