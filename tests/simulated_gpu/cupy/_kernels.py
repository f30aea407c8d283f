"""Kernels compiled by g++, with ``cuda_on_cpu.h`` in the place of CUDA's definitions.

A raw kernel's arguments must be of exactly the types that its source declares: what CUDA
would read as garbage raises TypeError here.
"""

import ctypes
import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile

import numpy as np

from cupy import _device
from cupy._array import ndarray

HEADER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'cuda_on_cpu.h')
_C_TYPES = {
    'bool': '?',
    'char': 'i1',
    'signed char': 'i1',
    'unsigned char': 'u1',
    'short': 'i2',
    'unsigned short': 'u2',
    'int': 'i4',
    'unsigned': 'u4',
    'unsigned int': 'u4',
    'long': 'i8',
    'unsigned long': 'u8',
    'long long': 'i8',
    'unsigned long long': 'u8',
    'float16': 'f2',
    'float': 'f4',
    'double': 'f8',
    'size_t': 'u8',
    'ptrdiff_t': 'i8',
    'int8_t': 'i1',
    'uint8_t': 'u1',
    'int16_t': 'i2',
    'uint16_t': 'u2',
    'int32_t': 'i4',
    'uint32_t': 'u4',
    'int64_t': 'i8',
    'uint64_t': 'u8',
}
_NAMES = {np.dtype(code): name for name, code in reversed(_C_TYPES.items())}
_VECTOR = re.compile(r'(u?)(char|short|int|longlong|float|double)[1-4]$')


class CompileException(Exception):
    """The source does not compile."""


def _folder():
    folder = os.path.join(tempfile.gettempdir(), f'simulated_gpu_{os.getuid()}')
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


_FLAGS = ('-x', 'c++', '-std=c++17', '-O2', '-march=native', '-w', '-fPIC')
# The header has what they call.
_CHECKS = ('-fsanitize=alignment,bounds',)


@functools.cache
def _header():
    with open(HEADER) as f:
        return f.read()


@functools.cache
def _compile(code, elementwise=False):
    """Return (library, path) of C++, kept in the temporary folder by its contents."""
    flags = _FLAGS + (('-DCUDA_ON_CPU_ELEMENTWISE',) if elementwise else _CHECKS)
    key = hashlib.sha256('\0'.join((_header(), code) + flags).encode()).hexdigest()[:32]
    path = os.path.join(_folder(), key + '.so')
    if not os.path.exists(path):
        part = f'{path}.{os.getpid()}'
        # Two steps: linked with the checks' flags, their library would be asked for.
        for command, given in (
            (('g++', *flags, '-include', HEADER, '-c', '-'), code),
            (('g++', '-shared', '-Wl,-Bsymbolic', part + '.o'), None),
        ):
            output = part + ('.o' if given else '')
            result = subprocess.run(
                (*command, '-o', output), input=given, text=True, capture_output=True
            )
            if result.returncode:
                raise CompileException(result.stderr)
        os.remove(part + '.o')
        os.replace(part, path)
    # PyDLL keeps Python's lock: kernels have static memory.
    return ctypes.PyDLL(path), path


def _preprocessed(code):
    result = subprocess.run(
        ('g++', '-x', 'c++', '-std=c++17', '-E', '-P', '-'),
        input=code,
        text=True,
        capture_output=True,
    )
    if result.returncode:
        raise CompileException(result.stderr)
    return result.stdout


# Raw kernels.


def _own_types(text):
    """Return the type behind each typedef, and each struct of a single number, of a source."""
    found = {}
    for pattern in (
        r'typedef\s+([\w ]+?)\s+(\w+)\s*;',
        r'using\s+(\w+)\s*=\s*([\w ]+?)\s*;',
        r'struct\s+(\w+)\s*\{\s*([\w ]+?)\s+\w+\s*;\s*\}\s*;',
    ):
        for a, b in re.findall(pattern, text):
            name, meaning = (b, a) if pattern.startswith('typedef') else (a, b)
            found[name] = meaning
    return found


