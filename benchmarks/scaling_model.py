"""A model of how training ResNeXt-50 32x4d scales: images/s of 1 to 64 GPUs.

    python benchmarks/scaling_model.py [--overlap 1] [--draw scaling.png]
    mpiexec -n 2 python benchmarks/scaling_model.py --measure [-g 0]

Three inputs are known: the time of a training step on one H200, measured as a bare sequence
of cuDNN's graphs without data and autograd (28.3 ms at 128 images, mixed precision); the
forward pass's part of it (8.0 ms); and the number of weights, whose gradients are sent in
float16. All others are assumptions, each with a flag: the usable share of the bandwidth of
NVLink (450 GB/s each way on an H200) and Ethernet (12.5 GB/s), the latency of a message, and
the part of a step that does not shrink with the batch. Nothing here was measured on several
GPUs: on a machine that has them, --measure times the exchange, which gives --nvlink or
--ethernet and the latency.

The exchange is a ring: n GPUs send 2 (n - 1) messages each, one after the other, that add up
to 2 (n - 1) / n times the gradients, and all wait for the slowest link. NCCL has faster
algorithms for many GPUs, so the model is pessimistic there. Neither the loading of
images nor the waiting for slower GPUs is included.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import trainer  # noqa: E402,F401  before Chainer

# isort: split
import chainer  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import resnext_ilsvrc  # noqa: E402
from trainer import cli  # noqa: E402
from trainer.reports import figures  # noqa: E402
from trainer.training import processes  # noqa: E402

#: Measured on one H200 at 128 images: seconds of a step, and of its forward pass.
STEP, FORWARD, BATCH = 0.0283, 0.0080, 128
#: Counted: weights of ResNeXt-50 32x4d.
WEIGHTS = 25028904

GPUS = (1, 2, 4, 8, 16, 32, 64)


def exchange(n, size, bandwidth, latency):
    """Return the seconds in which n GPUs sum ``size`` bytes in a ring.

    Args:
        bandwidth (float): Bytes/s of the slowest link, each way.
        latency (float): Seconds of a message.
    """
    return 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * latency


def images_per_second(n, images, link, args):
    """Return the images/s of n GPUs, each with this many images.

    Args:
        link (tuple): Bandwidth and latency; see :func:`exchange`.
    """
    fixed = args.fixed_ms / 1e3
    share = (fixed + (STEP - fixed) * images / BATCH) / STEP
    sending = exchange(n, WEIGHTS * args.gradient_bytes, *link)
    hidden = min(args.overlap * sending, (STEP - FORWARD) * share)
    return n * images / (STEP * share + sending - hidden)


def links(args):
    """Return (name, function from GPUs to a link)."""
    nvlink = args.nvlink * 1e9, args.nvlink_us / 1e6
    ethernet = args.ethernet * 1e9 / 8 * args.ethernet_share, args.ethernet_us / 1e6
    return [
        ('NVLink', lambda n: nvlink),
        (
            f'Ethernet, machines of {args.machine}',
            lambda n: nvlink if n <= args.machine else ethernet,
        ),
        ('Ethernet, machines of 1', lambda n: ethernet),
    ]


def table(title, images_of, args):
    """Print a table; return its numbers, {name of the link: images/s by :data:`GPUS`}."""
    alone = images_per_second(1, images_of(1), (1.0, 0.0), args)
    found = {
        name: [images_per_second(n, images_of(n), link(n), args) for n in GPUS]
        for name, link in links(args)
    }
    print(f'\n{title}: images/s, and share of n times one GPU')
    print('{:>4s} {:>5s}'.format('GPUs', 'each') + ''.join(f'{n:>26s}' for n in found))
    for i, n in enumerate(GPUS):
        print(
            f'{n:4d} {images_of(n):5.0f}'
            + ''.join(
                f'{speeds[i]:19,.0f} {100 * speeds[i] / n / alone:4.0f} %'
                for speeds in found.values()
            )
        )
    for name, speeds in found.items():
        # Twice the GPUs pay where they give more than half as much again.
        last = next((n for i, n in enumerate(GPUS[:-1]) if speeds[i + 1] < 1.5 * speeds[i]), None)
        print(
            '{}: {}'.format(
                name,
                'pays throughout'
                if last is None
                else f'stops paying at {last} GPUs: twice as many give less than 1.5 times',
            )
        )
    return found


def draw(path, tables):
    figure = Figure(figsize=(10, 4.5), layout='constrained')
    for axes, (title, found) in zip(figure.subplots(1, len(tables)), tables.items()):
        for (name, speeds), style in zip(found.items(), ('o-', 's-', '^-')):
            axes.plot(GPUS, speeds, style, label=name, markersize=4)
        first = next(iter(found.values()))[0]
        axes.plot(GPUS, [n * first for n in GPUS], ':', color='gray', label='n times one GPU')
        axes.set(title=title, xlabel='GPUs', ylabel='images/s', xscale='log', yscale='log')
        axes.set_xticks(GPUS, GPUS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figures.save(figure, path)


def measure(gpu):
    """Time the exchange of the network's gradients, as training makes it."""
    with processes.joined() as group:
        device = group.together(lambda: group.device(gpu))
        device.use()
        seconds, sizes = [], []
        for network in (chainer.links.Linear(1, 1), resnext_ilsvrc.resnext50()):
            chainer.optimizers.SGD().setup(network).target.to_device(device)
            group.begin(device, network, gradients=np.float16 if gpu >= 0 else None)
            taken = []
            for _ in range(6):
                group.sum(0)
                start = time.perf_counter()
                group.mean_gradients(network)
                if gpu >= 0:
                    chainer.backends.cuda.Stream.null.synchronize()
                taken.append(time.perf_counter() - start)
            seconds.append(min(taken))
            sizes.append(sum(p.size for p in network.params()) * (2 if gpu >= 0 else 4))
        if group.rank == 0:
            n, (small, large) = group.size, seconds
            print(
                f'{n} processes: {1e3 * small:.3f} ms for {sizes[0]} bytes, {1e3 * large:.1f} ms '
                f'for {sizes[1] / 1e6:.1f} MB'
            )
            if n > 1:
                print(
                    f'in the model: a message of {1e6 * small / (2 * (n - 1)):.1f} us, '
                    f'{2 * (n - 1) / n * sizes[1] / (large - small) / 1e9:.2f} GB/s'
                )


