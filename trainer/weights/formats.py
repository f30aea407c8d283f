"""All formats of weights: which one a file has, reading and writing."""

import collections
import struct

from trainer import files
from trainer.errors import InputError
from trainer.weights import npz, onnx, pytorch, safetensors, torch7

#: What can be written -> what names of such files end in.
SUFFIXES = {
    'npz': ('.npz',),
    'pth': ('.pth', '.pth.tar', '.pt'),
    'safetensors': ('.safetensors',),
    'onnx': ('.onnx',),
}


class Found(collections.namedtuple('Found', 'kind details picture_size')):
    """What a file says beside the network.

    Attributes:
        kind (str): 't7', 'npz', 'pth' or 'safetensors'.
        details (str): Types of its numbers, and the like.
        picture_size (int): Height and width of the pictures it was made for, in pixels.
    """


def kind_of(path):
    """Tell what format a file has, by how it begins: 't7', 'npz', 'pth' or 'safetensors'.

    Raises:
        trainer.errors.InputError: It cannot be read, or has none of them.
    """
    try:
        with files.open_regular(path) as f:
            head = f.read(512)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    if head[:4] == b'PK\3\4':
        # The first member: arrays in npz, the pickle in PyTorch's.
        (length,) = struct.unpack('<H', head[26:28].ljust(2, b'\0'))
        return 'npz' if head[30 : 30 + length].endswith(b'.npy') else 'pth'
    # The length of a header of JSON: may begin with any byte.
    if head[4:8] == bytes(4) and head[8:9] == b'{':
        return 'safetensors'
    if head[:1] == pytorch.PICKLE:
        return 'pth'
    if head[1:4] == bytes(3) and 0 < head[0] < 9 or head[:2] in (b'3\n', b'4\n'):
        return 't7'
    if head[257:262] == b'ustar':
        raise InputError(
            f'{path}: a tar archive; if PyTorch 0.1 wrote it, load it there and save its '
            'state dict with a later one'
        )
    raise InputError(
        f'{path}: not a file of weights: neither Torch7 (.t7), npz, PyTorch (.pth) nor '
        'safetensors; ONNX is written, not read'
    )


def read(path, entry=None):
    """Build the network that a file holds, whatever its format and name.

    Args:
        path (str): The file.
        entry (str): Which state dict, of a PyTorch file with several.

    Returns:
        tuple: The network on the CPU, and :class:`Found`.

    Raises:
        trainer.errors.InputError: It is damaged, or holds no network of ours.
    """
    kind = kind_of(path)
    if entry is not None and kind != 'pth':
        raise InputError(
            f'--entry {entry}: only PyTorch files have state dicts to choose from; {path} is {kind}'
        )
    if kind == 't7':
        network, found = torch7.read(path)
        return network, Found(kind, found.tensors, found.picture_size)
    if kind == 'npz':
        network, details = npz.load(path), 'float32'
    elif kind == 'safetensors':
        network, found = safetensors.read(path)
        details = f"{found.dtypes}, {found.naming.name}'s names"
    else:
        network, found, entry = pytorch.read(path, entry)
        details = "{}, {}'s names{}".format(
            found.dtypes, found.naming.name, entry and f', its {entry}'
        )
    return network, Found(kind, details, network.picture_size)


def load(path, gpu=-1):
    """Load a network from a file of weights, which says what network it holds.

    Args:
        path (str): A file of any format that :func:`read` reads. In npz files of the 2017 program the architecture is read off the
            arrays; ILSVRC networks get Torch7's pooling, which their weights were
            trained with: set ``round_up_pooling`` to ``True`` for what that program
            computes.
        gpu (int): Where to put it; below 0 is the CPU.

    Returns:
        trainer.networks.base.Network: The network with its weights.

    Raises:
        trainer.errors.InputError: The file is damaged or not such a file.
    """
    network, _ = read(path)
    network.check_gpu(gpu)
    return network


def kind_for(path):
    """Return the format that the name of a file to write suggests: 'npz' where it does not."""
    for kind, suffixes in SUFFIXES.items():
        if path.lower().endswith(suffixes):
            return kind
    return 'npz'


def write(path, network, kind, layout=None, naming=None, fold=True):
    """Write a network's weights; the file appears whole or not at all.

    Args:
        path (str): The file, any name.
        network (trainer.networks.base.Network): The network.
        kind (str): One of :data:`SUFFIXES`.
        layout (str): Of npz; see :meth:`Network.save_model`.
        naming (str): Of pth and safetensors; see :func:`state_dict.choose
            <trainer.weights.state_dict.choose>`.
        fold (bool): Of ONNX; see :func:`trainer.weights.onnx.build`.

    Raises:
        trainer.errors.InputError: The format cannot hold the network, or needs a
            package that is not installed.
    """
    if kind == 'npz':
        network.save_model(path, layout=layout)
    elif kind == 'pth':
        pytorch.save(path, network, naming)
    elif kind == 'safetensors':
        safetensors.save(path, network, naming)
    else:
        onnx.save(path, network, fold)
