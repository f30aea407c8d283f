"""Training images/s from class folders to batches, side by side with PyTorch's DataLoader.

``python benchmarks/folder_loading.py [--peer-python PYTHON]``: the same JPEG files, the same
number of processes, the same transform (random sized crop, bilinear, to 224x224; flip;
ImageNet's mean and deviation) with Pillow, shuffled, in turns, epoch by epoch. PYTHON is
an interpreter that has torch, NumPy and Pillow (default: this one); without torch only
this project is measured. ``--size 2000x1500`` measures photographs, of which this project
decodes many to a half or less (``--whole`` keeps it from that).
"""

import argparse
import math
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL
from evaluation_loading import BATCH, ROOT, _cpu, write_images
from PIL import Image

SIDE = 224


def crop_box(width, height, uniform):
    """torchvision's rule of a random sized crop; ``uniform(low, high)`` draws."""
    for _ in range(10):
        area = width * height * uniform(0.08, 1)
        ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform(0, width - w + 1)), int(uniform(0, height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def clocks():
    """Return the time, and the CPU time of this process and its ended children."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def peer(folder, workers):
    """Run PyTorch: for each line of standard input, one epoch; print the time."""
    import torch

    paths = sorted(map(str, pathlib.Path(folder).glob('*/*.JPEG')))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            with Image.open(paths[i]) as image:
                image = image.convert('RGB')
            x, y, w, h = crop_box(*image.size, random.uniform)
            image = image.crop((x, y, x + w, y + h)).resize((SIDE, SIDE), Image.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255).sub_(mean).div_(std), 0

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=workers)
    print(torch.__version__, flush=True)
    for _ in sys.stdin:
        start = clocks()
        images = sum(len(x) for x, _ in loader)
        print(*(clocks() - start), flush=True)
        assert images == len(paths)


def transform(whole):
    """Return the same transform of this project."""
    from trainer.transforms import imagenet, resize_crop
    from trainer.transforms.decoding import load_rgb, load_shrunk

    class Transform:
        shape = (3, SIDE, SIDE)

        def train(self, path, rng, out):
            box = None

            def share(height, width):
                nonlocal box
                x, y, w, h = crop_box(width, height, rng.uniform)
                box = y, x, h, w
                return SIDE / min(w, h)

            if whole:
                image = load_rgb(path)
                size = image.height, image.width
                share(*size)
            else:
                image, size = load_shrunk(path, share)
                if box is None:
                    share(*size)
            pixels = np.asarray(imagenet.resized_crop(image, size, box, Image.BILINEAR))
            resize_crop.normalize(pixels[:, ::-1] if rng.random() < 0.5 else pixels, out)

    return Transform()


class Load:
    """For trainer.datasets.parallel.one_by_one."""

    def __init__(self, paths, transform):
        from trainer.transforms import generator

        self.paths = paths
        self.transform = transform
        self.generator = generator

    def __call__(self, item, out):
        epoch, i = item
        self.transform.train(self.paths[i], self.generator(0, epoch, i), out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer-python', default=sys.executable)
    parser.add_argument('--peer', help=argparse.SUPPRESS)
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--files', type=int, default=1024)
    parser.add_argument('--size', default='500x375', help='of the files')
    parser.add_argument('--whole', action='store_true', help='decode all images whole')
    parser.add_argument('--epochs', type=int, default=7)
    arguments = parser.parse_args()
    if arguments.peer:
        return peer(arguments.peer, arguments.workers)

    sys.path.insert(0, str(ROOT))
    from trainer.datasets import folder as folders
    from trainer.datasets import loading, parallel

    def torchs():
        process.stdin.write('go\n')
        process.stdin.flush()
        return np.array(process.stdout.readline().split(), float)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        kind = write_class_folders(folder, arguments.files, arguments.size)
        images = folders.class_folders(str(folder))
        n = len(images)
        load = parallel.one_by_one(Load(images.paths, transform(arguments.whole)))

        def ours():
            start = clocks()
            # One epoch, from starting the processes to ending them, as the DataLoader's is.
            iterator = parallel.Iterator(
                load,
                loading.EveryImageOnce(n, BATCH, int(start[0])),
                images.labels,
                (3, SIDE, SIDE),
                arguments.workers,
                repeat=False,
            )
            seen = sum(len(x) for x, _ in iterator)
            assert seen == n
            return clocks() - start

        process = subprocess.Popen(
            [
                arguments.peer_python,
                __file__,
                '--peer',
                str(folder),
                '--workers',
                str(arguments.workers),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        version = process.stdout.readline().strip()
        sides = {'this project': ours}
        if version:
            sides[f'PyTorch {version} DataLoader'] = torchs
        else:
            print(f'PyTorch is not measured: {process.stderr.read().strip().splitlines()[-1]}')
        print(
            f'{_cpu()}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, '
            f'NumPy {np.__version__}, Pillow {PIL.__version__}'
        )
        print(
            '{} JPEG files of {}, {:.0f} KB on average, {}; batches of {}, {} workers{}, load '
            'average {:.1f}'.format(
                n,
                arguments.size,
                sum(map(os.path.getsize, images.paths)) / n / 1e3,
                kind,
                BATCH,
                arguments.workers,
                ', decoded whole' * arguments.whole,
                os.getloadavg()[0],
            )
        )
        took = {name: [] for name in sides}
        for _ in range(arguments.epochs + 1):
            for name, side in sides.items():
                took[name].append(side())
        if version:
            process.stdin.close()
            process.wait()
    print(
        f'median of {arguments.epochs} epochs in turns (least to greatest); this project against '
        'it; CPU time, which other programs disturb less:'
    )
    rates = {name: n / np.array(times[1:])[:, 0] for name, times in took.items()}  # 1: warm-up
    cpu = {name: 1e3 / n * np.median(times[1:], axis=0)[1] for name, times in took.items()}
    for name, rate in rates.items():
        print(
            '{:28s} {:5.0f} images/s ({:.0f} to {:.0f}) {:5.2f} {:7.2f} ms of CPU/image'.format(
                name,
                np.median(rate),
                rate.min(),
                rate.max(),
                np.median(rates['this project']) / np.median(rate),
                cpu[name],
            )
        )


def write_class_folders(folder, number, size):
    """Write JPEG files in four class folders; return a description of them."""
    classes = [folder / name for name in 'abcd']
    for path in classes:
        path.mkdir()
    kind = write_images(classes[0], number)
    width, height = map(int, size.split('x'))
    for i, path in enumerate(sorted(classes[0].iterdir())):
        if size != '500x375':
            with Image.open(path) as image:
                wanted = (width, height) if image.width > image.height else (height, width)
                image = image.resize(wanted, Image.BICUBIC)
            image.save(path, quality=90)
        path.rename(classes[i % 4] / path.name)
    return kind


if __name__ == '__main__':
    main()
