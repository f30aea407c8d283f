"""Torch7's files (.t7) of the networks of facebookresearch/ResNeXt.

The architecture is determined by the modules, not by the file's name. Modules nested in
``nn.Sequential`` are read depth first, so that the published files and those of the published
code look alike. Modules that our networks cannot represent are refused by their place.

torchfile trusts every length in a file and loads every tensor, including gradients and buffers.
Here tensors and storages have readers of our own, which check that the numbers exist and note where
they are, so that needed ones can be loaded later. Nothing in a file is executed: torchfile keeps
Lua functions as bytes.
"""

from __future__ import annotations

import collections
import itertools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torchfile

from trainer import files
from trainer.errors import InputError
from trainer.weights import description, formats, safetensors, torch7_modules
from trainer.weights.strided import Damaged, Storage, StridedTensor

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path


# Longest string, most objects and dimensions; beyond them a file is damaged. 152 layers 64x4d
# with separate branches (bottleneck type resnext_B) have 1.2 million objects.
_MAX_STRING = 1 << 20
_MAX_OBJECTS = 2_000_000
_MAX_DIMENSIONS = 8
# Most bytes besides the numbers, mainly strings. Those 152 layers have 19 MB.
_MAX_READ = 1 << 26

# Exceptions that torchfile raises for damaged files.
_DAMAGE = (
    struct.error,
    torchfile.T7ReaderException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class _File:
    """The file that torchfile reads: checks that each read is within bounds."""

    def __init__(self, f):
        self.f = f
        self.size = os.fstat(f.fileno()).st_size
        self._left = _MAX_READ

    def read(self, length):
        if not 0 <= length <= _MAX_STRING:
            raise Damaged(f'it states a length of {length} at byte {self.f.tell()}')
        self._left -= length
        if self._left < 0:
            raise Damaged(f'it has more than {_MAX_READ:,} bytes beside its numbers')
        data = self.f.read(length)
        if len(data) < length:
            raise Damaged('it ends too soon')
        return data


_DTYPES = {
    'Byte': 'u1',
    'Char': 'i1',
    'Short': '<i2',
    'Int': '<i4',
    'Long': '<i8',
    'Half': '<f2',
    'Float': '<f4',
    'Double': '<f8',
}

# torchfile has one global table of readers. Ours have names of their own, so that torchfile.load
# is unchanged for others.
_OURS = b'trainer '
_ours: set[bytes] = set()


def _register(kind, dtype):
    def read_tensor(reader, version):
        dimensions = reader.read_int()
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            raise Damaged(f'a tensor has {dimensions} dimensions')
        shape = reader.read_long_array(dimensions)
        strides = reader.read_long_array(dimensions)
        offset = reader.read_long() - 1
        return StridedTensor(kind, reader.read_obj(), offset, shape, strides)

    def read_storage(reader, version):
        size = reader.read_long()
        position = reader.f.f.tell()
        if not 0 <= size <= (reader.f.size - position) // dtype.itemsize:
            raise Damaged(f'{size} numbers should follow byte {position}')
        reader.f.f.seek(position + size * dtype.itemsize)
        reader.numbers += size
        return Storage(kind, dtype, position, size)

    for name, read in (('Tensor', read_tensor), ('Storage', read_storage)):
        name = (kind + name).encode()
        _ours.add(name)
        torchfile.register_handler(_OURS + name)(read)


for _name, _dtype in _DTYPES.items():
    _register('torch.' + _name, np.dtype(_dtype))
    # CUDA's float tensors are plain torch.CudaTensor.
    _register('torch.Cuda' + _name.replace('Float', ''), np.dtype(_dtype))


class _Reader(torchfile.T7Reader):
    """torchfile's reader, for 8-byte longs on any system, with bounds."""

    def __init__(self, f):
        # With its heuristic for lists, torchfile fails on a list of tensors.
        super().__init__(_File(f), use_list_heuristic=False, force_8bytes_long=True)
        self.numbers = 0
        self._objects_left = _MAX_OBJECTS

    def read_obj(self):
        self._objects_left -= 1
        if self._objects_left < 0:
            raise Damaged(f'it has more than {_MAX_OBJECTS:,} objects')
        return super().read_obj()

    def read_long_array(self, n):
        return self._read(f'<{n}q')  # torchfile's needs Python 2 for 8-byte longs

    def read_string(self, disable_utf8=False):
        string = super().read_string(disable_utf8)
        # disable_utf8 marks the names of classes.
        return _OURS + string if disable_utf8 and string in _ours else string


def _parse(f):
    """Read a file, except the numbers of its tensors.

    Return the content as torchfile does, but with :class:`StridedTensor` and :class:`Storage` for
    arrays, and dicts for tables; and how many numbers all storages have.
    """
    first = f.read(4)
    if first[:2] in (b'3\n', b'4\n'):
        raise Damaged("it is in Torch7's text format; save it there as 'binary'")
    if first[1:] != b'\0\0\0' or first[0] not in (torchfile.TYPE_TABLE, torchfile.TYPE_TORCH):
        raise Damaged('it does not begin as one')
    f.seek(0)
    reader = _Reader(f)
    try:
        root = reader.read_obj()
    except _DAMAGE as e:
        raise Damaged(e if isinstance(e, torchfile.T7ReaderException) else type(e).__name__) from e
    if f.tell() != reader.f.size:
        raise Damaged(f'{reader.f.size - f.tell()} bytes follow its end')
    return root, reader.numbers


class Torch7File(NamedTuple):
    """What a file holds besides the network.

    Attributes:
        tensors: Torch7's type of its numbers, such as 'torch.FloatTensor'.
        image_size: Height and width of the images for which it was made, in pixels.
        shortcut: Type of its shortcuts: 'A', 'B' or 'C'.
    """

    tensors: str
    image_size: int
    shortcut: str


class _Numbers:
    """Loads the network's tensors, and checks that they do not overlap."""

    def __init__(self, f):
        self._f = f
        self.kinds = collections.Counter()
        self._extents = []

    def _note(self, module, key, tensor, gradient):
        extent = tensor.extent()  # checks the storage
        self._extents.append((tensor.storage.position, *extent, gradient, module, key))

    def load(self, module, key, *shapes, absent=None):
        """Load a tensor that has one of ``shapes``, as the first of them.

        If there is neither the tensor nor its gradient, return ``absent``.
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
        if isinstance(gradient, StridedTensor) and gradient.shape:
            self._note(module, key, gradient, True)
        numbers = tensor.load(self._f)
        with np.errstate(over='ignore'):
            finite = np.isfinite(numbers.astype(np.float32, copy=False)).all()
        if not finite:
            raise module.refuse(f'has {key} with numbers that are not finite in float32')
        self.kinds[tensor.kind + 'Tensor'] += numbers.size
        return numbers.reshape(shapes[0])

    def check_distinct(self):
        """Refuse overlapping tensors, which a damaged offset or reference can cause."""
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
        # Subtracting a bias from the mean has the same effect as adding it to the input.
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
    root, limit = _parse(f)
    held = torch7_modules.network(torch7_modules.root_of(root))
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
    else:  # facebookresearch has this form only for CIFAR, with channel means for each dataset
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
        held.image_size,
        network.shortcut,
    )


def read(path: Path) -> tuple[Network, Torch7File]:
    """Build the network in a Torch7 file, and describe the file.

    The ImageNet and the CIFAR form, of any depth, widths, cardinality and number of
    classes; bottleneck types resnet, resnext_B (separate branches) and resnext_C (grouped);
    shortcut types A, B and C; tensors of any precision, which are converted to float32.
    Biases of convolutions are folded into the running means, exactly. Of a
    ``nn.DataParallelTable`` the first replica is used, of a table the only network in it.

    Args:
        path: The file.

    Returns:
        The network (:class:`resnext_ilsvrc.ResNext` or :class:`resnext.PaperResNext`) on the CPU,
        and :class:`Torch7File`.

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
    except torch7_modules.Refused as e:
        raise InputError(f'{path}: cannot be converted: {e}') from None
    except Damaged as e:
        raise InputError(f'{path}: not a whole Torch7 file ({e}); fetch it again') from e


def _recognises(head):
    binary = head[1:4] == bytes(3) and 0 < head[0] < 9 and not safetensors.recognises(head)
    return binary or head[:2] in (b'3\n', b'4\n')


def _read(path, entry):
    network, found = read(path)
    return network, found.tensors, found.image_size


FORMAT = formats.Format('t7', ('.t7',), recognises=_recognises, read=_read)
