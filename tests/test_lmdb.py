"""Images in LMDB: as the files they were made of, in several processes, damaged."""

import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.images import random_image
from PIL import Image

from trainer import datasets
from trainer.datasets import folder, parallel
from trainer.datasets import lmdb as reader
from trainer.errors import InputError
from trainer.inference import evaluation
from trainer.training import run
from trainer.transforms import decoding

needs_lmdb = pytest.mark.skipif(
    importlib.util.find_spec('lmdb') is None, reason='lmdb (extra lmdb) is not installed'
)


def class_folders(root, parts=('train', 'val'), classes=('cat', 'dog', 'égale')):
    for part in parts:
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(random_image(40, 36 + i, (label, i, len(part))))
                exif = Image.Exif()
                exif[0x0112] = 6 if i == 1 else 1
                image.save(root / part / name / f'{i}.jpg', exif=exif)
    return str(root)


def written(tmp_path):
    """Return a folder of files, and what the command makes of it."""
    source, out = class_folders(tmp_path / 'files'), str(tmp_path / 'lmdb')
    subprocess.run(
        [sys.executable, '-m', 'trainer.datasets.lmdb', source, out], cwd=ROOT, check=True
    )
    return source, out


@needs_lmdb
def test_images_are_those_of_the_files(tmp_path):
    source, out = written(tmp_path)
    a, b = datasets.load('folder', source), datasets.load('lmdb', out)
    assert a.classes == b.classes == ['cat', 'dog', 'égale']
    for part in ('train', 'test'):
        some, others = getattr(a, part), getattr(b, part)
        assert some.names() == others.names() and some.digest() == others.digest()
        assert np.array_equal(some.labels, others.labels) and others.upright
        for path, entry in zip(some.paths, others.paths):
            with open(path, 'rb') as f:
                assert entry.open().read() == f.read()
            pixels = decoding.load_rgb(decoding.upright(path))
            assert np.array_equal(pixels, decoding.load_rgb(decoding.upright(entry)))
            assert pickle.loads(pickle.dumps(entry)).open().read() == entry.open().read()


@needs_lmdb
def test_a_run_is_that_of_the_files(tmp_path):
    source, out = written(tmp_path)
    models = []
    for name, data, workers in (('folder', source, 0), ('lmdb', out, 2)):
        save = tmp_path / name
        assert run.train(
            say=lambda text: None,
            save_path=str(save),
            dataset=name,
            data=data,
            workers=workers,
            preprocessing='DataAugmentationCifar10NormalizeSmall',
            **dict(C=1, d=2, block_num=(1, 1, 1), multi=2, batch=4, epoch=2, lr=0.1),
        )
        (model,) = (save / 'model').glob('*_2.model')
        with np.load(model) as f:
            models.append({key: f[key] for key in f.files})
    assert models[0].keys() == models[1].keys()
    for key, array in models[0].items():
        assert np.array_equal(array, models[1][key]), key


class _Sizes:
    def __init__(self, images):
        self.images = images

    def __call__(self, i, out):
        out[...] = decoding.load_rgb(self.images.paths[i]).size


@needs_lmdb
def test_processes_read_what_the_main_one_had_open(tmp_path):
    _, out = written(tmp_path)
    images = datasets.load('lmdb', out).train
    sizes = [decoding.load_rgb(path).size for path in images.paths]
    for _ in range(2):
        plan = [list(range(len(images)))]
        (batch,) = parallel.batches(
            parallel.one_by_one(_Sizes(images)), plan, len(images), (2,), workers=2
        )
        assert not batch.errors and batch.x.astype(int).tolist() == [list(size) for size in sizes]
        assert decoding.load_rgb(images.paths[0]).size == sizes[0]


