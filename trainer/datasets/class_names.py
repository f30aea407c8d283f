"""Names of classes."""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING

from trainer.datasets import cifar10, cifar100

if TYPE_CHECKING:
    from trainer.networks.base import Network


@functools.cache
def imagenet() -> dict[str, str]:
    """Return ImageNet's 1000 classes, in the order of their synset numbers: Torch7's labels.

    Returns:
        Synset ('n01440764') -> its WordNet names ('tench, Tinca tinca').
    """
    lines = (
        importlib.resources.files(__package__)
        .joinpath('imagenet.txt')
        .read_text('utf-8')
        .splitlines()
    )
    return dict(line.split(' ', 1) for line in lines)


def named(categories: list[str]) -> list[str]:
    """Replace synsets by their names.

    Args:
        categories: Synsets, or other names, which stay as they are.
    """
    return [imagenet().get(category, category) for category in categories]


def of(network: Network) -> list[str]:
    """Return the names of a network's classes.

    They are those in its file. Without names, a network of 1000, 10 or 100 classes is assumed
    to be for ImageNet, CIFAR-10 or CIFAR-100.

    Args:
        network: The network.

    Returns:
        A name for each class; 'class 0', 'class 1', ... if nothing is known.
    """
    if network.classes is not None:
        return named(network.classes)
    for names in (list(imagenet().values()), cifar10.SPEC.classes, cifar100.SPEC.classes):
        if len(names) == network.category_num:
            return list(names)
    return [f'class {i}' for i in range(network.category_num)]


def synsets(network: Network) -> list[str] | None:
    """Return the synsets of a network's classes, or ``None`` if they are not ImageNet's."""
    if network.classes is None and network.category_num == len(imagenet()):
        return list(imagenet())
    if network.classes is not None and all(c in imagenet() for c in network.classes):
        return list(network.classes)
    return None
