"""Images/s from JPEG files to preprocessed batches, side by side with PyTorch's DataLoader.

``python benchmarks/evaluation_loading.py [--peer-python PYTHON]``: the same files, number of
processes and preprocessing with Pillow, in turns. PYTHON is an interpreter with torch, NumPy
and Pillow (default: this one); without torch, only this project is measured. Chainer's
MultiprocessIterator, which ``trainer.datasets.parallel`` replaces, is measured too.
"""

import argparse
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH = 64


def write_images(folder, number):
    """Write JPEG files of 500x375 pixels, as most of ImageNet's; return a description of them."""
    golden = ROOT.parent / 'shared' / 'golden' / 'original' / 'da_ilsvrc_decoded.npz'
    rng = np.random.default_rng(0)
    if golden.exists():
        with np.load(golden) as f:
            photos = [
                Image.fromarray(f[name]).convert('RGB')
                for name in f.files
                if name.endswith('decoded') and min(f[name].shape[:2]) > 200
            ]
        kind = 'cut out of photographs'
    else:
        photos = [
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize(
                (500, 375), Image.BICUBIC
            )
            for _ in range(8)
        ]
        kind = 'smooth random colours'
    for i in range(number):
        photo = photos[i % len(photos)]
        x, y = rng.uniform(0, 0.1, 2) * photo.size
        w, h = rng.uniform(0.85, 0.9, 2) * photo.size
        size = (375, 500) if i % 4 == 3 else (500, 375)
        photo.resize(size, Image.BICUBIC, box=(x, y, x + w, y + h)).save(
            folder / f'{i:04d}.JPEG', quality=90
        )
    return kind


def peer(folder, passes, workers):
    """Run PyTorch: for each line of standard input, one pass over the files; print the time."""
    import torch

    paths = sorted(map(str, pathlib.Path(folder).glob('*.JPEG'))) * passes
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            with Image.open(paths[i]) as image:
                image = image.convert('RGB')
            w, h = image.size
            size = (int(256 / h * w), 256) if h <= w else (256, int(256 / w * h))
            x, y = size[0] // 2 - 112, size[1] // 2 - 112
            image = image.resize(size, Image.BICUBIC).crop((x, y, x + 224, y + 224))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255).sub_(mean).div_(std), 0

    print(torch.__version__, flush=True)
    for _ in sys.stdin:
        start, first = time.perf_counter(), None
        for x, _ in torch.utils.data.DataLoader(Images(), BATCH, num_workers=workers):
            first = x if first is None else first
        print(time.perf_counter() - start, flush=True)
        np.save(os.path.join(folder, 'peer.npy'), first.numpy())


class ChainerDataset:
    """For Chainer's iterators, which fetch items one by one."""

    def __init__(self, transform, paths):
        self.transform = transform
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform.test(self.paths[i]).x


def start_peer(arguments, folder):
    command = [
        arguments.peer_python,
        __file__,
        '--peer',
        str(folder),
        '--passes',
        str(arguments.passes),
        '--workers',
        str(arguments.workers),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    version = process.stdout.readline().strip()
    if version:
        return process, version
    print(f'PyTorch is not measured: {process.stderr.read().strip().splitlines()[-1]}')
    return None, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer-python', default=sys.executable)
    parser.add_argument('--peer', help=argparse.SUPPRESS)
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--files', type=int, default=256)
    parser.add_argument('--passes', type=int, default=8, help='over the files in a block')
    parser.add_argument('--blocks', type=int, default=7)
    arguments = parser.parse_args()
    if arguments.peer:
        return peer(arguments.peer, arguments.passes, arguments.workers)

    sys.path.insert(0, str(ROOT))
    from data_augmentation import DataAugmentationNormalizeBigger as transform
    from trainer.inference.prediction import ImageLoader

    # isort: split
    import chainer

    def ours():
        start, first = time.perf_counter(), None
        for batch in ImageLoader(transform, paths).batches(BATCH, arguments.workers):
            first = batch.x.copy() if first is None else first
        return time.perf_counter() - start, first

    def chainers():
        start, first = time.perf_counter(), None
        iterator = chainer.iterators.MultiprocessIterator(
            ChainerDataset(transform, paths),
            BATCH,
            repeat=False,
            shuffle=False,
            n_processes=arguments.workers,
        )
        for batch in iterator:
            x = chainer.dataset.concat_examples(batch)
            first = x if first is None else first
        seconds = time.perf_counter() - start
        iterator.finalize()
        return seconds, first

    def torchs():
        process.stdin.write('go\n')
        process.stdin.flush()
        return float(process.stdout.readline()), None

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        kind = write_images(folder, arguments.files)
        paths = sorted(map(str, folder.glob('*.JPEG'))) * arguments.passes
        process, version = start_peer(arguments, folder)
        sides = {'this project': ours, "Chainer's MultiprocessIterator": chainers}
        if process is not None:
            sides[f'PyTorch {version} DataLoader'] = torchs
        print(
            f'{_cpu()}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, '
            f'NumPy {np.__version__}, Pillow {PIL.__version__}'
        )
        print(
            f'{arguments.files} JPEG files of 500x375, '
            f'{sum(map(os.path.getsize, paths)) / len(paths) / 1e3:.0f} KB on average, {kind}; '
            f'{len(paths)} images a block, batches of {BATCH}, {arguments.workers} workers, '
            f'load average {os.getloadavg()[0]:.1f}'
        )
        rates, first = {name: [] for name in sides}, {}
        for _ in range(arguments.blocks + 1):
            for name, side in sides.items():
                seconds, first[name] = side()
                rates[name].append(len(paths) / seconds)
        if process is not None:
            process.stdin.close()
            process.wait()
            first[name] = np.load(folder / 'peer.npy')
    print(
        f'images/s, median of {arguments.blocks} blocks in turns (least to greatest), against this '
        'project:'
    )
    base = statistics.median(rates['this project'][1:])
    for name, values in rates.items():
        values = values[1:]  # the first warms up
        print(
            '{:32s} {:6.0f} ({:.0f} to {:.0f}) {:5.2f}   largest difference {:.1e}'.format(
                name,
                statistics.median(values),
                min(values),
                max(values),
                statistics.median(values) / base,
                abs(first[name] - first['this project']).max(),
            )
        )


def _cpu():
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == '__main__':
    main()
