"""Matches the modules of a Torch7 file with a network: widths, groups, shortcuts, classes.

Modules that our networks cannot represent are refused by their place, as Torch7 prints it:
``(5)(1)`` is the first module in the fifth.
"""

import collections
from typing import NamedTuple

import torchfile

from trainer.networks.layers import StageConfig
from trainer.weights.strided import StridedTensor


class Refused(Exception):
    """The file holds something other than a supported network."""


_CONV = ('cudnn.SpatialConvolution', 'nn.SpatialConvolution', 'nn.SpatialConvolutionMM')
_BN = ('nn.SpatialBatchNormalization', 'cudnn.SpatialBatchNormalization')
_RELU = ('cudnn.ReLU', 'nn.ReLU')
_MAX = ('nn.SpatialMaxPooling', 'cudnn.SpatialMaxPooling')
_AVERAGE = ('cudnn.SpatialAveragePooling', 'nn.SpatialAveragePooling')
_REPLICAS = 'nn.DataParallelTable'


def _text(value):
    text = value.decode('ascii', 'replace') if isinstance(value, bytes) else str(value)
    return ''.join(c if c.isprintable() else '?' for c in text[:60])


class _Module:
    """A Torch7 module: its class, its fields and its place in the network."""

    def __init__(self, value, place, seen):
        self.place = place
        if not isinstance(value, torchfile.TorchObject) or not isinstance(value._obj, dict):
            raise Refused('{} is not a module'.format(place or 'what it holds'))
        self.name = _text(value.torch_typename())
        self.fields = value._obj
        self._seen = seen
        if b'modules' in self.fields:
            # A module that the file holds once could occur in the network a million times.
            if value in seen:
                raise self.refuse('is in the network twice')
            seen.add(value)

    def refuse(self, why):
        return Refused('module {} {} {}'.format(self.place or '(top)', self.name, why))

    def children(self):
        modules = self.fields.get(b'modules')
        if not isinstance(modules, dict) or set(modules) != set(range(1, len(modules) + 1)):
            raise self.refuse('has no list of modules')
        return [
            _Module(modules[i], f'{self.place}({i})', self._seen)
            for i in range(1, len(modules) + 1)
        ]

    def number(self, key, default=None):
        value = self.fields.get(key.encode())
        if value is None and default is not None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.refuse(f'has no number {key}')
        return value

    def pair(self, of, default=None, instead=None):
        """Return a size such as kW, if kH is the same; other modules are refused."""
        if instead is not None:
            default = self.number(instead, default)
        width, height = self.number(of + 'W', default), self.number(of + 'H', default)
        if width != height:
            raise self.refuse(f'is not square: {of}W {width}, {of}H {height}')
        return width

    def tensor(self, key, optional=False):
        value = self.fields.get(key.encode())
        if not isinstance(value, StridedTensor) and not (optional and value is None):
            raise self.refuse(f'has no tensor {key}')
        return value


def _flatten(module):
    if module.name == 'nn.Sequential':
        for child in module.children():
            yield from _flatten(child)
    elif module.name == _REPLICAS:
        children = module.children()
        if not children:
            raise module.refuse('is empty')
        yield from _flatten(children[0])  # the others are copies on other GPUs
    elif module.name != 'nn.Identity':
        yield module


class _Layers:
    """Modules in the order of computation, taken one by one."""

    def __init__(self, module):
        self.owner = module
        self._modules = collections.deque(_flatten(module))

    def next_is(self, names, **fields):
        """Return whether the next module has one of ``names`` and these fields."""
        return (
            bool(self._modules)
            and self._modules[0].name in names
            and all(
                self._modules[0].fields.get(key.encode()) == value for key, value in fields.items()
            )
        )

    def take(self, names, what):
        if not self._modules:
            raise self.owner.refuse(f'ends where {what} should follow')
        module = self._modules.popleft()
        if module.name not in names:
            raise module.refuse(f'stands where {what} should be')
        return module

    def end(self):
        if self._modules:
            raise self._modules[0].refuse('follows where nothing should')


class _Conv(NamedTuple):
    """A convolution, with sizes from its fields; they are checked when the weights are read."""

    module: _Module
    channels: int
    out: int
    ksize: int
    stride: int
    pad: int
    groups: int


