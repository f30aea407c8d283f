"""Pickles read as data: nothing in them is executed, imported or called.

Python's own reader calls what a pickle names. This one follows the opcodes and
leaves each name and each call standing as a :class:`Global` or a :class:`Call`,
for the caller to recognise; it can refuse names outright.
"""

import collections
import pickletools

import numpy as np

#: A name that a pickle refers to.
Global = collections.namedtuple('Global', 'module name')


class Call:
    """A call that a pickle asks for: ``function(*arguments)``, then ``state``."""

    def __init__(self, function, arguments):
        self.function = function
        self.arguments = arguments
        self.state = None


class PickleError(ValueError):
    """The pickle is damaged or holds what this reader does not know."""


_MARK = object()
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
# Python 2's str comes as text in Latin-1.
_OLD_STRINGS = {'STRING', 'BINSTRING', 'SHORT_BINSTRING'}
_VALUES = _OLD_STRINGS | {
    'INT',
    'BININT',
    'BININT1',
    'BININT2',
    'LONG',
    'LONG1',
    'LONG4',
    'FLOAT',
    'BINFLOAT',
    'BINBYTES',
    'SHORT_BINBYTES',
    'BINBYTES8',
    'BYTEARRAY8',
    'UNICODE',
    'BINUNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE8',
}
_EMPTY = {'EMPTY_LIST': list, 'EMPTY_DICT': dict, 'EMPTY_TUPLE': tuple, 'EMPTY_SET': set}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
# What they are made from comes last.
_DICTS = {Global('collections', name) for name in ('OrderedDict', 'defaultdict', 'Counter')}


def read(data, known=None):
    """Read one pickle.

    Args:
        data (bytes or file): The pickle. Of a file nothing behind its end is read.
        known (container of Global): The names that it may refer to; ``None``: any.

    Returns:
        The object: numbers, strings (``bytes`` for Python 2's ``str``), lists,
        tuples, dicts (also for those of ``collections``), :class:`Global` and
        :class:`Call`.

    Raises:
        PickleError: It is damaged, holds what this reader does not know, or refers to
            a name that is not in ``known``.
    """
    try:
        return _read(data, known)
    except PickleError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        UnicodeError,
    ) as e:
        raise PickleError(f'{type(e).__name__}: {e}')


def _call(function, arguments):
    if function in _DICTS and isinstance(arguments, tuple):
        content = arguments[-1] if arguments else ()
        return {} if isinstance(content, Global) else dict(content)
    return Call(function, arguments)


def _read(data, known):
    stack, memo = [], {}

    def refer(module, name):
        # The names of a damaged pickle may be anything.
        found = Global(str(module), str(name))
        if known is not None and found not in known:
            raise PickleError(f'it refers to {found.module[:60]}.{found.name[:60]}')
        return found

    def pop_to_mark():
        items = []
        while stack[-1] is not _MARK:
            items.append(stack.pop())
        stack.pop()
        return items[::-1]

    def update(target, items):
        for key, value in zip(items[::2], items[1::2]):
            target[key] = value

    for opcode, argument, _ in pickletools.genops(data):
        op = opcode.name
        if op in _VALUES:
            stack.append(argument.encode('latin-1') if op in _OLD_STRINGS else argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op == 'MARK':
            stack.append(_MARK)
        elif op == 'POP':
            stack.pop()
        elif op == 'POP_MARK':
            pop_to_mark()
        elif op == 'DUP':
            stack.append(stack[-1])
        elif op in ('PUT', 'BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif op == 'MEMOIZE':
            memo[len(memo)] = stack[-1]
        elif op in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif op == 'APPEND':
            value = stack.pop()
            stack[-1].append(value)
        elif op == 'APPENDS':
            items = pop_to_mark()
            stack[-1].extend(items)
        elif op == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif op == 'SETITEMS':
            items = pop_to_mark()
            update(stack[-1], items)
        elif op == 'LIST':
            stack.append(pop_to_mark())
        elif op == 'TUPLE':
            stack.append(tuple(pop_to_mark()))
        elif op == 'DICT':
            items = pop_to_mark()
            stack.append({})
            update(stack[-1], items)
        elif op in _TUPLES:
            n = _TUPLES[op]
            stack[-n:] = [tuple(stack[-n:])]
        elif op == 'GLOBAL':
            stack.append(refer(*argument.split(' ', 1)))
        elif op == 'STACK_GLOBAL':
            attribute, module = stack.pop(), stack.pop()
            stack.append(refer(module, attribute))
        elif op in ('REDUCE', 'NEWOBJ'):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif op == 'BUILD':
            state = stack.pop()
            if isinstance(stack[-1], Call):
                stack[-1].state = state
            elif not isinstance(stack[-1], dict):  # a dict's attributes are not its content
                raise PickleError('state for something that was not built')
        elif op == 'BINPERSID':
            stack.append(Call(Global('pickle', 'persistent_load'), (stack.pop(),)))
        elif op == 'STOP':
            if stack[0] is _MARK:
                raise PickleError('nothing in it')
            return stack.pop()
        elif op not in ('PROTO', 'FRAME'):
            raise PickleError(f'holds {op}, which data does not need')
    raise PickleError('no end')


def array(obj):
    """Return the NumPy array that a pickle describes.

    Args:
        obj (Call): What :func:`read` gives for an ``numpy.ndarray``, of NumPy 1 or 2.

    Raises:
        PickleError: It is not an array of numbers.
    """
    try:
        module, name = obj.function
        module = module.replace('numpy._core.', 'numpy.core.')
        if (module, name) == ('numpy.core.multiarray', '_reconstruct'):
            _, shape, dtype, fortran, raw = obj.state
            order = 'F' if fortran else 'C'
        elif (module, name) == ('numpy.core.numeric', '_frombuffer'):  # pickle protocol 5
            raw, dtype, shape, order = obj.arguments
        else:
            raise PickleError(f'a call of {module}.{name} where an array was expected')
        if order not in ('C', 'F'):
            raise PickleError(f'an array in order {order!r}')
        return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order=order)
    except (TypeError, ValueError, AttributeError, IndexError) as e:
        raise PickleError(f'not an array: {e}')


def _dtype(obj):
    if tuple(obj.function) != ('numpy', 'dtype'):
        raise PickleError(f'an array of {obj.function}')
    code = obj.arguments[0]
    dtype = np.dtype(code.decode('ascii') if isinstance(code, bytes) else code)
    if dtype.kind not in 'biuf':
        raise PickleError(f'an array of {dtype}, not of numbers')
    if obj.state is not None and obj.state[1] in ('>', b'>'):
        dtype = dtype.newbyteorder('>')
    return dtype


def _bytes(raw):
    # Python 3 writes bytes as text where the protocol is old.
    if isinstance(raw, Call):
        if tuple(raw.function) != ('_codecs', 'encode'):
            raise PickleError(f'a call of {raw.function} where bytes were expected')
        raw = raw.arguments[0].encode('latin-1')
    return raw
