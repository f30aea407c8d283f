"""Where a training step's time goes on a GPU: every operation of the cuDNN engine by itself.

    python benchmarks/gpu_layers.py [-b 128] [--network resnext50] [--precision mixed]
    python benchmarks/gpu_layers.py --rate 4000

For each operation, summed over the network's layers: milliseconds, and their ratio to the time
that its memory traffic takes at the rate of a large copy on the same GPU (convolutions also
have arithmetic to do). Each is replayed as a CUDA graph, as in a step: otherwise small kernels
would take as long as their launch from Python.

Then the memory traffic of a whole step, from its launches, and the milliseconds that it takes
at that rate, or at ``--rate``: a calculated lower bound. With ``--rate`` nothing is computed or
timed. Needs CuPy and nvidia-cudnn-frontend; for ``--rate`` the simulated ones do
(``PYTHONPATH=tests/simulated_gpu``).
"""

import argparse
import collections
import contextlib
import os
import sys
import tempfile
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import trainer  # noqa: E402, F401  before Chainer

# isort: split
import chainer  # noqa: E402
import numpy as np  # noqa: E402

import resnext  # noqa: E402
import resnext_ilsvrc  # noqa: E402
from trainer import cli, cuda, engines, values  # noqa: E402
from trainer.engines import autograd, shapes  # noqa: E402
from trainer.engines.cudnn import convolutions, generic, graphs, kernels, parameters  # noqa: E402
from trainer.engines.cudnn.timing import milliseconds  # noqa: E402
from trainer.errors import InputError  # noqa: E402
from trainer.settings import settings  # noqa: E402
from trainer.training.captured_step import CapturedStep  # noqa: E402

NETWORKS = {
    'resnext50': (resnext_ilsvrc.resnext50, 224),
    'cifar2x64d': (lambda: resnext.ResNext(10, (3, 3, 3), C=2, d=64, multiplier=4), 32),
    'cifar8x64d': (lambda: resnext.PaperResNext(10, C=8, d=64), 32),
}

#: A layer: shapes of input and weights, its geometry, what comes behind it.
Layer = collections.namedtuple('Layer', 'x w stride pad groups kind first')


def layers_of(network, batch, side):
    """Return the layers of a network, Layer -> how many."""
    found = collections.Counter()
    compute = shapes.conv_bn

    def noted(x, conv, bn, relu, residual=None, relu_first=False, eps_in_average=0.0):
        kind = (
            (autograd.RELU if relu else autograd.PLAIN)
            if residual is None
            else (autograd.RELU_ADD if relu_first else autograd.ADD_RELU)
        )
        found[
            Layer(x.shape, conv.W.shape, conv.stride[0], conv.pad[0], conv.groups, kind, not found)
        ] += 1
        return compute(x, conv, bn, relu, residual, relu_first)

    shapes.conv_bn = noted
    with chainer.using_config('engine', 'shapes'):
        network(shapes.zeros((batch, 3, side, side)))
    shapes.conv_bn = compute
    return found


