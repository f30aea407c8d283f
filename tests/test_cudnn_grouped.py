"""The kernels of grouped convolutions against NumPy in float64, on a GPU or a simulated one."""

import numpy as np
import pytest
from conftest import simulated
from test_cudnn_kernels import close, send

from trainer.engines.autograd import Running
from trainer.engines.cudnn import convolutions, generic, graphs, grouped, library, timing

pytestmark = pytest.mark.gpu

ROUNDING = 1e-3  # of float16, relative to the largest

#: Images, channels, height, width: tiles of several images, of parts of one, odd sizes, and
#: several blocks of channels.
SHAPES = [(5, 64, 7, 7), (2, 128, 13, 6), (1, 64, 30, 37)]


def made(shape, width, stride, seed=0):
    """Return images, weights and a gradient of the output, float16."""
    rng = np.random.default_rng(seed)
    n, channels, *size = shape
    x = rng.standard_normal(shape)
    w = rng.standard_normal((channels, width, 3, 3)) / (3 * width**0.5)
    gy = rng.standard_normal((n, channels, *((s - 1) // stride + 1 for s in size)))
    return [a.astype(np.float16) for a in (x, w, gy)]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('width', grouped.WIDTHS)
@pytest.mark.parametrize('shape', SHAPES)
def test_forward_and_both_gradients(shape, width, stride):
    x, w, gy = made(shape, width, stride)
    bias = np.random.default_rng(1).standard_normal(shape[1]).astype(np.float32)
    wide = [a.astype(np.float64) for a in (x, w, gy)]
    geometry = stride, 1, shape[1] // width
    there = [send(a) for a in (x, w, gy)]
    expected = generic.conv_forward(*wide[:2], *geometry)
    assert close(grouped.conv_forward(*there[:2], stride), expected, ROUNDING)
    for relu in (False, True):
        golden = generic.conv_bias(*wide[:2], bias, *geometry, None, relu, False)
        found = grouped.conv_bias(*there[:2], send(bias), stride, relu)
        assert close(found, golden, ROUNDING)
    golden = generic.conv_backward_data(wide[2], wide[1], shape, *geometry, None)
    found = grouped.conv_backward_data(there[2], there[1], shape, stride)
    assert close(found, golden, ROUNDING)
    golden = generic.conv_backward_weights(wide[0], wide[2], w.shape, *geometry)
    found = [grouped.conv_backward_weights(there[0], there[2], w.shape, stride) for _ in range(2)]
    assert found[0].dtype == np.float32
    assert close(found[0], golden, 1e-5)
    assert (found[0] == found[1]).all()  # the order of the sums is fixed


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('width', grouped.WIDTHS)
def test_sums_are_of_what_is_stored(width, stride):
    x, w, _ = made(SHAPES[1], width, stride)
    there = send(x), send(w)
    y, total, square = grouped.conv_with_sums(*there, stride)
    stored = y.get().astype(np.float64)
    assert (stored == grouped.conv_forward(*there, stride).get()).all()
    assert close(total, stored.sum(axis=(0, 2, 3)), 1e-5)
    assert close(square, (stored**2).sum(axis=(0, 2, 3)), 1e-5)
    again = grouped.conv_with_sums(*there, stride)[1:]
    assert all((a == b).all() for a, b in zip((total, square), again))


def test_values_outside_a_group_do_not_matter():
    """A group of 4 shares a product with another, whose weights count as 0."""
    x, w, _ = made(SHAPES[0], 4, 1)
    x[:, 4:8] = 60000  # infinite, were it added up
    there = grouped.conv_forward(send(x), send(w), 1).get()[:, :4]
    x[:, 4:8] = 0
    assert (there == grouped.conv_forward(send(x), send(w), 1).get()[:, :4]).all()


@pytest.mark.parametrize(
    'w_shape, stride, pad, groups, dtype',
    [
        ((64, 4, 3, 3), 1, 1, 16, np.float32),  # another type
        ((96, 4, 3, 3), 1, 1, 24, np.float16),  # no multiple of 64 channels
        ((128, 64, 3, 3), 1, 1, 2, np.float16),  # wide groups
        ((128, 4, 3, 3), 1, 1, 16, np.float16),  # more outputs than inputs
        ((64, 32, 1, 1), 1, 0, 2, np.float16),  # another window
        ((64, 4, 3, 3), 3, 1, 16, np.float16),  # another stride
        ((64, 4, 3, 3), 1, 0, 16, np.float16),  # another padding
    ],
)
def test_what_has_no_kernel(w_shape, stride, pad, groups, dtype):
    assert grouped.supports((64, 4, 3, 3), 1, 1, 16, np.float16)
    assert not grouped.supports(w_shape, stride, pad, groups, dtype)


def test_older_gpus_have_no_kernel(monkeypatch):
    monkeypatch.setattr(library, 'device', lambda: library.Device(75))
    assert not grouped.supports((64, 4, 3, 3), 1, 1, 16, np.float16)


def test_tiles_cover_any_size_within_the_shared_memory():
    for images, size, channels, stride in ((1, 1, 64, 1), (256, 7, 1024, 1), (2, 300, 128, 2)):
        for outputs in (False, True):
            tiles = grouped._tiles(images, size, size, channels, stride, 2, outputs, 132)
            assert 0 < tiles.shared <= grouped._SHARED
            assert 1 <= tiles.blocks <= 264


@pytest.mark.parametrize('groups, channels', [(2, 32), (1, 16)])
def test_turned_weights(groups, channels):
    """The data gradient of stride 1 as a convolution."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2 * channels, channels // groups, 3, 3)).astype(np.float32)
    gy = rng.standard_normal((2, 2 * channels, 6, 5)).astype(np.float32)
    x_shape = 2, channels, 6, 5
    turned = convolutions._turned(send(w), groups)
    assert turned.transpose(0, 2, 3, 1).flags.c_contiguous
    found = generic.conv_forward(gy, turned.get(), 1, 1, groups)
    golden = generic.conv_backward_data(gy, w, x_shape, 1, 1, groups, None)
    assert close(send(found), golden, 1e-5)


def all_close(ways, golden, tolerance):
    for name, way in ways.items():
        try:
            found = way()
        except graphs.NoPlan:  # a GPU may have no plan for some of a map's channels
            assert name == 'group by group' and not simulated()
            continue
        assert close(found, golden, tolerance), name


@pytest.mark.usefixtures('no_plans')
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_group_by_group(monkeypatch, dtype, stride):
    """The gradients of few wide groups, each in a graph of its own among the channels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 7, 6)).astype(dtype)
    w = (rng.standard_normal((64, 16, 3, 3)) / 12).astype(dtype)
    geometry, ways = (stride, 1, 2), {}

    def noted(key, found):
        ways.clear()
        ways.update(found)
        return found['cuDNN']()

    monkeypatch.setattr(timing, 'by_time', noted)
    wide = x.astype(float), w.astype(float)
    gy = rng.standard_normal(generic.conv_forward(*wide, *geometry).shape).astype(dtype)
    precision, tolerance = ('mixed', ROUNDING) if dtype == np.float16 else ('float32', 1e-5)
    convolutions.conv_backward_data(send(gy), send(w), x.shape, *geometry, None, precision)
    assert set(ways) == {'cuDNN', 'group by group'} | ({'turned weights'} if stride == 1 else set())
    golden = generic.conv_backward_data(gy.astype(float), wide[1], x.shape, *geometry, None)
    all_close(ways, golden, tolerance)
    if dtype == np.float16:
        convolutions.conv_backward_weights(send(x), send(gy), w.shape, *geometry, precision)
        assert set(ways) == {'cuDNN', 'group by group'}
        golden = generic.conv_backward_weights(wide[0], gy.astype(float), w.shape, *geometry)
        all_close(ways, golden, tolerance)


@pytest.mark.usefixtures('no_plans')
@pytest.mark.parametrize('channels, dtype', [(8, np.float16), (4, np.float32), (6, np.float32)])
def test_parts_of_groups_are_aligned_or_not_used(monkeypatch, channels, dtype):
    """cuDNN reads 16 bytes at a time: the second group of 4 channels in float16 begins at 8."""
    ways = {}
    monkeypatch.setattr(timing, 'by_time', lambda key, found: ways.update(found))
    w = send(np.zeros((2 * channels, channels // 2, 3, 3), dtype))
    gy = send(np.zeros((2, 2 * channels, 4, 4), dtype))
    convolutions.conv_backward_data(gy, w, (2, channels, 8, 8), 2, 1, 2, None, 'mixed')
    aligned = channels // 2 * dtype().itemsize % 16 == 0
    assert ('group by group' in ways) == aligned


@pytest.mark.usefixtures('no_plans')
@pytest.mark.parametrize('window', [(3, 1, 1), (7, 2, 3)])
def test_images_with_padded_channels(monkeypatch, window):
    """Ways of the stem: its convolution, with sums or without, and its gradient."""
    k, stride, pad = window
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 16, 15)).astype(np.float16)
    w = (rng.standard_normal((64, 3, k, k)) / k).astype(np.float16)
    wide = x.astype(float), w.astype(float)
    y = generic.conv_forward(*wide, stride, pad, 1)
    gy = rng.standard_normal(y.shape).astype(np.float16)
    gw = generic.conv_backward_weights(wide[0], gy.astype(float), w.shape, stride, pad, 1)
    monkeypatch.setattr(timing, 'by_time', lambda key, ways, changed=(): ways['padded']())
    there, where = (send(x), send(w)), (stride, pad, 1)
    running = Running(*(send(np.ones(64, np.float32)) for _ in range(2)), 1e-5, 0.9, 0.0)
    found, statistics, sums = convolutions.conv_statistics(*there, *where, running, 1, 'mixed')
    assert statistics is None
    assert close(found, y, ROUNDING)
    assert close(sums[0][0], y.sum(axis=(0, 2, 3)), 1e-2)
    assert close(sums[1][0], (y**2).sum(axis=(0, 2, 3)), 1e-2)
    assert close(convolutions.conv_forward(*there, *where, 'mixed'), y, ROUNDING)
    found = convolutions.conv_backward_weights(there[0], send(gy), w.shape, *where, 'mixed')
    assert found.transpose(0, 2, 3, 1).flags.c_contiguous
    assert close(found, gw, ROUNDING)


@pytest.mark.usefixtures('no_plans')
def test_the_fastest_way_is_chosen(monkeypatch):
    """Each way that there is takes part; all compute the same."""
    x, w, gy = (send(a) for a in made((2, 64, 8, 8), 8, 1))
    bias = send(np.ones(64))
    taken, fastest = {}, timing.fastest

    def noted(key, ways, timed):
        ways = list(ways)
        taken[key] = [name for name, _ in ways]
        return fastest(key, ways, timed)

    monkeypatch.setattr(timing, 'fastest', noted)
    convolutions.conv_forward(x, w, 1, 1, 8, 'mixed')
    convolutions.conv_backward_data(gy, w, x.shape, 1, 1, 8, None, 'mixed')
    convolutions.conv_backward_weights(x, gy, w.shape, 1, 1, 8, 'mixed')
    convolutions.conv_bias(x, w, bias, 1, 1, 8, None, True, False, 'mixed')
    ways = [set(names) for key, names in taken.items() if 'conv_' not in key]
    assert {'own kernel', 'cuDNN'} in ways
    assert {'own kernel', 'cuDNN', 'turned weights'} in ways
    assert {'own kernel', 'cuDNN', 'two steps'} in ways
    assert any('own kernel' in names and len(names) >= 2 for names in ways)
