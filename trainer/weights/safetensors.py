"""safetensors files of PyTorch state dicts, through the safetensors package (an extra)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from trainer import extras, files
from trainer.errors import InputError
from trainer.transforms.geometry import Geometry
from trainer.weights import description, formats, state_dict

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path

_DTYPES = {
    'F16': 'float16',
    'BF16': 'bfloat16',
    'F32': 'float32',
    'F64': 'float64',
    'I32': 'int32',
    'I64': 'int64',
}


# The header of ResNeXt-152 has 0.2 MB; its 64x4d weights in float64 have 0.9 GB.
_MAX_HEADER = 4 << 20
_MAX_FILE = 2 << 30


def _tensor(held):
    dtype = _DTYPES.get(held['dtype'], held['dtype'])
    shape = tuple(held['shape'])

    def load():
        bits = np.frombuffer(
            held['data'], np.dtype('uint16' if dtype == 'bfloat16' else dtype).newbyteorder('<')
        ).reshape(shape)
        return state_dict.from_bfloat16(bits) if dtype == 'bfloat16' else bits

    return state_dict.Tensor(dtype, shape, load)


def read(path: Path) -> tuple[Network, state_dict.StateDict]:
    """Build the network of the state dict in a safetensors file.

    Args:
        path: The file. The metadata that :func:`save` writes is read as well.

    Returns:
        The network on the CPU, and :class:`state_dict.StateDict`.

    Raises:
        trainer.errors.InputError: The package safetensors is missing; or the file is
            missing or damaged, or holds no ResNeXt of a known naming.
    """
    safetensors = extras.need('safetensors', f'reading {path}')
    try:
        with files.open_regular(path) as f:
            header_size = int.from_bytes(f.read(8), 'little')
        if header_size > _MAX_HEADER:
            raise safetensors.SafetensorError(f'its header has {header_size:,} bytes')
        data = files.read_bounded(path, _MAX_FILE)
        tensors = {name: _tensor(held) for name, held in safetensors.deserialize(data)}
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except safetensors.SafetensorError as e:
        raise InputError(
            '{}: not a whole safetensors file ({}); fetch it again'.format(
                path, ' '.join(str(e).split())[:100]
            )
        ) from e
    network, found = state_dict.read(tensors, path)
    # The package has checked that there is a header.
    header = json.loads(data[8 : 8 + header_size])
    metadata = header.get('__metadata__') or {}
    network.classes = _classes(metadata, network, path)
    if 'geometry' in metadata:
        try:
            geometry = Geometry.from_json(json.loads(metadata['geometry']))
        except (ValueError, TypeError, RecursionError) as e:
            raise InputError(f'{path}: its geometry cannot be used ({e})') from e
        description.set_geometry(network, geometry)
    return network, found


def _classes(metadata, network, path):
    if 'classes' not in metadata:
        return None
    try:
        classes = json.loads(metadata['classes'])
    except (ValueError, RecursionError):
        classes = None
    if (
        not isinstance(classes, list)
        or len(classes) != network.category_num
        or not all(isinstance(name, str) for name in classes)
    ):
        raise InputError(f'{path}: its classes are not a list of {network.category_num} names')
    return classes


def save(path: Path, network: Network, naming: str | None = None) -> None:
    """Save a network's state dict as safetensors.

    Args:
        path: The file, with any suffix. It appears whole or not at all.
        network: The network; class names and geometry are written to the metadata, as JSON.
        naming: See :func:`state_dict.choose`.

    Raises:
        trainer.errors.InputError: The package safetensors is missing, or the naming
            cannot represent the network.
    """
    extras.need('safetensors', f'writing {path}')
    from safetensors import numpy as safetensors

    metadata = {'format': 'pt'}
    if network.classes is not None:
        metadata['classes'] = json.dumps(network.classes)
    if network.geometry is not None:
        metadata['geometry'] = json.dumps(network.geometry.as_json())
    arrays = state_dict.write(network, naming)
    with files.replacing(path) as unfinished:
        safetensors.save_file(arrays, unfinished, metadata)


def recognises(head: bytes) -> bool:
    """Return whether first bytes are those of safetensors: a header's length, and JSON."""
    return head[4:8] == bytes(4) and head[8:9] == b'{'


def _read(path, entry):
    network, found = read(path)
    return network, found.details, None


FORMAT = formats.Format(
    'safetensors',
    ('.safetensors',),
    recognises=recognises,
    read=_read,
    write=save,
    write_options=('naming',),
    holds_classes=lambda naming=None: True,
)
