"""The paper's ImageNet networks, which the Torch7 files hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import InputError
from trainer.inference.model import Model
from trainer.networks import layers, paper_network
from trainer.weights.formats import load

__all__ = [
    'ResNext',
    'resnext50',
    'resnext101',
    'resnext152',
    'seresnext50',
    'seresnext101',
    'resnext50d',
    'resnet50',
    'resnet101',
    'resnet152',
    'load',
]

# Layers -> blocks in each stage.
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNext(Model, paper_network.PaperNetwork):
    """The paper's ImageNet ResNeXt: 7x7 stem, 3x3 max pooling, stages of bottlenecks.

    Stage i (from 0) has C x d x 2^i channels inside its blocks and C x d x 2^i x
    multiplier after them. Images: (batch, 3, height, width) float32, as
    ``data_augmentation.DataAugmentationNormalizeBigger`` makes them.

    Args:
        category_num: Number of classes.
        block_num: Blocks in each stage.
        C: Cardinality.
        d: Width of one group in the first stage.
        multiplier: Channels after a block for each channel inside: 256 / (C x d) in the paper, so 1
            for 64x4d and 2 for 32x4d.
        stem_width: Channels of the stem.
        stages: :class:`StageConfig <trainer.networks.layers.StageConfig>` of each stage, for
            networks that block_num, C, d, multiplier and shortcut cannot describe; they are ignored
            then. Files hold this.
        shortcut: 'A' (identities), 'B' (a projection in each stage's first block, the paper's) or
            'C' (projections everywhere).
        round_up_pooling: ``False``: the max pooling reduces 112 to 56 pixels, as in Torch7, in
            which the published weights were trained. ``True``: to 57, as in the 2017 program, where
            the converted weights therefore lost about one point of top-1 accuracy; for comparing
            with that program.
        eps: Added to the variance by batch normalisation.
        initialize: ``False`` leaves the weights zero, for loading a file.
        deep_stem: Channels of the first two of three 3x3 convolutions in place of the 7x7 one, (32,
            32) in ResNet-D (arXiv 1812.01187).
        average_shortcut: Whether shortcuts of stride 2 average over 2x2 pixels before a projection
            of stride 1, as in ResNet-D.
        se_reduction: Reduction of the squeeze-and-excitation (arXiv 1709.01507) that ends each
            block, 16 in SE-ResNeXt; 0: there is none.
        pool_pad: Padding of the max pooling: 1, or 0 as in Caffe's SE-ResNeXt.

    Caffe's networks pool with both ``round_up_pooling`` and ``pool_pad`` 0.
    """

    kind: str = 'ilsvrc'
    preprocessing: str = 'DataAugmentationNormalizeBigger'
    image_size: int = 224

    def __init__(
        self,
        category_num: int,
        block_num: tuple[int, ...] = (3, 4, 23, 3),
        C: int = 64,
        d: int = 4,
        multiplier: float = 1,
        *,
        stem_width: int = 64,
        stages: Sequence[Sequence] | None = None,
        shortcut: str = 'B',
        round_up_pooling: bool = False,
        eps: float = 1e-5,
        initialize: bool = True,
        deep_stem: Sequence[int] | None = None,
        average_shortcut: bool = False,
        se_reduction: int | None = None,
        pool_pad: int = 1,
    ) -> None:
        layers.check_arguments(category_num=category_num, stem_width=stem_width)
        if stages is None:
            layers.check_arguments(block_num=block_num, C=C, d=d, multiplier=multiplier)
            stages = paper_network.stages(block_num, C, d, multiplier, shortcut)
        if deep_stem is not None and len(deep_stem) != 2:
            raise ValueError(f'deep_stem {deep_stem}: it has two widths')
        if pool_pad not in (0, 1):
            raise ValueError(f'pool_pad {pool_pad}')
        self.round_up_pooling, self.pool_pad = bool(round_up_pooling), pool_pad
        variant = {
            'deep_stem': None if deep_stem is None else list(deep_stem),
            'average_shortcut': bool(average_shortcut),
            'se_reduction': se_reduction,
        }
        super().__init__(category_num, stages, (7, 2, 3), stem_width, eps, initialize, **variant)
        self.variant = {name: value for name, value in variant.items() if value}

    def architecture(self) -> dict[str, Any]:
        pool = {} if self.pool_pad == 1 else {'pool_pad': self.pool_pad}
        return super().architecture() | pool

    @staticmethod
    def expansion(sizes: Mapping[str, Any]) -> float:
        return sizes['multi'] or 256 / (sizes['C'] * sizes['d'])

    @staticmethod
    def blocks_of_depth(depth: int) -> tuple[int, ...]:
        """Return the blocks in each stage of a network of 50, 101 or 152 layers.

        Raises:
            trainer.errors.InputError: No network has this number of layers.
        """
        if depth not in _BLOCKS:
            raise InputError(
                f'depth {depth}: ImageNet networks have 50, 101 or 152 layers; block_num '
                'gives others'
            )
        return _BLOCKS[depth]

    def original_units(self) -> list[tuple]:
        block_num, C, d = self.block_num, self.C, self.d
        if (
            self.stages != paper_network.stages(block_num, C, d, self.multiplier)
            or self.multiplier != int(self.multiplier)
            or self.stem_width != 64
            or self.eps != 1e-5
            or self.variant
            or self.pool_pad != 1
        ):
            raise InputError(
                'the 2017 program cannot hold this network: its own has a stem of 64 channels, a '
                "projection in each stage's first block, widths that double from stage to stage, "
                'a whole multiplier, eps 1e-5, and no squeeze-and-excitation'
            )

        def unit(here, convs, bn=None):
            return (
                here + '/conv',
                [conv + '/conv' for conv in convs],
                here + '/bn',
                [(bn or convs[0]) + '/bn'],
            )

        units = [unit('stem', ['conv_bn_relu'])]
        for i, blocks in enumerate(block_num):
            stage = f'stage{i + 1}/'
            units.append(unit(stage + 'block1/shortcut', [f'skip_connection_{i}']))
            for j in range(blocks):
                here = f'{stage}block{j + 1}/'
                there = f'resnext_block_{i}_{j}/'
                units += [
                    unit(here + 'reduce', [there + 'conv_bn_relu_1']),
                    unit(
                        here + 'grouped',
                        [f'{there}conv_group_2/conv_group_{k}' for k in range(C)],
                        there + 'bn_relu_3',
                    ),
                    unit(here + 'expand', [there + 'conv_bn_4']),
                ]
        units.append(('fc', ['linear/linear'], None, []))
        return units


def _multiplier(C, d):
    layers.check_arguments(C=C, d=d)
    return 256 / (C * d)


def resnext50(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build the paper's ResNeXt-50 of any cardinality and base width.

    Its blocks output 256, 512, 1024 and 2048 channels in stages 1 to 4. 1x64d, 2x40d, 4x24d,
    8x14d and 32x4d have the same complexity.

    Args:
        category_num: Number of classes.
        C: Cardinality.
        d: Width of one group in the first stage.
        arguments: Further arguments of :class:`ResNext`.
    """
    return ResNext.of_depth(50, category_num, C=C, d=d, multiplier=_multiplier(C, d), **arguments)


