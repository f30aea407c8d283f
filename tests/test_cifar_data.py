"""CIFAR's files in every published form, whole and damaged; the images of --quick."""

import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from conftest import write_cifar10

from trainer import datasets, pickled, pickled_arrays
from trainer.datasets import cifar10, quick
from trainer.errors import InputError

RNG = np.random.default_rng(0)


def archive(folder, path):
    with tarfile.open(path, 'w:gz') as tar:
        tar.add(folder, arcname=folder.name)
    return path


@pytest.fixture
def binary(tmp_path):
    return write_cifar10(tmp_path / 'cifar-10-batches-bin', per_file=20)


@pytest.fixture
def python(tmp_path, binary):
    """The same images as the Python version has them: pickles of Python 2."""
    folder = tmp_path / 'py' / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    for path in binary.iterdir():
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
        write_python2(folder / path.stem, records[:, 1:], records[:, 0], b'labels')
    return folder


def write_python2(path, pixels, labels, key):
    """Pickle as NumPy under Python 2 did: str for names and bytes, protocol 2."""

    def text(b):  # SHORT_BINSTRING, BINSTRING
        return (
            b'U' + bytes([len(b)]) + b if len(b) < 256 else b'T' + len(b).to_bytes(4, 'little') + b
        )

    out = b'\x80\x02}q\x01(' + text(b'data') + b'q\x02'
    out += b'cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05'
    out += text(b'b') + b'q\x06\x87q\x07Rq\x08(K\x01M' + len(pixels).to_bytes(2, 'little')
    out += (
        b'M\x00\x0c\x86q\x09cnumpy\ndtype\nq\x0a' + text(b'u1') + b'q\x0bK\x00K\x01\x87q\x0cRq\x0d'
    )
    out += b'(K\x03' + text(b'|') + b'q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89'
    out += text(np.ascontiguousarray(pixels).tobytes()) + b'q\x10tq\x11b'
    out += text(key) + b'q\x12]q\x13(' + b''.join(b'K' + bytes([v]) for v in labels) + b'eu.'
    path.write_bytes(out)


def same(a, b):
    for x, y in zip(a.train + a.test, b.train + b.test):
        np.testing.assert_array_equal(x, y)
    return a.classes == b.classes


def test_binary_folder(binary, tmp_path):
    dataset = datasets.load('cifar10', str(binary))
    assert dataset.train.images.shape == (100, 3, 32, 32) and dataset.train.images.dtype == np.uint8
    assert dataset.test.labels.shape == (20,) and dataset.test.labels.dtype == np.int32
    raw = (binary / 'data_batch_2.bin').read_bytes()
    assert dataset.train.labels[20] == raw[0]
    assert dataset.train.images[20].tobytes() == raw[1:3073]
    assert same(dataset, datasets.load('cifar10', str(tmp_path)))  # the folder above it


def test_every_form_is_the_same(binary, python, tmp_path):
    golden = datasets.load('cifar10', str(binary))
    forms = [
        python,
        python.parent,
        archive(binary, tmp_path / 'a.tar.gz'),
        archive(python, tmp_path / 'b.tar.gz'),
    ]
    for form in forms:
        assert same(golden, datasets.load('cifar10', str(form))), form


def test_pickles_of_python_3(binary, tmp_path):
    golden = datasets.load('cifar10', str(binary))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        folder = tmp_path / str(protocol)
        folder.mkdir()
        for i, name in enumerate(cifar10.SPEC.train + cifar10.SPEC.test):
            part = (
                golden.test
                if name == 'test_batch'
                else datasets.LabelledImages(*(a[20 * i : 20 * i + 20] for a in golden.train))
            )
            (folder / name).write_bytes(
                pickle.dumps(
                    {'data': part.images.reshape(20, -1), 'labels': part.labels.tolist()}, protocol
                )
            )
        assert same(golden, datasets.load('cifar10', str(folder))), protocol


def test_cifar100(tmp_path):
    binary, python = tmp_path / 'cifar-100-binary', tmp_path / 'cifar-100-python'
    binary.mkdir(), python.mkdir()
    golden = {}
    for name, n in (('train', 30), ('test', 10)):
        pixels = RNG.integers(0, 256, (n, 3072), np.uint8)
        fine, coarse = RNG.integers(0, 100, n, np.uint8), RNG.integers(0, 20, n, np.uint8)
        (binary / (name + '.bin')).write_bytes(
            np.concatenate([coarse[:, None], fine[:, None], pixels], axis=1).tobytes()
        )
        write_python2(python / name, pixels, fine, b'fine_labels')
        golden[name] = fine
    a, b = (datasets.load('cifar100', str(f)) for f in (binary, python))
    assert same(a, b) and len(a.classes) == 100 and a.classes == sorted(a.classes)
    np.testing.assert_array_equal(a.train.labels, golden['train'])
    np.testing.assert_array_equal(a.test.labels, golden['test'])


def test_published_file():
    """The real CIFAR-10, where someone has put it."""
    folder = os.environ.get('CIFAR10')
    if not folder:
        pytest.skip('needs the real CIFAR-10: set CIFAR10 to its folder')
    dataset = datasets.load('cifar10', folder)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    sheets = quick.load()
    for label in range(10):
        first = dataset.train.images[:10000][dataset.train.labels[:10000] == label][:250]
        np.testing.assert_array_equal(first, sheets.train.images[250 * label : 250 * label + 250])


