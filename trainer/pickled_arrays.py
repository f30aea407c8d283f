"""NumPy arrays from pickles that :mod:`trainer.pickled` has read as data."""

import re
from typing import Literal

import numpy as np

from trainer.pickled import Call, Global, PickleError

#: Names to which pickled NumPy arrays refer, with NumPy 1 and 2.
NAMES = frozenset(
    Global(module, name)
    for module, name in (
        ('numpy', 'dtype'),
        ('numpy', 'ndarray'),
        ('numpy.core.multiarray', '_reconstruct'),
        ('numpy._core.multiarray', '_reconstruct'),
        ('numpy.core.numeric', '_frombuffer'),
        ('numpy._core.numeric', '_frombuffer'),
        ('_codecs', 'encode'),
    )
)

_MAX_DIMENSIONS = 8
_DTYPE = re.compile('[biuf][1248]')


def read(obj: object) -> np.ndarray:
    """Return the NumPy array that a pickle describes.

    Args:
        obj: What :func:`trainer.pickled.read` returns for a ``numpy.ndarray`` of NumPy 1 or 2.

    Raises:
        PickleError: It is not an array of numbers.
    """
    if not isinstance(obj, Call):
        raise PickleError('no array where one was expected')
    name = obj.function.name
    order: Literal['C', 'F']
    if name == '_reconstruct' and _are(obj.state, int, tuple, Call, (bool, int), (bytes, Call)):
        _, shape, dtype, fortran, raw = obj.state
        order = 'F' if fortran else 'C'
    # pickle protocol 5
    elif name == '_frombuffer' and _are(obj.arguments, (bytes, bytearray), Call, tuple, str):
        raw, dtype, shape, order = obj.arguments  # any other order is a ValueError
    else:
        raise PickleError('no array where one was expected')
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int for n in shape):
        raise PickleError('an array with an invalid shape')
    try:
        return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order=order)
    except (TypeError, ValueError, OverflowError) as e:
        raise PickleError(f'an invalid array: {str(e)[:100]}') from e


def _are(values, *types):
    return (
        isinstance(values, tuple)
        and len(values) == len(types)
        and all(map(isinstance, values, types))
    )


def _dtype(call):
    code = call.arguments[0] if call.function == Global('numpy', 'dtype') else None
    if isinstance(code, bytes):
        code = code.decode('ascii')
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise PickleError('an array, but not of numbers')
    big = isinstance(call.state, tuple) and call.state[1:2] in (('>',), (b'>',))
    return np.dtype(code).newbyteorder('>' if big else '<')


def _bytes(raw):
    # In old protocols, Python 3 writes bytes as text.
    if isinstance(raw, Call):
        if raw.function != Global('_codecs', 'encode') or not _are(raw.arguments, str, str):
            raise PickleError('a call where bytes were expected')
        return raw.arguments[0].encode('latin-1')
    return raw
