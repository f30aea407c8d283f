"""Training on folders, ILSVRC and MNIST: finding images, dividing them, errors."""

import gzip
import io
import json
import os
import pathlib
import random
import struct

import chainer
import numpy as np
import pytest
from conftest import SHARED
from helpers.runs import TINY, in_child, log, train, write
from PIL import Image

import resnext
from data_augmentation import DataAugmentationImagenetTorch7, DataAugmentationNormalizeBigger
from trainer import datasets, recipes
from trainer.datasets import folder, loading, mnist, parallel, quick, splits
from trainer.errors import InputError
from trainer.training.data import Load, data_path
from trainer.transforms import decoding

pytestmark = pytest.mark.usefixtures('undrawn')

# ---- what is found


def test_train_and_val(tmp_path):
    write(tmp_path / 'train')
    write(tmp_path / 'val', 3, first=50)
    found = datasets.load('folder', str(tmp_path))
    assert found.classes == ['canines', 'felines', 'lorries']
    assert np.bincount(found.train.labels).tolist() == [10, 10, 10]
    assert np.bincount(found.test.labels).tolist() == [3, 3, 3]
    for part, name in ((found.train, 'train'), (found.test, 'val')):
        for path, label in zip(part.paths, part.labels):
            assert pathlib.Path(path).parent == tmp_path / name / found.classes[label]


def test_a_folder_train_alone_tells_of_the_one_for_testing(tmp_path):
    write(tmp_path / 'train')
    assert not datasets.load('folder', str(tmp_path / 'train')).notes
    write(tmp_path / 'val', 3, first=50)
    (note,) = datasets.load('folder', str(tmp_path / 'train')).notes
    assert note == f'{tmp_path}/val is not used; --data {tmp_path} takes it for testing'


def test_tiny_imagenets_layout(tmp_path):
    for wnid in ('n01443537', 'n01629819'):
        write(tmp_path / 'train' / wnid, 2, classes={3: 'images'}, suffix='.JPEG')
    images = write(tmp_path / 'val', 3, first=20, classes={3: 'images'}, suffix='.JPEG') / 'images'
    names = sorted(os.listdir(images))
    (tmp_path / 'val' / 'val_annotations.txt').write_text(
        ''.join(
            f'{name}\t{wnid}\t0\t32\t44\t62\n'
            for name, wnid in zip(names, ('n01629819', 'n01443537', 'n01629819'))
        )
    )
    found = datasets.load('folder', str(tmp_path))
    assert found.classes == ['n01443537', 'n01629819']
    assert [os.path.basename(path) for path in found.test.paths] == names
    assert found.test.labels.tolist() == [1, 0, 1] and len(found.train) == 4
    os.remove(images / names[1])
    with pytest.raises(InputError, match=names[1] + ': missing, but .*val_annotations.txt'):
        datasets.load('folder', str(tmp_path))


def test_a_class_called_train(tmp_path):
    write(tmp_path, 4, classes={3: 'train', 5: 'val', 9: 'lorry'})
    found = datasets.load('folder', str(tmp_path))
    assert found.classes == ['lorry', 'train', 'val'] and found.test is None


def test_caltechs_folders_of_no_class(tmp_path):
    write(tmp_path, 4, classes={3: 'cat', 5: 'BACKGROUND_Google', 7: '257.clutter', 9: 'lorry'})
    found = datasets.load('folder', str(tmp_path))
    assert found.classes == ['cat', 'lorry'] and len(found.train) == 8
    assert {
        os.path.basename(os.path.dirname(p))
        for p, t in zip(found.train.paths, found.train.labels)
        if t == 1
    } == {'lorry'}
    assert len(found.notes) == 2 and 'BACKGROUND_Google' in found.notes[1]