class TestDamage:
    def test_cut_inside_a_record(self, binary):
        path = binary / 'data_batch_3.bin'
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match=r'data_batch_3.bin.*cut short'):
            datasets.load('cifar10', str(binary))

    @pytest.mark.parametrize('name', ['data_batch_1.bin', 'data_batch_1'])
    def test_absurd_size(self, name, binary, python):
        folder = binary if name.endswith('.bin') else python
        os.truncate(folder / name, 1 << 34)
        with pytest.raises(InputError, match=f'{name}: cannot be read .it has more than'):
            datasets.load('cifar10', str(folder))

    def test_cut_between_records(self, binary, monkeypatch):
        published = dict.fromkeys(cifar10.SPEC.images, 20)
        monkeypatch.setattr(cifar10, 'SPEC', cifar10.SPEC._replace(images=published))
        path = binary / 'test_batch.bin'
        path.write_bytes(path.read_bytes()[: 10 * 3073])
        with pytest.raises(InputError, match=r'test_batch.bin: 10 images .* has 20'):
            datasets.load('cifar10', str(binary))

    def test_empty_and_missing(self, binary):
        (binary / 'data_batch_1.bin').write_bytes(b'')
        with pytest.raises(InputError, match='data_batch_1.bin'):
            datasets.load('cifar10', str(binary))
        (binary / 'data_batch_1.bin').unlink()
        with pytest.raises(InputError, match=r'data_batch_1.bin is missing; wanted is'):
            datasets.load('cifar10', str(binary))

    def test_labels_of_another_dataset(self, binary):
        path = binary / 'data_batch_1.bin'
        path.write_bytes(b'\x63' + path.read_bytes()[1:])
        with pytest.raises(InputError, match=r'labels .* to 99, but cifar10 has 10 classes'):
            datasets.load('cifar10', str(binary))

    def test_no_dataset_there(self, tmp_path):
        with pytest.raises(InputError, match='no cifar10 there; wanted is cifar-10-batches-bin'):
            datasets.load('cifar10', str(tmp_path))
        with pytest.raises(InputError, match='no such file or folder'):
            datasets.load('cifar10', str(tmp_path / 'nowhere'))

    def test_cut_archive(self, binary, tmp_path):
        path = archive(binary, tmp_path / 'a.tar.gz')
        path.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(InputError, match='a.tar.gz'):
            datasets.load('cifar10', str(path))
        (tmp_path / 'text.tar.gz').write_text('not a tar file')
        with pytest.raises(InputError, match='text.tar.gz: not a whole tar archive'):
            datasets.load('cifar10', str(tmp_path / 'text.tar.gz'))

    @pytest.mark.parametrize('keep', [0, 1, 10, 100, 1000, -1])
    def test_cut_pickle(self, python, keep):
        path = python / 'data_batch_1'
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match='data_batch_1: not a whole file'):
            datasets.load('cifar10', str(python))

    def test_flipped_pickles(self, python):
        raw = (python / 'data_batch_1').read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(200):
            damaged = bytearray(raw)
            for position in rng.integers(0, 400, 3):
                damaged[position] ^= 1 << rng.integers(8)
            (python / 'data_batch_1').write_bytes(damaged)
            try:
                datasets.load('cifar10', str(python))
            except InputError as e:
                assert '\n' not in str(e)

    def test_nothing_in_a_pickle_is_executed(self, python, tmp_path):
        victim = tmp_path / 'executed'

        class Hostile:
            def __reduce__(self):
                return os.system, (f'touch {victim}',)

        pixels = np.zeros((20, 3072), np.uint8)
        for table in (
            {'data': Hostile(), 'labels': [0] * 20},
            {'data': pixels, 'labels': [0] * 20, 'more': Hostile()},
            Hostile(),
        ):
            for protocol in (0, 2, 4):
                (python / 'data_batch_1').write_bytes(pickle.dumps(table, protocol))
                try:
                    datasets.load('cifar10', str(python))
                except InputError as e:
                    assert 'data_batch_1' in str(e)
                assert not victim.exists()
        assert os.system('true') == 0  # and Python's own reader would have:
        pickle.loads(pickle.dumps(Hostile()))
        assert victim.exists()


def test_pickled_agrees_with_pickle():
    values = [
        None,
        True,
        False,
        0,
        -5,
        1 << 70,
        1.5,
        'ä',
        b'\x00\xff',
        [1, [2]],
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        {'a': {1: b'b'}},
    ]
    shared_list = [1]
    values += [[shared_list, shared_list]]
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        assert pickled.read(pickle.dumps(values, protocol)) == values
    for dtype in ('u1', '<i8', '>i4', 'f4', '<f8', '?'):
        a = np.arange(6).reshape(2, 3).astype(dtype)
        for b in (a, np.asfortranarray(a)):
            found = pickled_arrays.read(pickled.read(pickle.dumps(b, 2), pickled_arrays.NAMES))
            assert (found == b).all() and found.shape == b.shape
    with pytest.raises(pickled.PickleError):
        pickled_arrays.read(
            pickled.read(pickle.dumps(np.array([{}], object), 2), pickled_arrays.NAMES)
        )


def test_quick_images():
    dataset = quick.load()
    assert np.bincount(dataset.train.labels).tolist() == [250] * 10
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    train, test = ({i.tobytes() for i in part.images} for part in (dataset.train, dataset.test))
    assert len(train) == 2500 and len(test) == 1000 and not train & test
    assert sum(f.stat().st_size for f in quick_sheets()) < 6e6
    with pytest.raises(InputError, match='leave one'):
        quick.load('somewhere')


def quick_sheets():
    return pathlib.Path(quick.__file__).with_name('quick').iterdir()


def test_available():
    assert {'cifar10', 'cifar100', 'quick'} <= set(datasets.available())
