"""Images/s from one LMDB database beside those from the files that it was made of.

``python benchmarks/lmdb_loading.py [--files 4096]``: JPEG files of 500x375 in class folders, and
the database of them, in turns, in random order, epoch by epoch: read alone, and loaded as for
training (random sized crop to 224x224, flip, colours) by one process for each core. Once from
memory and once from the disk, after the system was asked to forget the files (Linux).

It measures the disk of ``--folder`` (default: the temporary folder): name one on a network for
that.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
from evaluation_loading import BATCH, ROOT, _cpu
from folder_loading import SIDE, clocks, write_class_folders

sys.path.insert(0, str(ROOT))

from trainer.datasets import folder as folders  # noqa: E402
from trainer.datasets import lmdb, loading, parallel  # noqa: E402
from trainer.training import data  # noqa: E402
from trainer.transforms import decoding, table  # noqa: E402

TRANSFORM = table.CLASSES['DataAugmentationImagenetTorch7']


def forget(root):
    """Drop the files from the system's page cache."""
    lmdb._close()  # mapped pages stay in memory
    for path in pathlib.Path(root).rglob('*'):
        if path.is_file():
            with open(path, 'rb') as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(images, epoch):
    """Read all images in random order; nothing is decoded."""
    for i in np.random.default_rng(epoch).permutation(len(images)):
        with decoding.open_encoded(images.paths[i]) as f:
            f.read()


def load(images, epoch):
    """Load all images as for training."""
    iterator = parallel.Iterator(
        parallel.one_by_one(data.LoadFile(images, TRANSFORM, seed=0)),
        loading.EveryImageOnce(len(images), BATCH, epoch),
        images.labels,
        (3, SIDE, SIDE),
        parallel.cores(),
        repeat=False,
    )
    assert sum(len(x) for x, _ in iterator) == len(images)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--files', type=int, default=4096)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--folder', help='where to write them (default: a temporary folder)')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        loose, database = (pathlib.Path(root) / name for name in ('files', 'lmdb'))
        loose.mkdir()
        kind = write_class_folders(loose, arguments.files, '500x375')
        sides = {'files': folders.class_folders(str(loose))}
        start = time.perf_counter()
        lmdb.write(sides['files'], str(database))
        took = time.perf_counter() - start
        sides['LMDB'] = lmdb.images(str(database))
        n = len(sides['LMDB'])
        bytes_of = {
            name: sum(p.stat().st_size for p in path.rglob('*') if p.is_file()) / 1e6
            for name, path in (('files', loose), ('LMDB', database))
        }
        print(
            f'{_cpu()}, {parallel.cores()} cores, load average {os.getloadavg()[0]:.1f}; {n} JPEG '
            f'files of 500x375, {kind}, {bytes_of["files"]:.0f} MB, as LMDB {bytes_of["LMDB"]:.0f} '
            f'MB, written in {took:.0f} s'
        )
        print(f'median of {arguments.epochs} epochs in turns (least to greatest)')
        for what in (read, load):
            for cold in (False, True):
                found = {name: [] for name in sides}
                for epoch in range(arguments.epochs + 1):
                    for name, images in sides.items():
                        if cold:
                            forget(root)
                        start = clocks()
                        what(images, epoch)
                        found[name].append(clocks() - start)
                for name, times in found.items():
                    wall, cpu = np.transpose(times[1:])  # the first warms up
                    rate = n / wall
                    print(
                        f'{what.__name__}, from {"disk" if cold else "memory"}, {name:5s} '
                        f'{np.median(rate):7.0f} images/s ({rate.min():.0f} to {rate.max():.0f}) '
                        f'{1e3 * np.median(cpu) / n:6.3f} ms of CPU/image',
                        flush=True,
                    )


if __name__ == '__main__':
    main()
