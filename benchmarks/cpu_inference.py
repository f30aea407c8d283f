"""Images/s of ResNeXt-50 32x4d on the CPU, side by side with what users would take instead.

``python benchmarks/cpu_inference.py``: the same weights and images go through this
program's engines and PyTorch (eager and torch.compile, channels_last), as far as they are
installed. Times are by wall clock. In each round each of them computes each batch once, so
that whatever else the machine does falls on all; a ratio is of two times of one round.
"""

import argparse
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np  # noqa: E402

import resnext_ilsvrc  # noqa: E402
from trainer.errors import InputError  # noqa: E402
from trainer.weights import npz, state_dict  # noqa: E402

BASELINE = 'PyTorch float32'


def build():
    """Make a ResNeXt-50 32x4d with running statistics that are not those of a new one."""
    network = resnext_ilsvrc.resnext50()
    rng = np.random.default_rng(0)
    for name, array in npz.state(network).items():
        if name.endswith(('bn/gamma', 'bn/avg_var')):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith(('bn/beta', 'bn/avg_mean')):
            array[...] = rng.normal(0, 0.1, array.shape)
    return network


def pytorch(network):
    """Yield (name, function) of PyTorch's, or nothing where it is not installed."""
    try:
        import torch
    except ImportError:
        return
    import torch_networks

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    )

    def peer(dtype, compiled=False):
        sizes = torch_networks.Sizes((3, 4, 6, 3), 32, 128, 256, 64, 1000)
        model = torch_networks.Torchvision(sizes)
        model.load_state_dict(
            {
                name: torch.tensor(array)
                for name, array in state_dict.write(network, 'torchvision').items()
            }
        )
        model = model.eval().to(dtype).to(memory_format=torch.channels_last)
        if compiled:
            model = torch.compile(model)

        def compute(x):
            with torch.inference_mode():
                x = torch.from_numpy(x).to(dtype).contiguous(memory_format=torch.channels_last)
                return model(x).float().numpy()

        return compute

    yield BASELINE, peer(torch.float32)
    yield 'torch.compile float32', peer(torch.float32, compiled=True)
    yield 'PyTorch bfloat16', peer(torch.bfloat16)
    yield 'torch.compile bfloat16', peer(torch.bfloat16, compiled=True)


def ours(network):
    for engine, precision in (
        ('reference', 'float32'),
        ('onnxruntime', 'float32'),
        ('openvino', 'float32'),
        ('openvino', 'bfloat16'),
    ):
        try:
            yield f'{engine} {precision}', network.predictor(engine, precision)
        except InputError as e:
            print(f'left out: {e}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--rounds', type=int, default=15)
    args = parser.parse_args()
    network = build()
    peers = dict([*pytorch(network), *ours(network)])
    if BASELINE not in peers:
        print('PyTorch is not installed: there is nothing to compare with')
    for batch in args.batch:
        x = np.random.default_rng(batch).normal(size=(batch, 3, 224, 224)).astype(np.float32)
        reference = peers['reference float32'](x)
        errors = {
            name: abs(compute(x) - reference).max() / abs(reference).max()
            for name, compute in peers.items()
        }
        seconds = {name: [] for name in peers}
        for _ in range(args.rounds):
            for name, compute in peers.items():
                start = time.perf_counter()
                compute(x)
                seconds[name].append(time.perf_counter() - start)
        print(
            f'\nbatch {batch}: images/s by wall clock, median [quartiles]; times {BASELINE} in the '
            'same round, median [quartiles]; largest difference of a logit from the reference, '
            'relative to the largest'
        )
        for name, times in seconds.items():
            ratios = np.divide(seconds.get(BASELINE, np.nan), times)
            speed, ratio = (
                '{1:6.2f} [{0:.2f} to {2:.2f}]'.format(*np.quantile(values, (0.25, 0.5, 0.75)))
                for values in (batch / np.array(times), ratios)
            )
            print(f'{name:22s} {speed:27s} x {ratio:27s} {errors[name]:.1e}')


if __name__ == '__main__':
    main()
