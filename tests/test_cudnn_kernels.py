"""The cuDNN engine's own kernels against NumPy in float64, on a GPU or a simulated one."""

import math
from pathlib import Path

import chainer
import numpy as np
import pytest

from trainer import cuda
from trainer.engines import autograd
from trainer.engines.cudnn import generic, kernels

pytestmark = pytest.mark.gpu

ROUNDING = {np.float16: 1e-3, np.float32: 2e-6}  # a few roundings, relative to the largest

#: Channels by packs and not, over one tile and several; pixels from one to many.
SIZES = [
    (2, 64, 9, 7),
    (1, 10, 1, 1),
    (3, 136, 5, 4),
    (2, 3, 33, 31),
    (130, 8, 6, 6),
    (1, 2048, 2, 3),
]


def send(array, dtype=None):
    """Return a NumPy array on the GPU; feature maps with NHWC memory."""
    import cupy

    if array.ndim < 4:
        return cupy.asarray(array.astype(np.float32))
    there = generic.empty(cupy, array.shape, dtype or array.dtype)
    there[...] = cupy.asarray(array.astype(dtype or array.dtype))
    return there


def close(there, here, tolerance):
    if there is None:
        return here is None
    there = chainer.get_device('@numpy').send(there).astype(np.float64)
    return abs(there - here).max() <= tolerance * max(abs(here).max(), 1e-3)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape, parts', [(s, n) for s in SIZES for n in sorted({1, min(s[0], 3)})])
