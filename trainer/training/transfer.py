"""Training that begins with another network's weights: a new head, frozen layers.

A converted ImageNet network becomes one for other classes: :func:`reset_classifier`
gives it a head for them, and :class:`Frozen` keeps layers as they are. The head's own
learning rate is a hook (:class:`trainer.optimizers.HeadRate`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import chainer

from trainer.errors import InputError
from trainer.weights import description, npz

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.recipes.options import Options

#: The link of the classifier, in every network.
HEAD = 'fc'


def reset_classifier(network: Network, classes: Iterable[str], seed: int) -> Network:
    """Return a network with the same layers and a new classifier for other classes.

    Args:
        network: Stays as it is.
        classes: Names of the new classes.
        seed: Of the classifier's weights, which are drawn as a new network's.

    Returns:
        trainer.networks.base.Network
    """
    classes = list(classes)
    architecture = dict(description.of(network), category_num=len(classes), classes=classes)
    new = description.build(architecture, 'the network', None)
    new.weight_initialization(seed)
    held = npz.state(new)
    for name, array in npz.state(network).items():
        if not name.startswith(HEAD + '/'):
            held[name] = array
    chainer.serializers.NpzDeserializer(held).load(new)
    return new


def fitting(
    options: Options, given: dict[str, Any], network: Network, classes: list[str]
) -> Options:
    """Return what a recipe for fine-tuning says, as it fits a network.

    Of what the user did not ask for, the last stage is not frozen, however many there are, and a
    classifier for these classes stays.

    Args:
        options: The run's.
        given: Those that the user gave.
        network: From the file of ``-m``.
        classes: To be told apart.
    """
    if 'freeze' not in given:
        before = [part.name for part in _parts(network)[:-2]]
        options = options.replace(freeze=tuple(n for n in options.freeze if n in before))
    if 'reset_classifier' not in given and network.classes == classes:
        options = options.replace(reset_classifier=False)
    return options


def describe(options: Options) -> str:
    """Say in a few words what a run takes over from another network.

    Args:
        options: The run's.
    """
    text = f'weights: of {options.load_model}'
    if options.reset_classifier:
        text += ', with a new classifier'
    if options.head_lr != 1:
        text += f'; the classifier learns {options.head_lr:g} times as fast'
    return text


def links_of(network: Network, prefixes: Sequence[str]) -> list[chainer.Link]:
    """Return the links that paths name, with all that is below them.

    Args:
        network: The network.
        prefixes: Paths as npz files have them: 'stem', 'stage1', 'stage1/block2', ...

    Returns:
        list of chainer.Link

    Raises:
        trainer.errors.InputError: There is no such link.
    """
    links = {path.strip('/'): link for path, link in network.namedlinks(skipself=True)}
    wrong = next((p for p in prefixes if p.strip('/') not in links), None)
    if wrong is not None:
        raise InputError(
            '`freeze` {}: there is no such layer; there are {} and what is below '
            'them, stage1/block1 for example'.format(
                wrong, ', '.join(part.name for part in _parts(network))
            )
        )
    return [links[prefix.strip('/')] for prefix in prefixes]


def check_frozen(
    network: Network, prefixes: Sequence[str]
) -> tuple[list[chainer.Link], set[chainer.Link]]:
    """Check that layers can be frozen.

    Args:
        network, prefixes: See :func:`links_of`.

    Returns:
        The links, and all that are in them.

    Raises:
        trainer.errors.InputError: There is no such layer, or nothing would be left to
            train.
    """
    tops = links_of(network, prefixes)
    frozen = {link for top in tops for link in top.links()}
    if _all_in(network, frozen):
        raise InputError('`freeze` {}: nothing would be left to train'.format(' '.join(prefixes)))
    return tops, frozen


def _all_in(link, frozen):
    """Return whether all parameters of a link are of frozen links."""
    return all(part in frozen for part in link.links() if part._params)


def _parts(network):
    """Return stem, stages and classifier, in this order."""
    return [
        network[name]
        for name in ('stem', *(f'stage{i + 1}' for i in range(len(network.stages))), HEAD)
    ]


class Frozen(chainer.LinkHook):
    """Layers that training leaves as they are.

    Their parameters are not updated, and their batch normalisation uses its running
    statistics and keeps them. Where everything up to some layer is frozen, no gradient
    is computed there.

    Args:
        network: The network, its optimizer set up.
        prefixes: See :func:`links_of`.

    Raises:
        trainer.errors.InputError: There is no such layer, or nothing would be left to
            train.
    """

    name: str = 'Frozen'

    def __init__(self, network: Network, prefixes: Sequence[str]) -> None:
        super().__init__()
        self._before: list[tuple[bool, bool]] = []
        tops, frozen = check_frozen(network, prefixes)
        for link in tops:
            link.disable_update()
        self._bottom = set()
        for child in _parts(network):
            if not _all_in(child, frozen):
                break
            self._bottom.add(child)
        for link in network.links():
            # What holds something to train cannot be switched; what is in it can.
            if (
                link is not network
                and any(True for _ in link.params())
                and _all_in(link, frozen)
                and self.name not in link.local_link_hooks
            ):
                link.add_hook(self)

    def forward_preprocess(self, args: argparse.Namespace) -> None:
        config = chainer.config
        self._before.append((config.train, config.enable_backprop))
        config.train = False
        config.enable_backprop = config.enable_backprop and args.link not in self._bottom

    def forward_postprocess(self, args: argparse.Namespace) -> None:
        chainer.config.train, chainer.config.enable_backprop = self._before.pop()
