"""A simulation of nvidia-cudnn-frontend 1.24 on the CPU, for the tests; see :mod:`cupy`.

Graphs are computed by NumPy on the memory that their tensors' addresses, sizes and strides
name, in float32 and rounded where a tensor's type says so. Each has two plans: the first
computes float32 with TF32's ten bits and has the note TENSOR_CORE, the second in full. Graphs
of several operations are compiled at run time, by an NVRTC that has to be loaded before.
"""

import enum
import itertools

import numpy as np
from cuda import pathfinder
from cupy import _device

__version__ = '1.24.1'


class cudnnGraphNotSupportedError(Exception):
    """No plan computes this graph."""


def _names(name, members):
    return enum.Enum(name, members.split())


data_type = _names('data_type', 'FLOAT DOUBLE HALF INT8 INT32 UINT8 BFLOAT16 INT64 BOOLEAN NOT_SET')
heur_mode = _names('heur_mode', 'A B FALLBACK OPENSOURCE')
numerical_note = _names(
    'numerical_note',
    'TENSOR_CORE DOWN_CONVERT_INPUTS '
    'REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD '
    'WINOGRAD_TILE_4x4 WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP',
)

behavior_note = _names(
    'behavior_note',
    'RUNTIME_COMPILATION REQUIRES_FILTER_INT8x32_REORDER REQUIRES_BIAS_INT8x32_REORDER '
    'SUPPORTS_CUDA_GRAPH_NATIVE_API CUBLASLT_DEPENDENCY',
)

_DTYPES = {
    data_type.FLOAT: np.dtype('f'),
    data_type.HALF: np.dtype('e'),
    data_type.BOOLEAN: np.dtype('?'),
    data_type.INT32: np.dtype('i'),
    data_type.UINT8: np.dtype('B'),
    data_type.INT8: np.dtype('b'),
}


def backend_version():
    return 91900


_handles = {}


def create_handle():
    handle = 0x900 + len(_handles)
    _handles[handle] = 0
    return handle


def set_stream(handle, stream):
    if stream not in _device._streams:
        raise RuntimeError(f'CUDNN_STATUS_BAD_PARAM: there is no stream {stream:#x}')
    _handles[handle] = stream


_uids = itertools.count(1)


class tensor:
    """A tensor of a graph."""

    def __init__(
        self, graph, dim=None, stride=None, data_type=data_type.NOT_SET, is_virtual=False, uid=-1
    ):
        self._dim, self._stride, self._type = dim, stride, data_type
        self._graph, self._virtual = graph, is_virtual
        self._uid = uid if uid >= 0 else next(_uids)

    def set_output(self, value=True):
        self._virtual = not value
        return self

    def set_dim(self, dim):
        self._dim = _integers(dim)
        return self

    def set_stride(self, stride):
        self._stride = _integers(stride)
        return self

    def set_data_type(self, data_type):
        if not isinstance(data_type, globals()['data_type']):
            raise TypeError('set_data_type(): incompatible function arguments')
        self._type = data_type
        return self

    def get_dim(self):
        return list(self._dim or [])

    def get_stride(self):
        return list(self._stride or [])

    def get_uid(self):
        return self._uid


def _integers(values):
    if not all(isinstance(v, (int, np.integer)) for v in values):
        raise TypeError(f'incompatible function arguments: {values!r}')
    return [int(v) for v in values]