@pytest.mark.parametrize('published', [False, True])
def test_ilsvrc(published, tmp_path):
    synsets = {3: 'n01440764', 5: 'n01443537'}
    if not published:
        write(tmp_path / 'train', 3, classes=synsets, suffix='.JPEG')
        write(tmp_path / 'val', 2, 20, synsets, '.JPEG')
    else:
        write(tmp_path / 'Data' / 'CLS-LOC' / 'train', 3, classes=synsets, suffix='.JPEG')
        images = write(tmp_path / 'Data' / 'CLS-LOC', 4, 20, {3: 'val'}, '.JPEG') / 'val'
        names = sorted(path.stem for path in images.iterdir())
        lists, annotations = (tmp_path / part / 'CLS-LOC' for part in ('ImageSets', 'Annotations'))
        lists.mkdir(parents=True)
        (annotations / 'val').mkdir(parents=True)
        (lists / 'val.txt').write_text(''.join(f'{name} {i}\n' for i, name in enumerate(names, 1)))
        for name, synset in zip(names, ['n01443537', 'n01440764'] * 2):
            (annotations / 'val' / (name + '.xml')).write_text(
                f'<annotation><object><name>{synset}</name></object></annotation>'
            )
    found = datasets.load('ilsvrc', str(tmp_path))
    assert found.classes == ['n01440764', 'n01443537']
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == ([1, 0, 1, 0] if published else [0, 0, 1, 1])


