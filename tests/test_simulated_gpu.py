"""The simulated GPU detects errors, and computes as a GPU does.

Tests without errors run on a real GPU as well, so that the simulation is compared with one.
"""

import contextlib

import numpy as np
import pytest
from conftest import simulated

from trainer.engines.cudnn import graphs, library

if simulated():
    from cupy._device import SimulationError

pytestmark = pytest.mark.gpu

here = pytest.mark.skipif(
    not simulated(), reason='is an error of the simulated GPU: see tests/simulated_gpu'
)


SOURCE = r"""
struct Half { unsigned short bits; };
extern "C" __global__ void __launch_bounds__(256)
total(const float *__restrict__ x, float *y, int n) {
  __shared__ float part[8];
  extern __shared__ float copy[];
  float s = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
  for (int o = 16; o; o /= 2) s += __shfl_xor_sync(0xffffffff, s, o);
  if (threadIdx.x % 32 == 0) copy[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x < 8) part[threadIdx.x] = copy[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < 8; ++i) atomicAdd(y, part[i]);
}
extern "C" __global__ void ones(float *y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1; }
extern "C" __global__ void halves(const Half *x, unsigned short *y) {
  y[threadIdx.x] = x[threadIdx.x].bits;
}
extern "C" __global__ void diverges(float *y) {
  if (threadIdx.x < 40) __syncthreads();
  else __syncwarp();
  y[threadIdx.x] = 1;
}
extern "C" __global__ void forgets_a_barrier(float *y) {
  __shared__ float s[256];
  s[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = s[(threadIdx.x + 32) % 256];
}
extern "C" __global__ void out_of_bounds(float *y, int i) {
  __shared__ float s[4];
  s[i] = 1;
  y[0] = s[0];
}
extern "C" __global__ void misaligned(const float *x, float *y, int i) {
  *reinterpret_cast<float4 *>(y) = *reinterpret_cast<const float4 *>(x + i);
}
extern "C" __global__ void little_shared(float *y) {
  extern __shared__ float s[];
  s[threadIdx.x] = 1;
  y[threadIdx.x] = s[threadIdx.x];
}
"""


@pytest.fixture
def cupy():
    return pytest.importorskip('cupy')


@pytest.fixture
def kernel(cupy):
    return cupy.RawModule(code=SOURCE).get_function