def resnext101(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build ResNeXt-101; see :func:`resnext50`."""
    return ResNext.of_depth(101, category_num, C=C, d=d, multiplier=_multiplier(C, d), **arguments)


def resnext152(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build ResNeXt-152; see :func:`resnext50`."""
    return ResNext.of_depth(152, category_num, C=C, d=d, multiplier=_multiplier(C, d), **arguments)


def seresnext50(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build SE-ResNeXt-50 (arXiv 1709.01507); see :func:`resnext50`."""
    return resnext50(category_num, C, d, **{'se_reduction': 16, **arguments})


def seresnext101(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build SE-ResNeXt-101; see :func:`seresnext50`."""
    return resnext101(category_num, C, d, **{'se_reduction': 16, **arguments})


def resnext50d(category_num: int = 1000, C: int = 32, d: int = 4, **arguments: Any) -> ResNext:
    """Build ResNeXt-50 with ResNet-D's stem and shortcuts (arXiv 1812.01187)."""
    return resnext50(
        category_num, C, d, **{'deep_stem': (32, 32), 'average_shortcut': True, **arguments}
    )


def resnet50(category_num: int = 1000, **arguments: Any) -> ResNext:
    """Build ResNet-50: ResNeXt-50 of cardinality 1, its stride in the 3x3 convolutions."""
    return resnext50(category_num, 1, 64, **arguments)


def resnet101(category_num: int = 1000, **arguments: Any) -> ResNext:
    """Build ResNet-101; see :func:`resnet50`."""
    return resnext101(category_num, 1, 64, **arguments)


def resnet152(category_num: int = 1000, **arguments: Any) -> ResNext:
    """Build ResNet-152; see :func:`resnet50`."""
    return resnext152(category_num, 1, 64, **arguments)