@needs_lmdb
def test_what_caffe_writes(tmp_path):
    """Without the index, with fields in Caffe's order: data, label, encoded."""
    import lmdb

    encoded = io.BytesIO()
    Image.fromarray(random_image(20, 30)).save(encoded, 'PNG')
    value = encoded.getvalue()
    length = bytes([len(value) & 127 | 128, len(value) >> 7])
    (tmp_path / 'train').mkdir()
    with (
        lmdb.open(str(tmp_path / 'train'), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for i in range(300):
            label = b'\x28' + (bytes([i]) if i < 128 else bytes([i & 127 | 128, i >> 7]))
            transaction.put(
                b'%08d_a/%d.png' % (i, i), b'\x22' + length + value + label + b'\x38\x01'
            )
    names = [f'class {i}' for i in range(300)]
    (tmp_path / 'train' / 'dataset.json').write_text(json.dumps({'classes': names}))
    images = datasets.load('lmdb', str(tmp_path)).train
    assert images.labels.tolist() == list(range(300)) and images.categories == names
    assert images.names()[299] == 'a/299.png'
    assert decoding.load_rgb(images.paths[299]).size == (30, 20)
    assert reader._read(reader.datum(b'xyz', 999)) == (b'xyz', 999)


@needs_lmdb
def test_damaged_databases(tmp_path):
    _, out = written(tmp_path)
    train = os.path.join(out, 'train')

    def damaged(name, content, said):
        there = os.path.join(train, name)
        shutil.copy(there, tmp_path / 'kept')
        if content is None:
            os.remove(there)
        else:
            with open(there, 'wb') as f:
                f.write(content)
        with pytest.raises(InputError, match=said):
            found = datasets.load('lmdb', out).train
            [decoding.load_rgb(path) for path in found.paths]
        reader._close()
        shutil.copy(tmp_path / 'kept', there)

    damaged('dataset.json', None, 'cannot be read .* names of the classes')
    damaged('dataset.json', b'{"classes": ["cat", "cat"]}', 'two of a name')
    damaged('dataset.json', b'[]', 'damaged')
    damaged('dataset.json', b'{"classes": ["cat"]}', 'image of label 1, but .* names 1 ')
    damaged('images.tsv', b'0\t00000000_cat/0.jpg\n', '1 images, in data.mdb there are 12')
    damaged('images.tsv', b'zero\n', 'images.tsv: damaged')
    index = (tmp_path / 'lmdb' / 'train' / 'images.tsv').read_bytes()
    damaged('images.tsv', index.replace(b'0\t', b'1\t', 1), r'0\.jpg: of class 0 in data.mdb, of 1')
    damaged('images.tsv', index.replace(b'cat/0', b'cow/0'), r'cow/0\.jpg: not in data.mdb')
    damaged('data.mdb', b'no database' * 1000, 'not a database of LMDB')
    damaged('data.mdb', None, 'no database of LMDB')
    os.remove(os.path.join(train, 'images.tsv'))
    assert len(datasets.load('lmdb', out).train) == 12


@pytest.mark.parametrize(
    'value',
    [b'', b'\x22\x05abc', b'\x22\x03abc', b'\x22\x03abc\x38', b'\xff' * 20, b'\x22\x03abc\x28\x01'],
)
def test_values_that_are_no_image(value):
    with pytest.raises(InputError):
        reader._read(value)


@needs_lmdb
def test_an_image_that_cannot_be_read_is_named(tmp_path):
    source = class_folders(tmp_path / 'files')
    with open(os.path.join(source, 'val', 'dog', '2.jpg'), 'wb') as f:
        f.write(b'no image')
    images = folder.class_folders(os.path.join(source, 'val'))
    reader.write(images, str(tmp_path / 'val'))
    found = reader.images(str(tmp_path / 'val'))
    import resnext

    network = resnext.ResNext(3, (1, 1, 1), C=1, d=2, multiplier=2)
    ((path, error),) = evaluation.evaluate([network], found, workers=0).unreadable
    assert path == str(tmp_path / 'val' / 'dog' / '2.jpg') and error.startswith('not an image')


@needs_lmdb
def test_nothing_is_overwritten(tmp_path):
    source, out = written(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / 'lmdb').rglob('*') if p.is_file()}
    ended = subprocess.run(
        [sys.executable, '-m', 'trainer.datasets.lmdb', source, out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and ended.stderr.count('\n') == 1
    assert 'there is a database already' in ended.stderr
    assert before == {p: p.read_bytes() for p in (tmp_path / 'lmdb').rglob('*') if p.is_file()}
    images = folder.class_folders(os.path.join(source, 'train'))
    os.remove(images.paths[-1])
    with pytest.raises(InputError, match='cannot be read'):
        reader.write(images, str(tmp_path / 'new'))
    assert not (tmp_path / 'new' / 'data.mdb').exists()


def test_what_is_needed(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='dataset lmdb: data DIR says which'):
        datasets.load('lmdb')
    with pytest.raises(InputError, match='no database of LMDB; wanted is'):
        datasets.load('lmdb', str(tmp_path))
    (tmp_path / 'data.mdb').write_bytes(b'')
    (tmp_path / 'dataset.json').write_text('{"classes": ["a", "b"]}')
    monkeypatch.setitem(sys.modules, 'lmdb', None)
    with pytest.raises(InputError, match='needs the package lmdb .*--extra lmdb'):
        datasets.load('lmdb', str(tmp_path))
