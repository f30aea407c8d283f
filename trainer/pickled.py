"""Pickles read as data: nothing in them is executed, imported or called.

Python's own reader calls the functions that a pickle names. This one follows the opcodes and
represents each name and each call by a :class:`Global` or a :class:`Call`, which the caller
can recognise.

The result is safe to walk even if the pickle is hostile: containers are built from the inside
out and never change once something refers to them, so there are no cycles; depth and size are
bounded while they are built; and only text, bytes and integers become keys, so nothing else is
hashed.
"""

import pickletools
from collections.abc import Container
from typing import IO, Any, NamedTuple


class Global(NamedTuple):
    """A name to which a pickle refers."""

    module: str
    name: str


#: The function of a :class:`Call` that represents an object outside the pickle.
PERSISTENT = Global('pickle', 'persistent_load')


class Call:
    """A call that a pickle contains: ``function(*arguments)``, then ``state``.

    Attributes:
        function: One of the known names, or :data:`PERSISTENT`.
        arguments: Any objects.
        state: Any object; ``None`` if there is no state.
    """

    def __init__(self, function: Global, arguments: tuple) -> None:
        self.function = function
        self.arguments = arguments
        self.state: Any = None


class PickleError(ValueError):
    """The pickle is damaged, or holds something that this reader does not support."""


class UnknownNameError(PickleError):
    """The pickle refers to a name that is not in ``known``."""


# Training states nest about 12 deep; CIFAR-100 has 300,000 opcodes.
_MAX_DEPTH = 64
_MAX_SIZE = 1 << 20
_MAX_WORK = 1 << 20
# A dict of chosen integers takes time quadratic in their number.
_MAX_ITEMS = 1 << 14
_MAX_BITS = 128
_MAX_KEY_BITS = 64

_MARK = object()
# Their arguments come last.
_DICTS = {Global('collections', name) for name in ('OrderedDict', 'defaultdict', 'Counter')}


class _Value:
    """An object on the stack.

    Attributes:
        object: The object.
        depth (int): How deep it nests; 0 for numbers and text.
        size (int): How many objects it consists of, shared ones counted at each reference.
        open (bool): Whether it may still change, as nothing else refers to it yet.
    """

    __slots__ = ('object', 'depth', 'size', 'open')

    def __init__(self, obj):
        self.object, self.depth, self.size, self.open = obj, 0, 1, True

    def hold(self, parts):
        """Add an object that it holds to its depth and size."""
        if not self.open:
            raise PickleError('changes an object that another one already contains')
        for part in parts:
            part.open = False
            self.depth = max(self.depth, part.depth + 1)
            self.size += part.size
        if self.depth > _MAX_DEPTH:
            raise PickleError(f'nests more than {_MAX_DEPTH} deep')
        if self.size > _MAX_SIZE:
            raise PickleError(f'holds more than {_MAX_SIZE} objects')


class _Machine:
    """Python's unpickling machine, without its calls."""

    def __init__(self, known):
        self._known = known
        self._stack, self._memo, self._work = [], [], 0

    def run(self, data):
        for opcode, argument, _ in pickletools.genops(data):
            self._spend(1)
            if opcode.name == 'STOP':
                return self._pop().object
            if opcode.name not in _STEPS:
                raise PickleError(f'holds {opcode.name}, which data does not need')
            _STEPS[opcode.name](self, argument)

    def _spend(self, work):
        self._work += work
        if self._work > _MAX_WORK:
            raise PickleError(f'takes more than {_MAX_WORK} steps')

    def _push(self, obj, parts=()):
        value = _Value(obj)
        value.hold(parts)
        self._stack.append(value)

    def _top(self):
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError('has nothing where something is used')
        return self._stack[-1]

    def _pop(self):
        value = self._top()
        self._stack.pop()
        return value

    def _pop_to_mark(self):
        items = []
        while self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        self._stack.pop()
        return items[::-1]

    def mark(self, _):
        self._stack.append(_MARK)

    def drop(self, _):
        self._stack.pop()

    def drop_to_mark(self, _):
        self._pop_to_mark()

    def nothing(self, _):
        pass

    def value(self, argument):
        if type(argument) is int and argument.bit_length() > _MAX_BITS:
            raise PickleError(f'holds an integer of {argument.bit_length()} bits')
        self._push(argument)

    def old_string(self, argument):
        self._push(argument.encode('latin-1'))  # Python 2's str comes as text in Latin-1

    def duplicate(self, _):
        self._push_again(self._top())

    def _push_again(self, value):
        value.open = False
        self._stack.append(value)

    def memoize(self, _):
        self._memo.append(self._top())

    def put(self, key):
        if not 0 <= key < _MAX_WORK:
            raise PickleError(f'keeps something as number {key}')
        self._memo.extend([None] * (key + 1 - len(self._memo)))
        self._memo[key] = self._top()

    def get(self, key):
        if not 0 <= key < len(self._memo) or self._memo[key] is None:
            raise PickleError('refers to what it did not keep')
        self._push_again(self._memo[key])

    def make_list(self, _):
        items = self._pop_to_mark()
        self._push([item.object for item in items], items)

    def _tuple(self, items):
        self._push(tuple(item.object for item in items), items)

    def make_tuple(self, _):
        self._tuple(self._pop_to_mark())

    def tuple_of(self, count):
        self._tuple([self._pop() for _ in range(count)][::-1])

    def make_dict(self, _):
        items = self._pop_to_mark()
        self._push({})
        self._set(items)

    def append(self, _):
        self._append([self._pop()])

    def append_all(self, _):
        self._append(self._pop_to_mark())

    def _append(self, items):
        target = self._top()
        if type(target.object) is not list:
            raise PickleError('appends to an object that is not a list')
        target.hold(items)
        target.object.extend(item.object for item in items)

    def set_item(self, _):
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _):
        self._set(self._pop_to_mark())

    def _set(self, items):
        target = self._top()
        if type(target.object) is not dict or len(items) % 2:
            raise PickleError('sets items of an object that is not a dict')
        target.hold(items)
        objects = [item.object for item in items]
        self._update(target.object, zip(objects[::2], objects[1::2], strict=True))

    def _update(self, target, items):
        for key, value in items:
            self._spend(1)
            if type(key) is int and key.bit_length() <= _MAX_KEY_BITS or type(key) in (str, bytes):
                target[key] = value
            else:
                raise PickleError('has a dict with keys that are not names')
        if len(target) > _MAX_ITEMS:
            raise PickleError(f'has a dict of more than {_MAX_ITEMS} items')

    def refer(self, module_and_name):
        self._refer(*module_and_name.split(' ', 1))

    def refer_from_stack(self, _):
        name, module = self._pop().object, self._pop().object
        if type(name) is not str or type(module) is not str:
            raise PickleError('refers to something without a name')
        self._refer(module, name)

    def _refer(self, module, name):
        found = Global(module, name)
        if found not in self._known:
            raise UnknownNameError(f'it refers to {module[:60]}.{name[:60]}')
        self._push(found)

    def call(self, _):
        arguments, function = self._pop(), self._pop()
        if type(function.object) is not Global or type(arguments.object) is not tuple:
            raise PickleError('calls something without a name')
        if function.object in _DICTS:
            self._push({}, [arguments])
            self._update(self._top().object, self._items(arguments.object))
        else:
            self._push(Call(function.object, arguments.object), [arguments])

    def _items(self, arguments):
        """Return the items of a dict, given the arguments of its class."""
        content = arguments[-1] if arguments else ()
        if content is None or type(content) is Global:  # the values of a defaultdict
            return ()
        if type(content) is dict:
            return content.items()
        if type(content) not in (list, tuple):
            raise PickleError('has a dict made from no items')
        if not all(type(item) in (list, tuple) and len(item) == 2 for item in content):
            raise PickleError('has a dict made from no items')
        return content

    def build(self, _):
        state, target = self._pop(), self._top()
        target.hold([state])
        if type(target.object) is Call:
            target.object.state = state.object
        elif type(target.object) is not dict:  # a dict's attributes are not its content
            raise PickleError('has a state for something that was not built')

    def persistent(self, _):
        name = self._pop()
        self._push(Call(PERSISTENT, (name.object,)), [name])


