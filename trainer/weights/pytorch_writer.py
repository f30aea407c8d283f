"""Writes state dicts as ``torch.save`` does (the zip format), without PyTorch."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from trainer import files
from trainer.weights import state_dict

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path

_VERSION = b'3\n'
# PyTorch aligns storages to this, so that they can be mapped into memory.
_ALIGNMENT = 64


def _pickle_int(n):
    return b'K' + bytes([n]) if n < 256 else b'J' + struct.pack('<i', n)


def _pickle_text(text):
    return b'X' + struct.pack('<I', len(text.encode())) + text.encode()


def _pickle_tuple(items):
    return b'(' + b''.join(items) + b't'


def _pickle(arrays):
    """Return the pickle (protocol 2) of an OrderedDict of tensors, as torch.save writes it.

    pickle.Pickler cannot do that: it refers only to names that can be imported.
    """
    empty = b'ccollections\nOrderedDict\n)R'
    parts = [b'\x80\x02', empty, b'(']
    for i, (name, array) in enumerate(arrays.items()):
        kind = {'float32': b'Float', 'int64': b'Long'}[array.dtype.name]
        storage = (
            _pickle_tuple(
                [
                    _pickle_text('storage'),
                    b'ctorch\n' + kind + b'Storage\n',
                    _pickle_text(str(i)),
                    _pickle_text('cpu'),
                    _pickle_int(array.size),
                ]
            )
            + b'Q'
        )
        numbers = [
            _pickle_tuple(map(_pickle_int, n))
            for n in (array.shape, [stride // array.itemsize for stride in array.strides])
        ]
        parts += [
            _pickle_text(name),
            b'ctorch._utils\n_rebuild_tensor_v2\n',
            _pickle_tuple([storage, _pickle_int(0), *numbers, b'\x89', empty]),
            b'R',
        ]
    return b''.join(parts) + b'u.'


def save(path: Path, network: Network, naming: str | None = None) -> None:
    """Save a network's state dict as torch.save does; torch.load reads it.

    Args:
        path: The file, with any suffix. It appears whole or not at all.
        network: The network.
        naming: See :func:`state_dict.choose`.

    Raises:
        trainer.errors.InputError: The naming cannot represent the network.
    """
    arrays = state_dict.write(network, naming)
    with files.replacing(path) as unfinished, zipfile.ZipFile(unfinished, 'w') as archive:

        def add(name, data):
            info = zipfile.ZipInfo('archive/' + name)
            start = archive.fp.tell() + 30 + len(info.filename) + 4  # two headers
            padding = -start % _ALIGNMENT
            info.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
            archive.writestr(info, data)

        add('data.pkl', _pickle(arrays))
        add('byteorder', b'little')
        for i, array in enumerate(arrays.values()):
            array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
            add(f'data/{i}', array.reshape(-1).view(np.uint8).data)
        add('version', _VERSION)
