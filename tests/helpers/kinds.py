"""The kinds of files that the project reads, with a valid file and a reader of each."""

import atexit
import dataclasses
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable

import damage
import numpy as np
from conftest import FIXTURES, write_cifar10
from PIL import Image

import resnext_ilsvrc
from helpers.images import random_image
from trainer import datasets, files, run_folder
from trainer.datasets import quick, splits
from trainer.inference import fastest
from trainer.reports import comparison
from trainer.reports.log import Log
from trainer.training import run, snapshots
from trainer.transforms import decoding
from trainer.weights import npz, safetensors, timm_config


def _same(whole, came):
    if isinstance(whole, dict):
        return whole.keys() == came.keys() and all(_same(whole[n], came[n]) for n in whole)
    if isinstance(whole, np.ndarray):
        return whole.dtype == came.dtype and whole.tobytes() == came.tobytes()
    return whole == came


def _numbers_alone(whole, came, changed):
    """Return whether arrays have the same names and shapes, and at most as many numbers differ as
    bytes were damaged."""
    if whole.keys() != came.keys() or any(whole[n].shape != came[n].shape for n in whole):
        return False
    differ = sum(int(np.sum(whole[n] != came[n])) for n in whole)
    return changed is None or differ <= changed


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        make: (folder) -> path of a valid file in it, with the files that belong to it.
        read: (path) -> content of the file.
        has_checksum: Whether the format detects any damage, so that all contents must be right.
        may_differ: (content of the valid file, content that was read, number of differing bytes or
            ``None`` if the length differs) -> whether that is acceptable without a checksum.
        same: (content of the valid file, content that was read) -> whether they are equal.
    """

    make: Callable
    read: Callable
    has_checksum: bool = False
    may_differ: Callable = lambda whole, came, changed: True
    same: Callable = _same


# ---- weights


def _arrays(path):
    return {n: np.array(a) for n, a in npz.state(resnext_ilsvrc.load(path)).items()}


def _safetensors(folder):
    path = os.path.join(folder, 'x.safetensors')
    safetensors.save(path, resnext_ilsvrc.load(FIXTURES / 'pytorch_torchvision.pth'))
    return path


def _written(name, data):
    def make(folder):
        path = os.path.join(folder, name)
        pathlib.Path(path).write_bytes(data() if callable(data) else data)
        return path

    return make


def _weights(make, **more):
    return Kind(make, _arrays, may_differ=_numbers_alone, **more)


# ---- datasets


def _loaded(name, up):
    """Return a reader of the dataset whose folder is ``up`` above the file."""

    def read(path):
        for _ in range(up):
            path = os.path.dirname(path)
        found = datasets.load(name, path)
        parts = {'train': found.train, 'test': found.test}
        return {f'{part}/{f}': getattr(of, f) for part, of in parts.items() for f in of._fields}

    return read


def _fewer(whole, came, changed):
    """Of a folder of CIFAR's any number of images may be there."""
    return whole.keys() == came.keys()


def _cifar(folder):
    return str(write_cifar10(pathlib.Path(folder, 'cifar-10-batches-bin'), 2) / 'data_batch_1.bin')


def _cifar_python(folder):
    binary = write_cifar10(pathlib.Path(folder, 'made'), 2)
    there = pathlib.Path(folder, 'cifar-10-batches-py')
    there.mkdir()
    for path in binary.iterdir():
        rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
        table = {'data': rows[:, 1:].copy(), 'labels': rows[:, 0].tolist()}
        (there / path.stem).write_bytes(pickle.dumps(table, 2))
    shutil.rmtree(binary)
    return str(there / 'data_batch_1')


def _archive(name, mode):
    def make(folder):
        path = os.path.join(folder, name)
        binary = write_cifar10(pathlib.Path(folder, 'made'), 1)
        with tarfile.open(path, mode) as tar:
            tar.add(binary, arcname='cifar-10-batches-bin')
        shutil.rmtree(binary)
        return path

    return make


def _mnist(folder):
    rng = np.random.default_rng(0)
    for part, n in (('train', 9), ('t10k', 4)):
        for name, shape, values in (('images-idx3', (n, 28, 28), 256), ('labels-idx1', (n,), 10)):
            data = bytes((0, 0, 8, len(shape))) + struct.pack(f'>{len(shape)}I', *shape)
            data += rng.integers(0, values, shape, np.uint8).tobytes()
            path = os.path.join(folder, f'{part}-{name}-ubyte.gz')
            pathlib.Path(path).write_bytes(gzip.compress(data, mtime=0))
    return os.path.join(folder, 'train-images-idx3-ubyte.gz')


def _image(suffix, **options):
    def data():
        with io.BytesIO() as f:
            kind = {'jpg': 'jpeg', 'tif': 'tiff'}.get(suffix, suffix)
            Image.fromarray(random_image(37, 53, seed=1)).save(f, kind, **options)
            return f.getvalue()

    def read(path):
        return {'image': np.array(decoding.load_chw(path))}

    return Kind(_written('x.' + suffix, data), read, has_checksum=suffix == 'png')


def _list_of_images(folder):
    for part in ('train', 'val'):
        for name in 'ab':
            inside = [name] if part == 'train' else []
            there = pathlib.Path(folder, 'tiny', part, *inside, 'images')
            there.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_image(8, 8)).save(there / f'{name}.png')
    path = os.path.join(folder, 'tiny', 'val', 'val_annotations.txt')
    pathlib.Path(path).write_text('a.png\ta\t0\t0\nb.png\tb\t0\t0\n')
    return path


