"""Transfer learning: new classifiers, frozen layers.

:func:`reset_classifier` gives a network, such as a converted ImageNet network, a classifier
for other classes, and :class:`Frozen` freezes layers. The classifier's own learning rate is a
hook (:class:`trainer.optimizers.HeadRate`).
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

#: Name of the classifier's link, in every network.
HEAD = 'fc'


def reset_classifier(network: Network, classes: Iterable[str], seed: int) -> Network:
    """Return a network with the same layers and a new classifier for other classes.

    Args:
        network: The network, which is not changed.
        classes: Names of the new classes.
        seed: Seed of the classifier's weights, which are drawn as for a new network.

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
    """Adapt the options of a recipe for fine-tuning to a network.

    Unless the user asked for it, the last of any number of stages is not frozen, and a classifier
    that already has these classes is kept.

    Args:
        options: The run's options.
        given: The options that the user gave.
        network: The network in the file of ``-m``.
        classes: Names of the dataset's classes.
    """
    if 'freeze' not in given:
        before = [part.name for part in _parts(network)[:-2]]
        options = options.replace(freeze=tuple(n for n in options.freeze if n in before))
    if 'reset_classifier' not in given and network.classes == classes:
        options = options.replace(reset_classifier=False)
    return options


def describe(options: Options) -> str:
    """Describe in a few words what a run takes over from another network.

    Args:
        options: The run's options.
    """
    text = f'weights: of {options.load_model}'
    if options.reset_classifier:
        text += ', with a new classifier'
    if options.head_lr != 1:
        text += f'; the classifier learns {options.head_lr:g} times as fast'
    return text


def links_of(network: Network, prefixes: Sequence[str]) -> list[chainer.Link]:
    """Return the links at paths.

    Args:
        network: The network.
        prefixes: Paths as in npz files: 'stem', 'stage1', 'stage1/block2', ...

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
        The links, and all links inside them.

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
    """Return whether all parameters of a link belong to frozen links."""
    return all(part in frozen for part in link.links() if part._params)


def _parts(network):
    """Return stem, stages and classifier, in order."""
    return [
        network[name]
        for name in ('stem', *(f'stage{i + 1}' for i in range(len(network.stages))), HEAD)
    ]


class Frozen(chainer.LinkHook):
    """Frozen layers.

    Their parameters are not updated, and their batch normalisation uses its running statistics
    without updating them. If all layers up to some layer are frozen, no gradients are computed
    for them.

    Args:
        network: The network, with its optimizer set up.
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
            # A link with trained parameters cannot be switched, but links inside it can.
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