class _Parameter:
    def __init__(self, text, own):
        text = re.sub(r'\b__restrict__\b|\b__grid_constant__\b', ' ', text)
        words = re.fullmatch(r'\s*(.*?)(\w+)\s*', text, re.S)
        self.type, self.name = ' '.join(words[1].replace('*', ' * ').split()), words[2]
        self.pointer = '*' in self.type
        self.const = self.type.startswith('const') or self.type.split(' *')[0].endswith('const')
        base = ' '.join(
            w for w in self.type.replace('*', ' ').split() if w not in ('const', 'volatile')
        )
        while base in own:
            base = own[base]
        vector = _VECTOR.match(base)
        if vector:
            base = ('unsigned ' if vector[1] else '') + vector[2].replace('longlong', 'long long')
        self.base = base
        if (
            base not in _C_TYPES
            and not (self.pointer and base == 'void')
            or (vector and not self.pointer)
        ):
            raise NotImplementedError('the simulation has no parameters of type ' + self.type)
        self.dtype = np.dtype(_C_TYPES.get(base, 'u1'))

    def accepts(self, array):
        given, own = array.dtype, self.dtype
        return (
            self.base == 'void'
            or given == own
            or given.itemsize == own.itemsize
            and (
                (given.char, own.char) in (('e', 'H'), ('?', 'B'), ('B', '?'))
                or given.kind in 'iu'
                and own.kind in 'iu'
            )
        )

    def value(self, kernel, x):
        """Return the NumPy scalar that the kernel gets for an argument."""
        where = f'{kernel}: argument {self.name} ({self.type})'
        if not self.pointer:
            if isinstance(x, np.generic) and x.dtype == self.dtype:
                return x
            raise TypeError(
                '{} is given {} {!r}'.format(where, getattr(x, 'dtype', type(x).__name__), x)
            )
        if isinstance(x, ndarray):
            if not self.accepts(x):
                raise TypeError(f'{where} is given an array of {x.dtype}')
            return np.uintp(x.data.ptr if x.size else 0)
        if isinstance(x, _device.MemoryPointer):
            return np.uintp(x.ptr)
        if x is None:
            return np.uintp(0)
        if isinstance(x, np.generic) and x.dtype.kind in 'iu' and x.dtype.itemsize == 8:
            if x:
                _device.arena.find(int(x))
            return np.uintp(int(x))
        raise TypeError(f'{where} is given {type(x).__name__} {x!r}')


def _signatures(text):
    """Return kernel -> (parameters' texts, greatest number of threads or ``None``)."""
    found = {}
    for match in re.finditer(
        r'__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\(([^)]*)\)\s*)?'
        r'(?:void\s+)?(\w+)\s*\(',
        text,
    ):
        depth, end = 1, match.end()
        while depth:
            depth += {'(': 1, ')': -1}.get(text[end], 0)
            end += 1
        inside = text[match.end() : end - 1].strip()
        bound = match[1] and re.sub(r'[^\d+*() /-]', '', match[1].split(',')[0])
        found[match[2]] = (inside.split(',') if inside else [], eval(bound) if bound else None)
    return found


