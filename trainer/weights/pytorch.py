"""PyTorch's files (.pth, .pth.tar, .pt) of state dicts, read and written without PyTorch.

Both formats of torch.save are read: zip archives (since PyTorch 1.6) and the older one. The
pickle in them is read as data (:mod:`trainer.pickled`): nothing in a file is executed, imported
or called, and a file that refers to anything but tensors and plain containers is refused.
"""

from __future__ import annotations

import collections
import io
import os
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from trainer import files, pickled, pickled_arrays
from trainer.errors import InputError
from trainer.text import printable
from trainer.weights import formats, safetensors, state_dict, strided
from trainer.weights.pytorch_writer import save

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path

# The first two pickles of the older format.
_LEGACY = [0x1950A86A20F9469CFC6C, 1001]

#: First bytes of a pickle.
PICKLE = b'\x80'

# The pickle of ResNeXt-152's training state, with two sets of weights and momentum, has 0.3 MB.
_MAX_PICKLE = 4 << 20
_MAX_DIMENSIONS = 8
_MAX_NAME = 1000

_DTYPES = {
    'Half': 'f2',
    'Float': 'f4',
    'Double': 'f8',
    'BFloat16': 'u2',
    'Byte': 'u1',
    'Char': 'i1',
    'Short': 'i2',
    'Int': 'i4',
    'Long': 'i8',
    'Bool': 'u1',
}
_STORAGES = {
    pickled.Global(module, kind + 'Storage'): kind
    for kind in _DTYPES
    for module in ('torch', 'torch.cuda')
}
_TENSORS = {pickled.Global('torch._utils', '_rebuild_tensor' + version) for version in ('', '_v2')}
_PARAMETER = pickled.Global('torch._utils', '_rebuild_parameter')

# Names that a training state may refer to besides tensors: plain values without effects.
_KNOWN = {_PARAMETER, *_TENSORS, *_STORAGES, *pickled_arrays.NAMES} | {
    pickled.Global(module, name)
    for module, names in (
        ('collections', ('OrderedDict', 'defaultdict', 'Counter')),
        ('argparse', ('Namespace',)),
        ('builtins', ('set', 'dict', 'list')),
        ('__builtin__', ('set', 'dict', 'list')),
        ('torch', ('Size', 'device')),
        ('numpy.core.multiarray', ('scalar',)),
        ('numpy._core.multiarray', ('scalar',)),
    )
    for name in names
}

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    TypeError,
    AttributeError,
    IndexError,
    UnicodeError,
    MemoryError,
)


class _Refused(Exception):
    """The file is whole, but holds something that is not supported."""


class _Zip:
    """torch.save's zip archive: ``NAME/data.pkl``, and ``NAME/data/KEY`` for each storage."""

    swapped = False

    def __init__(self, f):
        self._archive = files.open_zip(f)
        members = self._archive.infolist()
        self._members = {info.filename: info for info in members}
        size = os.fstat(f.fileno()).st_size
        # The code of a TorchScript program is compressed.
        if any(name.endswith('/constants.pkl') or '/code/' in name for name in self._members):
            raise _Refused('it holds a TorchScript program; save its state_dict() instead')
        # PyTorch compresses nothing else, so no member is larger than the file.
        if (
            len(self._members) != len(members)
            or sum(i.file_size for i in members) > size
            or any(i.compress_type != zipfile.ZIP_STORED for i in members)
        ):
            raise ValueError('its members are not as PyTorch writes them')
        names = [name for name in self._members if name.endswith('/data.pkl')]
        if len(names) != 1:
            raise _Refused('it is a zip archive, but not one of torch.save')
        self._folder = names[0].removesuffix('data.pkl')
        if self._folder + 'byteorder' in self._members:
            self.swapped = self._read('byteorder') == b'big'
        if self._members[names[0]].file_size > _MAX_PICKLE:
            raise ValueError(f'its pickle has {self._members[names[0]].file_size} bytes')
        self.root = _unpickle(io.BytesIO(self._read('data.pkl')))

    def _read(self, name):
        return self._archive.read(self._members[self._folder + name])  # checks the CRC

    def size(self, key):
        """Return the bytes of a storage."""
        return self._members[self._folder + 'data/' + key].file_size

    def open(self, key):
        """Return (file, first byte) of a storage."""
        return io.BytesIO(self._read('data/' + key)), 0


