"""Torch7's files (.t7) of the networks of facebookresearch/ResNeXt.

The architecture comes from the modules, whatever the file is called. Modules nested in
``nn.Sequential`` are read depth first, which makes the published files and that code's
alike. What a network here cannot represent is refused, with the module's place.
"""

import collections
import itertools

import numpy as np
import torchfile

from trainer import files
from trainer.errors import InputError
from trainer.networks.layers import StageConfig
from trainer.weights import description, formats, safetensors, t7


class Torch7File(collections.namedtuple('Torch7File', 'tensors picture_size shortcut')):
    """What a file says beside the network.

    Attributes:
        tensors (str): Torch7's type of its numbers, such as 'torch.FloatTensor'.
        picture_size (int): Height and width of the pictures it was made for, in pixels.
        shortcut (str): Type of its shortcuts: 'A', 'B' or 'C'.
    """


class _Refused(Exception):
    """The file holds something that is not a network of ours."""


# Reading the modules.

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
            raise _Refused('{} is not a module'.format(place or 'what it holds'))
        self.name = _text(value.torch_typename())
        self.fields = value._obj
        self._seen = seen
        if b'modules' in self.fields:
            # In the file once, it could be in the network a million times.
            if id(value) in seen:
                raise self.refuse('is in the network twice')
            seen.add(id(value))

    def refuse(self, why):
        return _Refused('module {} {} {}'.format(self.place or '(top)', self.name, why))

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
        """Return kW and the like where kH is the same; what is not square is refused."""
        if instead is not None:
            default = self.number(instead, default)
        width, height = self.number(of + 'W', default), self.number(of + 'H', default)
        if width != height:
            raise self.refuse(f'is not square: {of}W {width}, {of}H {height}')
        return width

    def tensor(self, key, optional=False):
        value = self.fields.get(key.encode())
        if not isinstance(value, t7.Tensor) and not (optional and value is None):
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
        yield from _flatten(children[0])  # the others are its copies on other GPUs
    elif module.name != 'nn.Identity':
        yield module


class _Layers:
    """Modules in the order in which they are computed, taken one by one."""

    def __init__(self, module):
        self.owner = module
        self._modules = collections.deque(_flatten(module))

    def next_is(self, names, **fields):
        """Tell whether a module of one of ``names``, with these fields, is next."""
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


class _Conv(collections.namedtuple('_Conv', 'module channels out ksize stride pad groups')):
    """A convolution; the sizes as its fields say, checked when its weights are read."""


def _conv(layers, channels, ksize, pad, stride=None, grouped=False):
    """Take a convolution that must be as said; ``stride`` None: any."""
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
    """Take a convolution, its batch normalisation and maybe a ReLU: (_Conv, the module)."""
    conv = _conv(layers, *sizes, **more)
    bn = layers.take(_BN, 'batch normalisation')
    if relu:
        _relu(layers)
    return conv, bn


class _Block(collections.namedtuple('_Block', 'width groups out stride projection parts')):
    """A bottleneck. parts: name here -> list of (_Conv, batch normalisation), several where
    the branches are apart."""


def _joins_channels(m):
    # A second number says how many dimensions a single picture has.
    return (m.number('dimension'), m.number('nInputDims', 0)) in ((2, 0), (1, 3))


def _main_path(module, channels):
    """Read what is not the shortcut: (parts, channels inside, groups, stride)."""
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
    """Take type A's: every stride-th pixel, and as many zero channels as there are channels."""
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
    return _Block(width, groups, out, stride, projection, parts)


def _stages(blocks):
    """Group blocks into stages: (StageConfig, blocks) of each."""
    stages = []
    for block in blocks:
        last = stages[-1] if stages else []
        # The second block says how all that follow it begin.
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


class _Network(collections.namedtuple('_Network', 'stem rounds_up stages fc classes picture_size')):
    """What the modules say. rounds_up: of the max pooling, None where there is none."""


def _network(root):
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
    blocks, channels = [], stem[0].out
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
    return _Network(stem, rounds_up, list(_stages(blocks)), fc, weight.shape[0], size * reduction)


def _root(value):
    """Find the network: alone, or the only one in a table."""
    if isinstance(value, dict):
        networks = [
            v
            for v in value.values()
            if isinstance(v, torchfile.TorchObject)
            and _text(v.torch_typename()) in ('nn.Sequential', _REPLICAS)
        ]
        if len(networks) != 1:
            raise _Refused(f'it holds a table with {len(networks)} networks, not a network')
        value = networks[0]
    return _Module(value, '', set())


# Reading the numbers.


class _Numbers:
    """Loads the network's tensors, each part of a storage once."""

    def __init__(self, f):
        self._f = f
        self.kinds = collections.Counter()
        self._extents = []

    def _note(self, module, key, tensor, gradient):
        self._extents.append((id(tensor.storage), *tensor.extent(), gradient, module, key))

    def load(self, module, key, *shapes, absent=None):
        """Load a tensor that has one of ``shapes``, as the first of them.

        Where there is none, and no gradient of it either, return ``absent``.
        """
        gradient = module.fields.get(b'grad' + key.capitalize().encode())
        tensor = module.tensor(key, optional=absent is not None and gradient is None)
        if tensor is None:
            return absent
        if tensor.shape not in shapes:
            raise module.refuse(f'has {key} of shape {tensor.shape} where {shapes[0]} belongs')
        self._note(module, key, tensor, False)
        if tensor.storage.dtype.kind != 'f':
            raise module.refuse(f'has {key} in {tensor.kind}Tensor')
        if isinstance(gradient, t7.Tensor) and gradient.shape:
            self._note(module, key, gradient, True)
        numbers = tensor.load(self._f)
        with np.errstate(over='ignore'):
            finite = np.isfinite(numbers.astype(np.float32, copy=False)).all()
        if not finite:
            raise module.refuse(f'has {key} with numbers that are not finite in float32')
        self.kinds[tensor.kind + 'Tensor'] += numbers.size
        return numbers.reshape(shapes[0])

    def check_distinct(self):
        """Refuse numbers that serve twice: what remains of a damaged offset or reference."""
        ends = {}
        for storage, first, end, gradient, module, key in sorted(
            self._extents, key=lambda extent: extent[:4]
        ):
            # Gradients may share their memory with one another.
            before = max(
                ends.get((storage, other), 0) for other in ((False,) if gradient else (False, True))
            )
            if first < before:
                raise module.refuse(f'has {key} where other numbers are')
            ends[storage, gradient] = max(end, ends.get((storage, gradient), 0))


