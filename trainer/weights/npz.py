"""npz files: this project's layout, also with separate branches (:mod:`trainer.weights.forms`),
and the 2017 program's (:mod:`trainer.weights.layout_2017`).

A file holds one array for each parameter and running statistic, under the path
of its link (``stage1/block1/reduce/conv/W``), and a string ``architecture`` that
describes the network as JSON. Plain ``numpy.load`` and
``chainer.serializers.load_npz`` read it too. Nothing in a file is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from trainer import files
from trainer.errors import InputError
from trainer.weights import chainercv, description, formats, forms, layout_2017

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path, When

ARCHITECTURE = 'architecture'

# Weights hardly compress: a file that unpacks to far more than its size does not hold weights,
# and is refused before it fills the memory.
_MAX_EXPANSION = 10
_SMALL = 16 << 20

# The 2017 program's 101 64x4d has 4,888 arrays.
_MAX_ARRAYS = 100_000

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
    SyntaxError,
    TypeError,
    AttributeError,
    IndexError,
    UnicodeError,
    tokenize.TokenError,
    MemoryError,
)


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except InputError:
        raise
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except _DAMAGE as e:
        detail = ' '.join(str(e).split())[:100]
        raise InputError(
            '{}: not a whole npz file ({}{}); fetch or convert it again'.format(
                path, type(e).__name__, ': ' + detail if detail else ''
            )
        ) from e


def _member(archive, info):
    """Return (name, shape, dtype, fortran order, offset of the data) of one array."""
    name = info.filename
    if not name.endswith('.npy'):
        raise ValueError(f'{name} is not an array')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # NumPy uses no other method, and zipfile unpacks others without bounds.
        raise ValueError(f'{name} is compressed by method {info.compress_type}')
    with archive.open(info) as f:
        version = np.lib.format.read_magic(f)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(f)
        offset = f.tell()
    if dtype.kind not in 'biufU':
        raise ValueError(f'{name} holds {dtype}, not numbers')
    if math.prod(shape) * dtype.itemsize != info.file_size - offset:
        raise ValueError(f'{name} has not the size of {shape} {dtype}')
    return name[:-4], shape, dtype, fortran, offset


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file, executing and unpickling nothing.

    Args:
        path: The file.

    Returns:
        Name -> array, in the file's order.

    Raises:
        trainer.errors.InputError: The file is missing or damaged, holds anything but
            numbers and strings, or would unpack to far more than its size.
    """
    arrays = {}
    with _reading(path), files.open_regular(path) as f, files.open_zip(f) as archive:
        members = archive.infolist()
        size = sum(info.file_size for info in members)
        on_disk = os.fstat(f.fileno()).st_size
        if len(members) > _MAX_ARRAYS:
            raise ValueError(f'{len(members)} arrays')
        if size > _SMALL and size > _MAX_EXPANSION * on_disk:
            raise ValueError(f'{on_disk} bytes would become {size}')
        for info in members:
            name, shape, dtype, fortran, offset = _member(archive, info)
            with archive.open(info) as member:
                data = member.read(info.file_size)  # no more than stated; checks the CRC
            if name in arrays:
                raise ValueError(f'two arrays are called {name}')
            array = np.frombuffer(data, dtype, offset=offset)
            arrays[name] = array.reshape(shape, order='F' if fortran else 'C')
    return arrays


def _architecture(arrays, path):
    """Remove the description from a file's arrays; return it, or ``None``."""
    if ARCHITECTURE not in arrays:
        return None
    with _reading(path):
        architecture = json.loads(str(arrays.pop(ARCHITECTURE)[()]))
        if not isinstance(architecture, dict):
            raise ValueError('architecture is not a JSON object')
        return architecture


def state(network: Network) -> dict[str, np.ndarray]:
    """Return path -> array (not a copy) of everything that files hold of a network."""
    arrays: dict[str, np.ndarray] = {}
    chainer.serializers.DictionarySerializer(arrays).save(network)
    return dict(sorted(arrays.items()))  # Chainer's order changes from run to run


def _check_settings(network, path, architecture):
    """Refuse a file with a network that differs in what shapes do not show, such as strides."""
    if architecture is None:
        return
    own = network.architecture()
    # Missing entries follow from the others for stages, and are defaults otherwise.
    usual = {key: own.get(key) for key in ('stages', 'eps')}
    usual |= {'average_shortcut': None, 'pool_pad': None}
    for key, default in usual.items():
        here, there = own.get(key), architecture.get(key, default)
        if here != there:
            raise InputError(
                f'{path}: does not fit {describe(network)}: {key} is {there} there and {here} here'
            )


