"""Descriptions of networks in files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.networks import table as networks
from trainer.settings import settings
from trainer.transforms.geometry import Geometry
from trainer.transforms.table import CLASSES

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path

# Most stages: widths double from stage to stage, so with more they are absurd.
_MAX_STAGES = 100


def of(network: Network) -> dict[str, Any]:
    """Return :meth:`Network.architecture`, the preprocessing if it is not that of the class, and
    the geometry if there is one."""
    described = network.architecture()
    if network.preprocessing != type(network).preprocessing:
        described['preprocessing'] = network.preprocessing
    if network.geometry is not None:
        described['geometry'] = network.geometry.as_json()
    return described


def build(described: Mapping[str, Any], path: Path, weight_limit: int | None) -> Network:
    """Build the network that a file describes, with zero weights.

    Args:
        described: A description as from :meth:`Network.architecture`; not trusted.
        path: The file, for messages.
        weight_limit: Most weights that the network may have; ``None``: no limit.

    Raises:
        trainer.errors.InputError: The description is invalid.
    """
    try:
        arguments = dict(described)
        cls = networks.of_kind(arguments.pop('network')).cls
        if len(arguments.get('block_num', ())) > _MAX_STAGES:
            raise ValueError('{} stages'.format(len(arguments['block_num'])))
        classes = arguments.pop('classes', None)
        if classes is not None:
            classes = [str(c) for c in classes]
            if len(classes) != arguments['category_num']:
                raise ValueError(f'{len(classes)} class names')
        preprocessing = arguments.pop('preprocessing', None)
        if preprocessing not in (None, *CLASSES):
            raise ValueError(f'preprocessing {preprocessing!r}')
        held = arguments.pop('geometry', None)
        geometry = None if held is None else Geometry.from_json(held)
        with settings.using(weight_limit=weight_limit):
            network = cls(initialize=False, **arguments)
        network.classes = classes
        if preprocessing is not None:
            network.preprocessing = preprocessing
        set_geometry(network, geometry)
        return network
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
        IndexError,
    ) as e:
        raise InputError(
            f'{path}: describes a network that cannot be built ({type(e).__name__}: {e}); it is '
            'damaged, or was written by a later version'
        ) from e


def set_geometry(network: Network, geometry: Geometry | None) -> None:
    """Set the test geometry of a network.

    Args:
        network: The network.
        geometry: The geometry; ``None``: that of its preprocessing.
    """
    network.geometry = geometry
    network.image_size = type(network).image_size if geometry is None else geometry.img_size


def check_flags(
    network: Network,
    path: Path,
    C: int | None = None,
    d: int | None = None,
    layers: int | None = None,
) -> None:
    """Refuse flags that contradict the network in a file.

    Args:
        network: The network in the file.
        path: The file, for messages.
        C: Cardinality (``-c``).
        d: Base width (``-d``).
        layers: Depth as the paper counts it (``-l``). ``None``: the flag was left out.

    Raises:
        trainer.errors.InputError: A flag contradicts the file.
    """
    given = {'-c': C, '-d': d, '-l': layers}
    held = {'-c': network.C, '-d': network.d, '-l': network.layers}
    wrong = [flag for flag in held if given[flag] not in (None, held[flag])]
    if wrong:
        raise InputError(
            f'{" ".join(f"{flag} {given[flag]}" for flag in wrong)}: {path} holds a network of '
            f'{network.layers} layers, {network.C}x{network.d}d; leave {", ".join(wrong)} out'
        )
