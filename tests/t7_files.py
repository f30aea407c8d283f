"""Torch7 files for the tests: a writer of the format, the module trees of
facebookresearch/ResNeXt in all their variants, and what Torch7 computes with them.

Written after the format and the modules themselves; shares nothing with the converter.
"""

import struct

import chainer.functions as F
import numpy as np

from trainer import chainer_compat  # noqa: F401

DTYPES = {
    'Byte': np.uint8,
    'Char': np.int8,
    'Short': np.int16,
    'Int': np.int32,
    'Long': np.int64,
    'Half': np.float16,
    'Float': np.float32,
    'Double': np.float64,
    'CudaHalf': np.float16,
    'Cuda': np.float32,
    'CudaDouble': np.float64,
    'CudaLong': np.int64,
}


class Storage:
    def __init__(self, kind, array):
        self.kind = kind
        self.array = np.ascontiguousarray(array, DTYPES[kind]).ravel()


class Tensor:
    """A view: offset and strides in numbers, from 0."""

    def __init__(self, kind, storage, offset=0, shape=(), strides=None):
        self.kind, self.storage, self.offset, self.shape = kind, storage, offset, tuple(shape)
        if strides is None:
            strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        self.strides = tuple(strides)

    def numpy(self):
        array = self.storage.array[self.offset :]
        return np.lib.stride_tricks.as_strided(
            array, self.shape, [s * array.itemsize for s in self.strides]
        ).astype(np.float64)


class Function:
    """A Lua function: its bytes and its upvalues."""

    def __init__(self, code, upvalues=()):
        self.code, self.upvalues = code, list(upvalues)


class Module:
    def __init__(self, name, **fields):
        self.name, self.fields = name, fields

    def __getattr__(self, key):
        return self.fields.get(key)

    def walk(self):
        yield self
        for module in self.fields.get('modules') or ():
            yield from module.walk()


def tensor(kind, array):
    array = np.asarray(array)
    return Tensor(kind, Storage(kind, array), 0, array.shape)


class Writer:
    """torch.save(path, value) in Torch7's binary format, 8-byte longs."""

    def __init__(self, f):
        self.f = f
        self.indices = {}
        self.keep = []  # or an id could come back

    def pack(self, form, *values):
        self.f.write(struct.pack('<' + form, *values))

    def string(self, text):
        text = text if isinstance(text, bytes) else text.encode()
        self.pack('i', len(text))
        self.f.write(text)

    def known(self, kind, value):
        """Write type and index; tell whether the object is in the file already."""
        known = id(value) in self.indices
        self.keep.append(value)
        self.pack('ii', kind, self.indices.setdefault(id(value), len(self.indices) + 1))
        return known

    def head(self, name, version=1):
        self.string(f'V {version}')
        self.string(name)

    def write(self, value):
        if value is None:
            self.pack('i', 0)
        elif isinstance(value, (bool, np.bool_)):
            self.pack('ii', 5, int(value))
        elif isinstance(value, (int, float, np.number)):
            self.pack('id', 1, value)
        elif isinstance(value, (str, bytes)):
            self.pack('i', 2)
            self.string(value)
        elif isinstance(value, (dict, list)):
            if not self.known(3, value):
                items = list(value.items() if isinstance(value, dict) else enumerate(value, 1))
                self.pack('i', len(items))
                for key, item in items:
                    self.write(key)
                    self.write(item)
        elif isinstance(value, Function):
            if not self.known(8, value):
                self.string(value.code)
                self.write(value.upvalues)
        elif isinstance(value, Storage):
            if not self.known(4, value):
                self.head(f'torch.{value.kind}Storage')
                self.pack('q', value.array.size)
                self.f.write(value.array.data)
        elif isinstance(value, Tensor):
            if not self.known(4, value):
                self.head(f'torch.{value.kind}Tensor')
                n = len(value.shape)
                self.pack(f'i{2 * n + 1}q', n, *value.shape, *value.strides, value.offset + 1)
                self.write(value.storage)
        elif not self.known(4, value):
            self.head(value.name)
            fields = value.fields  # a table, but for objects that write themselves otherwise
            if isinstance(fields, dict):
                fields = {k: v for k, v in fields.items() if v is not None}
            self.write(fields)


def write(path, value):
    with open(path, 'wb') as f:
        Writer(f).write(value)