def main():
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        '--overlap',
        type=float,
        default=0.0,
        help='share of the exchange that overlaps with the backward pass',
    )
    p.add_argument('--gradient_bytes', type=int, default=2, help='bytes of a gradient: float16')
    p.add_argument('--nvlink', type=float, default=360.0, help='GB/s each way: 80 %% of 450')
    p.add_argument(
        '--nvlink_us', type=float, default=5.0, help='latency of a message, microseconds'
    )
    p.add_argument('--ethernet', type=float, default=100.0, help='Gb/s')
    p.add_argument('--ethernet_share', type=float, default=0.9, help='usable share of it')
    p.add_argument(
        '--ethernet_us', type=float, default=25.0, help='latency of a message, microseconds'
    )
    p.add_argument('--machine', type=int, default=8, help='GPUs in a machine')
    p.add_argument(
        '--fixed_ms',
        type=float,
        default=3.0,
        help='part of a step that does not depend on the batch',
    )
    p.add_argument('--batch', type=int, default=256, help='batch of all GPUs together')
    p.add_argument('--draw', metavar='FILE', help='file for a figure of both tables')
    p.add_argument('--measure', action='store_true', help='time the exchange, under mpiexec')
    p.add_argument('--gpu', '-g', type=int, default=-1, help='for --measure')
    args = p.parse_args()
    if args.measure:
        return measure(args.gpu)
    print(
        f'measured: {1e3 * STEP:.1f} ms a step ({1e3 * FORWARD:.1f} ms forward) at {BATCH} '
        f'images on one H200, {WEIGHTS:,} weights'
    )
    print(
        f'assumed: NVLink {args.nvlink:g} GB/s and {args.nvlink_us:g} us; Ethernet '
        f'{args.ethernet:g} Gb/s, {args.ethernet_share:.0%} of it, and {args.ethernet_us:g} us; '
        f'{args.fixed_ms:g} ms of a step\nare there whatever the batch; {args.overlap:.0%} of the '
        'exchange may run beside the backward pass'
    )
    tables = {}
    for title, images_of in (
        (f'{BATCH} images for each GPU (-b grows)', lambda n: BATCH),
        (f'-b {args.batch} shared out', lambda n: args.batch / n),
    ):
        tables[title] = table(title, images_of, args)
    if args.draw:
        draw(args.draw, tables)


if __name__ == '__main__':
    cli.run(main)