class pygraph:
    """A graph of operations."""

    def __init__(
        self,
        name='test_graph',
        io_data_type=data_type.NOT_SET,
        intermediate_data_type=data_type.NOT_SET,
        compute_data_type=data_type.NOT_SET,
        handle=None,
        sm_count=None,
        sm_version=None,
        kernel_cache=None,
        device_property=None,
        is_dynamic_shape_enabled=False,
        is_override_shape_enabled=False,
    ):
        self._io, self._intermediate, self._compute = (
            io_data_type,
            intermediate_data_type,
            compute_data_type,
        )
        # Without one, and without a description of a GPU, each graph has its own.
        self._handle = create_handle() if handle is None and device_property is None else handle
        self._sm_version, self._inputs, self._nodes = sm_version, [], []
        self._stage, self._built, self._barred = 'new', set(), {}

    def tensor(
        self,
        dim,
        stride,
        data_type=data_type.NOT_SET,
        is_virtual=False,
        is_pass_by_value=False,
        ragged_offset=None,
        reordering_type=None,
        name='',
        uid=-1,
    ):
        if is_pass_by_value:
            raise NotImplementedError('the simulation has no scalars')
        t = tensor(self, _integers(dim), _integers(stride), data_type, is_virtual, uid)
        self._inputs.append(t)
        return t

    def _node(self, operation, inputs, outputs=1, **attributes):
        for t in inputs.values():
            if not isinstance(t, tensor):
                raise TypeError(f'{operation}(): incompatible function arguments: {t!r}')
            if t._graph is not self:
                raise ValueError('a tensor of another graph')
        made = [tensor(self, is_virtual=True) for _ in range(outputs)]
        self._nodes.append((operation, inputs, made, attributes))
        return made[0] if outputs == 1 else made

    def conv_fprop(
        self,
        image,
        weight,
        padding=(0, 0),
        stride=(1, 1),
        dilation=(1, 1),
        compute_data_type=None,
        name='',
    ):
        return self._node(
            'conv_fprop',
            {'x': image, 'w': weight},
            padding=_integers(padding),
            stride=_integers(stride),
            dilation=_integers(dilation),
        )

    def conv_dgrad(
        self,
        loss,
        filter,
        padding=(0, 0),
        stride=(1, 1),
        dilation=(1, 1),  # noqa: A002
        compute_data_type=None,
        name='',
    ):
        return self._node(
            'conv_dgrad',
            {'y': loss, 'w': filter},
            padding=_integers(padding),
            stride=_integers(stride),
            dilation=_integers(dilation),
        )

    def conv_wgrad(
        self,
        image,
        loss,
        padding=(0, 0),
        stride=(1, 1),
        dilation=(1, 1),
        compute_data_type=None,
        name='',
    ):
        return self._node(
            'conv_wgrad',
            {'x': image, 'y': loss},
            padding=_integers(padding),
            stride=_integers(stride),
            dilation=_integers(dilation),
        )

    def bias(self, input, bias, compute_data_type=None, name=''):  # noqa: A002
        return self._node('add', {'a': input, 'b': bias})

    def relu(
        self,
        input,
        negative_slope=None,
        lower_clip=None,
        upper_clip=None,  # noqa: A002
        compute_data_type=None,
        name='',
    ):
        return self._node(
            'relu',
            {'a': input},
            slope=negative_slope or 0,
            lower=lower_clip or 0,
            upper=np.inf if upper_clip is None else upper_clip,
        )

    def genstats(self, input, compute_data_type=None, name=''):  # noqa: A002
        return self._node('genstats', {'x': input}, 2)

    # Checks and plans.

    def _outputs(self):
        return [t for _, _, made, _ in self._nodes for t in made if not t._virtual]

    def _reach(self, stage, before):
        if self._stage != before:
            raise RuntimeError(f'{stage} is called in the stage {self._stage!r}')
        self._stage = stage

    def validate(self):
        self._reach('validated', 'new')
        for t in self._inputs + [t for node in self._nodes for t in node[2]]:
            if t._type is data_type.NOT_SET:
                t._type = self._intermediate if t._virtual else self._io
            if t._type is data_type.NOT_SET:
                raise ValueError('a tensor has no data type')
            if not t._virtual and not (t._dim and t._stride):
                raise ValueError('an output has no dim and stride: they would be guessed')
            if t._dim and len(t._dim) != len(t._stride or ()):
                raise ValueError('dim and stride differ in length')
        if self._compute is not data_type.FLOAT:
            raise ValueError('the simulation computes in FLOAT')
        for operation, inputs, made, attributes in self._nodes:
            self._infer(operation, inputs, made, attributes)

    def _infer(self, operation, inputs, made, attributes):
        dims = {k: t._dim for k, t in inputs.items()}
        if operation == 'conv_fprop':
            if dims['x'][1] % dims['w'][1]:
                raise ValueError(
                    'the filter has {} channels, the image {}'.format(dims['w'][1], dims['x'][1])
                )
            found = [_conv_shape(dims['x'], dims['w'], attributes)]
        elif operation in ('conv_dgrad', 'conv_wgrad'):
            if not made[0]._dim:
                raise ValueError(operation + ': its output needs dim and stride')
            shapes = dict(dims, **{'x' if operation == 'conv_dgrad' else 'w': made[0]._dim})
            if _conv_shape(shapes['x'], shapes['w'], attributes) != shapes['y']:
                raise ValueError(f'{operation}: sizes do not fit: {shapes}')
            found = [made[0]._dim]
        elif operation == 'genstats':
            found = [[1, dims['x'][1], 1, 1]] * 2
        else:
            found = [list(np.broadcast_shapes(*dims.values()))]
        for t, dim in zip(made, found):
            if t._dim is None:  # NHWC, whatever the inputs are
                n, c, h, w = dim
                t._dim, t._stride = dim, [h * w * c, 1, w * c, c]
            elif t._dim != dim:
                raise ValueError(f'{operation}: an output is {dim}, not {t._dim}')

    def build_operation_graph(self):
        self._reach('graph', 'validated')

    def create_execution_plans(self, modes):
        self._reach('plans', 'graph')
        if not all(isinstance(m, heur_mode) for m in modes):
            raise TypeError('create_execution_plans(): incompatible function arguments')
        made_by = {id(t): node for node in self._nodes for t in node[2]}

        def before(t):
            node = made_by.get(id(t))
            return [] if node is None else [node] + [n for i in node[1].values() for n in before(i)]

        for operation, inputs, _made, _attributes in self._nodes:
            if operation == 'genstats':
                if inputs['x']._type is data_type.FLOAT:
                    raise cudnnGraphNotSupportedError('No valid engine configs: float32 genstats')
                for n in before(inputs['x']):
                    channels = n[1]['w']._dim[1] if n[0] == 'conv_fprop' else 0
                    if channels % 2 or channels and channels != n[1]['x']._dim[1]:
                        raise cudnnGraphNotSupportedError(
                            'No valid engine configs: genstats behind groups or odd channels'
                        )

    def deselect_numeric_notes(self, notes):
        if numerical_note.TENSOR_CORE in notes:
            self._barred[0] = 'TENSOR_CORE'

    def deselect_workspace_greater_than(self, size):
        for index in range(2):
            if self._workspace(index) > size:
                self._barred[index] = 'workspace'

    def check_support(self):
        self._reach('supported', 'plans')
        if self._sm_version is None and 'cudart' not in pathfinder.loaded:
            raise RuntimeError('Unable to load any libcudart.so.* library.')
        if len(self._barred) == 2:
            raise cudnnGraphNotSupportedError('No execution plans support the graph.')

    def get_execution_plan_count(self):
        return 2

    def _plan(self, index):
        if not 0 <= index < 2:
            raise RuntimeError('Plan index is invalid')
        return index

    def get_plan_name_at_index(self, index):
        return f'eng{self._plan(index)}_k0=0'

    def get_behavior_notes_for_plan_at_index(self, index):
        self._plan(index)
        native = [behavior_note.SUPPORTS_CUDA_GRAPH_NATIVE_API]
        return native + [behavior_note.RUNTIME_COMPILATION] * (len(self._nodes) > 1)

    def build_plan_at_index(self, index):
        if self._stage not in ('plans', 'supported'):
            raise RuntimeError('there are no plans yet')
        if len(self._nodes) > 1 and 'nvrtc' not in pathfinder.loaded:
            raise cudnnGraphNotSupportedError('runtime kernel compilation failure')
        if self._plan(index) in self._barred:
            raise cudnnGraphNotSupportedError(f'Deselecting execution plan ({self._barred[index]})')
        self._built.add(index)

    def _workspace(self, index):
        return 0 if index == 0 else 4096 + 4 * int(np.prod(self._nodes[0][2][0]._dim[1:]))

    def get_workspace_size_plan_at_index(self, index):
        if self._plan(index) not in self._built:
            raise RuntimeError('the plan is not built')
        return self._workspace(index)

    def execute_plan_at_index(self, tensor_to_device_buffer, workspace, index, handle=None):
        if self._plan(index) not in self._built:
            raise RuntimeError('the plan is not built')
        handle = self._handle if handle is None else handle
        if handle not in _handles:
            raise RuntimeError('CUDNN_STATUS_BAD_PARAM: no handle')
        pack = {}
        for t, pointer in tensor_to_device_buffer.items():
            if type(pointer) is not int:
                raise TypeError(f'{pointer!r} is no address')
            pack[t if type(t) is int else t.get_uid()] = pointer
        used = {id(t) for node in self._nodes for t in node[1].values()}
        inputs = [t for t in self._inputs if id(t) in used]
        outputs = self._outputs()
        if {t._uid for t in inputs + outputs} != set(pack):
            raise ValueError('the variant pack has not the tensors of the graph')
        memory, reads, writes, given = {}, [], [], []
        for t in inputs + outputs:
            pointer, dtype = pack[t._uid], _DTYPES[t._type]
            strides = [s * dtype.itemsize for s in t._stride]
            if pointer % 16:
                raise RuntimeError(
                    f'CUDNN_STATUS_BAD_PARAM: {pointer:#x} is not aligned to 16 bytes'
                )
            extent = sum((n - 1) * s for n, s in zip(t._dim, strides)) + dtype.itemsize
            _device.arena.find(pointer, extent)
            memory[id(t)] = _device.view(pointer, t._dim, dtype, strides)
            (writes if t in outputs else reads).append(pointer)
            if t in inputs:
                given.append(_device.view(pointer, (extent,), np.uint8))
        size = self._workspace(index)
        if size:
            _device.arena.find(workspace, size)
            writes.append(workspace)
            scratch = _device.view(workspace, (size,), np.uint8)

        def work():
            if size:
                scratch[...] = 0x5A
            # Whoever times a graph runs it again and again on the same numbers.
            key = [self, index] + [numbers.tobytes() for numbers in given]
            if _last[0] != key:
                with np.errstate(all='ignore'):
                    _last[:] = key, self._run(memory, tf32=index == 0)
            for t in outputs:
                np.copyto(memory[id(t)], _last[1][id(t)])

        _device.submit(work, reads, writes, _device._streams[_handles[handle]])

    def _run(self, memory, tf32):
        values = {id(t): memory[id(t)] for t in self._inputs if id(t) in memory}
        for operation, inputs, made, attributes in self._nodes:
            args = {k: values[id(t)].astype(np.float32) for k, t in inputs.items()}
            if tf32 and operation.startswith('conv'):
                args = {
                    k: _tf32(a) if inputs[k]._type is data_type.FLOAT else a
                    for k, a in args.items()
                }
            results = _OPERATIONS[operation](args, made[0]._dim, **attributes)
            for t, result in zip(made, results if len(made) > 1 else [results]):
                values[id(t)] = result.reshape(t._dim).astype(_DTYPES[t._type])
        return values