def _listed(path):
    found = datasets.load('folder', os.path.dirname(os.path.dirname(path)))
    return {'names': found.test.names(), 'labels': found.test.labels.tolist()}


# ---- runs


@functools.cache
def _run():
    """Return an undamaged folder of a run, for this process."""
    root = tempfile.mkdtemp(prefix='run')
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    data = str(write_cifar10(pathlib.Path(root, 'cifar-10-batches-bin'), 4))
    run.train(
        say=lambda text: None, save_path=os.path.join(root, 'run'), data=data, C=1, d=1, multi=1,
        block_num=(1, 1, 1), batch=20, epoch=1, lr_steps=(), ema_decay=0.5, workers=0, threads=1,
        engine='reference',
    )  # fmt: skip
    return root


def _of_a_run(name):
    def make(folder):
        shutil.copytree(_run(), folder, dirs_exist_ok=True)
        there = os.path.join(folder, 'run')
        record = pathlib.Path(there, 'run.json')
        record.write_text(record.read_text().replace(_run(), str(folder)))
        files.save_json(os.path.join(there, 'split.json'), {'seed': 0, 'test': ['a/1.png']})
        (snapshot,) = run_folder.snapshots(there)
        return os.path.join(there, name or os.path.basename(snapshot))

    return make


def _resumed(path):
    """Return the state of a run after loading a snapshot: all that a snapshot would hold."""
    import chainer

    held, real = {}, snapshots.restore

    def restore(trainer, *arguments):
        found = real(trainer, *arguments)
        trainer._start_at = 0.0  # else it would not tell how long it has taken
        chainer.serializers.DictionarySerializer(held).save(trainer)
        trainer._start_at = None
        return found

    snapshots.restore = restore
    try:
        run.train(resume=True, say=lambda text: None, save_path=os.path.dirname(path))
    finally:
        snapshots.restore = real
    del held['_snapshot_elapsed_time']
    return {name: np.array(a) for name, a in held.items()}


def _compared(path):
    found = comparison.Run(os.path.dirname(path))
    comparison.table([found, found])
    return {'epochs': found.epochs, 'options': found.options}


def _taken_over(path):
    root = os.path.dirname(os.path.dirname(path))
    log = Log(datasets.load('cifar10', os.path.join(root, 'cifar-10-batches-bin')))
    log.load(path, 1)
    return {'log': log.log}


def _summarised(path):
    folder = os.path.dirname(path)
    return {'summary': run.summary(resume=True, save_path=folder), 'd': run_folder.dataset(folder)}


_CONFIG = {
    'architecture': 'resnext50_32x4d',
    'pretrained_cfg': {'input_size': [3, 224, 224], 'crop_pct': 0.95, 'mean': [0.5, 0.5, 0.5]},
}


def _cache(path):
    real, fastest._path = fastest._path, lambda: path
    try:
        return fastest._cached()
    finally:
        fastest._path = real


KINDS = {
    't7': _weights(_written('x.t7', lambda: damage.small_t7()[0])),
    'npz': _weights(_written('x.npz', damage.small_npz), has_checksum=True),
    'npz of 2017': _weights(
        _written('x.npz', (FIXTURES / 'original_ilsvrc_tiny.model.npz').read_bytes()),
        has_checksum=True,
    ),
    'pth, zip': _weights(
        _written('x.pth', (FIXTURES / 'pytorch_torchvision.pth').read_bytes()), has_checksum=True
    ),
    'pth, legacy': _weights(
        _written('x.pth', (FIXTURES / 'pytorch_clcarwin.pth').read_bytes())
    ),
    'safetensors': _weights(_safetensors),
    'cifar, binary': Kind(_cifar, _loaded('cifar10', 1), may_differ=_fewer),
    'cifar, python': Kind(_cifar_python, _loaded('cifar10', 1), may_differ=_fewer),
    'cifar, tar.gz': Kind(
        _archive('x.tar.gz', 'w:gz'), _loaded('cifar10', 0), has_checksum=True
    ),
    'cifar, tar': Kind(_archive('x.tar', 'w'), _loaded('cifar10', 0), may_differ=_fewer),
    'mnist': Kind(_mnist, _loaded('mnist', 1), has_checksum=True),
    'png': _image('png'),
    'jpeg': _image('jpg', quality=90),
    'jpeg, progressive': _image('jpg', quality=90, progressive=True),
    'webp': _image('webp'),
    'gif': _image('gif'),
    'bmp': _image('bmp'),
    'tiff': _image('tif', compression='tiff_deflate'),
    'ppm': _image('ppm'),
    'avif': _image('avif'),
    'list of images': Kind(_list_of_images, _listed),
    'snapshot': Kind(_of_a_run(None), _resumed, has_checksum=True),
    'run.json': Kind(_of_a_run('run.json'), _summarised, same=lambda a, b: str(a) == str(b)),
    'log.json': Kind(_of_a_run('log.json'), _compared),
    'log.json with -l': Kind(_of_a_run('log.json'), _taken_over),
    'split.json': Kind(_of_a_run('split.json'), lambda path: splits.read(path)),
    'config.json': Kind(
        _written('config.json', json.dumps(_CONFIG).encode()),
        lambda path: {'geometry': timm_config.read(path)},
    ),
    'cached choices': Kind(_written('x.json', b'{"a CPU": "openvino"}'), _cache),
}  # fmt: skip


def warm_up():
    """Import the modules of readers, whose time would otherwise count for the first file."""
    quick.load()
    _arrays(FIXTURES / 'pytorch_torchvision.pth')
    for name in ('tiff', 'avif'):
        with tempfile.TemporaryDirectory() as folder:
            KINDS[name].read(KINDS[name].make(folder))