class Function:
    """A kernel: ``function(grid, block, args, shared_mem=0)``."""

    def __init__(self, name, entry, parameters, bound, shared):
        self.name, self.shared_size_bytes = name, shared
        self._entry, self._parameters, self._bound = entry, parameters, bound or 1024
        self.max_threads_per_block = self._bound
        self.max_dynamic_shared_size_bytes = 49152 - shared
        self._entry.restype = ctypes.c_char_p

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        sizes = [tuple(int(n) for n in size) + (1,) * (3 - len(size)) for size in (grid, block)]
        (gx, gy, gz), (bx, by, bz) = sizes
        if not (0 < gx < 1 << 31 and 0 < gy < 65536 and 0 < gz < 65536):
            raise _invalid(f'{self.name}: grid of {sizes[0]} blocks')
        if not (bx > 0 and by > 0 and 0 < bz <= 64 and bx * by * bz <= self._bound):
            raise _invalid(f'{self.name}: {sizes[1]} threads')
        if not 0 <= shared_mem <= self.max_dynamic_shared_size_bytes:
            raise _invalid(
                f'{self.name}: {self.shared_size_bytes} + {shared_mem} bytes of shared memory'
            )
        if len(args) != len(self._parameters):
            raise TypeError(f'{self.name} takes {len(self._parameters)} arguments, not {len(args)}')
        values, reads, writes = [], [], []
        for parameter, x in zip(self._parameters, args):
            value = parameter.value(self.name, x)
            values.append(np.array([value], parameter.dtype if not parameter.pointer else np.uintp))
            if parameter.pointer and value:
                (reads if parameter.const else writes).append(int(value))
        addresses = (ctypes.c_void_p * max(len(values), 1))(*(v.ctypes.data for v in values))
        numbers = (ctypes.c_uint * 6)(*sizes[0], *sizes[1])

        def work(keep=values):
            error = self._entry(addresses, numbers, ctypes.c_size_t(shared_mem))
            if error:
                raise _device.SimulationError(f'kernel {self.name}: {error.decode()}')

        _device.submit(work, reads, writes, stream)


def _invalid(what):
    return _device.CUDARuntimeError('CUDA_ERROR_INVALID_VALUE', 'invalid argument ' + what)


class RawModule:
    """Kernels in CUDA C."""

    def __init__(
        self,
        *,
        code=None,
        path=None,
        options=(),
        backend='nvrtc',
        translate_cucomplex=False,
        enable_cooperative_groups=False,
        name_expressions=None,
        jitify=None,
    ):
        if not isinstance(code, str) or name_expressions:
            raise NotImplementedError('the simulation compiles plain code alone')
        self.code, self.options, self.backend = code, options, backend

    @functools.cached_property
    def _functions(self):
        if '#include' in self.code:
            raise CompileException('the simulation has no headers to include')
        text = _preprocessed(self.code)
        unknown = re.search(r'\b(u?int(8|16|32|64|ptr)_t|NULL|std::\w+)\b', text)
        if unknown:
            raise CompileException(f'NVRTC does not know {unknown[0]} without headers')
        if re.search(
            r'__device__\s+(?!const|static const|constexpr)[\w ]+\s\w+(\[\w*\])?'
            r'\s*(=[^=]|;)',
            text,
        ):
            raise NotImplementedError('the simulation has no variables in device memory')
        code = re.sub(
            r'extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([^;]*?)\b(\w+)'
            r'\s*\[\s*\]\s*;',
            r'\1 *const \2 = (\1 *)cuda_on_cpu::state->dynamic;',
            self.code,
        )
        code = ['#line 1 "kernels.cu"\n', code, '\n']
        own = _own_types(text)
        signatures = {
            name: ([_Parameter(p, own) for p in parameters], bound)
            for name, (parameters, bound) in _signatures(text).items()
        }
        for name, (parameters, _) in signatures.items():
            code.append(
                'static void cuda_call_{0}(void **a) {{ {0}({1}); }}\n'
                'extern "C" const char *cuda_launch_{0}(void **a, const unsigned *sizes, size_t n) '
                '{{ return cuda_on_cpu::launch(cuda_call_{0}, a, sizes, n); }}\n'.format(
                    name, ', '.join(f'*({p.type} *)a[{i}]' for i, p in enumerate(parameters))
                )
            )
        library, path = _compile(''.join(code))
        sizes = _shared_sizes(path)
        return {
            name: Function(
                name,
                getattr(library, 'cuda_launch_' + name),
                parameters,
                bound,
                sum(
                    size
                    for symbol, size in sizes.items()
                    if symbol.startswith(f'_ZZ{len(name)}{name}E')
                ),
            )
            for name, (parameters, bound) in signatures.items()
        }

    def compile(self, log_stream=None):
        _ = self._functions

    def get_function(self, name):
        if name not in self._functions:
            raise _device.CUDARuntimeError('CUDA_ERROR_NOT_FOUND', 'named symbol not found')
        return self._functions[name]


