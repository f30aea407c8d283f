"""The names that PyTorch projects give to the parts of a network: one module per naming.

A naming is data; :mod:`trainer.weights.state_dict` has the code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

#: eps of PyTorch's batch normalisation and of every naming; state dicts do not hold it.
EPS = 1e-5


class Variants(NamedTuple):
    """Names of the parts that only variants of a network have; ``None``: there are none.

    Attributes:
        name: Name of the project, for users.
        deep_stem: Each convolution of :class:`DeepStem <trainer.networks.layers.DeepStem>` and its
            batch normalisation.
        average_shortcut: (stage, block), both from 0 -> convolution and batch normalisation of a
            shortcut that averages.
        se: (stage, block) -> the two layers of :class:`SqueezeExcite
            <trainer.networks.layers.SqueezeExcite>`, 1x1 convolutions.
    """

    name: str
    deep_stem: list[tuple[str, str]] | None = None
    average_shortcut: Callable[[int, int], tuple[str, str]] | None = None
    se: Callable[[int, int], tuple[str, str]] | None = None


class Naming(NamedTuple):
    """The names of one project.

    Attributes:
        name: Name of the naming, for users.
        kind: The networks to which it applies: 'ilsvrc' or 'paper-cifar' (:attr:`Network.kind
            <trainer.networks.base.Network.kind>`).
        stem: First convolution and its batch normalisation.
        block: (stage, block), both from 0 -> dict of 'reduce', 'grouped', 'expand' and 'shortcut'
            -> (convolution, batch normalisation).
        classifier: Number of stages -> the fully connected layer.
        any_projections: Whether the project's networks can have projection shortcuts anywhere, not
            only where sizes differ.
        preprocessing: The class of ``data_augmentation`` with which the project's weights were
            trained, if it is not that of the network's kind.
        variants: Names of variants' parts; ``None``: the project has only the plain network.
        pooling: (name, value) of the network's arguments if its max pooling differs from
            PyTorch's.
    """

    name: str
    kind: str
    stem: tuple[str, str]
    block: Callable[[int, int], dict[str, tuple[str, str]]]
    classifier: Callable[[int], str]
    any_projections: bool = False
    preprocessing: str | None = None
    variants: Variants | None = None
    pooling: tuple[tuple[str, Any], ...] = ()


def table() -> dict[str, list[Naming]]:
    """Return name -> list of :class:`Naming`, at most one for each kind of network."""
    from trainer.weights.namings import clcarwin, prlz77, senet, torchvision

    names = {'torchvision': torchvision.NAMINGS}
    # Their networks have exactly torchvision's names.
    names['timm'] = names['lornatang'] = names['torchvision']
    names.update(clcarwin.TABLE)
    names['prlz77'] = prlz77.NAMINGS
    names['senet'] = senet.NAMINGS
    return names