def fill(
    network: Network, arrays: dict[str, np.ndarray], path: Path, architecture: dict[str, Any] | None
) -> Network:
    """Copy arrays, of any layout, into a network after checking all of them.

    Args:
        network: The network.
        arrays: The arrays in a file.
        path: The file, for messages.
        architecture: The description in the file, or ``None``.

    Raises:
        trainer.errors.InputError: The arrays do not fit. The network is then unchanged.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in ('iu' if name.endswith('/N') else 'iuf'):
            raise InputError(f'{path}: {name} holds {array.dtype}, not numbers')
    if chainercv.is_chainercv(arrays):
        arrays = chainercv.to_here(arrays, path)
    form = forms.form_of(arrays)
    if form is not None or layout_2017.is_original(arrays):
        try:
            units = forms.units(network, form) if form else network.original_units()
        except InputError as e:
            raise InputError(f'{path}: {e}') from None
        arrays = layout_2017.to_here(arrays, units, path, describe(network))
    held = state(network)
    missing = [name for name in held if name not in arrays]
    extra = [name for name in arrays if name not in held]
    # Chainer's files have BN's N, which is not needed after training; other tools omit it.
    missing = [name for name in missing if not name.endswith('/N')]
    if missing or extra:
        raise InputError(
            '{}: does not fit {}: {} {}'.format(
                path,
                describe(network),
                'it has no' if missing else 'it also has',
                (missing or extra)[0],
            )
        )
    for name, array in arrays.items():
        if array.shape != np.shape(held[name]):
            raise InputError(
                f'{path}: does not fit {describe(network)}: {name} is {array.shape} there and '
                f'{np.shape(held[name])} here'
            )
    _check_settings(network, path, architecture)
    arrays = {name: np.zeros((), np.int64) for name in held if name.endswith('/N')} | arrays
    chainer.serializers.NpzDeserializer(arrays).load(network)
    return network


def describe(network: Network) -> str:
    """Describe a network in a few words."""
    return '{}{} of {} classes, blocks {}, {}x{}d'.format(
        'SE-' if 'se_reduction' in network.variant else '',
        type(network).__name__ + ('-D' if 'average_shortcut' in network.variant else ''),
        network.category_num,
        '-'.join(map(str, network.block_num)),
        network.C,
        network.d,
    )


def load_into(path: Path, network: Network) -> None:
    """Load a file, of any layout, into an existing network.

    Raises:
        trainer.errors.InputError: The file is damaged or holds another network. The network
            is then unchanged.
    """
    arrays = read_arrays(path)
    architecture = _architecture(arrays, path) or chainercv.architecture(arrays, path)
    fill(network, arrays, path, architecture)


def load(path: Path) -> Network:
    """Build the network in a file, with its weights, on the CPU.

    Raises:
        trainer.errors.InputError: The file is damaged or holds no network.
    """
    arrays = read_arrays(path)
    architecture = _architecture(arrays, path)
    if architecture is None:
        architecture = layout_2017.architecture(arrays) or chainercv.architecture(arrays, path)
    if architecture is None:
        raise InputError(
            '{}: an npz file, but not of a network of this project, of the 2017 '
            'program or of chainercv; first array: {}'.format(path, next(iter(arrays), 'none'))
        )
    weights = sum(array.size for array in arrays.values())
    network = description.build(architecture, path, weight_limit=weights)
    return fill(network, arrays, path, architecture)


def save(path: Path, network: Network, layout: str | None = None, when: When = files.now) -> None:
    """Save a network's weights as float32.

    Args:
        path, layout: See :meth:`Network.save_model`.
        network: The network.
        when: Called with the function that writes the file. If the network is on a GPU, that may
            be called later.
    """

    def number(array):
        array = chainer.backends.cuda.to_cpu(array) if np.ndim(array) else np.int64(array)
        return np.asarray(array, np.float32 if np.ndim(array) else np.int64)

    arrays = {name: number(array) for name, array in state(network).items()}
    if layout == 'original':
        try:
            units = network.original_units()
        except InputError as e:
            raise InputError(f"layout 'original': {e}; leave the layout out") from None
        arrays = layout_2017.from_here(arrays, units)
        write = np.savez_compressed
    elif layout is None or layout in forms.FORMS:
        if layout is not None:
            arrays = layout_2017.from_here(arrays, forms.units(network, layout))
        arrays[ARCHITECTURE] = np.array(json.dumps(description.of(network)))
        write = np.savez
    else:
        raise InputError(f"layout {layout!r}: there are None, 'original', 'form-a' and 'form-b'")

    def to_file():
        with files.replacing(path) as unfinished, open(unfinished, 'wb') as f:
            write(f, **arrays)

    when(to_file)


FORMAT = formats.Format(
    'npz',
    ('.npz', '.model'),
    # The first member of the archive is an array; its name follows its length.
    recognises=lambda head: files.first_zip_member(head).endswith(b'.npy'),
    read=lambda path, entry: (load(path), 'float32', None),
    write=save,
    write_options=('layout',),
    holds_classes=lambda layout=None: layout != 'original',
)
