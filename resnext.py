"""The CIFAR network of nutszebra/resnext, and the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.inference.model import Model
from trainer.networks import layers, paper_network
from trainer.networks.base import Network
from trainer.weights.formats import load

if TYPE_CHECKING:
    import chainer

__all__ = ['ResNext', 'PaperResNext', 'resnet', 'load']


class ResNext(Model, Network):
    """The 2017 program's CIFAR ResNeXt (its ``resnext.py``).

    It differs from the paper's in its shortcuts (subsampling and zero channels
    instead of projections), in where its ReLUs are (before the addition, none
    after it) and in its head (batch normalisation and ReLU on the scores).

    Args:
        category_num: Number of classes.
        block_num: Blocks in each stage.
        C: Cardinality.
        d: Width of one group in the first stage; it doubles from stage to stage.
        multiplier: A block of stage i gives d x 2^(i-1) x multiplier channels.
        shortcut: 'A' (identities, that program's), 'B' (a projection in each stage's first block)
            or 'C' (projections everywhere).
        initialize: ``False`` leaves the weights zero, for loading a file.
    """

    kind: str = 'original-cifar'
    preprocessing: str = 'DataAugmentationCifar10NormalizeSmall'

    def __init__(
        self,
        category_num: int,
        block_num: tuple[int, ...] = (3, 3, 3),
        C: int = 4,
        d: int = 64,
        multiplier: int = 4,
        initialize: bool = True,
        shortcut: str = 'A',
    ) -> None:
        layers.check_arguments(
            category_num=category_num, block_num=block_num, C=C, d=d, multiplier=multiplier
        )
        super().__init__()
        self.multiplier = multiplier
        stages = [
            layers.StageConfig(
                blocks,
                C * d * 2**i,
                C,
                d * 2**i * multiplier,
                2 if i else 1,
                paper_network.projections(shortcut),
            )
            for i, blocks in enumerate(block_num)
        ]
        # Chainer v1's default, which its files were trained with.
        eps = 2e-5
        channels = self._build(
            category_num,
            stages,
            stem=(3, 1, 1),
            stem_width=d * multiplier,
            relu_after_add=False,
            eps=eps,
        )
        with self.init_scope():
            self.fc = layers.ConvBN(channels, category_num, 1, eps=eps)
        for link in self.links():
            if isinstance(link, layers.ConvBN):
                link.eps_in_average = True
        if initialize:
            self.weight_initialization()

    @staticmethod
    def expansion(sizes: Mapping[str, Any]) -> float:
        return sizes['multi']

    def classify(self, h: chainer.Variable) -> chainer.Variable:
        return self.fc(h).reshape((len(h), self.category_num))

    def architecture(self) -> dict[str, Any]:
        return {
            'network': self.kind,
            'category_num': self.category_num,
            'block_num': list(self.block_num),
            'C': self.C,
            'd': self.d,
            'multiplier': self.multiplier,
            'shortcut': self.shortcut,
            'classes': self.classes,
        }

    def original_units(self) -> list[tuple]:
        if self.shortcut != 'A':
            raise InputError(
                'the 2017 program cannot hold this network: its shortcuts have no weights'
            )

        def unit(here, names):
            return (
                here + '/conv',
                [name + '/conv' for name in names],
                here + '/bn',
                [name + '/bn' for name in names],
            )

        units = [unit('stem', ['conv_bn_relu'])]
        for i, blocks in enumerate(self.block_num, 1):
            for j in range(1, blocks + 1):
                here = f'stage{i}/block{j}/'
                there = f'resnext_block_{i}_{j}/conv_bn_relu'
                for part, number in (('reduce', 1), ('grouped', 2)):
                    units.append(
                        unit(here + part, [f'{there}{number}_{k}' for k in range(1, self.C + 1)])
                    )
                units.append(unit(here + 'expand', [there + '3']))
        units.append(unit('fc', ['linear']))
        return units


class PaperResNext(Model, paper_network.PaperNetwork):
    """The paper's CIFAR ResNeXt: projection shortcuts, ReLU after the addition, linear head.

    Stage i (from 0) has C x d x 2^i channels inside its blocks and 64 x widen_factor x
    2^i after them. Images: (batch, 3, height, width) float32.

    Args:
        category_num: Number of classes.
        block_num: Blocks in each stage.
        C: Cardinality.
        d: Width of one group in the first stage.
        widen_factor: See above; the paper's is 4.
        stem_width: Channels of the stem.
        stages: :class:`StageConfig <trainer.networks.layers.StageConfig>` of each stage, for
            networks that block_num, C, d, widen_factor and shortcut cannot describe; they are
            ignored then. Files hold this.
        shortcut: 'A' (identities), 'B' (a projection where a stage's first block changes the size,
            the paper's) or 'C' (projections everywhere).
        eps: Added to the variance by batch normalisation.
        initialize: ``False`` leaves the weights zero, for loading a file.
    """

    kind: str = 'paper-cifar'

    def __init__(
        self,
        category_num: int,
        block_num: tuple[int, ...] = (3, 3, 3),
        C: int = 8,
        d: int = 64,
        widen_factor: int = 4,
        *,
        stem_width: int = 64,
        stages: Sequence[Sequence] | None = None,
        shortcut: str = 'B',
        eps: float = 1e-5,
        initialize: bool = True,
    ) -> None:
        layers.check_arguments(category_num=category_num, stem_width=stem_width)
        if stages is None:
            layers.check_arguments(block_num=block_num, C=C, d=d, widen_factor=widen_factor)
            stages = paper_network.stages(block_num, C, d, 64 * widen_factor / (C * d), shortcut)
            if shortcut == 'B' and stages[0].out_channels == stem_width:
                stages = (stages[0]._replace(projections='none'),) + stages[1:]
        super().__init__(category_num, stages, (3, 1, 1), stem_width, eps, initialize)

    @staticmethod
    def expansion(sizes: Mapping[str, Any]) -> float:
        return sizes['widen_factor']


def resnet(depth: int, category_num: int = 10, d: int = 64, **arguments: Any) -> PaperResNext:
    """Build the paper's CIFAR ResNet of 9n + 2 layers: its ResNeXt of cardinality 1.

    Args:
        depth: Layers.
        category_num: Number of classes.
        d: Base width.
        arguments: Further arguments of :class:`PaperResNext`.

    Raises:
        trainer.errors.InputError: No network has this number of layers.
    """
    return PaperResNext.of_depth(depth, category_num, C=1, d=d, **arguments)