_STEPS = {
    'PROTO': _Machine.nothing,
    'FRAME': _Machine.nothing,
    'MARK': _Machine.mark,
    'POP': _Machine.drop,
    'POP_MARK': _Machine.drop_to_mark,
    'DUP': _Machine.duplicate,
    'PUT': _Machine.put,
    'BINPUT': _Machine.put,
    'LONG_BINPUT': _Machine.put,
    'MEMOIZE': _Machine.memoize,
    'GET': _Machine.get,
    'BINGET': _Machine.get,
    'LONG_BINGET': _Machine.get,
    'NONE': lambda machine, _: machine._push(None),
    'NEWTRUE': lambda machine, _: machine._push(True),
    'NEWFALSE': lambda machine, _: machine._push(False),
    'EMPTY_LIST': lambda machine, _: machine._push([]),
    'EMPTY_DICT': lambda machine, _: machine._push({}),
    'EMPTY_TUPLE': lambda machine, _: machine.tuple_of(0),
    # The items of a set would be hashed.
    'EMPTY_SET': lambda machine, _: machine._push([]),
    'ADDITEMS': _Machine.append_all,
    'FROZENSET': _Machine.make_list,
    'LIST': _Machine.make_list,
    'TUPLE': _Machine.make_tuple,
    'TUPLE1': lambda machine, _: machine.tuple_of(1),
    'TUPLE2': lambda machine, _: machine.tuple_of(2),
    'TUPLE3': lambda machine, _: machine.tuple_of(3),
    'DICT': _Machine.make_dict,
    'APPEND': _Machine.append,
    'APPENDS': _Machine.append_all,
    'SETITEM': _Machine.set_item,
    'SETITEMS': _Machine.set_items,
    'GLOBAL': _Machine.refer,
    'STACK_GLOBAL': _Machine.refer_from_stack,
    'REDUCE': _Machine.call,
    'NEWOBJ': _Machine.call,
    'BUILD': _Machine.build,
    'BINPERSID': _Machine.persistent,
    **dict.fromkeys(('STRING', 'BINSTRING', 'SHORT_BINSTRING'), _Machine.old_string),
    **dict.fromkeys(
        ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
        + ('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
        + ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
        _Machine.value,
    ),
}


def read(data: bytes | IO[bytes], known: Container[Global] = ()) -> Any:
    """Read one pickle.

    Args:
        data: The pickle; of a file, nothing beyond the end of the pickle is read.
        known: The names to which it may refer.

    Returns:
        The object, of numbers, strings (``bytes`` for Python 2's ``str``), lists (also for
        sets), tuples, dicts (also for those of ``collections``) with keys of ``str``,
        ``bytes`` and ``int``, :class:`Global` and :class:`Call`. It nests at most 64 deep, has
        no cycles, and has at most 2**20 objects, counted at each reference.

    Raises:
        UnknownNameError: It refers to a name that is not in ``known``.
        PickleError: It is damaged, too large, or holds something that is not supported.
    """
    try:
        return _Machine(known).run(data)
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
        raise PickleError(f'{type(e).__name__}: {str(e)[:100]}') from e
