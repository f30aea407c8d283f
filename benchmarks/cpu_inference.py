"""Images/s of ResNeXt-50 32x4d on the CPU, side by side with what users would take instead.

``python benchmarks/cpu_inference.py``: the same weights and images go through this
program's engines and PyTorch (eager and torch.compile, channels_last), as far as they are
installed. In each round each of them computes each batch once, so that whatever else the
machine does falls on all; a ratio is of two times of one round. CPU time, of all threads, is
disturbed less by other programs than the wall clock.
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

# Of noise: how fast integers are does not depend on the images.
CALIBRATION = np.random.default_rng(1).normal(size=(8, 3, 224, 224))


def build():
    """Make a ResNeXt-50 32x4d with random running statistics."""
    network = resnext_ilsvrc.resnext50()
    rng = np.random.default_rng(0)
    for name, array in npz.state(network).items():
        if name.endswith(('bn/gamma', 'bn/avg_var')):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith(('bn/beta', 'bn/avg_mean')):
            array[...] = rng.normal(0, 0.1, array.shape)
    return network


def pytorch(network):
    """Yield (name, function) for PyTorch; nothing if it is not installed."""
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
    for engine, precision, calibration in (
        ('reference', 'float32', None),
        ('onnxruntime', 'float32', None),
        ('openvino', 'float32', None),
        ('openvino', 'bfloat16', None),
        ('openvino', 'int8', CALIBRATION),
    ):
        try:
            yield f'{engine} {precision}', network.predictor(engine, precision, calibration)
        except InputError as e:
            print(f'left out: {e}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--baseline', default=BASELINE, help='row that counts as 1 (default: %(default)s)'
    )
    args = parser.parse_args()
    network = build()
    peers = dict([*pytorch(network), *ours(network)])
    baseline = args.baseline
    if baseline not in peers:
        print(f'no {baseline}: there is nothing to compare with')
    for batch in args.batch:
        x = np.random.default_rng(batch).normal(size=(batch, 3, 224, 224)).astype(np.float32)
        reference = peers['reference float32'](x)
        errors = {
            name: abs(compute(x) - reference).max() / abs(reference).max()
            for name, compute in peers.items()
        }
        took = {name: [] for name in peers}
        for _ in range(args.rounds):
            for name, compute in peers.items():
                start = time.perf_counter(), time.process_time()
                compute(x)
                ended = time.perf_counter(), time.process_time()
                took[name].append(np.subtract(ended, start))
        print(
            f'\nbatch {batch}: images/s by wall clock, and milliseconds of CPU an image; how many '
            f'times as fast as {baseline} in the same round, by wall clock and by CPU time; all '
            'medians [quartiles]; largest difference of a logit from the reference, relative to '
            'the largest'
        )
        for name, times in took.items():
            wall, cpu = np.transpose(times)
            ratios = np.divide(np.transpose(took.get(baseline, np.nan)), (wall, cpu))
            columns = batch / wall, 1e3 * cpu / batch, *ratios
            text = '  '.join(
                '{1:6.2f} [{0:.2f} to {2:.2f}]'.format(*np.quantile(values, (0.25, 0.5, 0.75)))
                for values in columns
            )
            print(f'{name:22s} {text}  {errors[name]:.1e}')


if __name__ == '__main__':
    main()
