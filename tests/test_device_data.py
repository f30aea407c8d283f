"""Preprocessing on a GPU: the data that is sent there and the resulting images, against the CPU."""

import json

import chainer
import numpy as np
import pytest
from conftest import write_cifar10
from PIL import Image

import data_augmentation
import resnext_ilsvrc
from trainer.datasets import Dataset, LabelledImages, folder, quick
from trainer.inference import evaluation, prediction, predictors
from trainer.training import run
from trainer.training.data import data_path
from trainer.training.resolve import resolve
from trainer.transforms import INTERPOLATIONS, cifar, draws, generator, gpu_images, resize_crop

IN_MEMORY = [
    name
    for name in sorted(data_augmentation.__all__)
    if hasattr(getattr(data_augmentation, name), 'kernel')
]
IN_FILES = sorted(set(data_augmentation.__all__) - set(IN_MEMORY))

#: Every interpolation and side.
SIZES = [(i, side) for i in range(len(INTERPOLATIONS)) for side in range(32, 37)]


@pytest.fixture(scope='module')
def images():
    """Real images, noise of full and of low contrast, and one of a single colour."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            quick.load().train.images[::250],
            rng.integers(0, 256, (6, 3, 32, 32), np.uint8),
            rng.integers(100, 110, (3, 3, 32, 32), np.uint8),
            np.full((1, 3, 32, 32), 77, np.uint8),
        ]
    )


@pytest.fixture(scope='module')
def in_memory(images):
    labels = np.arange(len(images), dtype=np.int32) % 10
    return Dataset(
        'some',
        list('abcdefghij'),
        LabelledImages(images, labels),
        LabelledImages(images[::-1].copy(), labels),
        mirror=True,
    )


@pytest.fixture(scope='module')
def in_files(tmp_path_factory):
    here = tmp_path_factory.mktemp('images')
    images, paths = quick.load().train.images, []
    for i, size in enumerate([(300, 260), (240, 500), (640, 480), (96, 64), (700, 90)]):
        paths.append(str(here / f'{i}.jpg'))
        Image.fromarray(images[200 * i].transpose(1, 2, 0)).resize(
            size, Image.Resampling.BICUBIC
        ).save(paths[-1])
    images = folder.ImageFiles(paths, [0, 1, 0, 1, 1], ['a', 'b'])
    return Dataset('some', ['a', 'b'], images, images)


def path_of(dataset, name, gpu, **given):
    resolved = resolve(
        'nowhere',
        False,
        lambda text: None,
        dict(dict(recipe='original', batch=4, workers=0, seed=5), **given),
    )[0]
    return data_path(dataset, resolved.replace(gpu=gpu), getattr(data_augmentation, name))


def batches(iterator, n=3):
    return [tuple(map(np.array, iterator.next())) for _ in range(n)]


def drawn_of(preprocessing, rows):
    """Convert rows to the random choices of ``draw``."""
    kind = type(preprocessing.draw(np.random.default_rng(0)))
    rows = rows[:, 1:].tolist()
    if 'interpolation' in kind._fields:
        rows = [[INTERPOLATIONS[i], 32 + more, *row] for i, more, *row in rows]
    return [kind(*row[:-1], bool(row[-1])) for row in rows]


def finished(rows):
    """Convert rows of bytes to images with NumPy."""
    images = []
    for row in rows:
        side = 176 if len(row) == 176 * 176 * 3 else 224
        values, colour = np.split(row, [side * side * 3])
        images.append(
            resize_crop.finish(
                resize_crop.Pixels(
                    values.reshape(side, side, 3), colour.view(np.float32) if len(colour) else None
                )
            )
        )
    return np.array(images)


# ---- what is sent


@pytest.mark.parametrize('seed', [0, 7, 2**32 - 1, 2**32, 2**100 + 3])
def test_draws_of_many_images_are_those_of_each(seed):
    for epoch in (1, 300, 2**33):
        images = np.array([0, 1, 49999, 2**32 - 1])
        u = draws.uniforms(seed, epoch, images, 6)
        for i, image in enumerate(images.tolist()):
            np.testing.assert_array_equal(u[:, i], generator(seed, epoch, image).random(6))


@pytest.mark.parametrize('name', IN_MEMORY)
def test_drawn_rows(name):
    preprocessing = getattr(data_augmentation, name)
    rows = gpu_images.drawn(preprocessing, 3, 2, 500)
    assert rows.dtype == np.int32 and len(np.unique(rows, axis=0)) > 100
    assert drawn_of(preprocessing, np.pad(rows, ((0, 0), (1, 0)))) == [
        preprocessing.draw(generator(3, 2, i)) for i in range(500)
    ]


@pytest.mark.parametrize('interpolation, side', SIZES)
def test_weights_are_pillows(interpolation, side, images):
    interpolation = INTERPOLATIONS[interpolation]
    table = cifar.weights(interpolation, side)
    pixels, of = table[:, 0, None] + np.arange(4), table[:, 1:]
    assert pixels.min() >= 0 and pixels.max() < 32

    def resized(x):  # the last axis
        total = (1 << cifar.WEIGHT_BITS - 1) + (x[..., pixels].astype(np.int64) * of).sum(axis=-1)
        assert abs(total).max() < 1 << 31
        return (total >> cifar.WEIGHT_BITS).clip(0, 255)

    found = resized(resized(images).swapaxes(2, 3)).swapaxes(2, 3)
    for image, y in zip(images, found):
        golden = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), interpolation)
        np.testing.assert_array_equal(y.transpose(1, 2, 0), np.asarray(golden))


def test_same_images_in_the_same_order_in_memory(in_memory):
    for name in IN_MEMORY:
        preprocessing = getattr(data_augmentation, name)
        cpu, gpu = (path_of(in_memory, name, gpu) for gpu in (-1, 0))
        assert cpu.finish is None and isinstance(gpu.finish, gpu_images.StoredImages)
        n = len(in_memory.train.labels)
        for (x, t), (rows, t2) in zip(batches(cpu.train, 9), batches(gpu.train, 9)):
            np.testing.assert_array_equal(t, t2)
            assert rows.dtype == np.int32
            np.testing.assert_array_equal(
                x,
                preprocessing.train_batch(
                    in_memory.train.images[rows[:, 0]], drawn_of(preprocessing, rows)
                ),
            )
        assert gpu.train.epoch == 1
        for (x, t), (rows, t2) in zip(batches(cpu.test), batches(gpu.test)):
            np.testing.assert_array_equal(t, t2)
            np.testing.assert_array_equal(
                x, preprocessing.test_batch(in_memory.test.images[rows[:, 0] - n])
            )
            assert (rows[:, 1:] == preprocessing.untouched).all()


def test_images_that_must_not_be_mirrored(in_memory):
    for name in IN_MEMORY:
        rows, _ = zip(*batches(path_of(in_memory, name, 0).train, 5))
        kept, _ = zip(*batches(path_of(in_memory._replace(mirror=False), name, 0).train, 5))
        rows, kept = np.concatenate(rows), np.concatenate(kept)
        assert set(rows[:, -1]) == {0, 1} and set(kept[:, -1]) == {0}
        np.testing.assert_array_equal(rows[:, :-1], kept[:, :-1])


@pytest.mark.parametrize('name', IN_FILES)
def test_same_images_from_files(name, in_files):
    preprocessing = getattr(data_augmentation, name)
    cpu, gpu = (path_of(in_files, name, gpu, sampling='every-image') for gpu in (-1, 0))
    assert cpu.finish is None and isinstance(gpu.finish, gpu_images.ImageRows)
    for a, b, training in ((cpu.train, gpu.train, True), (cpu.test, gpu.test, False)):
        for (x, t), (rows, t2) in zip(batches(a, 2), batches(b, 2)):
            np.testing.assert_array_equal(t, t2)
            assert rows.dtype == np.uint8 and rows.shape[1] == preprocessing.row_bytes(training)
            np.testing.assert_array_equal(x, finished(rows))


def test_workers_write_rows(in_files):
    name = 'DataAugmentationImagenetTorch7'
    golden = batches(path_of(in_files, name, 0).train)
    path = path_of(in_files, name, 0)
    path.train._workers = 2
    for (x, t), (x2, t2) in zip(golden, batches(path.train)):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(t, t2)
    path.train.finalize()


def test_a_run_goes_on_elsewhere(in_memory, in_files):
    for dataset, name in ((in_memory, IN_MEMORY[0]), (in_files, IN_FILES[0])):
        cpu, gpu = (path_of(dataset, name, gpu).train for gpu in (-1, 0))
        for a, b in ((cpu, gpu), (gpu, cpu)):
            batches(a, 2)
            saved = {}
            chainer.serializers.DictionarySerializer(saved).save(a)
            chainer.serializers.NpzDeserializer(saved).load(b)
            again = {}
            chainer.serializers.DictionarySerializer(again).save(b)
            assert saved.keys() == again.keys() and 'current_position' in saved
            for key, value in saved.items():
                np.testing.assert_array_equal(value, again[key])


def test_what_has_no_kernel_is_sent_as_images(in_memory, in_files):
    for dataset, name in ((in_memory, IN_FILES[0]), (in_files, IN_MEMORY[0])):
        path = path_of(dataset, name, 0)
        assert path.finish is None
        ((x, _),) = batches(path.train, 1)
        assert x.dtype == np.float32 and x.shape[1:] == getattr(data_augmentation, name).shape


def test_rows_are_drawn_by_the_process_that_trains(in_memory):
    # Drawing takes less than a microsecond; a process would take longer to be asked.
    for iterator in path_of(in_memory, IN_MEMORY[0], 0, workers=None)[:2]:
        assert iterator._workers == 0


class ByRows(predictors.Predictor):
    """A predictor on the CPU that is given rows of bytes, as one on a GPU is."""

    def __init__(self, network):
        super().__init__(network, 'rows', '', gpu_images.of(network))
        self._images = network.predictor('reference')

    def __call__(self, x):
        return self._images(finished(x))

    def features(self, x):
        return self._images.features(finished(x))


@pytest.fixture(scope='module')
def network():
    np.random.seed(0)  # of the weights
    made = resnext_ilsvrc.ResNext(2, (1,), C=1, d=2, multiplier=1, stem_width=2)
    made.preprocessing = 'DataAugmentationNormalizeBigger'
    return made


def compare(network, predictor, dataset, ten_crop):
    """Compare what a predictor finds out about files with the network's own on the CPU."""
    given = dict(batch=20, ten_crop=ten_crop, workers=0)
    plain = network.predictor('reference')
    golden, found = ([] for _ in range(2))
    for one, kept in ((plain, golden), (predictor, found)):
        evaluated = evaluation.evaluate([one], dataset.test, **given)
        kept += [evaluated.tally.loss, *evaluated.tally.confusion.ravel()]
        evaluation.features(one, dataset.test, kept.append, **given)
        kept += [
            answer.probability
            for said in prediction.predict([one], dataset.test.paths + ['/nowhere.jpg'], **given)
            for answer in said.answers
        ]
    assert len(golden) == len(found) > 8
    for a, b in zip(golden, found):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('ten_crop', [False, True])
