"""Time and memory of conversion and loading, and what damaged files do.

``python benchmarks/convert.py``: a Torch7 file of ResNeXt-101 64x4d's size with random
weights is converted on one core; a 50-layer npz is loaded; then 1,000 damaged Torch7 files
and 1,000 damaged npz files are read. Each must end in the whole file's arrays or in one
line; in a Torch7 file, which has no checksums, damaged numbers are read as they are.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import damage  # noqa: E402
import t7_files  # noqa: E402

import resnext_ilsvrc  # noqa: E402
from trainer.weights import torch7  # noqa: E402


def measured(command, folder):
    """Run a command on one core: (CPU seconds, peak resident bytes)."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    process = subprocess.Popen(command, cwd=folder, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit('it failed')
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def big_file(folder):
    t7 = os.path.join(folder, 'resnext_101_64x4d.t7')
    subprocess.run([sys.executable, __file__, '--write', t7], check=True)
    size = os.path.getsize(t7)
    cpu, peak = measured([sys.executable, str(ROOT / 'ilsvrc_converter.py'), '-t', t7], folder)
    print(
        f'convert {size / 1e6:.0f} MB: {cpu:.2f} s of CPU, peak {peak / 1e6:.0f} MB = '
        f'{peak / size:.2f} x the file'
    )


def write_big_file(path):
    builder = t7_files.Builder(modules='cudnn')
    tree = builder.network('imagenet', (3, 4, 23, 3), 64, 4, 64, 256, 1000)
    t7_files.share_storage(tree)
    t7_files.write(path, tree)


def load_time(folder):
    path = os.path.join(folder, 'resnext_50_32x4d.npz')
    network = resnext_ilsvrc.resnext50()
    network.save_model(path)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        resnext_ilsvrc.load(path)
        times.append(time.perf_counter() - start)
    print(
        f'load a 50-layer npz of {os.path.getsize(path) / 1e6:.0f} MB: {times[0]:.2f} s (best '
        f'{min(times):.2f})'
    )


def campaign(what, folder, read, data, numbers, count, seed):
    outcomes, slowest = damage.campaign(
        pathlib.Path(folder, 'damaged'), read, data, numbers, count, seed
    )
    print(
        '{} damaged {} files: {}; slowest {:.2f} s, peak {:.0f} MB'.format(
            count,
            what,
            ', '.join(f'{n} {o}' for o, n in outcomes.most_common()),
            slowest,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        )
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--damaged', type=int, default=1000, help='files of each kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-big-file', action='store_true')
    parser.add_argument('--write', metavar='T7', help='only write the big file')
    args = parser.parse_args()
    if args.write:
        return write_big_file(args.write)
    with tempfile.TemporaryDirectory() as folder:
        t7, numbers = damage.small_t7()
        campaign(
            'Torch7',
            folder,
            lambda path: torch7.read(path)[0],
            t7,
            numbers,
            args.damaged,
            args.seed,
        )
        campaign(
            'npz', folder, resnext_ilsvrc.load, damage.small_npz(), [], args.damaged, args.seed
        )
        if not args.no_big_file:
            load_time(folder)
            big_file(folder)


if __name__ == '__main__':
    main()