class _Legacy:
    """The older format of torch.save: five pickles, then the storages."""

    swapped = False

    def __init__(self, f):
        head = io.BytesIO(f.read(_MAX_PICKLE))
        if [pickled.read(head) for _ in _LEGACY] != _LEGACY:
            raise ValueError('it does not begin as one')
        pickled.read(head)  # of the machine that wrote the file
        self.root = _unpickle(head)
        keys = pickled.read(head)
        if not isinstance(keys, list):
            raise ValueError('it has no list of storages')
        self._f, self._places = f, {}
        size, position = os.fstat(f.fileno()).st_size, head.tell()
        widths = _widths(self.root)
        for key in map(_text, keys):
            f.seek(position)
            (count,) = struct.unpack('<q', f.read(8))
            position += 8
            if key in self._places or not 0 <= count <= (size - position) // widths[key]:
                raise ValueError(f'{count} numbers should follow byte {position}')
            self._places[key] = position, count * widths[key]
            position += count * widths[key]
        if position != size:
            raise ValueError(f'{size - position} bytes follow its end')

    def size(self, key):
        return self._places[key][1]

    def open(self, key):
        return self._f, self._places[key][0]


def _text(name):
    """Return a name or key in a file as text."""
    if type(name) is int:
        return str(name)
    if type(name) not in (str, bytes) or len(name) > _MAX_NAME:
        raise ValueError('a name that is not one')
    return name.decode('ascii', 'replace') if isinstance(name, bytes) else name


def _unpickle(f):
    try:
        return pickled.read(f, _KNOWN)
    except pickled.UnknownNameError as e:
        raise _Refused(
            f'{e}, which weights do not need and which is not run here; in PyTorch, '
            'save model.state_dict() alone'
        ) from e


def _storage(call):
    """Return (kind, key, count) of a storage."""
    if not isinstance(call, pickled.Call) or call.function != pickled.PERSISTENT:
        raise ValueError('a tensor has no storage')
    (name,) = call.arguments
    if not isinstance(name, tuple) or name[5:] not in ((), (None,)):  # views of other storages
        raise ValueError('a tensor has no storage of its own')
    what, cls, key, _, count = name[:5]
    if _text(what) != 'storage' or type(cls) is not pickled.Global or type(count) is not int:
        raise ValueError('a storage that is not one')
    return _STORAGES[cls], _text(key), count


def _arguments(value):
    """Return the arguments of a tensor, or ``None`` if ``value`` is not a tensor."""
    if isinstance(value, pickled.Call) and value.function == _PARAMETER:
        value = value.arguments[0]
    if not isinstance(value, pickled.Call) or value.function not in _TENSORS:
        return None
    return value.arguments


def _widths(root):
    """Return key -> bytes per number, for every storage to which a pickle refers."""
    widths, todo = collections.defaultdict(lambda: 1), [root]
    while todo:
        value = todo.pop()
        if isinstance(value, pickled.Call):
            if value.function == pickled.PERSISTENT:
                kind, key, _ = _storage(value)
                widths[key] = np.dtype(_DTYPES[kind]).itemsize
            else:
                todo += [value.arguments, value.state]
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple)):
            todo += value
    return widths


def _tensor(archive, arguments, extents):
    """Check a tensor and note its extent; return the :class:`state_dict.Tensor`."""
    storage, offset, shape, strides = arguments[:4]
    kind, key, count = _storage(storage)
    if not (
        isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(type(n) is int for n in (offset, *shape, *strides))
    ):
        raise ValueError('a tensor of a shape that is not one')
    dtype = np.dtype(_DTYPES[kind]).newbyteorder('>' if archive.swapped else '<')
    if count * dtype.itemsize != archive.size(key):
        raise ValueError(f'storage {key[:20]} has not {count} numbers')

    def view(position):
        # A scalar has no dimensions.
        return strided.StridedTensor(
            kind,
            strided.Storage(kind, dtype, position, count),
            offset,
            shape or (1,),
            strides or (1,),
        )

    def load():
        f, position = archive.open(key)
        array = view(position).load(f).reshape(shape)
        if kind == 'BFloat16':
            return state_dict.from_bfloat16(array)
        return array.astype(dtype.newbyteorder('='), copy=False)

    extents.append((key,) + view(0).extent())
    name = 'bfloat16' if kind == 'BFloat16' else dtype.newbyteorder('=').name
    return state_dict.Tensor(name, shape, load)