def operations(layer, dtype, precision):
    """Yield (operation, function, bytes that it must move) of a layer."""
    import cupy

    size = np.dtype(dtype).itemsize
    y_shape = graphs.out_shape(layer.x, layer.w, layer.stride, layer.pad)

    def random(shape):
        array = generic.empty(cupy, shape, dtype)
        array[...] = cupy.asarray(
            np.random.default_rng(0).standard_normal((1,) + tuple(shape[1:]), np.float32)
        )
        return array

    x, w, y, g = random(layer.x), random(layer.w), random(y_shape), random(y_shape)
    gamma, beta, mean, var = (cupy.ones(y_shape[1], np.float32) for _ in range(4))
    conv = layer.stride, layer.pad, layer.groups
    a, b = x.size * size, y.size * size
    yield 'conv forward', lambda: convolutions.conv_forward(x, w, *conv, precision), a + b
    if not layer.first:
        yield (
            'conv backward, data',
            lambda: convolutions.conv_backward_data(y, w, layer.x, *conv, None, precision),
            a + b,
        )
        if layer.w[2] == 1:
            yield (
                '  with a gradient added',
                lambda: convolutions.conv_backward_data(y, w, layer.x, *conv, x, precision),
                2 * a + b,
            )
    yield (
        'conv backward, weights',
        lambda: convolutions.conv_backward_weights(x, y, layer.w, *conv, precision),
        a + b,
    )
    residual = g if layer.kind >= autograd.ADD else None
    running = autograd.Running(mean, var, 1e-5, 0.9, 0.0)
    if layer.w[2] == 1:
        yield (
            '  with statistics',
            lambda: convolutions.conv_with_sums(x, w, *conv, precision),
            a + b,
        )
    found = kernels.statistics(y, running)
    mask = kernels.normalize(y, residual, *found, gamma, beta, layer.kind)[1]
    keep = layer.kind >= autograd.ADD
    yield 'statistics', lambda: kernels.statistics(y, running), b
    yield (
        'normalisation, addition, ReLU',
        lambda: kernels.normalize(y, residual, *found, gamma, beta, layer.kind),
        (2 + keep) * b,
    )
    yield (
        'the same backward',
        lambda: kernels.bn_backward(g, mask, y, gamma, beta, *found, layer.kind, keep),
        (5 + (layer.kind == autograd.ADD_RELU)) * b,
    )


def kernel_bytes(name, args):
    """Return the bytes of device memory that a kernel of this project reads and writes.

    Each array counts once, and twice where it is read and written. The sums of single blocks,
    a few hundred kilobytes, stay in the cache and do not count.
    """
    if name == 'convert':
        parts = args[0].get().view(parameters.COPY)
        return int(parts['count'].sum()) * (4 + 2)
    if name in ('find_overflow', 'update'):
        parts = args[0].get().view(parameters.ENTRY)
        gradient = np.where(parts['half'], 2, 4) * (parts['grad'] != 0)
        state = 2 * (4 + 4) if name == 'update' else 0
        return int((parts['count'] * (gradient + state)).sum())
    if name.startswith('convolve'):
        args = *args[:-3], args[-2]
    elif name.startswith('correlate'):
        args = args[:-1]
    elif name == 'add_slices':
        args = args[1:]
    elif name.startswith(('statistics_h', 'statistics_f', 'backward_sums')):
        args = args[:-2]
    elif name.startswith('accumulate'):
        args = (args[0], *args)
    return sum(getattr(a, 'nbytes', 0) for a in args if np.ndim(a))


@contextlib.contextmanager
def launches():
    """Yield a Counter of bytes, name -> read and written, by what would be launched meanwhile:
    kernels of this project and cuDNN's graphs. Nothing is launched."""
    found = collections.Counter()

    class Module:
        def __init__(self, *paths, **defined):
            pass

        def get_function(self, name):
            def launch(grid, block, args, shared_mem=0):
                kernel, _, form = name.rpartition('_')
                key = kernel if form in ('h8', 'h1', 'f4', 'f1') else name
                found[key] += kernel_bytes(name, args)

            return launch

    def graph(self, *arrays):
        # Its key begins with the precision and the name of the operation.
        found[self.key.split("'")[1]] += sum(array.nbytes for array in arrays)

    with (
        mock.patch.object(cuda, '_module', Module),
        mock.patch.object(graphs.Graph, '__call__', graph),
    ):
        yield found


def _traffic(network, side, precision, batch):
    network.check_gpu(0)
    optimizer = chainer.optimizers.MomentumSGD(0.01).setup(network)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-4))
    if precision == 'mixed':
        optimizer.loss_scaling()
    step = CapturedStep(optimizer, network.device)
    x, t = np.zeros((batch, 3, side, side), np.float32), np.zeros(batch, np.int32)
    with (
        chainer.using_config('engine', 'cudnn'),
        chainer.using_config('precision', precision),
        settings.using(plans=1),
    ):
        for _ in range(2):  # at first an operation is computed in each of several ways
            step.forget()
            with launches() as found:
                step(x, t)
    return found