class TestKernels:
    def test_total(self, cupy, kernel):
        x = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
        y = cupy.zeros(1, np.float32)
        kernel('total')((7,), (256,), (cupy.asarray(x), y, np.int32(x.size)), shared_mem=32)
        assert float(y[0]) == pytest.approx(x.sum(), rel=1e-5)

    @here
    @pytest.mark.parametrize(
        'change',
        [
            lambda x, y, n: (x, y, 10),
            lambda x, y, n: (x, y, np.int64(10)),
            lambda x, y, n: (x.astype(np.float16), y, n),
            lambda x, y, n: (x.get(), y, n),
            lambda x, y, n: (x, y),
            lambda x, y, n: (x, y, np.float32(10)),
        ],
    )
    def test_arguments(self, cupy, kernel, change):
        args = change(cupy.ones(10, np.float32), cupy.zeros(1, np.float32), np.int32(10))
        with pytest.raises(TypeError):
            kernel('total')((1,), (256,), args, shared_mem=32)

    def test_types_of_the_source(self, cupy, kernel):
        x, y = cupy.arange(8, dtype=np.float32).astype(np.float16), cupy.empty(8, np.float16)
        kernel('halves')((1,), (8,), (x, y))
        assert (x.get() == y.get()).all()

    @here
    def test_other_types(self, cupy, kernel):
        x, y = cupy.ones(8, np.float16), cupy.empty(8, np.float16)
        with pytest.raises(TypeError):
            kernel('halves')((1,), (8,), (x.astype(np.float32), y))

    @here
    @pytest.mark.parametrize(
        'grid, block, shared',
        [((0,), (256,), 32), ((1,), (257,), 32), ((1, 65536), (32,), 32), ((1,), (256,), 49152)],
    )
    def test_limits(self, cupy, kernel, grid, block, shared):
        x = cupy.ones(10, np.float32)
        with pytest.raises(RuntimeError, match='invalid argument'):
            kernel('total')(grid, block, (x, x, np.int32(10)), shared_mem=shared)

    @here
    @pytest.mark.parametrize(
        'name, args, shared, what',
        [
            ('diverges', (), 0, 'wait for each other'),
            ('out_of_bounds', (np.int32(4),), 0, 'out of an array'),
            ('little_shared', (), 252, 'dynamic shared memory is written behind'),
        ],
    )
    def test_errors(self, cupy, kernel, name, args, shared, what):
        with pytest.raises(SimulationError, match=what):
            kernel(name)((1,), (64,), (cupy.empty(64, np.float32), *args), shared_mem=shared)

    def test_aligned(self, cupy, kernel):
        x, y = cupy.arange(64, dtype=np.float32), cupy.empty(4, np.float32)
        kernel('misaligned')((1,), (1,), (x, y, np.int32(4)))
        assert y.get().tolist() == [4, 5, 6, 7]

    @here
    def test_not_aligned(self, cupy, kernel):
        x, y = cupy.ones(64, np.float32), cupy.empty(4, np.float32)
        with pytest.raises(SimulationError, match='not aligned'):
            kernel('misaligned')((1,), (1,), (x, y, np.int32(1)))

    @here
    @pytest.mark.parametrize(
        'line', ['#include <math.h>', 'typedef uint32_t word;', '__device__ int counter;']
    )
    def test_what_a_gpu_s_compiler_lacks(self, cupy, line):
        module = cupy.RawModule(code=line + '\nextern "C" __global__ void f() {}\n')
        with pytest.raises(Exception, match='simulation|NVRTC'):
            module.get_function('f')

    @here
    def test_missing_barriers_show(self, cupy, kernel):
        y = cupy.empty(256, np.float32)
        kernel('forgets_a_barrier')((1,), (256,), (y,))
        assert np.isnan(y.get()).any()

    @here
    def test_written_behind_the_end(self, cupy, kernel):
        y = cupy.empty(10, np.float32)
        kernel('ones')((1,), (12,), (y,))
        with pytest.raises(SimulationError, match='behind the end of a block of 40 bytes'):
            cupy.cuda.Device().synchronize()

    def test_elementwise_and_reduction(self, cupy):
        x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
        a, b = cupy.asarray(x).transpose(2, 0, 1), cupy.asarray(x[0, :1, :1])
        kernel = cupy.ElementwiseKernel(
            'T x, T y, raw T z, int32 n', 'T u', 'u = x * y + z[i % n] + _ind.size();', 'k'
        )
        expected = (
            x.transpose(2, 0, 1) * x[0, 0, 0] + x.ravel()[np.arange(60) % 7].reshape(5, 3, 4) + 60
        )
        np.testing.assert_allclose(kernel(a, b, cupy.asarray(x), 7).get(), expected, rtol=1e-6)
        with pytest.raises(TypeError):
            kernel(a, b.astype(np.float16), a, 7)
        # CUDA has a function norm.
        norm = cupy.ReductionKernel('T x', 'T y', 'x * x', 'a + b', 'y = sqrt(a)', '0', 'norm_2')
        np.testing.assert_allclose(
            norm(a, axis=(0, 2)).get(), np.sqrt((x * x).sum((1, 2))), rtol=1e-6
        )


class TestArrays:
    def test_numpy_s_arrays_are_refused(self, cupy):
        a = cupy.ones(3)
        for attempt in (
            lambda: a + np.ones(3),
            lambda: np.ones(3) * a,
            lambda: np.asarray(a),
            lambda: cupy.maximum(a, np.ones(3)),
            lambda: cupy.where(a > 0, a, np.ones(3)),
            lambda: cupy.concatenate([a, np.ones(3)]),
        ):
            with pytest.raises(TypeError):
                attempt()
        with pytest.raises(ValueError):
            a[...] = np.ones(3)
        assert (np.float64(2) * a + 1).get().tolist() == [3, 3, 3]

    def test_layouts(self, cupy):
        a = cupy.zeros((2, 3, 4, 5), np.float16).transpose(0, 3, 1, 2)
        assert a.astype(np.float32).strides == tuple(2 * s for s in a.strides)
        assert cupy.empty_like(a).strides == a.strides
        assert (a + 1).flags.c_contiguous and a.copy().flags.c_contiguous
        assert a[:, None, 1:].data.ptr == a.data.ptr + 2
        assert a.reshape(2, -1).data.ptr != a.data.ptr

    @here
    def test_memory_that_nobody_wrote(self, cupy):
        assert np.isnan(cupy.empty(100, np.float16).get()).all()


