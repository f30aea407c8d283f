"""PyTorch's files for the tests, assembled by hand: pickles of anything, in both formats.

Written after the formats themselves; shares nothing with the converter.
"""

import pickle
import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    'float16': 'Half',
    'float32': 'Float',
    'float64': 'Double',
    'int64': 'Long',
    'uint16': 'BFloat16',
}


class Ref:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Persistent:
    def __init__(self, *arguments):
        self.arguments = arguments


def opcodes(value):
    """Pickle (protocol 2) a value, without its beginning and its end."""
    if isinstance(value, Ref):
        return f'c{value.module}\n{value.name}\n'.encode()
    if isinstance(value, Call):
        state = b'' if value.state is None else opcodes(value.state) + b'b'
        return opcodes(value.function) + opcodes(value.arguments) + b'R' + state
    if isinstance(value, Persistent):
        return opcodes(value.arguments) + b'Q'
    if isinstance(value, dict):
        items = b''.join(opcodes(k) + opcodes(v) for k, v in value.items())
        return b'}(' + items + b'u'
    if isinstance(value, (list, tuple)):
        items = b''.join(map(opcodes, value))
        return b'](' + items + b'e' if isinstance(value, list) else b'(' + items + b't'
    return pickle.dumps(value, 2)[2:-1]


def dumps(value):
    return b'\x80\x02' + opcodes(value) + b'.'


def tensor(key, dtype, count, shape, strides=None, offset=0):
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Persistent('storage', Ref('torch', KINDS[dtype] + 'Storage'), key, 'cpu', count)
    return Call(
        Ref('torch._utils', '_rebuild_tensor_v2'),
        storage,
        offset,
        tuple(shape),
        tuple(strides),
        False,
        Call(Ref('collections', 'OrderedDict')),
    )


def contents(arrays):
    """Return (the dict of tensors to pickle, key -> array) of arrays."""
    tensors = {
        name: tensor(str(i), a.dtype.name, a.size, a.shape)
        for i, (name, a) in enumerate(arrays.items())
    }
    return tensors, {str(i): a for i, a in enumerate(arrays.values())}


def write_zip(path, root, storages, byteorder=b'little', more=(), pickled=None):
    """Write torch.save's zip archive; ``pickled`` instead of what ``root`` would be."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/data.pkl', dumps(root) if pickled is None else pickled)
        archive.writestr('x/byteorder', byteorder)
        for key, array in storages.items():
            order = '>' if byteorder == b'big' else '<'
            archive.writestr(
                'x/data/' + key, array.astype(array.dtype.newbyteorder(order)).tobytes()
            )
        for name, data in more:
            archive.writestr(name, data)


def write_legacy(path, root, storages, pickled=None):
    """Write the format before the zip archive."""
    with open(path, 'wb') as f:
        for value in (
            MAGIC,
            1001,
            {
                'protocol_version': 1001,
                'little_endian': True,
                'type_sizes': {'short': 2, 'int': 4, 'long': 4},
            },
        ):
            f.write(dumps(value))
        f.write(dumps(root) if pickled is None else pickled)
        f.write(dumps(list(storages)))
        for array in storages.values():
            f.write(struct.pack('<q', array.size) + array.tobytes())