def _shared_sizes(path):
    """Return the sizes of the static memory of a library's functions, by symbol."""
    kept = path[:-3] + '.json'
    if not os.path.exists(kept):
        lines = subprocess.run(
            ('nm', '-S', path), text=True, capture_output=True, check=True
        ).stdout.splitlines()
        fields = [line.split() for line in lines]
        sizes = {f[3]: int(f[1], 16) for f in fields if len(f) == 4 and f[2] in 'bBu'}
        part = f'{kept}.{os.getpid()}'
        with open(part, 'w') as f:
            json.dump(sizes, f)
        os.replace(part, kept)
    with open(kept) as f:
        return json.load(f)


class RawKernel:
    """One kernel in CUDA C."""

    def __init__(self, code, name, options=(), backend='nvrtc', **kwargs):
        self._module, self.name = RawModule(code=code, options=options, backend=backend), name

    def __call__(self, grid, block, args, **kwargs):
        self._module.get_function(self.name)(grid, block, args, **kwargs)

    def compile(self, log_stream=None):
        self._module.compile()


# Elementwise and reduction kernels.


class _Declared:
    """A parameter such as 'raw T x'."""

    def __init__(self, text):
        *words, ctype, self.name = text.split()
        if set(words) - {'raw', '_non_const'}:
            raise Exception(f'Unknown keyword in "{text}"')
        self.raw = 'raw' in words
        self.dtype = None if len(ctype) == 1 else np.dtype(ctype)
        self.ctype = ctype if self.dtype is None else _NAMES[self.dtype]


def _declared(text):
    return [_Declared(part) for part in text.split(',')] if text.strip() else []


def _check_arguments(name, args, nin, nargs):
    if len(args) not in (nin, nargs):
        raise TypeError(
            f'Wrong number of arguments for {name!r}. It must be either {nin} or {nargs} (with '
            f'outputs), but given {len(args)}.'
        )
    for x in args:
        if not isinstance(x, (ndarray, bool, int, float, np.generic)):
            raise TypeError(f'Unsupported type {type(x)}')
    if not all(isinstance(x, ndarray) for x in args[nin:]):
        raise TypeError('Output arguments type must be cupy.ndarray')


def _decide_types(parameters, args, nin):
    """Return the types of all parameters, as CuPy finds them: outputs first, arrays alone."""
    known = {}
    for p, x in list(zip(parameters[nin:], args[nin:])) + list(zip(parameters[:nin], args)):
        if isinstance(x, ndarray):
            expected = known.setdefault(p.ctype, x.dtype) if p.dtype is None else p.dtype
            if expected != x.dtype:
                raise TypeError(f'Type is mismatched. {p.name} {x.dtype} {expected}')
    return [known[p.ctype] if p.dtype is None else p.dtype for p in parameters], known


def _collapse(views, shape):
    """Join the axes along which all arrays advance evenly."""
    keep = [ax for ax, n in enumerate(shape) if n != 1]
    shape, strides = [shape[ax] for ax in keep], [[v.strides[ax] for ax in keep] for v in views]
    ax = 1
    while ax < len(shape):
        if all(s[ax - 1] == s[ax] * shape[ax] for s in strides):
            shape[ax - 1 : ax + 1] = [shape[ax - 1] * shape[ax]]
            for s in strides:
                del s[ax - 1]
        else:
            ax += 1
    return tuple(shape), strides


def _argument(ptr, shape, strides):
    packed = np.zeros(35, np.int64)
    packed[:3] = ptr, int(np.prod(shape, dtype=np.int64)), len(shape)
    packed[3 : 3 + len(shape)], packed[19 : 19 + len(shape)] = shape, strides
    return packed


_CODE = """
{typedefs}
{preamble}
{defines}
extern "C" void cuda_on_cpu_kernel(void **_args) {{
{arguments}
{body}
}}
"""