def idx(array):
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f'>{array.ndim}I', *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize('compressed', [False, True])
def test_mnist(compressed, tmp_path):
    rng = np.random.default_rng(0)
    held = {}
    for name, shape in zip(mnist.FILES, [(7, 28, 28), (7,), (5, 28, 28), (5,)]):
        held[name] = rng.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        raw = idx(held[name])
        if compressed:
            (tmp_path / (name + '.gz')).write_bytes(gzip.compress(raw))
        else:
            (tmp_path / name).write_bytes(raw)
    found = datasets.load('mnist', str(tmp_path))
    grey = held['train-images-idx3-ubyte']
    assert found.train.images.shape == (7, 3, 32, 32) and found.train.images.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(found.train.images[:, channel, 2:30, 2:30], grey)
    assert found.train.images.sum() == 3 * grey.sum(dtype=int)
    np.testing.assert_array_equal(found.test.labels, held['t10k-labels-idx1-ubyte'])
    assert found.classes == list('0123456789') and not found.mirror

    name = 'train-labels-idx1-ubyte' + '.gz' * compressed
    whole = (tmp_path / name).read_bytes()
    for damage, words in ((whole[:-3], f'{name}: '), (None, 'train-labels.* is missing')):
        (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_bytes(damage)
        with pytest.raises(InputError, match=words):
            datasets.load('mnist', str(tmp_path))


def test_absurd_mnist(tmp_path):
    whole = {
        name: idx(np.zeros((5, 28, 28) if 'images' in name else 5, 'u1')) for name in mnist.FILES
    }
    images, labels = list(mnist.FILES)[:2]
    many = 1 << 20

    def refused(words):
        with pytest.raises(InputError, match=words):
            datasets.load('mnist', str(tmp_path))

    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    datasets.load('mnist', str(tmp_path))
    os.truncate(tmp_path / images, 1 << 34)
    refused(f'{images}: cannot be read .it has more than')
    (tmp_path / labels).write_bytes(idx(np.zeros(many, 'u1')))
    (tmp_path / images).write_bytes(idx(np.zeros((many, 1, 1), 'u1')))
    refused(f'{images}: 1,048,576 images; at most')
    (tmp_path / labels).write_bytes(whole[labels])
    (tmp_path / images).write_bytes(idx(np.zeros((5, 0, 28), 'u1')))
    refused(f'{images}: images of 0 x 28 pixels')
    (tmp_path / images).unlink()
    (tmp_path / (images + '.gz')).write_bytes(gzip.compress(bytes(1 << 27), 1))
    refused(f'{images}.gz: cannot be read .it holds more than')
    (tmp_path / (images + '.gz')).write_bytes(b'\x1f\x8b\x08\x08' + bytes(6) + b'x' * (1 << 22))
    refused(f'{images}.gz: cannot be read .it ends too soon')
    (tmp_path / (images + '.gz')).write_bytes(gzip.compress(b'') * (1 << 18))
    refused(f'{images}.gz: cannot be read .more follows its end')


def test_digits_are_not_mirrored():
    """Neither where a class of data_augmentation says so itself nor where it draws it."""
    memory = quick.load().train
    for preprocessing in (DataAugmentationImagenetTorch7, DataAugmentationNormalizeBigger):
        load = Load(memory, preprocessing, 0, mirror=False)
        drawn = [load._draw(1, i) for i in range(40)]
        assert not any(d.flip for d in drawn)
        free = [Load(memory, preprocessing, 0)._draw(1, i) for i in range(40)]
        assert any(d.flip for d in free)
        assert [str(d._replace(flip=False)) for d in free] == list(map(str, drawn))


# ---- a split where there is none


def test_split(tmp_path):
    write(tmp_path / 'a', 10)
    write(tmp_path / 'b', 10)
    found = datasets.load('folder', str(tmp_path / 'a'))
    split = splits.make(found.train, 3)
    assert split == splits.make(datasets.load('folder', str(tmp_path / 'b')).train, 3)
    assert split['test'] != splits.make(found.train, 4)['test']
    divided = splits.apply(found, split)
    assert np.bincount(divided.test.labels).tolist() == [2, 2, 2]
    assert np.bincount(divided.train.labels).tolist() == [8, 8, 8]
    assert set(divided.train.paths) | set(divided.test.paths) == set(found.train.paths)
    assert not set(divided.train.paths) & set(divided.test.paths)
    os.remove(divided.test.paths[0])
    with pytest.raises(InputError, match='split.json keeps for testing are not there'):
        splits.apply(datasets.load('folder', str(tmp_path / 'a')), split)


def test_small_classes_are_divided():
    files = folder.ImageFiles([f'r/{i}' for i in range(5)], [0, 0, 1, 1, 1], 'ab', 'r')
    chosen = splits.make(files, 0)['test']
    assert len(chosen) == 2 and len(set(chosen) & {'0', '1'}) == 1


def test_classes_too_small_to_be_divided_are_named_before_training(tmp_path):
    write(tmp_path / 'all', 1, classes={3: 'cat', 5: 'dog'})
    write(tmp_path / 'some', 3, classes={3: 'cat', 5: 'dog'})
    write(tmp_path / 'some', 1, classes={7: 'horse'})
    for name, words in [
        ('all', f'data {tmp_path}/all: 2 of 2 classes have one image only.*: cat, dog; '),
        ('some', '1 of 3 classes has one image only.*: horse; .*DIR/val'),
    ]:
        said = []
        with pytest.raises(InputError, match=words):
            train(tmp_path / 'run', tmp_path / name, say=said.append)
        assert not said and os.listdir(tmp_path / 'run') == ['.lock']


# ---- what is wrong with folders


def test_bad_folders(tmp_path):
    write(tmp_path / 'a' / 'train')
    write(tmp_path / 'a' / 'val', classes={3: 'felines', 5: 'canines', 7: 'horses'})
    write(tmp_path / 'b')
    (tmp_path / 'b' / 'empty').mkdir()
    write(tmp_path / 'c' / 'all' / 'of')
    write(tmp_path / 'c1' / 'one', classes={3: 'cat'})
    write(tmp_path / 'd' / 'train')
    write(tmp_path / 'd' / 'val')
    (tmp_path / 'd' / 'val' / 'empty').mkdir()
    (tmp_path / 'e').mkdir()
    for name, words in [
        ('a', '1 only in .*train .lorries. and 1 only in .*val .horses.'),
        ('b', 'b.empty: a class folder without images'),
        ('c/all', 'one level too high: its only folder is of, .* 3 folders; .*c/all/of may'),
        ('c1/one', 'one class folder only, cat'),
        ('c1/one/cat', 'holds images, but no class folders; .*, or, one level higher, .*c1/one$'),
        ('d', 'val.empty: a class folder without images'),
        ('e', 'no images in class folders'),
        ('nowhere', 'not a folder'),
    ]:
        with pytest.raises(InputError, match=words):
            datasets.load('folder', str(tmp_path / name))
        with pytest.raises(InputError, match=words):
            train(tmp_path / 'run', tmp_path / name)
    with pytest.raises(InputError, match='data DIR says which'):
        datasets.load('folder')
    assert os.listdir(tmp_path / 'run') == ['.lock']


# ---- loading


@pytest.fixture(scope='module')
def some(tmp_path_factory):
    root = write(tmp_path_factory.mktemp('some') / 'images', 14)
    found = datasets.load('folder', str(root))
    return splits.apply(found, splits.make(found.train, 0))


def iterators(dataset, workers, **changed):
    from trainer.training.resolve import resolve

    given = dict(TINY, workers=workers, data='x', **changed)
    resolved, _ = resolve('', False, print, given)
    from data_augmentation import DataAugmentationCifarTorch7

    return data_path(dataset, resolved, DataAugmentationCifarTorch7)[:2]


def state(iterator):
    arrays = {}
    chainer.serializers.DictionarySerializer(arrays).save(iterator)
    return arrays


def test_batches_depend_neither_on_workers_nor_on_interruptions(some):
    first, _ = iterators(some, 0)
    golden = [tuple(map(np.array, first.next())) for _ in range(5)]
    assert [len(t) for _, t in golden] == [20, 13, 20, 13, 20]
    assert first.epoch == 2 and not first.is_new_epoch
    other, _ = iterators(some, 2)
    for i in range(5):
        x, t = other.next()
        np.testing.assert_array_equal(x, golden[i][0])
        np.testing.assert_array_equal(t, golden[i][1])
        saved = state(other)
        if i == 2:
            other.finalize()
            other, _ = iterators(some, 1)
            chainer.serializers.NpzDeserializer(saved).load(other)
    other.finalize()
    assert state(other) == state(first)
    # Chainer's own counts in the same way.
    plain = chainer.iterators.SerialIterator(range(3), 1)
    mine = parallel.Iterator(
        lambda items, out: {}, loading.InOrder(1000, 400), np.zeros(1000, int), (1,)
    )
    for _ in range(4):
        plain.next(), mine.next()
        for name in ('epoch', 'is_new_epoch', 'epoch_detail', 'previous_epoch_detail'):
            assert getattr(plain, name) == pytest.approx(getattr(mine, name)), name


def test_unreadable_images_while_testing_are_left_out(some):
    broken = folder.ImageFiles(some.test.paths[:-1] + ['/nowhere'], some.test.labels, some.classes)
    for workers in (0, 2):
        _, iterator = iterators(some._replace(test=broken), workers)
        for _ in range(2):
            labels = np.concatenate([t for _, t in iterator])
            np.testing.assert_array_equal(labels, broken.labels[:-1])
            assert len(iterator.unreadable) == 1 and '/nowhere' in iterator.unreadable[0]
            iterator.reset()
        iterator.finalize()
    none = folder.ImageFiles(['/nowhere'] * 2, [0, 1], some.classes)
    _, iterator = iterators(some._replace(test=none), 0)
    with pytest.raises(InputError, match='none of the 2 images could be read'):
        list(iterator)


# ---- images that are decoded smaller


def jpeg(image, **how):
    out = io.BytesIO()
    image.save(out, 'JPEG', **how)
    return out.getvalue()


def photographs():
    """Photographs of the original's numbers; without these, real images enlarged."""
    path = SHARED / 'golden' / 'original' / 'da_ilsvrc_decoded.npz'
    if path.exists():
        with np.load(path) as f:
            return [
                Image.fromarray(f[name]).convert('RGB')
                for name in f.files
                if name.endswith('decoded') and min(f[name].shape[:2]) > 200
            ]
    sheet = Image.open(os.path.join(os.path.dirname(quick.__file__), 'quick', 'cat.webp'))
    return [
        sheet.convert('RGB').crop((x, 0, x + 32, 32)).resize((320, 256), Image.Resampling.BICUBIC)
        for x in (0, 32, 64)
    ]


@pytest.mark.parametrize('kind', [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_shrinking_changes_nothing_visible(kind, tmp_path):
    """The difference is smaller than that of saving once as a JPEG of quality 95."""
    changes, accepted = [], []
    for i, photo in enumerate(photographs()):
        path = tmp_path / f'{i}.jpg'
        photo = photo.crop((0, 0, photo.width // 4 * 4, photo.height // 4 * 4))
        path.write_bytes(jpeg(photo, quality=92))
        for times in (2, 4):
            share = 1 / times / decoding.SHRINK_MARGIN
            shrunk, size = decoding.load_shrunk(path, lambda *size, share=share: share)
            full = decoding.load(path)
            assert size == (full.height, full.width)
            assert shrunk.size == (-(-full.width // times), -(-full.height // times))
            wanted = (int(full.width * share), int(full.height * share))
            a, b = (
                np.asarray(image.resize(wanted, kind)).astype(float) for image in (full, shrunk)
            )
            saved = np.asarray(
                Image.open(io.BytesIO(jpeg(Image.fromarray(a.astype(np.uint8)), quality=95)))
            ).astype(float)
            changes.append(abs(a - b).mean())
            accepted.append(abs(a - saved).mean())
    assert 0 < np.mean(changes) < 0.6 * np.mean(accepted) and max(changes) < 2


def test_only_large_jpegs_are_shrunk(tmp_path):
    photo = photographs()[0].resize((400, 300))
    for suffix, share, width in (
        ('.jpg', 0.34, 400),
        ('.jpg', 0.33, 200),
        ('.jpg', 0.1, 100),
        ('.jpg', 0.05, 50),
        ('.png', 0.05, 400),
    ):
        photo.save(tmp_path / ('x' + suffix))
        image, size = decoding.load_shrunk(
            tmp_path / ('x' + suffix), lambda *size, share=share: share
        )
        assert image.width == width and size == (300, 400) and image.mode == 'RGB'
    # Evaluation decodes all of it.
    photo.resize((2000, 1500)).save(tmp_path / 'x.jpg')
    x = DataAugmentationNormalizeBigger.test(tmp_path / 'x.jpg').x
    np.testing.assert_array_equal(
        x, DataAugmentationNormalizeBigger.test(np.asarray(Image.open(tmp_path / 'x.jpg'))).x
    )


@pytest.mark.parametrize(
    'name',
    [
        'DataAugmentationNormalizeBigger',
        'DataAugmentationImagenetTorch7',
        'DataAugmentationImagenetPaper',
        'DataAugmentationImagenetLornatang',
    ],
)
def test_training_from_large_files(name, tmp_path):
    """The same crop, flip and colours, whether the file is decoded smaller or not."""
    import data_augmentation

    preprocessing = getattr(data_augmentation, name)
    path = tmp_path / 'x.jpg'
    path.write_bytes(jpeg(photographs()[0].resize((2000, 1500), Image.BICUBIC), quality=95))
    pixels = np.asarray(Image.open(path))
    different = 0
    for seed in range(4):
        drawn = preprocessing.draw(np.random.default_rng(seed))
        a = preprocessing.train(path, drawn=drawn).x
        b = preprocessing.train(pixels, drawn=drawn).x
        different += (a != b).any()
        # In values of 0..255, before the normalisation by about 1 / (255 x 0.225).
        assert abs(a - b).mean() * 57 < 2, (name, seed)
    assert different  # some were decoded smaller


# ---- runs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A folder of images and an uninterrupted run on it."""
    root = tmp_path_factory.mktemp('whole')
    write(root / 'images', 14)
    assert train(root / 'run', root / 'images')
    return root


def test_a_image_that_cannot_be_read_in_an_epoch(whole, tmp_path):
    data = write(tmp_path / 'images', 14)
    found = splits.apply(
        datasets.load('folder', str(data)), json.loads((whole / 'run' / 'split.json').read_text())
    )
    order = np.concatenate(loading.EveryImageOnce(len(found.train), 20, TINY['seed'])(2))
    path = found.train.paths[order[-1]]  # of the last batch of an epoch
    image = pathlib.Path(path).read_bytes()
    train(tmp_path / 'run', data, epoch=1)
    with open(path, 'wb') as f:
        f.write(image[:200])
    with pytest.raises(InputError) as e:
        train(tmp_path / 'run', data, resume=True, epoch=2, workers=1)
    said = str(e.value)
    assert path in said and '\n' not in said and '--resume' in said and said.count(path) == 1
    assert (tmp_path / 'run' / 'snapshot_iter_3').exists()  # all updates before that batch
    with open(path, 'wb') as f:
        f.write(image)
    assert train(tmp_path / 'run', data, resume=True, epoch=2)
    assert log(tmp_path / 'run') == log(whole / 'run')
    for name in ('ResNext_3_2_2.model', 'ResNext_3_2_best.model'):
        assert (tmp_path / 'run' / 'model' / name).read_bytes() == (
            whole / 'run' / 'model' / name
        ).read_bytes()


def test_class_folders_of_any_name(tmp_path, capsys):
    """Names that are no text, or that Matplotlib would take for formulas."""
    names = ['$\\frac$', os.fsdecode(b'\xff\xfe'), 'a b' * 40, '\u65e5\u672c']
    write(tmp_path / 'images', 3, classes=dict(enumerate(names)))
    assert train(tmp_path / 'run', tmp_path / 'images', say=print, epoch=1)
    model = resnext.load(str(tmp_path / 'run' / 'model' / 'ResNext_4_2_1.model'))
    assert model.classes == sorted(names)
    assert train(tmp_path / 'run', tmp_path / 'images', resume=True, epoch=2)


def test_kills_at_random_moments(whole, tmp_path):
    rng, killed = random.Random(0), 0

    def go_on(**options):
        resume = (tmp_path / 'run.json').exists()
        return train(tmp_path, whole / 'images', resume=resume, **dict(TINY, **options))

    for attempt in range(9):
        process = in_child(go_on, workers=attempt % 3)
        process.join(rng.uniform(0, 0.05))
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed >= 2
    assert go_on()
    assert log(tmp_path) == log(whole / 'run')
    for name in ('ResNext_3_2_2.model', 'ResNext_3_2_best.model'):
        assert (tmp_path / 'model' / name).read_bytes() == (
            whole / 'run' / 'model' / name
        ).read_bytes()


def test_other_images_are_refused(whole, tmp_path):
    data = write(tmp_path / 'images', 14)
    train(tmp_path / 'run', data, epoch=1)
    before = sorted(os.listdir(tmp_path / 'run'))
    path = next((data / 'felines').iterdir())
    image = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match='began with 42 images in all, now there are 41'):
        train(tmp_path / 'run', data, resume=True, epoch=2)
    (data / 'felines' / 'other.png').write_bytes(image)
    with pytest.raises(InputError, match='began with other images'):
        train(tmp_path / 'run', data, resume=True, epoch=2)
    assert sorted(os.listdir(tmp_path / 'run')) == before
    # The same images elsewhere are the same.
    os.rename(data / 'felines' / 'other.png', path)
    os.rename(data, tmp_path / 'moved')
    with pytest.raises(InputError, match='images: not a folder'):
        train(tmp_path / 'run', data, resume=True, epoch=2)
    assert train(tmp_path / 'run', tmp_path / 'moved', resume=True, epoch=2)
    assert log(tmp_path / 'run') == log(whole / 'run')


@pytest.mark.parametrize(('cores', 'files', 'memory'), [(2, 0, 0), (8, 2, 0), (64, 4, 0)])
def test_workers_on_a_cpu(cores, files, memory, tmp_path, monkeypatch):
    """Images in files have enough workers to keep up; images in memory need none."""
    monkeypatch.setattr(parallel, 'cores', lambda: cores)
    write(tmp_path, 6)
    for dataset, workers in ((folder.load(str(tmp_path)), files), (quick.load(), memory)):
        options = recipes.get('original').replace(batch=4)
        dataset = dataset if dataset.test else dataset._replace(test=dataset.train)
        path = data_path(dataset, options, DataAugmentationImagenetTorch7)
        assert path.train._workers == workers
