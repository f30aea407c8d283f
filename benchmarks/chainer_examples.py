"""Chainer's own examples, unchanged, on small data made on the spot.

``python benchmarks/chainer_examples.py EXAMPLES [NAME ...] [--table FILE]``: EXAMPLES is the
folder ``examples`` of Chainer's source at v7.8.1 (nothing is downloaded), NAME one of
:data:`RUNS` (default: all). Each example is run by ``python -m trainer.chainer_compat`` in a
copy of its folder. The exit status is 1 where one fails. Some examples need more than this
project: serialization h5py, seq2seq nltk and progressbar2, chainermn MPI.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer import files  # noqa: E402

COMMAND = [sys.executable, '-m', 'trainer.chainer_compat']

#: Name -> folder of the example, and the words after the command, one line a program.
RUNS = {
    'mnist': (
        'mnist',
        ['train_mnist.py -e 1 -u 20', 'inference.py --snapshot result/snapshot_iter_10 --unit 20'],
    ),
    'mnist custom loop': ('mnist', ['train_mnist_custom_loop.py -e 1 -u 20']),
    'cifar': ('cifar', ['train_cifar.py -e 1 -b 50']),
    'imagenet': (
        'imagenet',
        [
            'compute_mean.py train.txt -R images',
            'train_imagenet.py train.txt val.txt -R images -a resnext50 -B 2 -b 2 -E 1 -j 1',
        ],
    ),
    'ptb': ('ptb', ['train_ptb.py --test -e 1 -u 10']),
    'vae': ('vae', ['train_vae.py --test -e 1 --dim-h 20']),
    'word2vec': ('word2vec', ['train_word2vec.py --test -e 1 -u 8', 'search.py --help']),
    'dcgan': ('dcgan', ['train_dcgan.py -e 1 -b 50 -n 4 --snapshot_interval 1']),
    'glance': ('glance', ['glance.py']),
    'serialization': ('serialization', ['save.py', 'load.py']),
    'memnn': ('memnn', ['train_memnn.py train.txt val.txt -e 1', 'test_memnn.py model val.txt']),
    'sentiment': ('sentiment', ['train_sentiment.py --test -e 1 -p 1']),
    'seq2seq': (
        'seq2seq',
        ['seq2seq.py train.txt train.txt words.txt words.txt -e 1 -b 5 -u 8 -l 1'],
    ),
    'static graph': ('static_graph_optimizations/mnist', ['train_mnist.py -e 1 -u 20']),
    'chainermn': ('chainermn/mnist', ['mpiexec -n 2: train_mnist.py --communicator naive -e 1']),
}


def make_datasets(folder):
    """Write small datasets where ``chainer.datasets`` looks for its downloads."""
    draw = np.random.default_rng(0)
    chainer = folder / 'pfnet' / 'chainer'
    for name in ('mnist', 'cifar', 'ptb'):
        (chainer / name).mkdir(parents=True)
    for part, n in (('train', 1000), ('test', 200)):
        x, y = draw.integers(0, 256, (n, 784), np.uint8), draw.integers(0, 10, n, np.uint8)
        np.savez(chainer / 'mnist' / part, x=x, y=y)
    x, y = draw.integers(0, 256, (200, 3072), np.uint8), draw.integers(0, 10, 200, np.uint8)
    np.savez(chainer / 'cifar' / 'cifar-10', train_x=x, train_y=y, test_x=x[:50], test_y=y[:50])
    for part in ('train', 'valid', 'test'):
        np.savez(chainer / 'ptb' / part, x=draw.integers(0, 50, 2000, np.int32))
    (chainer / 'ptb' / 'vocab.txt').write_text(''.join(f'word{i}\n' for i in range(50)))


def make_imagenet(folder):
    draw = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for i in range(4):
        pixels = draw.integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / 'images' / f'{i}.jpg')
    for part in ('train.txt', 'val.txt'):
        (folder / part).write_text(''.join(f'{i}.jpg {i}\n' for i in range(4)))


def make_memnn(folder):
    story = '1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary?\t'
    for part in ('train.txt', 'val.txt'):
        (folder / part).write_text((story + 'bathroom\t1\n') * 20)


def make_sentiment(folder):
    (folder / 'trees').mkdir()
    for part in ('train', 'test', 'dev'):
        (folder / 'trees' / f'{part}.txt').write_text('(3 (2 a) (4 (2 good) (2 film)))\n' * 10)


def make_seq2seq(folder):
    (folder / 'train.txt').write_text('a good film\na film\n' * 10)
    (folder / 'words.txt').write_text('a\ngood\nfilm\n')


#: Name -> what writes the example's data into the copy of its folder.
MAKE = {
    'imagenet': make_imagenet,
    'memnn': make_memnn,
    'sentiment': make_sentiment,
    'seq2seq': make_seq2seq,
}


def run(examples, name, datasets):
    """Run one example.

    Args:
        examples (pathlib.Path): Folder ``examples`` of Chainer's source.
        name (str): One of :data:`RUNS`.
        datasets (pathlib.Path): What :func:`make_datasets` wrote.

    Returns:
        tuple: The error's last line, empty where all went well; the names that NumPy has no
        more and the example used; seconds.
    """
    source, programs = RUNS[name]
    environment = os.environ | {'CHAINER_DATASET_ROOT': str(datasets), 'PYTHONPATH': str(ROOT)}
    used, started = set(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / 'example'
        shutil.copytree(examples / source, folder)
        MAKE.get(name, lambda folder: None)(folder)
        for program in programs:
            launcher, _, words = program.rpartition(': ')
            done = subprocess.run(
                [*launcher.split(), *COMMAND, *words.split()],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            used |= set(re.findall(r'NumPy has no (numpy\.\w+) any more', done.stderr))
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ['nothing was said']
                return f'{words.split()[0]}: {lines[-1]}', used, time.perf_counter() - started
    return '', used, time.perf_counter() - started


def write_section(path, heading, text):
    """Replace the text under a heading of a Markdown page."""
    path = pathlib.Path(path)
    page = path.read_text() if path.exists() else ''
    head, *sections = re.split(r'^## ', page, flags=re.M)
    sections = dict(section.split('\n', 1) for section in sections)
    sections[heading] = f'\n{text}\n'
    with files.replacing(path) as beside:
        parts = [head, *(f'## {name}\n{body}' for name, body in sections.items())]
        pathlib.Path(beside).write_text('\n\n'.join(part.strip() for part in parts) + '\n')


def parser():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('examples', type=pathlib.Path, help="folder examples of Chainer's source")
    p.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(RUNS)} (default: all)')
    p.add_argument('--table', type=os.path.abspath, help='page in Markdown for the table')
    return p


def main():
    args = parser().parse_args()
    lines = ['| example | runs | names it used that NumPy has no more |', '|:--|:--|:--|']
    failed = 0
    with tempfile.TemporaryDirectory() as datasets:
        make_datasets(pathlib.Path(datasets))
        for name in args.names or RUNS:
            error, used, seconds = run(args.examples.resolve(), name, pathlib.Path(datasets))
            print(f'{name}: {error or "ran"} ({seconds:.0f} s)', flush=True)
            programs = '; '.join(f'`{program}`' for program in RUNS[name][1])
            lines.append(f'| {programs} | {error or "yes"} | {", ".join(sorted(used)) or "none"} |')
            failed += bool(error)
    page = '\n'.join(lines) + '\n'
    print(page)
    if args.table:
        write_section(args.table, 'examples', page)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