def _tensors(archive, value):
    """Return name -> :class:`state_dict.Tensor` of a dict in a file."""
    extents = []
    tensors = {_text(name): _tensor(archive, _arguments(v), extents) for name, v in value.items()}
    if len(tensors) != len(value):
        raise ValueError('two tensors have one name')
    extents.sort()
    for (key, _, end), (other, first, _) in zip(extents, extents[1:]):
        if key == other and first < end:
            raise ValueError('two tensors share their numbers')
    return tensors


def _entries(root):
    """Return name -> dict for all dicts of tensors: the root, as '', and its values."""
    if not isinstance(root, dict):
        raise _Refused('it holds no dict; in PyTorch, save model.state_dict()')

    def is_one(value):
        return (
            isinstance(value, dict)
            and value
            and all(_arguments(v) is not None for v in value.values())
        )

    found = {'': root} if is_one(root) else {}
    found.update({_text(name): value for name, value in root.items() if is_one(value)})
    return found


def _choose(archive, entry):
    """Choose the state dict; return its name and tensors, and the names of other networks'."""
    entries, networks = _entries(archive.root), []
    there = ', '.join(sorted(entries)) or 'none'
    if entry is not None:
        if entry not in entries:
            raise _Refused(f'there is no state dict {entry}; there are: {there}')
        name = entry
    elif len(entries) == 1:
        (name,) = entries
    else:
        networks = [
            name
            for name, value in entries.items()
            if state_dict.recognise(state_dict.strip(_tensors(archive, value))) is not None
        ]
        if not networks:
            raise _Refused(f'it holds no state dict of a ResNeXt; dicts of tensors in it: {there}')
        name = 'state_dict' if 'state_dict' in networks else networks[0]
        if name != 'state_dict' and len(networks) > 1:
            raise _Refused(
                'it holds several state dicts; choose with `ilsvrc_converter.py --entry`: '
                + ', '.join(sorted(networks))
            )
    return name, _tensors(archive, entries[name]), sorted(set(networks) - {name})


def read(path: Path, entry: str | None = None) -> tuple[Network, state_dict.StateDict, str]:
    """Like :func:`read_and_tell`, but return only the network and the StateDict."""
    return read_and_tell(path, entry)[:3]


def read_and_tell(
    path: Path, entry: str | None = None
) -> tuple[Network, state_dict.StateDict, str, list[str]]:
    """Build the network of a state dict in a file.

    The file may hold the state dict itself, or a training state that contains one.

    Args:
        path: The file, in either format of torch.save.
        entry: Name of the state dict in a training state, such as 'ema_state_dict'. ``None``:
            'state_dict', or the only state dict of a network.

    Returns:
        The network on the CPU, the :class:`state_dict.StateDict`, the state dict's name (str, ''
        for the file itself), and the names of other candidates (list of str).

    Raises:
        trainer.errors.InputError: The file is missing or damaged, refers to anything
            but tensors and plain values, or holds no ResNeXt of a known naming.
    """
    try:
        with files.open_regular(path) as f:
            legacy = f.read(1) == PICKLE
            f.seek(0)
            name, tensors, others = _choose(_Legacy(f) if legacy else _Zip(f), entry)
            network, found = state_dict.read(tensors, path)
            return network, found, name, others
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except _Refused as e:
        raise InputError(f'{path}: {e}') from None
    except (strided.Damaged, *_DAMAGE) as e:
        detail = ' '.join(str(e).split())[:100]
        raise InputError(
            '{}: not a whole PyTorch file ({}{}); fetch it again'.format(
                path, type(e).__name__, ': ' + detail if detail else ''
            )
        ) from e


def _recognises(head):
    if head[:4] == b'PK\3\4':
        return not files.first_zip_member(head).endswith(b'.npy')
    return head[:1] == PICKLE and not safetensors.recognises(head)


def _read(path, entry):
    network, found, entry, others = read_and_tell(path, entry)
    notes = [
        f"{path} holds {printable(', '.join(others))} too; {entry} was taken; the converter's "
        '`entry` takes another'
    ]
    details = found.details + (entry and f', its {printable(entry)}')
    return network, details, None, *(notes if others else ())


FORMAT = formats.Format(
    'pth',
    ('.pth', '.pth.tar', '.pt'),
    recognises=_recognises,
    read=_read,
    write=save,
    write_options=('naming',),
    has_entries=True,
)