class _Generated:
    def __init__(self, in_params, out_params, name, preamble):
        self.name = self.__name__ = name
        self._in, self._out, self._preamble = _declared(in_params), _declared(out_params), preamble
        self.nin, self.nargs = len(self._in), len(self._in) + len(self._out)

    def _launch(self, parameters, args, types, known, views, indexers, defines, body):
        """Compile and run. ``views``: what of each array (not raw) the indexers walk over."""
        values, lines = [], []
        for p, x, dtype, seen in zip(parameters, args, types, views):
            const = 'const ' if p in self._in else ''
            if isinstance(x, ndarray):
                shape, strides = (x.shape, x.strides) if seen is None else seen
                values.append(_argument(x.data.ptr, shape, strides))
                lines.append(
                    'CArray<{}{}> {}{}(*(Argument *)_args[{}]);'.format(
                        const, p.ctype, '' if p.raw else '_raw_', p.name, len(lines)
                    )
                )
            else:
                values.append(np.array([x]).astype(dtype))
                lines.append(f'const {p.ctype} {p.name} = *({p.ctype} *)_args[{len(lines)}];')
        for name, shape in indexers:
            values.append(_argument(0, shape, shape))
            lines.append(f'CIndexer {name}(*(Argument *)_args[{len(lines)}]);')
        typedefs = ''.join(
            f'typedef {_NAMES[dtype]} {letter};\n' for letter, dtype in sorted(known.items())
        )
        library, _ = _compile(
            _CODE.format(
                typedefs=typedefs,
                preamble=self._preamble,
                defines=defines,
                arguments='\n'.join(lines),
                body=body,
            ),
            elementwise=True,
        )
        entry = library.cuda_on_cpu_kernel
        addresses = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))

        def work(keep=values):
            entry(addresses)

        nin = self.nin
        _device.submit(work, _pointers(args[:nin]), _pointers(args[nin:]))


def _pointers(args):
    return [x.data.ptr for x in args if isinstance(x, ndarray) and x.size]


class ElementwiseKernel(_Generated):
    """A loop over all elements."""

    def __init__(
        self,
        in_params,
        out_params,
        operation,
        name='kernel',
        reduce_dims=True,
        preamble='',
        no_return=False,
        return_tuple=False,
        loop_prep='',
        after_loop='',
        options=(),
    ):
        super().__init__(in_params, out_params, name, preamble)
        self._operation, self._reduce_dims = operation, reduce_dims
        self._no_return, self._return_tuple = no_return, return_tuple
        self._prepare, self._finish = loop_prep, after_loop

    def __call__(self, *args, size=-1, stream=None, block_size=128):
        _check_arguments(self.name, args, self.nin, self.nargs)
        parameters, args = self._in + self._out, list(args)
        walked = [not p.raw and isinstance(x, ndarray) for p, x in zip(parameters, args)]
        if size != -1 and any(walked):
            raise ValueError("Specified 'size' can be used only if all of the ndarray are 'raw'.")
        if size == -1 and not any(walked):
            raise ValueError('Loop size is undecided.')
        shape = (
            (size,)
            if size != -1
            else np.broadcast_shapes(*(x.shape for x, w in zip(args, walked) if w))
        )
        types, known = _decide_types(parameters, args, self.nin)
        if len(args) == self.nin:
            if any(p.raw for p in self._out) and size == -1:
                raise ValueError('Output array size is Undecided')
            args += [ndarray(shape, dtype) for dtype in types[self.nin :]]
        elif any(x.shape != shape for p, x in zip(self._out, args[self.nin :]) if not p.raw):
            raise ValueError('Out shape is mismatched')
        walked = [not p.raw and isinstance(x, ndarray) for p, x in zip(parameters, args)]
        outputs = args[self.nin :]
        if 0 not in shape:
            broadcast = [np.broadcast_to(x._host, shape) for x, w in zip(args, walked) if w]
            if self._reduce_dims:
                shape, strides = _collapse(broadcast, shape)
            else:
                strides = [b.strides for b in broadcast]
            strides = iter(strides)
            views = [(shape, next(strides)) if w else None for w in walked]
            references = '\n'.join(
                '{}{} &{} = _raw_{}[_ind.get()];'.format(
                    'const ' if p in self._in else '', p.ctype, p.name, p.name
                )
                for p, w in zip(parameters, walked)
                if w
            )
            self._launch(
                parameters,
                args,
                types,
                known,
                views,
                [('_ind', shape)],
                '',
                f"""
{self._prepare};
for (ptrdiff_t i = 0; i < _ind.size(); ++i) {{
_ind.set(i);
{references}
{self._operation};
}}
{self._finish};""",
            )
        if self._no_return:
            return None
        return outputs[0] if len(outputs) == 1 and not self._return_tuple else tuple(outputs)