class TestStreams:
    def test_events_order_streams(self, cupy):
        a = cupy.ones(1 << 20)
        stream = cupy.cuda.Stream(non_blocking=True)
        for _ in range(3):
            a += 1
            stream.wait_event(cupy.cuda.Stream.null.record())
            with stream:
                a *= 2
            cupy.cuda.Stream.null.wait_event(stream.record())
        assert (a.get() == 22).all()

    @here
    def test_races(self, cupy):
        a = cupy.ones(3)
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream, pytest.raises(SimulationError, match='no event or synchronisation'):
            a + 1
        ready = cupy.cuda.Stream.null.record()
        stream.wait_event(ready)
        with stream:
            b = a + 1
        with pytest.raises(SimulationError, match='no event or synchronisation'):
            a += 1  # the other stream still reads it
        stream.synchronize()
        a += b

    def test_memory_is_used_again(self, cupy):
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            a = cupy.ones(1000)
            address, used = a.data.ptr, pool.used_bytes()
            view = a[3:]
            del a
            assert pool.used_bytes() == used == 8192
            del view
            assert pool.used_bytes() == 0 and pool.total_bytes() == 8192
            assert cupy.empty(999).data.ptr == address

    def test_graphs_work_on_addresses(self, cupy):
        """Replay overwrites memory that was freed while the graph exists, even if reassigned."""
        stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
        x = cupy.zeros(3)
        cupy.cuda.Device().synchronize()
        with cupy.cuda.using_allocator(pool.malloc), stream:
            stream.begin_capture()
            kept = (x + 1) * 2
            freed = x - 1
            graph = stream.end_capture()
            del freed
            graph.launch()
            assert kept.get().tolist() == [2, 2, 2]
            x += 1
            other = cupy.full(3, 7.0)
            graph.launch()
            assert kept.get().tolist() == [4, 4, 4] and other.get().tolist() == [0, 0, 0]

    @here
    def test_what_a_capture_refuses(self, cupy):
        stream = cupy.cuda.Stream(non_blocking=True)
        x, event = cupy.ones((2, 2)), cupy.cuda.Event()
        host = np.ones((2, 2))
        event.record()
        for attempt in (
            stream.synchronize,
            cupy.cuda.Device().synchronize,
            event.synchronize,
            lambda: x.get(),
            lambda: float(x[0, 0]),
            lambda: x.set(host),
            lambda: cupy.asarray(host),
            lambda: x.dot(x),
            lambda: x[x > 0],
            cupy.get_default_memory_pool().free_all_blocks,
            lambda: cupy.cuda.get_elapsed_time(event, event),
        ):
            cupy.cuda.Device().synchronize()
            with stream:
                stream.begin_capture()
                with pytest.raises((RuntimeError, NotImplementedError)):
                    attempt()
                try:
                    stream.end_capture()
                except RuntimeError as e:
                    assert 'Invalidated' in str(e)
        with pytest.raises(RuntimeError, match='legacy'):
            cupy.cuda.Stream.null.begin_capture()
        with stream:
            stream.begin_capture()
        with pytest.raises(RuntimeError, match='Implicit'):
            x + 1
        with pytest.raises(RuntimeError, match='Invalidated'):
            stream.end_capture()

    def test_captured_transfers_read_the_host_again(self, cupy, copies):
        stream, host, x, graph = copies
        for value in range(2):
            host[...] = value
            graph.launch(stream)
            assert x.get(stream).tolist() == [value] * 3

    @pytest.fixture
    def copies(self, cupy):
        """A stream, page-locked memory, an array, and a graph that copies the one to the other."""
        import cupyx

        stream, host = cupy.cuda.Stream(non_blocking=True), cupyx.zeros_pinned(3, np.float32)
        x = cupy.empty(3, np.float32)
        stream.begin_capture()
        copy(cupy, x, host, stream)
        return stream, host, x, stream.end_capture()

    def test_page_locked_memory_that_is_freed_before_anybody_waits(self, cupy):
        import cupyx

        stream, x = cupy.cuda.Stream(non_blocking=True), cupy.empty(3, np.float32)
        for value in range(20):
            host = cupyx.zeros_pinned(3, np.float32)
            host[...] = value
            x.set(host, stream=stream)
        assert x.get(stream).tolist() == [19] * 3

    def test_transfers_that_are_waited_for(self, cupy):
        import cupyx

        stream, result = cupy.cuda.Stream(non_blocking=True), cupyx.empty_pinned(3, np.float32)
        x = cupy.ones(3, np.float32)
        stream.wait_event(cupy.cuda.Stream.null.record())
        x.get(stream, out=result, blocking=False)
        if simulated():  # a GPU may be done already
            assert np.isnan(result).all()
        stream.synchronize()
        assert result.tolist() == [1] * 3

    @here
    def test_transfers_that_go_wrong(self, cupy, copies):
        stream, host, x, graph = copies
        graph.launch(stream)
        host[...] = 2
        with pytest.raises(SimulationError, match='changed before it was known to be copied'):
            stream.synchronize()
        stream.begin_capture()
        with pytest.raises(RuntimeError, match='pageable'):
            copy(cupy, x, np.zeros(3, np.float32), stream)
        with pytest.raises(RuntimeError, match='Invalidated'):
            stream.end_capture()


