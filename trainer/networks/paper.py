"""The paper's networks (arXiv 1611.05431), which facebookresearch/ResNeXt trained in Torch7."""

import chainer.links as L

from trainer import engines
from trainer.errors import InputError
from trainer.networks import layers
from trainer.networks.base import Network

#: Shortcut types by the paper's letters -> ``projections`` of a stage.
SHORTCUTS = {'A': 'none', 'B': 'first', 'C': 'all'}


def projections(shortcut):
    """Return the ``projections`` of a stage for a shortcut type: 'A', 'B' or 'C'."""
    if shortcut not in SHORTCUTS:
        raise ValueError(f'shortcut {shortcut!r}: there are A, B and C')
    return SHORTCUTS[shortcut]


def stages(block_num, C, d, multiplier, shortcut='B'):
    """Lay out stages whose widths double and whose sizes halve from stage to stage.

    Args:
        block_num (tuple of int): Blocks in each stage.
        C (int): Cardinality.
        d (int): Width of one group in the first stage.
        multiplier (float): A stage's output channels for each of its C x d x 2^i
            channels inside; rounded to whole channels.
        shortcut (str): 'A' (identities), 'B' (projections in each stage's first
            block) or 'C' (projections everywhere).

    Returns:
        tuple of trainer.networks.layers.StageConfig: The stages.
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
        category_num (int): Number of classes.
        stages (sequence): :class:`StageConfig <trainer.networks.layers.StageConfig>`
            of each stage, or the same as lists.
        stem (tuple of int): Filter size, stride and padding of the first convolution.
        stem_width (int): Its channels.
        eps (float): Added to the variance by batch normalisation.
        initialize (bool): ``False`` leaves the weights zero, for loading a file.
        variant: ``deep_stem`` of :class:`trainer.networks.layers.DeepStem`, its ``widths``;
            ``average_shortcut`` and ``se_reduction`` of
            :class:`trainer.networks.layers.Bottleneck`.

    Raises:
        ValueError: A size is not a positive integer, groups do not divide a width, or
            eps is not between 0 and 1.
    """

    def __init__(self, category_num, stages, stem, stem_width, eps, initialize, **variant):
        super().__init__()
        if not 0 < eps < 1:
            raise ValueError(f'eps {eps}')
        stages = [layers.StageConfig(*stage) for stage in stages]
        channels = self._build(
            category_num, stages, stem, stem_width, relu_after_add=True, eps=eps, **variant
        )
        self.multiplier = stages[0].out_channels / stages[0].width
        with self.init_scope():
            self.fc = L.Linear(channels, category_num, initialW=0)
        if initialize:
            self.weight_initialization()

    def classify(self, h):
        return engines.current().linear(h, self.fc)

    def original_units(self):
        raise InputError(
            'the 2017 program cannot hold this network: its CIFAR network has other '
            'shortcuts and another head'
        )

    def architecture(self):
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
