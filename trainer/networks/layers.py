"""The links of which every network is made.

They hold the parameters and define the computation; an engine (:mod:`trainer.engines`) computes
it. Weights start as zeros: a network fills them with
:meth:`weight_initialization <trainer.networks.base.Network.weight_initialization>`
or from a file.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import chainer
import chainer.links as L

from trainer import engines
from trainer.settings import settings

#: Share of its running statistics that batch normalisation keeps at each batch.
BN_DECAY = 0.9


class StageConfig(NamedTuple):
    """One stage of a network: blocks that share their sizes.

    Attributes:
        blocks: Number of blocks.
        width: Channels of the 3x3 convolution, over all groups.
        groups: Cardinality: groups of the 3x3 convolution.
        out_channels: Channels after each block.
        stride: Stride of the first block's 3x3 convolution.
        projections: Which shortcuts are a 1x1 convolution with batch normalisation: 'first' (the
            paper's type B), 'all' (type C) or 'none' (type A). The others are identities,
            subsampled and padded with zero channels where the sizes differ.
    """

    blocks: int
    width: int
    groups: int
    out_channels: int
    stride: int
    projections: str


# More than any network has (6,002 layers): links take far more memory than small weights.
_MAX_BLOCKS = 2000


def check_arguments(**given: object) -> None:
    """Check the arguments of a network.

    Args:
        given: Positive integers; ``block_num`` a sequence of them; ``multiplier`` and
            ``widen_factor`` positive numbers.

    Raises:
        ValueError: An argument is not; the message names it.
    """
    for name, value in given.items():
        if name == 'block_num':
            fits = isinstance(value, (list, tuple)) and value and all(map(_is_size, value))
            wanted = 'positive integers, one for each stage,'
        elif name in ('multiplier', 'widen_factor'):
            fits = isinstance(value, (int, float)) and value > 0
            wanted = 'a positive number'
        else:
            fits, wanted = _is_size(value), 'a positive integer'
        if not fits:
            raise ValueError(
                f'{name}={value!r}: {wanted} {"are" if name == "block_num" else "is"} wanted'
            )


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_sizes(
    category_num: int,
    stem: Sequence[tuple[int, int]],
    stages: Sequence[StageConfig],
    se_reduction: int | None = None,
) -> None:
    """Check the sizes of a network before anything is allocated.

    Args:
        category_num: Number of classes.
        stem: (channels, filter size) of each convolution of the stem.
        stages: The stages.
        se_reduction: See :class:`Bottleneck`.

    Raises:
        ValueError: A size is not a positive integer, the groups do not divide
            the width, or there are more than ``settings.weight_limit`` weights.
    """
    sizes = [category_num, *itertools.chain(*stem), 1 if se_reduction is None else se_reduction]
    for stage in stages:
        sizes += stage[:5]
        if stage.projections not in ('first', 'all', 'none'):
            raise ValueError(f'projections {stage.projections!r}')
    if not stages or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError('its sizes are not positive integers')
    weights = _count_weights(category_num, stem, stages, se_reduction)
    limit = settings.weight_limit
    if limit is not None and weights > limit:
        raise ValueError(
            f'it would have more than {limit:,} weights, for which there are no numbers'
        )
    if limit is not None and sum(stage.blocks for stage in stages) > _MAX_BLOCKS:
        raise ValueError(f'it would have over {_MAX_BLOCKS} blocks')


def _count_weights(category_num, stem, stages, se_reduction):
    """Return the number of weights of the network of :func:`check_sizes`."""
    weights, channels = 0, 3
    for width, ksize in stem:
        weights += channels * width * ksize**2
        channels = width
    for stage in stages:
        if stage.width % stage.groups:
            raise ValueError(f'{stage.groups} groups do not divide {stage.width} channels')
        weights += channels * stage.width
        weights += (stage.blocks - 1) * stage.out_channels * stage.width
        weights += (
            stage.blocks * stage.width * (9 * stage.width // stage.groups + stage.out_channels)
        )
        if stage.projections != 'none':
            weights += channels * stage.out_channels
        if stage.projections == 'all':
            weights += (stage.blocks - 1) * stage.out_channels**2
        if se_reduction is not None:
            if stage.out_channels % se_reduction:
                raise ValueError(f'se_reduction {se_reduction} of {stage.out_channels} channels')
            weights += stage.blocks * 2 * stage.out_channels**2 // se_reduction
        channels = stage.out_channels
    return weights + channels * category_num


class ConvBN(chainer.Chain):
    """Convolution, batch normalisation and, optionally, ReLU.

    The convolution has no bias: batch normalisation would cancel it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        ksize: Filter size.
        stride: Stride.
        pad: Zero padding on each side.
        groups: Groups of the convolution.
        relu: Whether a ReLU follows.
        eps: Added to the variance by batch normalisation.
        relu_first: Whether a residual is added after the ReLU instead of before it.

    Attributes:
        eps_in_average: Whether running variances include eps, as Chainer v1's did.
    """

    eps_in_average: bool = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ksize: int,
        stride: int = 1,
        pad: int = 0,
        groups: int = 1,
        relu: bool = True,
        eps: float = 1e-5,
        relu_first: bool = False,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.relu_first = relu_first
        with self.init_scope():
            self.conv = L.Convolution2D(
                in_channels,
                out_channels,
                ksize,
                stride,
                pad,
                nobias=True,
                initialW=0,
                groups=groups,
            )
            self.bn = L.BatchNormalization(out_channels, decay=BN_DECAY, eps=eps)

    def forward(
        self, x: chainer.Variable, residual: chainer.Variable | None = None
    ) -> chainer.Variable:
        """Compute the layer.

        Args:
            x: (batch, in_channels, height, width).
            residual: Added to the output; see ``relu_first``.

        Returns:
            (batch, out_channels, out height, out width).
        """
        return engines.current().conv_bn(
            x,
            self.conv,
            self.bn,
            self.relu,
            residual,
            self.relu_first,
            self.bn.eps if self.eps_in_average else 0.0,
        )


class DeepStem(chainer.Chain):
    """Three 3x3 convolutions in place of a stem's 7x7 one (arXiv 1812.01187, ResNet-C and -D).

    Its layers are ``layer1``, ``layer2`` and ``layer3``; the first has stride 2.

    Args:
        widths: Output channels of the first two layers.
        out_channels: Output channels of the last layer.
        eps: See :class:`ConvBN`.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        channels = 3
        for i, width in enumerate((*widths, out_channels), 1):
            self.add_link(f'layer{i}', ConvBN(channels, width, 3, 2 if i == 1 else 1, 1, eps=eps))
            channels = width

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        for layer in self.children():
            x = layer(x)
        return x


class SqueezeExcite(chainer.Chain):
    """A weight for each channel of each image, from the channels' means (arXiv 1709.01507).

    Two fully connected layers: ``down``, followed by a ReLU, and ``up``, followed by a sigmoid.

    Args:
        channels: Channels of the input.
        reduction: Factor by which ``down`` reduces the channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        with self.init_scope():
            self.down = L.Linear(channels, channels // reduction, initialW=0)
            self.up = L.Linear(channels // reduction, channels, initialW=0)

    def forward(self, x: chainer.Variable, residual: chainer.Variable) -> chainer.Variable:
        """Compute relu(x * weights + residual)."""
        return engines.current().excite(x, self.down, self.up, residual)


class Bottleneck(chainer.Chain):
    """The block of the paper's figure 3(c): 1x1, grouped 3x3, 1x1, and a shortcut.

    Args:
        in_channels: Channels of the input.
        config: Sizes.
        stride: Stride of the 3x3 convolution.
        projection: Whether the shortcut is a 1x1 convolution.
        relu_after_add: ``True``: ReLU after the addition (the paper). ``False``: ReLU before it and
            none after (the 2017 CIFAR program).
        eps: See :class:`ConvBN`.
        average_shortcut: Whether a projection of stride 2 is average pooling over 2x2 and a
            convolution of stride 1 (arXiv 1812.01187, ResNet-D).
        se_reduction: Reduction of the :class:`SqueezeExcite` that ends the block; ``None``: there
            is none. Needs ``relu_after_add``.
    """

    se: SqueezeExcite | None
    shortcut: ConvBN | None

    def __init__(
        self,
        in_channels: int,
        config: StageConfig,
        stride: int,
        projection: bool,
        relu_after_add: bool = True,
        eps: float = 1e-5,
        average_shortcut: bool = False,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = config.out_channels
        self.relu_after_add = relu_after_add
        self.averages = projection and average_shortcut and stride > 1
        with self.init_scope():
            self.reduce = ConvBN(in_channels, config.width, 1, eps=eps)
            self.grouped = ConvBN(
                config.width, config.width, 3, stride, 1, groups=config.groups, eps=eps
            )
            self.expand = ConvBN(
                config.width,
                config.out_channels,
                1,
                relu=se_reduction is None,
                eps=eps,
                relu_first=not relu_after_add,
            )
            if se_reduction is None:
                self.se = None
            else:
                self.se = SqueezeExcite(config.out_channels, se_reduction)
            if projection:
                stride = 1 if self.averages else stride
                self.shortcut = ConvBN(
                    in_channels, config.out_channels, 1, stride, relu=False, eps=eps
                )
            else:
                self.shortcut = None

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        h = self.grouped(self.reduce(x))
        if self.shortcut is None:
            residual = engines.current().subsample_and_pad(x, self.stride, self.out_channels)
        else:
            pooled = engines.current().average_pooling(x) if self.averages else x
            residual = self.shortcut(pooled)
        if self.se is None:
            return self.expand(h, residual)
        return self.se(self.expand(h), residual)


class Stage(chainer.Chain):
    """Blocks ``block1``, ``block2``, ... of one :class:`StageConfig`.

    Args:
        in_channels: Channels of the input.
        config: Sizes.
        of_block: Further arguments of each :class:`Bottleneck`.
    """

    def __init__(self, in_channels: int, config: StageConfig, **of_block: Any) -> None:
        super().__init__()
        for i in range(1, config.blocks + 1):
            first = i == 1
            projection = config.projections == 'all' or (first and config.projections == 'first')
            self.add_link(
                f'block{i}',
                Bottleneck(
                    in_channels, config, config.stride if first else 1, projection, **of_block
                ),
            )
            in_channels = config.out_channels

    def children(self) -> Iterator[Bottleneck]:
        # Chainer's own order would have block10 before block2.
        for i in range(1, len(self._children) + 1):
            yield self[f'block{i}']

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        for block in self.children():
            x = block(x)
        return x
