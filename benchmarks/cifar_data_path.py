"""How fast CIFAR is loaded, augmented and batched, without a network.

    python benchmarks/cifar_data_path.py [--data DIR] [--workers N]

Prints images/s of the batch preprocessing in one process, then the seconds of whole epochs
of the training data path (batch 256): for a CPU, and for a GPU, which augments the images
itself. Without --data, the 2,500 images of --quick are repeated twenty times in place of
CIFAR-10's 50,000.
"""

import argparse
import os
import platform
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import trainer  # noqa: F401  before Chainer

# isort: split
import numpy as np
import PIL

from data_augmentation import DataAugmentationCifar10NormalizeSmall as Preprocess
from trainer import datasets, recipes
from trainer.datasets import LabelledImages
from trainer.training import run
from trainer.transforms import generator


def spread(values):
    return (
        f'median {statistics.median(values):,.2f} (from {min(values):,.2f} to '
        f'{max(values):,.2f}, {len(values)} runs)'
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', help="CIFAR-10's folder or archive")
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--runs', type=int, default=5)
    args = p.parse_args()
    print(
        f'{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, NumPy '
        f'{np.__version__}, Pillow {PIL.__version__}'
    )
    if args.data:
        dataset = datasets.load('cifar10', args.data)
    else:
        dataset = datasets.load('quick')
        dataset = dataset._replace(
            train=LabelledImages(*(np.repeat(a, 20, axis=0) for a in dataset.train))
        )
    images = dataset.train.images

    rates = []
    for i in range(args.runs):
        started = time.perf_counter()
        for start in range(0, 5120, 256):
            drawn = [Preprocess.draw(generator(0, i + 1, j)) for j in range(start, start + 256)]
            Preprocess.train_batch(images[start : start + 256], drawn)
        rates.append(5120 / (time.perf_counter() - started))
    print(f'train_batch, 256 images, one process: images/s {spread(rates)}')

    rates = []
    for _ in range(args.runs):
        started = time.perf_counter()
        for start in range(0, 5120, 256):
            Preprocess.test_batch(images[start : start + 256])
        rates.append(5120 / (time.perf_counter() - started))
    print(f'test_batch, 256 images, one process: images/s {spread(rates)}')

    options = recipes.get('original')
    for what, given in (
        (f'{args.workers} workers', {'workers': args.workers}),
        ('for a GPU', {'gpu': 0}),
    ):
        iterator = run.data_path(dataset, options.replace(**given), Preprocess).train
        batches = len(iterator.plan)
        iterator.next()  # the workers start here
        seconds = []
        for _ in range(args.runs):
            started = time.perf_counter()
            for _ in range(batches):
                iterator.next()
            seconds.append(time.perf_counter() - started)
        iterator.finalize()
        print(f'an epoch of {len(images):,} images, batch 256, {what}: seconds {spread(seconds)}')


if __name__ == '__main__':
    main()