def traffic_of_step(build, side, precision, batch):
    """Return the memory traffic of a training step in bytes, kernel -> read and written.

    What is read and written by the engine's kernels and by cuDNN's graphs, once each; not
    what CuPy computes besides (the loss, the conversion of the images), nor what cuDNN has in
    workspaces or reads more than once. It is a constant and a multiple of the batch; both
    are found from two small batches.

    Args:
        build (callable): Makes the network.
        side (int): Width and height of its images.
        precision (str): 'float32', 'tf32' or 'mixed'.
        batch (int): Images.
    """
    root = chainer.dataset.get_dataset_root()
    with tempfile.TemporaryDirectory() as empty:  # of the choices made for such small batches
        chainer.dataset.set_dataset_root(empty)
        try:
            few, more = (_traffic(build(), side, precision, n) for n in (2, 4))
        finally:
            chainer.dataset.set_dataset_root(root)
    return {name: few[name] + (more[name] - few[name]) * (batch - 2) // 2 for name in few}


def print_traffic(found, rate):
    """Print what :func:`traffic_of_step` found; ``rate`` is in bytes per second."""
    total = sum(found.values())
    print('{:32s} {:>8s} {:>8s}'.format('memory traffic of a step', 'GB', 'ms'))
    for name, moved in [*sorted(found.items(), key=lambda item: -item[1]), ('total', total)]:
        print(f'{name:32s} {moved / 1e9:8.2f} {moved / rate * 1e3:8.2f}')


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('-b', '--batch', type=values.positive(int), default=128)
    p.add_argument('--network', choices=NETWORKS, default='resnext50')
    p.add_argument('--precision', choices=('float32', 'tf32', 'mixed'), default='mixed')
    p.add_argument(
        '--rate',
        type=values.positive(float),
        metavar='GB/S',
        help='print the traffic of a step alone, and how long it takes at so many GB/s',
    )
    return p


def print_times(layers, precision, rate):
    """Time every operation of some layers; ``rate`` is a large copy's, in bytes per second."""
    import cupy

    dtype = np.float16 if precision == 'mixed' else np.float32
    times, traffic, failed = (collections.Counter() for _ in range(3))
    with cupy.cuda.Stream(non_blocking=True):
        for layer, count in layers.items():
            for name, run, moved in operations(layer, dtype, precision):
                try:
                    times[name] += count * milliseconds(run)
                    traffic[name] += count * moved
                except graphs.NoPlan:
                    failed[name] += count
    print('{:32s} {:>8s} {:>14s}'.format('', 'ms', 'times traffic'))
    for name in times:
        print(
            '{:32s} {:8.2f} {:14.2f}{}'.format(
                name,
                times[name],
                times[name] * rate / 1e3 / traffic[name],
                f'   ({failed[name]} layers have no plan)' if failed[name] else '',
            )
        )


def copy_rate():
    """Return the bytes per second that a large copy reads and writes."""
    import cupy

    big = cupy.zeros(1 << 28, np.float32)
    return 2 * big.nbytes / milliseconds(big.copy) * 1e3


def main():
    args = parser().parse_args()
    build, side = NETWORKS[args.network]
    _, precision, why = engines.choose(0, args.precision, True)
    if why:
        raise InputError(why)
    if args.rate is None:
        rate = copy_rate()
        print(f'copy: {rate / 1e12:.2f} TB/s')
        print_times(layers_of(build(), args.batch, side), precision, rate)
    else:
        rate = args.rate * 1e9
    print_traffic(traffic_of_step(build, side, precision, args.batch), rate)


if __name__ == '__main__':
    cli.run(main)