def test_prediction_by_rows(network, in_files, ten_crop):
    predictor = ByRows(network)
    assert prediction.take_rows([predictor])
    assert not prediction.take_rows([predictor, network.predictor('reference')])
    if ten_crop:
        in_files = in_files._replace(test=in_files.test.take([1, 4]))
    compare(network, predictor, in_files, ten_crop)


# ---- what a GPU makes of it


def made(finish, rows):
    gpu = chainer.get_device('@cupy:0')
    gpu.use()
    y = finish(gpu.send(rows))
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    return y.get()


def check(finish, rows, golden):
    """Compare images in float32, and in float16, with the CPU's."""
    y = made(finish, rows)
    assert y.dtype == np.float32
    # A grey level is 4e-3 of it.
    np.testing.assert_allclose(y, golden, atol=1e-6 * np.ptp(golden), rtol=0)
    # Chunks of a batch.
    np.testing.assert_array_equal(
        np.concatenate([made(finish, part) for part in np.array_split(rows, 2)]), y
    )
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'mixed'):
        half = made(finish, rows)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, y.astype(np.float16))


@pytest.mark.gpu
def test_stretched_images(images):
    preprocessing = data_augmentation.DataAugmentationCifar10NormalizeSmall
    rng = np.random.default_rng(1)
    rows, drawn = [], []
    for i, (interpolation, side) in enumerate(2 * SIZES):
        y, x = rng.integers(0, side - 31, 2).tolist()
        rows.append((i % len(images), interpolation, side - 32, y, x, i % 2))
        drawn.append(cifar.SmallDrawn(INTERPOLATIONS[interpolation], side, y, x, bool(i % 2)))
    rows = np.array(rows, np.int32)
    finish = gpu_images.StoredImages(preprocessing, images[:7], images[7:])
    golden = preprocessing.train_batch(images[rows[:, 0]], drawn)
    check(finish, rows, golden)