class ReductionKernel(_Generated):
    """A reduction along axes."""

    def __init__(
        self,
        in_params,
        out_params,
        map_expr,
        reduce_expr,
        post_map_expr,
        identity,
        name='reduce_kernel',
        reduce_type=None,
        reduce_dims=True,
        preamble='',
        options=(),
    ):
        super().__init__(in_params, out_params, name, preamble)
        self._map, self._type = map_expr, reduce_type or self._out[0].ctype
        self._defines = (
            f'#define REDUCE(a, b) ({reduce_expr})\n#define POST_MAP(a) ({post_map_expr})\n'
        )
        self._identity = '' if identity is None else identity

    def __call__(self, *args, out=None, axis=None, keepdims=False, stream=None):
        args = list(args) + ([] if out is None else [out])
        _check_arguments(self.name, args, self.nin, self.nargs)
        parameters = self._in + self._out
        walked = [not p.raw and isinstance(x, ndarray) for p, x in zip(self._in, args)]
        shape = np.broadcast_shapes(*(x.shape for x, w in zip(args, walked) if w))
        axes = range(len(shape)) if axis is None else axis if np.iterable(axis) else (axis,)
        axes = sorted(ax % len(shape) for ax in axes)
        rest = [ax for ax in range(len(shape)) if ax not in axes]
        kept = tuple(shape[ax] for ax in rest)
        final = tuple(1 if ax in axes else n for ax, n in enumerate(shape)) if keepdims else kept
        types, known = _decide_types(parameters, args, self.nin)
        if len(args) == self.nin:
            args += [ndarray(final, dtype) for dtype in types[self.nin :]]
        elif any(x.shape != final for p, x in zip(self._out, args[self.nin :]) if not p.raw):
            raise ValueError('Out shape is mismatched')
        order = axes + rest
        inner = tuple(shape[ax] for ax in order)
        views = [
            (inner, np.broadcast_to(x._host, shape).transpose(order).strides) if w else None
            for x, w in zip(args, walked)
        ]
        for p, x in zip(self._out, args[self.nin :]):
            views.append(None if p.raw else (kept, x._host.reshape(kept, copy=False).strides))
        inputs = '\n'.join(
            f'const {p.ctype} {p.name} = _raw_{p.name}[_in_ind.get()];'
            for p, w in zip(self._in, walked)
            if w
        )
        outputs = '\n'.join(
            f'{p.ctype} &{p.name} = _raw_{p.name}[_out_ind.get()];' for p in self._out if not p.raw
        )
        if 0 not in kept:
            self._launch(
                parameters,
                args,
                types,
                known,
                views,
                [('_in_ind', inner), ('_out_ind', kept)],
                self._defines,
                f"""
typedef {self._type} _type_reduce;
const ptrdiff_t _lanes = 64;  // partial sums, as on a GPU
for (ptrdiff_t _i = 0; _i < _out_ind.size(); ++_i) {{
_type_reduce _s = _type_reduce({self._identity});
for (ptrdiff_t _lane = 0; _lane < _lanes; ++_lane) {{
_type_reduce _p = _type_reduce({self._identity});
for (ptrdiff_t _j = _i + _lane * _out_ind.size(), _J = _lane; _j < _in_ind.size();
     _j += _lanes * _out_ind.size(), _J += _lanes) {{
_in_ind.set(_j);
{inputs}
_type_reduce _a = static_cast<_type_reduce>({self._map});
_p = REDUCE(_p, _a);
}}
_s = REDUCE(_s, _p);
}}
_out_ind.set(_i);
{outputs}
POST_MAP(_s);
}}""",
            )
        return args[self.nin] if len(self._out) == 1 else tuple(args[self.nin :])