def _conv(layers, channels, ksize, pad, stride=None, grouped=False):
    """Take a convolution and check its sizes; ``stride`` ``None``: any."""
    m = layers.take(_CONV, 'a convolution')
    conv = _Conv(
        m,
        m.number('nInputPlane'),
        m.number('nOutputPlane'),
        m.pair('k'),
        m.pair('d', 1),
        m.pair('pad', 0, 'padding'),
        m.number('groups', 1),
    )
    for name, value in zip(conv._fields[1:], conv[1:]):
        if not isinstance(value, int) or value < (name != 'pad'):
            raise m.refuse(f'has {name} {value}')
    if conv.channels != channels:
        raise m.refuse(f'takes {conv.channels} channels where there are {channels}')
    if conv.ksize != ksize or conv.pad != pad or conv.stride != (stride or conv.stride):
        raise m.refuse(
            'has kernel {}, stride {}, padding {} where {}, {}, {} belong'.format(
                conv.ksize, conv.stride, conv.pad, ksize, stride or 'any', pad
            )
        )
    if conv.channels % conv.groups or conv.out % conv.groups or (conv.groups > 1 and not grouped):
        raise m.refuse(f'has {conv.groups} groups')
    return conv


def _relu(layers):
    m = layers.take(_RELU, 'a ReLU')
    if m.number('threshold', 0) or m.number('val', 0):
        raise m.refuse('has a threshold')


def _conv_bn(layers, *sizes, relu=True, **more):
    """Take a convolution, its batch normalisation and, if ``relu``, a ReLU."""
    conv = _conv(layers, *sizes, **more)
    bn = layers.take(_BN, 'batch normalisation')
    if relu:
        _relu(layers)
    return conv, bn


class _Bottleneck(NamedTuple):
    """A bottleneck. parts: our name -> list of (_Conv, batch normalisation), one per branch."""

    width: int
    groups: int
    out: int
    stride: int
    projection: bool
    parts: dict[str, list]


def _joins_channels(m):
    # The second number is the number of dimensions of a single image.
    return (m.number('dimension'), m.number('nInputDims', 0)) in ((2, 0), (1, 3))


def _main_path(module, channels):
    """Read the main path: (parts, inner channels, groups, stride)."""
    layers = _Layers(module)
    if layers.next_is(['nn.ConcatTable']):
        table = layers.take(['nn.ConcatTable'], 'branches')
        branches = [_Layers(branch) for branch in table.children()]
        if not branches:
            raise table.refuse('has no branches')
    else:
        table, branches = None, [layers]
    reduce, grouped = [], []
    for branch in branches:
        reduce.append(_conv_bn(branch, channels, 1, 0, 1))
        grouped.append(_conv_bn(branch, reduce[-1][0].out, 3, 1, grouped=True))
        if table is not None:
            branch.end()
    first = grouped[0][0]
    for conv, _ in grouped:
        if conv.channels != conv.out or conv[1:] != first[1:]:
            raise conv.module.refuse(
                f'has {conv.out} channels after it and {conv.channels} before'
                if conv.channels != conv.out
                else 'differs from its sister branches'
            )
    if table is not None:
        join = layers.take(['nn.JoinTable'], 'the joining of branches')
        if not _joins_channels(join):
            raise join.refuse('does not join channels')
    width, groups = first.out * len(branches), first.groups * len(branches)
    expand = _conv_bn(layers, width, 1, 0, 1, relu=False)
    layers.end()
    return {'reduce': reduce, 'grouped': grouped, 'expand': [expand]}, width, groups, first.stride


def _padding_shortcut(layers, channels, out, stride):
    """Take a shortcut of type A: subsampling, and as many zero channels as channels."""
    pool = layers.take(_AVERAGE, 'a shortcut')
    if (pool.pair('k'), pool.pair('d', 1), pool.pair('pad', 0)) != (1, stride, 0) or (
        pool.fields.get(b'ceil_mode') or pool.fields.get(b'divide') is False
    ):
        raise pool.refuse(f'is not 1x1 with stride {stride}')
    concat = layers.take(['nn.Concat'], 'zero channels')
    parts = [list(_flatten(child)) for child in concat.children()]
    if (
        not _joins_channels(concat)
        or [[m.name for m in part] for part in parts] != [[], ['nn.MulConstant']]
        or parts[1][0].number('constant_scalar') != 0
    ):
        raise concat.refuse('is not the channels and as many zeros')
    if out != 2 * channels:
        raise concat.refuse(f'gives {2 * channels} channels where {out} are added')


