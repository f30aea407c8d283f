"""The paper's networks (arXiv 1611.05431), which facebookresearch/ResNeXt trained in Torch7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import chainer.links as L

from trainer import engines
from trainer.errors import InputError
from trainer.networks import layers
from trainer.networks.base import Network

if TYPE_CHECKING:
    import chainer

#: Shortcut types by the paper's letters -> ``projections`` of a stage.
SHORTCUTS = {'A': 'none', 'B': 'first', 'C': 'all'}


def projections(shortcut: str) -> str:
    """Return the ``projections`` of a stage for a shortcut type: 'A', 'B' or 'C'."""
    if shortcut not in SHORTCUTS:
        raise ValueError(f'shortcut {shortcut!r}: there are A, B and C')
    return SHORTCUTS[shortcut]


def stages(
    block_num: tuple[int, ...], C: int, d: int, multiplier: float, shortcut: str = 'B'
) -> tuple[layers.StageConfig, ...]:
    """Lay out stages whose widths double and whose sizes halve from stage to stage.

    Args:
        block_num: Blocks in each stage.
        C: Cardinality.
        d: Width of one group in the first stage.
        multiplier: Ratio of a stage's output channels to its C x d x 2^i inner channels; the result
            is rounded to whole channels.
        shortcut: 'A' (identities), 'B' (projections in each stage's first block) or 'C'
            (projections everywhere).

    Returns:
        A configuration for each stage.
    """
    return tuple(
        layers.StageConfig(
            blocks,
            C * d * 2**i,
            C,
            round(C * d * 2**i * multiplier),
            2 if i else 1,
            projections(shortcut),
        )
        for i, blocks in enumerate(block_num)
    )


class PaperNetwork(Network):
    """Stem, stages, global average pooling and a fully connected layer.

    Args:
        category_num: Number of classes.
        stages: :class:`StageConfig <trainer.networks.layers.StageConfig>` of each stage, or the
            same as lists.
        stem: Filter size, stride and padding of the first convolution.
        stem_width: Channels of the stem.
        eps: Added to the variance by batch normalisation.
        initialize: ``False`` leaves the weights zero, for loading a file.
        variant: ``deep_stem`` of :class:`trainer.networks.layers.DeepStem`, its ``widths``;
            ``average_shortcut`` and ``se_reduction`` of
            :class:`trainer.networks.layers.Bottleneck`.

    Raises:
        ValueError: A size is not a positive integer, groups do not divide a width, or
            eps is not between 0 and 1.
    """

    def __init__(
        self,
        category_num: int,
        stages: Sequence[Sequence],
        stem: tuple[int, int, int],
        stem_width: int,
        eps: float,
        initialize: bool,
        **variant: Any,
    ) -> None:
        super().__init__()
        if not 0 < eps < 1:
            raise ValueError(f'eps {eps}')
        configs = [layers.StageConfig(*stage) for stage in stages]
        channels = self._build(
            category_num, configs, stem, stem_width, relu_after_add=True, eps=eps, **variant
        )
        self.multiplier = configs[0].out_channels / configs[0].width
        with self.init_scope():
            self.fc = L.Linear(channels, category_num, initialW=0)
        if initialize:
            self.weight_initialization()

    def classify(self, h: chainer.Variable) -> chainer.Variable:
        return engines.current().linear(h, self.fc)

    def original_units(self) -> list[tuple]:
        raise InputError(
            'the 2017 program cannot hold this network: its CIFAR network has other '
            'shortcuts and another head'
        )

    def architecture(self) -> dict[str, Any]:
        architecture = {
            'network': self.kind,
            'category_num': self.category_num,
            'stages': [list(stage) for stage in self.stages],
            'stem_width': self.stem_width,
            'eps': self.eps,
            'classes': self.classes,
            **self.variant,
        }
        if self.round_up_pooling is not None:
            architecture['round_up_pooling'] = self.round_up_pooling
        return architecture