@pytest.mark.gpu
@pytest.mark.parametrize('name', [name for name in IN_MEMORY if 'Normalize' not in name])
def test_padded_images(name, images):
    preprocessing = getattr(data_augmentation, name)
    finish = gpu_images.StoredImages(preprocessing, images)
    drawn = [preprocessing.draw(generator(0, 1, i)) for i in range(len(images))]
    drawn[:2] = [
        preprocessing.draw(generator(0, 1, 0))._replace(y=y, x=8 - y, flip=y > 0) for y in (0, 8)
    ]
    rows = np.array([(i, *d) for i, d in enumerate(drawn)], np.int32)
    check(finish, rows, preprocessing.train_batch(images, drawn))
    rows[:, 1:] = preprocessing.untouched
    check(finish, rows, preprocessing.test_batch(images))


@pytest.mark.gpu
@pytest.mark.parametrize('name', IN_FILES)
def test_rows_of_bytes(name, in_files):
    path = path_of(in_files, name, 0, sampling='every-image')
    for iterator in (path.train, path.test):
        ((rows, _),) = batches(iterator, 1)
        check(path.finish, rows, finished(rows))


@pytest.mark.gpu
def test_the_same_batches_on_both(in_memory):
    for name in IN_MEMORY:
        cpu, gpu = (path_of(in_memory, name, gpu) for gpu in (-1, 0))
        for a, b in ((cpu.train, gpu.train), (cpu.test, gpu.test)):
            for (x, _), (rows, _) in zip(batches(a, 2), batches(b, 2)):
                np.testing.assert_allclose(made(gpu.finish, rows), x, atol=1e-6 * np.ptp(x), rtol=0)