def _fill(numbers, link, parts):
    """Fill a ConvBN from its branches."""
    start = 0
    for conv, bn in parts:
        out, taken, groups, k = conv.out, conv.channels // conv.groups, conv.groups, conv.ksize
        here = slice(start, start + out)
        start += out
        link.conv.W.array[here] = numbers.load(
            conv.module,
            'weight',
            (out, taken, k, k),
            (out, taken * k * k),
            (groups, out // groups, taken, k, k),
        )
        link.bn.gamma.array[here] = numbers.load(bn, 'weight', (out,), absent=1)
        link.bn.beta.array[here] = numbers.load(bn, 'bias', (out,), absent=0)
        # Batch normalisation takes off the mean what a bias would add.
        link.bn.avg_mean[here] = numbers.load(bn, 'running_mean', (out,)) - np.asarray(
            numbers.load(conv.module, 'bias', (out,), absent=0), np.float64
        )
        eps = bn.number('eps')
        with np.errstate(divide='ignore', over='ignore'):
            if b'running_std' in bn.fields and b'running_var' not in bn.fields:
                # Before 2016: 1 / sqrt(variance + eps).
                std = numbers.load(bn, 'running_std', (out,)).astype(np.float64)
                link.bn.avg_var[here] = std**-2 - eps
            else:
                link.bn.avg_var[here] = numbers.load(bn, 'running_var', (out,))
        variance = link.bn.avg_var[here]
        if not (np.isfinite(variance) & (variance + eps > 0)).all():
            raise bn.refuse('has variances that are infinite or below 0')


def _build(f, path):
    root, limit = t7.parse(f)
    held = _network(_root(root))
    eps = None
    links = [('stem', [held.stem])]
    for i, (_, blocks) in enumerate(held.stages, 1):
        for j, block in enumerate(blocks, 1):
            links += [(f'stage{i}/block{j}/{name}', parts) for name, parts in block.parts.items()]
    for _, bn in itertools.chain.from_iterable(parts for _, parts in links):
        eps = bn.number('eps') if eps is None else eps
        if bn.number('eps') != eps or not 0 < eps < 1:
            raise bn.refuse('has eps {} where others have {}'.format(bn.number('eps'), eps))
    architecture = {
        'network': 'paper-cifar' if held.rounds_up is None else 'ilsvrc',
        'category_num': held.classes,
        'stem_width': held.stem[0].out,
        'stages': [config for config, _ in held.stages],
        'eps': eps,
    }
    if held.rounds_up is not None:
        architecture['round_up_pooling'] = held.rounds_up
    else:  # that program has this form for CIFAR only, and such means for each
        architecture['preprocessing'] = 'DataAugmentationCifar{}Torch7'.format(
            100 if held.classes == 100 else ''
        )
    network = description.build(architecture, path, weight_limit=limit)
    here = dict(network.namedlinks())
    numbers = _Numbers(f)
    for name, parts in links:
        _fill(numbers, here['/' + name], parts)
    network.fc.W.array[...] = numbers.load(held.fc, 'weight', network.fc.W.shape)
    network.fc.b.array[...] = numbers.load(held.fc, 'bias', network.fc.b.shape, absent=0)
    numbers.check_distinct()
    return network, Torch7File(
        ', '.join(kind for kind, _ in numbers.kinds.most_common()),
        held.picture_size,
        network.shortcut,
    )


def read(path):
    """Build the network that a Torch7 file holds, and say what else it holds.

    The ImageNet and the CIFAR form, of any depth, widths, cardinality and number of
    classes; bottleneck types resnet, resnext_B (branches apart) and resnext_C (grouped);
    shortcut types A, B and C; tensors of any precision, here float32. Biases of
    convolutions go into the running means, exactly. Of a ``nn.DataParallelTable`` the
    first replica is taken, of a table the only network in it.

    Args:
        path (str): The file.

    Returns:
        tuple: The network (:class:`resnext_ilsvrc.ResNext` or
        :class:`resnext.PaperResNext`) on the CPU, and :class:`Torch7File`.

    Raises:
        trainer.errors.InputError: The file is missing, damaged, or holds what these
            networks cannot represent; the message names the module, as Torch7 prints
            it: ``(5)(1)`` is the first module in the fifth.
    """
    try:
        with files.open_regular(path) as f:
            return _build(f, path)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except _Refused as e:
        raise InputError(f'{path}: cannot be converted: {e}') from None
    except t7.Damaged as e:
        raise InputError(f'{path}: not a whole Torch7 file ({e}); fetch it again') from e


def _recognises(head):
    binary = head[1:4] == bytes(3) and 0 < head[0] < 9 and not safetensors.recognises(head)
    return binary or head[:2] in (b'3\n', b'4\n')


def _read(path, entry):
    network, found = read(path)
    return network, found.tensors, found.picture_size


FORMAT = formats.Format('t7', ('.t7',), recognises=_recognises, read=_read)