class Builder:
    """Makes module trees as models/resnext.lua does.

    Args:
        kind (str): Tensors: 'Float', 'Double', 'Cuda', 'CudaHalf', ...
        modules (str): Where convolutions, ReLU and average pooling come from: 'cudnn' or 'nn'.
        nested (bool): The published files' main path, or that code's.
        clear (bool): Whether clearState() was called; else buffers are left, in lists too.
        bias (bool): Whether convolutions have biases.
    """

    def __init__(
        self, seed=0, kind='Float', modules='cudnn', nested=True, clear=True, bias=False, eps=1e-5
    ):
        self.rng = np.random.default_rng(seed)
        self.kind, self.modules, self.nested = kind, modules, nested
        self.clear, self.bias, self.eps = clear, bias, eps

    def tensor(self, array):
        return tensor(self.kind, array)

    def module(self, name, **fields):
        fields = dict(_type=f'torch.{self.kind}Tensor', train=False, **fields)
        lists = name in ('nn.ConcatTable', 'nn.CAddTable', 'nn.JoinTable')
        for buffer in ('output', 'gradInput'):
            numbers = self.tensor(np.ones((0 if self.clear else 3,)))
            if self.clear:
                numbers = Tensor(self.kind, None)
            fields[buffer] = ([] if self.clear else [numbers, numbers]) if lists else numbers
        return Module(name, **fields)

    def sequential(self, *modules):
        return self.module('nn.Sequential', modules=list(modules))

    def conv(self, inside, out, k, stride=1, pad=0, groups=1):
        shape = (out, inside // groups, k, k)
        scale = (2 / (shape[1] * k * k)) ** 0.5
        fields = dict(
            nInputPlane=inside,
            nOutputPlane=out,
            kW=k,
            kH=k,
            dW=stride,
            dH=stride,
            padW=pad,
            padH=pad,
            weight=self.tensor(self.rng.normal(0, scale, shape)),
            gradWeight=self.tensor(np.zeros(shape)),
        )
        if self.modules == 'cudnn':
            fields.update(
                groups=groups,
                iSize=Storage('Long', [2, inside, 9, 9]),
                autotunerHash='-dimA2,64,56,56',
                stride=[stride, stride],
            )
        if self.bias:
            fields.update(
                bias=self.tensor(self.rng.normal(0, 1, out)), gradBias=self.tensor(np.zeros(out))
            )
        return self.module(self.modules + '.SpatialConvolution', **fields)

    def bn(self, n):
        rng = self.rng
        return self.module(
            'nn.SpatialBatchNormalization',
            affine=True,
            eps=self.eps,
            momentum=0.1,
            weight=self.tensor(rng.uniform(0.5, 1, n)),
            bias=self.tensor(rng.normal(0, 0.3, n)),
            running_mean=self.tensor(rng.normal(0, 0.3, n)),
            running_var=self.tensor(rng.uniform(0.5, 2, n)),
            gradWeight=self.tensor(np.zeros(n)),
            gradBias=self.tensor(np.zeros(n)),
        )

    def relu(self):
        fields = dict(inplace=True)
        if self.modules == 'nn':
            fields.update(threshold=0, val=0)
        return self.module(self.modules + '.ReLU', **fields)

    def pool(self, name, k, stride, pad=0):
        return self.module(
            name, kW=k, kH=k, dW=stride, dH=stride, padW=pad, padH=pad, ceil_mode=False
        )

    def shortcut(self, inside, out, stride, type):
        if type == 'C' or type == 'B' and inside != out:
            return self.sequential(self.conv(inside, out, 1, stride), self.bn(out))
        if inside != out:
            return self.sequential(
                self.pool('nn.SpatialAveragePooling', 1, stride),
                self.module(
                    'nn.Concat',
                    dimension=2,
                    modules=[
                        self.module('nn.Identity'),
                        self.module('nn.MulConstant', constant_scalar=0, inplace=False),
                    ],
                ),
            )
        return self.module('nn.Identity')

    def block(self, inside, width, groups, out, stride, bottleneck, shortcut):
        def parts(inside, width, groups):
            return [
                self.conv(inside, width, 1),
                self.bn(width),
                self.relu(),
                self.conv(width, width, 3, stride, 1, groups),
                self.bn(width),
                self.relu(),
            ]

        if bottleneck == 'resnext_B':
            head = [
                self.module(
                    'nn.ConcatTable',
                    modules=[
                        self.sequential(*parts(inside, width // groups, 1)) for _ in range(groups)
                    ],
                ),
                self.module('nn.JoinTable', dimension=2),
            ]
        else:
            head = parts(inside, width, 1 if bottleneck == 'resnet' else groups)
        tail = [self.conv(width, out, 1), self.bn(out)]
        if self.nested:
            head = [self.sequential(*head)]
        return self.sequential(
            self.module(
                'nn.ConcatTable',
                modules=[
                    self.sequential(*head, *tail),
                    self.shortcut(inside, out, stride, shortcut),
                ],
            ),
            self.module('nn.CAddTable', inplace=True),
            self.relu(),
        )

    def network(
        self, form, block_num, C, d, stem, out, classes, bottleneck='resnext_C', shortcut='B'
    ):
        """``out``: channels after the first stage."""
        imagenet = form == 'imagenet'
        modules = [
            self.conv(3, stem, *((7, 2, 3) if imagenet else (3, 1, 1))),
            self.bn(stem),
            self.relu(),
        ]
        if imagenet:
            modules.append(self.pool('nn.SpatialMaxPooling', 3, 2, 1))
        inside = stem
        for i, blocks in enumerate(block_num):
            stage = []
            for j in range(blocks):
                stage.append(
                    self.block(
                        inside,
                        C * d * 2**i,
                        C,
                        out * 2**i,
                        2 if i and not j else 1,
                        bottleneck,
                        shortcut,
                    )
                )
                inside = out * 2**i
            modules.append(self.sequential(*stage))
        modules += [
            self.pool(self.modules + '.SpatialAveragePooling', 7 if imagenet else 8, 1),
            self.module(
                'nn.View', size=Storage('Long', [inside]), numElements=inside, numInputDims=3
            ),
            self.module(
                'nn.Linear',
                weight=self.tensor(self.rng.normal(0, 0.1, (classes, inside))),
                gradWeight=self.tensor(np.zeros((classes, inside))),
                bias=self.tensor(self.rng.normal(0, 0.1, classes)),
                gradBias=self.tensor(np.zeros(classes)),
            ),
        ]
        return self.sequential(*modules)


def share_storage(root):
    """Move parameters into one storage and their gradients into another, as getParameters."""
    for names in (('weight', 'bias'), ('gradWeight', 'gradBias')):
        tensors = [
            module.fields[name]
            for module in root.walk()
            for name in names
            if module.fields.get(name) is not None
        ]
        storage = Storage(tensors[0].kind, np.concatenate([t.storage.array for t in tensors]))
        offset = 0
        for t in tensors:
            t.offset, offset = offset, offset + t.storage.array.size
            t.storage = storage


def evaluate(module, x):
    """What Torch7's modules compute in evaluate() mode, in double precision.

    Args:
        module (Module): The network or a part of it.
        x (numpy.ndarray or list): Its input, float64.
    """
    name = module.name.split('.')[1]
    if name == 'Sequential':
        for child in module.modules:
            x = evaluate(child, x)
        return x
    if name == 'ConcatTable':
        return [evaluate(child, x) for child in module.modules]
    if name == 'Concat':
        return np.concatenate([evaluate(child, x) for child in module.modules], axis=1)
    if name == 'JoinTable':
        return np.concatenate(x, axis=1)
    if name == 'CAddTable':
        assert x[0].shape == x[1].shape
        return x[0] + x[1]
    if name == 'Identity':
        return x
    if name == 'MulConstant':
        return x * module.constant_scalar
    if name == 'ReLU':
        return np.maximum(x, 0)
    if name == 'SpatialConvolution':
        shape = (module.nOutputPlane, -1, module.kH, module.kW)
        bias = None if module.bias is None else module.bias.numpy()
        return F.convolution_2d(
            x,
            module.weight.numpy().reshape(shape),
            bias,
            module.dW,
            module.padW,
            groups=module.groups or 1,
        ).array
    if name == 'SpatialBatchNormalization':
        mean, var, weight, bias = (
            absent if t is None else t.numpy()[:, None, None]
            for t, absent in (
                (module.running_mean, None),
                (module.running_var, None),
                (module.weight, 1),
                (module.bias, 0),
            )
        )
        return (x - mean) / np.sqrt(var + module.eps) * weight + bias
    if name in ('SpatialMaxPooling', 'SpatialAveragePooling'):
        pool = F.max_pooling_2d if name == 'SpatialMaxPooling' else F.average_pooling_2d
        more = {'cover_all': bool(module.ceil_mode)} if pool is F.max_pooling_2d else {}
        return pool(x, module.kW, module.dW, module.padW, **more).array
    if name == 'View':
        return x.reshape(len(x), -1)
    assert name == 'Linear'
    return x @ module.weight.numpy().T + module.bias.numpy()