@pytest.mark.parametrize('kind', range(5))
def test_batch_normalisation(shape, parts, kind, dtype):
    rng = np.random.default_rng(0)
    c = shape[1]
    # Far from 0, as what a convolution makes can be: squares must not cancel.
    x = (rng.standard_normal(shape) + 5 * rng.standard_normal((1, c, 1, 1))).astype(dtype)
    residual, gy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gamma, beta, mean, var = (rng.uniform(0.5, 1.5, c).astype(np.float32) for _ in range(4))
    residual = residual if kind >= autograd.ADD else None
    averages = [send(mean), send(var)]
    wide = [a.astype(np.float64) for a in (x, gamma, beta, mean, var)]
    rule = 1e-5, 0.9, 0.1 * (kind == autograd.RELU)
    expected = generic.statistics(wide[0], autograd.Running(*wide[3:], *rule), parts)
    expected = (
        *generic.normalize(
            wide[0],
            None if residual is None else residual.astype(float),
            *expected,
            *wide[1:3],
            kind,
        ),
        *expected,
    )
    there = send(x, dtype), send(gamma), send(beta)
    found = kernels.statistics(there[0], autograd.Running(*averages, *rule), parts)
    again = kernels.statistics(there[0], autograd.Running(send(mean), send(var), *rule), parts)
    for one, other in zip(found, again):  # the order of the sums is fixed
        assert (one == other).all()
    found = (
        *kernels.normalize(
            there[0], None if residual is None else send(residual, dtype), *found, *there[1:], kind
        ),
        *found,
    )
    assert close(found[0], expected[0], ROUNDING[dtype])
    assert close(found[2], expected[2], 1e-6) and close(found[3], expected[3], 1e-4)
    assert close(averages[0], wide[3], 1e-6) and close(averages[1], wide[4], 1e-5)
    each = [wide[0][part] for part in generic.parts_of(len(x), parts)]
    sums = [send(np.array([(a**k).sum(axis=(0, 2, 3)) for a in each])) for k in (1, 2)]
    means = [send(mean), send(var)]
    of_sums = kernels.normalize_sums(
        there[0],
        None if residual is None else send(residual, dtype),
        sums,
        autograd.Running(*means, *rule),
        *there[1:],
        kind,
    )
    assert close(of_sums[2], expected[2], 1e-6) and close(means[0], wide[3], 1e-6)
    if each[-1].size // c > 1:  # squares of values far from 0 cancel
        assert close(of_sums[3], expected[3], 1e-2) and close(means[1], wide[4], 1e-2)
    wanted = kernels.normalize(
        there[0],
        None if residual is None else send(residual, dtype),
        *of_sums[2:],
        *there[1:],
        kind,
    )
    for one, other in zip(wanted, of_sums):
        assert one is other is None or (one == other).all()

    # A ReLU that flips by rounding says nothing of the gradients: its own mask is taken.
    y = chainer.get_device('@numpy').send(found[0])
    if expected[1] is not None:
        own = (y > 0) if kind != autograd.RELU_ADD else expected[1]
        expected = expected[0], own, *expected[2:]
    keep = kind >= autograd.ADD
    golden = generic.bn_backward(
        gy.astype(np.float64),
        expected[1],
        wide[0],
        wide[1],
        wide[2],
        expected[2],
        expected[3],
        kind,
        keep,
    )
    gradients = kernels.bn_backward(send(gy, dtype), found[1], *there, *found[2:], kind, keep)
    # In half precision a value's sign may be lost beside the residual's.
    for there, here in zip(gradients, golden):
        assert close(there, here, 3 * ROUNDING[dtype] if dtype == np.float16 else 3e-5)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize(
    'shape, size, stride, pad, round_up',
    [
        ((2, 64, 12, 9), 3, 2, 1, False),
        ((2, 16, 13, 12), 3, 2, 1, True),
        ((1, 3, 7, 5), 2, 2, 0, True),
        ((3, 10, 6, 6), 3, 1, 1, False),
    ],
)
def test_max_pooling(shape, size, stride, pad, round_up, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(dtype)  # few values: windows with equal ones
    out = shape[:2] + tuple(
        chainer.utils.conv.get_conv_outsize(n, size, stride, pad, round_up) for n in shape[2:]
    )
    y, place = kernels.max_pooling(send(x), out, size, stride, pad)
    golden = generic.max_pooling(x, out, size, stride, pad)
    assert close(y, golden[0], 0) and close(place, golden[1], 0)
    chainers = chainer.functions.max_pooling_2d(x, size, stride, pad, cover_all=round_up)
    assert (chainers.array == golden[0]).all()
    gy = rng.integers(-3, 4, out).astype(dtype)
    gx = kernels.max_pooling_backward(send(gy), place, shape, size, stride, pad)
    assert close(gx, generic.max_pooling_backward(gy, golden[1], shape, size, stride, pad), 0)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', SIZES)
def test_mean_pooling_and_sums(shape, dtype):
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    y = kernels.mean_pooling(send(x))
    assert y.dtype == np.float32
    assert close(y, generic.mean_pooling(x.astype(np.float64)), 1e-6)
    gy = rng.standard_normal(shape[:2] + (1, 1))
    gx = kernels.mean_pooling_backward(send(gy, np.float32), shape, dtype)
    assert gx.dtype == dtype
    assert close(gx, generic.mean_pooling_backward(gy, shape, np.float64), ROUNDING[dtype])
    there = send(x)
    kernels.accumulate(there, send(other))
    assert close(there, x.astype(np.float64) + other, ROUNDING[dtype])


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', SIZES + [(1, 6, 5, 1)])
def test_average_pooling(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    y = kernels.average_pooling(send(x))
    golden = generic.average_pooling(x.astype(np.float64))
    assert close(y, golden, ROUNDING[dtype])
    gy = rng.standard_normal(golden.shape).astype(dtype)
    gx = kernels.average_pooling_backward(send(gy), shape)
    assert close(
        gx, generic.average_pooling_backward(gy.astype(np.float64), shape), ROUNDING[dtype]
    )


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', SIZES)
def test_squeeze_and_excitation(shape, dtype):
    rng = np.random.default_rng(0)
    x, residual, gy = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    weights = rng.uniform(0, 1, shape[:2]).astype(np.float32)
    wide = [a.astype(np.float64) for a in (x, weights, residual)]
    y = kernels.scale(send(x), send(weights), send(residual))
    golden = generic.scale(*wide)
    assert close(y, golden, ROUNDING[dtype]) and (golden > 0).any() and (golden == 0).any()
    found = kernels.scale_backward(send(gy), y, send(x), send(weights))
    # Which are above 0, rounding decides as well.
    positive = chainer.get_device('@numpy').send(y).astype(np.float64)
    gradients = generic.scale_backward(gy.astype(np.float64), positive, *wide[:2])
    for there, here in zip(found, gradients):
        assert close(there, here, max(ROUNDING[dtype], 1e-6))


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('shape', [(128, 2048, 7, 7), (128, 64, 112, 112), (2, 2048, 1, 1)])
@pytest.mark.parametrize('kernel', sorted(kernels.AT_ONCE))
def test_all_blocks_run_at_once(kernel, shape, parts, monkeypatch):
    """On an H100, of 132 multiprocessors: a second wave of a few blocks takes as long as the
    first, and begins where nothing is in the cache."""

    class Map:
        dtype = np.float16

    Map.shape = shape
    monkeypatch.setattr(kernels, '_processors', lambda device: 132)
    blocks = math.prod(kernels._RowLaunch(kernel, Map, parts).grid)
    limit = kernels.AT_ONCE[kernel] * 132
    assert blocks <= limit
    assert blocks > 0.9 * limit or shape[0] == 2


class TestOrder:
    """A second pass begins with what the first read last. It is seen where a kernel reads
    what it wrote for the pixels behind: one block of it, compiled without its promise that
    nobody writes what it reads."""

    #: Pixels of a thread, and of a block of a single channel.
    LOOPS, HIGH = 20, 256
    #: Pixels between what is read and what is written: more than are loaded at once.
    AHEAD = 4 * HIGH

    @pytest.fixture
    def maps(self):
        """A map's memory with AHEAD pixels behind it, these 7 and the rest 0; the same map
        that many pixels later; a map of ones; the arguments of sizes."""
        import cupy

        rows = self.LOOPS * self.HIGH
        memory = cupy.zeros(rows + self.AHEAD, np.float32)
        memory[rows:] = 7
        sizes = tuple(map(np.int32, (1, rows, 1, 1)))
        return memory[:rows], memory[self.AHEAD :], cupy.ones(rows, np.float32), sizes

    def launch(self, kernel, *args):
        import cupy

        path = Path(kernels.__file__).with_suffix('.cu')
        source = cuda.source(path, **kernels.DEFINED)
        module = cupy.RawModule(code=source.replace('__restrict__', ''), options=('--std=c++17',))
        module.get_function(kernel)((1,), (self.HIGH,), args)

    def test_normalisation(self, maps):
        import cupy

        y, ahead, ones, sizes = maps
        zero, one = cupy.zeros(1, np.float32), cupy.ones(1, np.float32)
        kind = np.int32(autograd.ADD)
        self.launch('normalize_f1', ones, ahead, zero, one, one, zero, kind, *sizes, y, np.uintp(0))
        # 7, and 1 more every AHEAD pixels back from the end.
        steps = self.LOOPS * self.HIGH // self.AHEAD
        expected = np.repeat(7 + np.arange(steps, 0, -1), self.AHEAD)
        assert (y.get() == expected).all()

    def test_gradient_of_the_input(self, maps):
        import cupy

        gx, ahead, ones, sizes = maps
        zero, one = cupy.zeros(1, np.float32), cupy.ones(1, np.float32)
        channel = zero, one, one, zero, zero, zero
        kind = np.int32(autograd.PLAIN)
        self.launch('backward_input_f1', ahead, ones, np.uintp(0), *channel, kind, *sizes, gx)
        assert (gx.get() == 7).all()