_last = [None, None]  # what was computed last, of what


def _tf32(a):
    return (
        (a.view(np.uint32) + np.uint32(0xFFF) + (a.view(np.uint32) >> 13 & 1))
        & np.uint32(0xFFFFE000)
    ).view(np.float32)


# The operations, on float32.


def _conv_shape(x, w, attributes):
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, p, s, d in zip(
            x[2:], w[2:], attributes['padding'], attributes['stride'], attributes['dilation']
        )
    ]
    return [x[0], w[0]] + size


def _columns(x, w_shape, y_shape, padding, stride, dilation):
    """Return (groups, batch * out height * out width, k * k * channels), and the padded image."""
    (n, c, h, w), (_, cg, kh, kw), (_, _, oh, ow) = x.shape, w_shape, y_shape
    padded = np.zeros((n, h + 2 * padding[0], w + 2 * padding[1], c // cg, cg), np.float32)
    padded[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = x.transpose(
        0, 2, 3, 1
    ).reshape(n, h, w, c // cg, cg)
    windows = _windows(padded, kh, kw, oh, ow, stride, dilation)
    return windows.transpose(5, 0, 1, 2, 3, 4, 6).reshape(c // cg, n * oh * ow, kh * kw * cg)


def _windows(padded, kh, kw, oh, ow, stride, dilation):
    n, _, _, g, cg = padded.shape
    sn, sh, sw, sg, sc = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (n, oh, ow, kh, kw, g, cg),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sg, sc),
    )


def _filters(w, groups):
    """Return (groups, k * k * channels, filters)."""
    out, cg, kh, kw = w.shape
    return (
        w.reshape(groups, out // groups, cg, kh, kw)
        .transpose(0, 3, 4, 2, 1)
        .reshape(groups, kh * kw * cg, out // groups)
    )


def _pixels(y, groups):
    """Return (groups, batch * height * width, filters)."""
    n, c, h, w = y.shape
    return (
        y.reshape(n, groups, c // groups, h, w)
        .transpose(1, 0, 3, 4, 2)
        .reshape(groups, n * h * w, c // groups)
    )


def _conv_fprop(a, dim, **conv):
    x, w = a['x'], a['w']
    n, out, oh, ow = dim = _conv_shape(x.shape, w.shape, conv)
    columns = _columns(x, w.shape, dim, **conv)
    groups = len(columns)
    y = columns @ _filters(w, groups)
    return y.reshape(groups, n, oh, ow, out // groups).transpose(1, 0, 4, 2, 3).reshape(dim)


def _conv_wgrad(a, dim, **conv):
    out, cg, kh, kw = dim
    columns = _columns(a['x'], dim, a['y'].shape, **conv)
    groups = len(columns)
    w = columns.transpose(0, 2, 1) @ _pixels(a['y'], groups)
    return w.reshape(groups, kh, kw, cg, out // groups).transpose(0, 4, 3, 1, 2).reshape(dim)


def _conv_dgrad(a, dim, padding, stride, dilation):
    (n, c, h, w), (_, cg, kh, kw), (_, _, oh, ow) = dim, a['w'].shape, a['y'].shape
    groups = c // cg
    columns = (_pixels(a['y'], groups) @ _filters(a['w'], groups).transpose(0, 2, 1)).reshape(
        groups, n, oh, ow, kh, kw, cg
    )
    padded = np.zeros((n, h + 2 * padding[0], w + 2 * padding[1], groups, cg), np.float32)
    windows = _windows(padded, kh, kw, oh, ow, stride, dilation)
    for i in range(kh):
        for j in range(kw):
            windows[:, :, :, i, j] += columns[:, :, :, :, i, j].transpose(1, 2, 3, 0, 4)
    return (
        padded[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w]
        .reshape(n, h, w, c)
        .transpose(0, 3, 1, 2)
    )


_OPERATIONS = {
    'conv_fprop': _conv_fprop,
    'conv_dgrad': _conv_dgrad,
    'conv_wgrad': _conv_wgrad,
    'relu': lambda a, dim, slope, lower, upper: np.where(
        a['a'] > lower, np.minimum(a['a'], upper), lower + slope * (a['a'] - lower)
    ),
    'genstats': lambda a, dim: (
        a['x'].sum((0, 2, 3), keepdims=True),
        np.square(a['x']).sum((0, 2, 3), keepdims=True),
    ),
}


def _binary(operation, first, second, function):
    def method(self, *args, compute_data_type=None, name='', **kwargs):
        tensors = dict(zip((first, second), args), **kwargs)
        if set(tensors) != {first, second}:
            raise TypeError(f'{operation}(): incompatible function arguments')
        return self._node(operation, {'a': tensors[first], 'b': tensors[second]})

    setattr(pygraph, operation, method)
    _OPERATIONS[operation] = lambda a, dim: function(a['a'], a['b'])


_binary('add', 'a', 'b', np.add)
_binary('mul', 'a', 'b', np.multiply)