def _block(layers, channels):
    table = layers.take(['nn.ConcatTable'], 'a block')
    paths = table.children()
    if len(paths) != 2:
        raise table.refuse(f'has {len(paths)} paths where a block has two')
    parts, width, groups, stride = _main_path(paths[0], channels)
    out = parts['expand'][0][0].out
    shortcut = _Layers(paths[1])
    projection = shortcut.next_is(_CONV)
    if projection:
        parts['shortcut'] = [_conv_bn(shortcut, channels, 1, 0, stride, relu=False)]
        if parts['shortcut'][0][0].out != out:
            raise paths[1].refuse(
                'gives {} channels where {} are added'.format(parts['shortcut'][0][0].out, out)
            )
    elif shortcut.next_is(_AVERAGE):
        _padding_shortcut(shortcut, channels, out, stride)
    elif stride != 1 or channels != out:
        raise paths[1].refuse(
            f'keeps {channels} channels where stride is {stride} and {out} are added'
        )
    shortcut.end()
    layers.take(['nn.CAddTable'], 'the addition')
    _relu(layers)
    return _Bottleneck(width, groups, out, stride, projection, parts)


def _stages(blocks):
    """Group blocks into stages: (StageConfig, blocks) of each."""
    stages = []
    for block in blocks:
        last = stages[-1] if stages else []
        # The second block determines the shortcuts of all that follow.
        alike = (
            last
            and block.stride == 1
            and block[:3] == last[0][:3]
            and (
                block.projection == last[1].projection
                if len(last) > 1
                else last[0].projection or not block.projection
            )
        )
        if alike:
            last.append(block)
        else:
            stages.append([block])
    for stage in stages:
        first = stage[0]
        projections = (
            'none'
            if not first.projection
            else 'all'
            if len(stage) > 1 and stage[1].projection
            else 'first'
        )
        yield (
            StageConfig(
                len(stage), first.width, first.groups, first.out, first.stride, projections
            ),
            stage,
        )


class Layout(NamedTuple):
    """The network in the modules. rounds_up: of the max pooling; ``None``: there is none."""

    stem: tuple[_Conv, _Module]
    rounds_up: bool | None
    stages: list[tuple[StageConfig, list[_Bottleneck]]]
    fc: _Module
    classes: int
    image_size: int


def network(root: _Module) -> Layout:
    """Read the modules, from the stem to the classifier."""
    layers = _Layers(root)
    imagenet = layers.next_is(_CONV, kW=7)
    stem = _conv_bn(layers, 3, *((7, 3, 2) if imagenet else (3, 1, 1)))
    rounds_up = None
    if imagenet:
        pool = layers.take(_MAX, 'max pooling')
        if (pool.pair('k'), pool.pair('d'), pool.pair('pad', 0)) != (3, 2, 1):
            raise pool.refuse('is not 3x3 with stride 2 and padding 1')
        rounds_up = pool.fields.get(b'ceil_mode') is True
    blocks: list[_Bottleneck] = []
    channels = stem[0].out
    reduction = stem[0].stride * (2 if imagenet else 1)
    while not blocks or layers.next_is(['nn.ConcatTable']):
        blocks.append(_block(layers, channels))
        channels = blocks[-1].out
        reduction *= blocks[-1].stride
    pool = layers.take(_AVERAGE, 'a block or average pooling')
    size = pool.pair('k')
    if size not in range(1, 1000) or pool.pair('pad', 0) or pool.fields.get(b'divide') is False:
        raise pool.refuse('is not a plain average')
    flat = layers.take(['nn.View', 'nn.Reshape'], 'nn.View')
    if flat.number('numElements', channels) not in (channels, 1):  # 1: of nn.View(-1)
        raise flat.refuse(
            'takes {} numbers where there are {}'.format(flat.number('numElements'), channels)
        )
    fc = layers.take(['nn.Linear'], 'the classifier')
    layers.end()
    weight = fc.tensor('weight')
    if len(weight.shape) != 2 or weight.shape[1] != channels:
        raise fc.refuse(f'has weights of shape {weight.shape} for {channels} channels')
    return Layout(stem, rounds_up, list(_stages(blocks)), fc, weight.shape[0], size * reduction)


def root_of(value: object) -> _Module:
    """Return the network: the root, or the only one in a table."""
    if isinstance(value, dict):
        networks = [
            v
            for v in value.values()
            if isinstance(v, torchfile.TorchObject)
            and _text(v.torch_typename()) in ('nn.Sequential', _REPLICAS)
        ]
        if len(networks) != 1:
            raise Refused(f'it holds a table with {len(networks)} networks, not a network')
        value = networks[0]
    return _Module(value, '', set())
