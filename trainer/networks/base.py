"""The base class of all networks, after the original's ``nutszebra_chainer.Model``."""

import collections
from collections.abc import Iterator, Mapping
from typing import Any, Self

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from trainer import engines
from trainer.errors import InputError
from trainer.networks import initialization, layers
from trainer.networks.layers import StageConfig


def _with_parts(path, link):
    """Yield (path, link), or those of the layers inside the link."""
    if isinstance(link, (layers.DeepStem, layers.SqueezeExcite)):
        for part in link.children():
            yield f'{path}/{part.name}', part
    else:
        yield path, link


class Network(chainer.Chain):
    """Stem, stages of :class:`~trainer.networks.layers.Bottleneck`, pooling, classifier.

    A subclass calls :meth:`_build`, has a link ``fc``, and gives the names that the parts
    had in 2017 (:meth:`original_units`).

    Attributes:
        category_num: Number of classes.
        stages: The stages.
        C: Cardinality.
        d: Base width: width of one group in stage 1.
        block_num: Blocks in each stage.
        stem_width: Channels of the stem.
        classes: Names of the classes, or ``None``. Stored in npz files.
    """

    #: Name of the network in npz files (:mod:`trainer.weights.description`).
    kind: str = ''
    #: The class of ``data_augmentation`` that belongs to the network.
    preprocessing: str | None = None
    #: Geometry of its test images (:class:`trainer.transforms.geometry.Geometry`); ``None``: that
    #: of its preprocessing.
    geometry: Any = None  # of a module above this one
    #: Height and width of the images for which it is made; it accepts other sizes.
    image_size: int = 32
    #: ``False``: its classifier has no weights, as the file had none.
    has_classifier: bool = True
    #: Whether the 3x3/2 max pooling after the stem rounds sizes up; ``None``: no pooling.
    round_up_pooling: bool | None = None
    #: Padding of that pooling.
    pool_pad: int = 1
    #: Arguments of the constructor that distinguish it from the plain network of its class.
    variant: Mapping[str, object] = {}

    category_num: int
    stages: tuple[StageConfig, ...]
    C: int
    d: int
    block_num: tuple[int, ...]
    stem_width: int
    eps: float
    classes: list[str] | None
    fc: chainer.Link

    def _build(self, category_num, stages, stem, stem_width, deep_stem=None, **of_block):
        ksize, stride, pad = stem
        convolutions = [(stem_width, ksize)]
        if deep_stem is not None:
            convolutions = [(width, 3) for width in (*deep_stem, stem_width)]
        layers.check_sizes(category_num, convolutions, stages, of_block.get('se_reduction'))
        eps = of_block['eps']
        self.category_num = category_num
        self.stem_width = stem_width
        self.stages = tuple(stages)
        self.block_num = tuple(s.blocks for s in stages)
        self.C = stages[0].groups
        self.d = stages[0].width // stages[0].groups
        self.eps = eps
        self.classes = None
        # Chainer names links after their attribute; in the original, the name is that of the run.
        self.name = f'ResNext_{category_num}_{self.C}'
        if deep_stem is None:
            self.add_link('stem', layers.ConvBN(3, stem_width, ksize, stride, pad, eps=eps))
        else:
            self.add_link('stem', layers.DeepStem(deep_stem, stem_width, eps))
        channels = stem_width
        for i, config in enumerate(stages, 1):
            self.add_link(f'stage{i}', layers.Stage(channels, config, **of_block))
            channels = config.out_channels
        return channels

    @classmethod
    def of_depth(cls, depth: int, category_num: int, **arguments: object) -> Self:
        """Build a network by its number of layers.

        Args:
            depth: Layers, as :meth:`blocks_of_depth` takes them.
            category_num: Number of classes.
            arguments: Further arguments of the class, except ``block_num``.

        Raises:
            trainer.errors.InputError: No network has this number of layers.
        """
        return cls(category_num, cls.blocks_of_depth(depth), **arguments)

    @classmethod
    def of_sizes(cls, category_num: int, sizes: Mapping[str, Any], **variant: object) -> Self:
        """Build a network with zero weights from sizes, by their names in flags and recipes.

        Args:
            category_num: Number of classes.
            sizes: 'block_num', 'C', 'd', 'shortcut', and 'multi' or 'widen_factor', if the network
                has it.
            variant: Further arguments of the class.
        """
        return cls(
            category_num,
            tuple(sizes['block_num']),
            sizes['C'],
            sizes['d'],
            cls.expansion(sizes),
            shortcut=sizes['shortcut'],
            initialize=False,
            **variant,
        )

    @staticmethod
    def expansion(sizes: Mapping[str, Any]) -> float:
        """Return the size, of those for :meth:`of_sizes`, that sets the width of outputs."""
        raise NotImplementedError

    @staticmethod
    def blocks_of_depth(depth: int) -> tuple[int, ...]:
        """Return the blocks in each stage of a CIFAR network of 9n + 2 layers: (n, n, n).

        Raises:
            trainer.errors.InputError: No network has this number of layers.
        """
        if depth < 11 or (depth - 2) % 9:
            raise InputError(
                f'depth {depth}: CIFAR networks have 9n + 2 layers: 11, 20, 29, 38, ...; '
                'block_num gives others'
            )
        return ((depth - 2) // 9,) * 3

    @property
    def layers(self) -> int:
        """Depth as the paper counts it: stem, three convolutions per block, classifier."""
        return 3 * sum(self.block_num) + 2

    @property
    def shortcut(self) -> str:
        """Type of the shortcuts: 'A' (identities), 'B' (projections in first blocks) or
        'C' (projections everywhere)."""
        found = {stage.projections for stage in self.stages}
        return 'C' if 'all' in found else 'B' if 'first' in found else 'A'

    def named_layers(self) -> Iterator[tuple[str, chainer.Link]]:
        """Yield (path, link) of stem, each block's layers, shortcut last, and classifier."""
        yield from _with_parts('stem', self.stem)
        for i in range(1, len(self.stages) + 1):
            for j, block in enumerate(self[f'stage{i}'].children(), 1):
                for part in ('reduce', 'grouped', 'expand', 'se', 'shortcut'):
                    if getattr(block, part) is not None:
                        yield from _with_parts(f'stage{i}/block{j}/{part}', getattr(block, part))
        yield 'fc', self.fc

    # Computation.

    def activations(self, x: chainer.Variable) -> Iterator[tuple[str, chainer.Variable]]:
        """Yield (name, feature map) after the stem, the pooling and each stage, in order.

        Args:
            x: (batch, 3, height, width) float32, preprocessed.
        """
        h = self.stem(x)
        yield 'stem', h
        if self.round_up_pooling is not None:
            h = engines.current().max_pooling(h, 3, 2, self.pool_pad, self.round_up_pooling)
            yield 'pool', h
        for i in range(1, len(self.stages) + 1):
            h = self[f'stage{i}'](h)
            yield f'stage{i}', h
        yield 'features', engines.current().global_average_pooling(h)

    def features(self, x: chainer.Variable) -> chainer.Variable:
        """Compute the classifier's input: (batch, channels, 1, 1)."""
        return collections.deque(self.activations(x), maxlen=1).pop()[1]

    def classify(self, h: chainer.Variable) -> chainer.Variable:
        """Compute scores (batch, classes) from :meth:`features`."""
        raise NotImplementedError

    def forward(self, x: chainer.Variable, train: bool | None = None) -> chainer.Variable:
        """Compute the scores of the classes, before softmax.

        Args:
            x: (batch, 3, height, width) float32, preprocessed.
            train: Whether batch normalisation uses the batch's statistics and updates its own.
                ``None``: as ``chainer.config.train`` says.

        Returns:
            (batch, category_num).
        """
        if train is None:
            return self.classify(self.features(x))
        with chainer.using_config('train', train):
            return self.classify(self.features(x))

    @staticmethod
    def calc_loss(y: chainer.Variable, t: chainer.Variable) -> chainer.Variable:
        """Mean softmax cross entropy of scores (batch, classes) and int32 labels (batch,)."""
        return F.softmax_cross_entropy(y, t)

    # Weights.

    def weight_initialization(self, seed: int | None = None) -> None:
        """Initialise the weights as the original does (:mod:`trainer.networks.initialization`).

        Biases and shifts become 0, scales 1, running means 0 and variances 1.

        Args:
            seed: The same seed gives the same weights; ``None``: they differ at each call.
        """
        rng = np.random.default_rng(seed)
        for link in self.links():
            if isinstance(link, (L.Convolution2D, L.Linear)):
                link.W.array[...] = self.xp.asarray(
                    initialization.orthonormal_relu(link.W.shape, rng)
                )
                if link.b is not None:
                    link.b.array[...] = 0
            elif isinstance(link, L.BatchNormalization):
                link.gamma.array[...] = 1
                link.beta.array[...] = 0
                link.avg_mean[...] = 0
                link.avg_var[...] = 1
                link.N = 0

    def count_parameters(self) -> int:
        """Count the weights of the convolutions and of the classifier (no biases, no BN).

        Chainer's ``count_params()`` counts all trained parameters.
        """
        return sum(
            link.W.size for link in self.links() if isinstance(link, (L.Convolution2D, L.Linear))
        )

    def architecture(self) -> dict[str, Any]:
        """Return the description of the network in npz files, as JSON values: the constructor's
        arguments and the names of the classes."""
        raise NotImplementedError

    def original_units(self) -> list[tuple]:
        """Return the 2017 program's names of the parts, in its order.

        Returns:
            List of the fields of :class:`trainer.weights.layout_2017.Unit`.

        Raises:
            trainer.errors.InputError: The 2017 program cannot hold this network.
        """
        raise NotImplementedError
