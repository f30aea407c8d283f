"""All networks, one module here for each: what flags call it, its class, its usual sizes.

A module has an ``ENTRY``; its name is what ``--network`` and recipes call the network. The
classes themselves are where users look for them, in the modules at the top, and derive from
what is defined in :mod:`trainer.inference`: an entry names its class, which is imported when it
is wanted.
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
        name: What flags and recipes call it.
        kind: What files of weights call it, the class's own ``kind``.
        cls_path: Where its class is, 'module:class'.
        title: What users are told that a file holds.
        sizes: Size -> what it is where neither recipe nor flag says otherwise.
        further_sizes: Sizes that it has beside those, derived where they are not given.
        variant: Further arguments of the class; several entries may share one.
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
    """Return the entry of a network by what files call it.

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