@pytest.mark.gpu
def test_no_images(in_memory, in_files):
    for dataset, name, row in (
        (in_memory, IN_MEMORY[0], (0, 6)),
        (in_files, IN_FILES[0], (0, 150528)),
    ):
        finish = path_of(dataset, name, 0).finish
        y = made(finish, np.empty(row, np.uint8 if row[1] > 6 else np.int32))
        assert y.shape == (0,) + getattr(data_augmentation, name).shape


@pytest.mark.gpu
def test_prediction(network, in_files):
    other = network.copy('copy')
    other.check_gpu(0)
    predictor = other.predictor('reference')
    assert prediction.take_rows([predictor])
    compare(network, predictor, in_files, ten_crop=False)
    x = np.random.default_rng(0).random((2, 3, 224, 224), np.float32)
    np.testing.assert_allclose(
        predictor(x), network.predictor('reference')(x), atol=1e-5, rtol=1e-4
    )


@pytest.mark.gpu
def test_training_here_and_there(tmp_path):
    data = write_cifar10(tmp_path / 'cifar-10-batches-bin', per_file=12)
    losses = []
    for i, gpus in enumerate([(-1, -1), (0, 0), (0, -1), (-1, 0)]):
        folder = tmp_path / str(i)
        for epoch, gpu in enumerate(gpus, 1):
            given = (
                dict(resume=True)
                if epoch > 1
                else dict(
                    dataset='cifar10',
                    data=str(data),
                    network='original',
                    C=2,
                    d=2,
                    multi=2,
                    block_num=(1, 1, 1),
                    batch=20,
                    train_batch_divide=2,
                    lr=0.01,
                    lr_steps=(),
                    seed=7,
                )
            )
            assert run.train(
                save_path=str(folder),
                gpu=gpu,
                epoch=epoch,
                say=lambda text: None,
                precision='float32' if gpu >= 0 else None,
                **given,
            )
        losses.append(
            [
                entry['loss']
                for entry in json.loads((folder / 'log.json').read_text())
                if 'loss' in entry
            ]
        )
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1:], [losses[0]] * 3, rtol=3e-3)
