"""Where a training step's time goes on a GPU: every operation of the cuDNN engine by itself.

    python benchmarks/gpu_layers.py [-b 128] [--network resnext50] [--precision mixed]

For each operation, summed over the network's layers: milliseconds, and how often that is
what its traffic takes at the rate of a large copy on the same GPU (for convolutions, what
they read and write; they have arithmetic to do as well). Each is replayed as a CUDA graph,
as in a step: what is small would otherwise take as long as Python does to launch it. Needs
CuPy and nvidia-cudnn-frontend.
"""

import argparse
import collections
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import trainer  # noqa: E402, F401  before Chainer

# isort: split
import chainer  # noqa: E402
import numpy as np  # noqa: E402

import resnext  # noqa: E402
import resnext_ilsvrc  # noqa: E402
from trainer import cli, engines, values  # noqa: E402, values
from trainer.engines import (
    autograd,
    shapes,  # noqa: E402
)
from trainer.engines.cudnn import arrays, graphs, kernels  # noqa: E402
from trainer.engines.cudnn.timing import milliseconds  # noqa: E402

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
        array = arrays.empty(cupy, shape, dtype)
        array[...] = cupy.asarray(
            np.random.default_rng(0).standard_normal((1,) + tuple(shape[1:]), np.float32)
        )
        return array

    x, w, y, g = random(layer.x), random(layer.w), random(y_shape), random(y_shape)
    gamma, beta, mean, var = (cupy.ones(y_shape[1], np.float32) for _ in range(4))
    conv = layer.stride, layer.pad, layer.groups
    a, b = x.size * size, y.size * size
    yield 'conv forward', lambda: graphs.conv_forward(x, w, *conv, precision), a + b
    if not layer.first:
        yield (
            'conv backward, data',
            lambda: graphs.conv_backward_data(y, w, layer.x, *conv, None, precision),
            a + b,
        )
        if layer.w[2] == 1:
            yield (
                '  with a gradient added',
                lambda: graphs.conv_backward_data(y, w, layer.x, *conv, x, precision),
                2 * a + b,
            )
    yield (
        'conv backward, weights',
        lambda: graphs.conv_backward_weights(x, y, layer.w, *conv, precision),
        a + b,
    )
    residual = g if layer.kind >= autograd.ADD else None
    running = autograd.Running(mean, var, 1e-5, 0.9, 0.0)
    if layer.w[2] == 1:
        yield '  with statistics', lambda: graphs.conv_with_sums(x, w, *conv, precision), a + b
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


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('-b', '--batch', type=values.positive(int), default=128)
    p.add_argument('--network', choices=NETWORKS, default='resnext50')
    p.add_argument('--precision', choices=('float32', 'tf32', 'mixed'), default='mixed')
    return p


def main():
    args = parser().parse_args()
    engine, precision, why = engines.choose(0, args.precision, True)
    if why:
        sys.exit(why)
    import cupy

    dtype = np.float16 if precision == 'mixed' else np.float32
    big = cupy.zeros(1 << 28, np.float32)
    rate = 2 * big.nbytes / milliseconds(big.copy)
    print(f'copy: {rate / 1e9:.2f} TB/s')
    del big
    build, side = NETWORKS[args.network]
    times, traffic, failed = (collections.Counter() for _ in range(3))
    with cupy.cuda.Stream(non_blocking=True):
        for layer, count in layers_of(build(), args.batch, side).items():
            for name, run, moved in operations(layer, dtype, precision):
                try:
                    times[name] += count * milliseconds(run)
                    traffic[name] += count * moved
                except graphs.NotSupported:
                    failed[name] += count
    print('{:32s} {:>8s} {:>14s}'.format('', 'ms', 'times traffic'))
    for name in times:
        print(
            '{:32s} {:8.2f} {:14.2f}{}'.format(
                name,
                times[name],
                times[name] * rate / traffic[name],
                f'   ({failed[name]} layers have no plan)' if failed[name] else '',
            )
        )


if __name__ == '__main__':
    cli.run(main)