def copy(cupy, x, host, stream):
    runtime = cupy.cuda.runtime
    runtime.memcpyAsync(
        x.data.ptr, host.ctypes.data, x.nbytes, runtime.memcpyHostToDevice, stream.ptr
    )


class TestCudnn:
    @pytest.fixture
    def cudnn(self):
        return library.frontend()

    def graph(self, cudnn):
        kind = cudnn.data_type.FLOAT
        return cudnn.pygraph(
            io_data_type=kind,
            intermediate_data_type=kind,
            compute_data_type=kind,
            sm_version=library.device().sm_version,
        )

    def add(self, cudnn, outputs=True):
        graph = self.graph(cudnn)
        a, b = (graph.tensor(dim=[1, 4, 1, 1], stride=[4, 1, 4, 4]) for _ in range(2))
        y = graph.add(a=a, b=b).set_output(True)
        if outputs:
            y.set_dim([1, 4, 1, 1]).set_stride([4, 1, 4, 4])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        return graph, (a, b, y)

    @here
    def test_outputs_need_sizes(self, cudnn):
        with pytest.raises(ValueError, match='dim and stride'):
            self.add(cudnn, False)

    @pytest.fixture
    def last_plan(self, cudnn, cupy):
        """A graph, the index of its last plan, a pack of three arrays, a handle."""
        graph, tensors = self.add(cudnn)
        index = graph.get_execution_plan_count() - 1
        graph.build_plan_at_index(index)
        arrays = [cupy.full(4, value, np.float32) for value in (1, 2, 3)]
        pack = {t: a.data.ptr for t, a in zip(tensors, arrays, strict=True)}
        cupy.cuda.Device().synchronize()
        return graph, index, pack, arrays, cudnn.create_handle()

    def test_packs_and_workspaces(self, cupy, last_plan):
        graph, index, pack, arrays, handle = last_plan
        workspace = cupy.cuda.alloc(max(1, graph.get_workspace_size_plan_at_index(index)))
        graph.execute_plan_at_index(pack, workspace.ptr, index, handle=handle)
        cupy.cuda.Device().synchronize()
        assert arrays[2].get().tolist() == [3] * 4
        del pack[next(iter(pack))]
        with pytest.raises(ValueError, match='variant pack|Uid'):
            graph.execute_plan_at_index(pack, workspace.ptr, index, handle=handle)

    @here
    def test_memory_that_is_too_small(self, cupy, last_plan):
        graph, index, pack, _, handle = last_plan
        size = graph.get_workspace_size_plan_at_index(index)
        with pytest.raises(RuntimeError, match='illegal memory access'):
            graph.execute_plan_at_index(pack, cupy.cuda.alloc(size - 1).ptr, index, handle=handle)
        workspace, short = cupy.cuda.alloc(size), cupy.ones(3, np.float32)
        pack[next(iter(pack))] = short.data.ptr
        with pytest.raises(RuntimeError, match='illegal memory access'):
            graph.execute_plan_at_index(pack, workspace.ptr, index, handle=handle)

    @pytest.mark.parametrize(
        'precision, channels, size, groups, supported',
        [
            ('mixed', 64, 1, 1, True),
            ('mixed', 64, 3, 1, True),
            ('mixed', 64, 3, 4, False),
            ('mixed', 3, 7, 1, False),
            ('float32', 64, 1, 1, False),
        ],
    )
    def test_sums_behind_convolutions(self, precision, channels, size, groups, supported):
        shapes = (2, channels, 8, 8), (64, channels // groups, size, size)
        arguments = 1, size // 2, True, 'e' if precision == 'mixed' else 'f', precision
        with contextlib.nullcontext() if supported else pytest.raises(graphs.NoPlan):
            graphs.build_conv_forward(*shapes, *arguments, library.device())
