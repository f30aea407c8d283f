"""CIFAR preprocessing against the 2017 program's, and its random choices."""

import collections
import json
import math

import numpy as np
import pytest
from conftest import FIXTURES
from PIL import Image

from data_augmentation import DataAugmentationCifar10NormalizeSmall as Preprocess
from trainer.datasets import quick
from trainer.errors import InputError
from trainer.transforms import cifar, generator


@pytest.fixture(scope='module')
def images():
    return quick.load().train.images[::100]


def by_hand(image, interpolation, side, y, x, flip):
    """The notes' recipe, step by step; only the stretching is not in float64, as it rounds."""
    low, high = np.float32(image.min()), np.float32(image.max())
    stretched = np.floor((image - low) * (255 / (high - low)) + np.float32(0.5)).astype(np.uint8)
    square = Image.fromarray(stretched.transpose(1, 2, 0)).resize((side, side), interpolation)
    crop = np.asarray(square, np.float64)[y : y + 32, x : x + 32]
    normal = (crop - crop.mean()) / np.sqrt(crop.var() + 10)
    return (normal[:, ::-1] if flip else normal).transpose(2, 0, 1)


def test_golden_test_images(shared):
    with np.load(shared / 'golden/original/da_cifar.npz') as golden:
        x = golden['input_float32_chw']
        assert (cifar.stretch(x).transpose(0, 2, 3, 1) == golden['stretched_uint8_hwc']).all()
        assert abs(Preprocess.test_batch(x) - golden['test_y']).max() < 1e-5
        for image, y in zip(x, golden['test_y']):
            assert abs(Preprocess.test(image).x - y).max() < 1e-5


def test_golden_training_images(shared):
    # What the original drew for its 24 images, found by trying everything it can draw.
    drawn = json.loads((FIXTURES / 'original_cifar_drawn.json').read_text())
    assert len(drawn) == 24
    with np.load(shared / 'golden/original/da_cifar.npz') as golden:
        for i, ((interpolation, *draw), y) in enumerate(zip(drawn, golden['train_y'])):
            image = golden['input_float32_chw'][i % 10]
            draw = cifar.SmallDrawn(Image.Resampling(interpolation), *draw)
            x = Preprocess.train(image, drawn=draw).x
            assert x.dtype == np.float32 and abs(x - y).max() < 1e-5, i


def test_by_hand(images):
    for i, image in enumerate(images):
        sample = Preprocess.train(image, np.random.default_rng(i))
        (y, _), (x, _) = sample.info['keypoints']
        interpolation = Image.Resampling[sample.info['interpolation'].upper()]
        golden = by_hand(image, interpolation, sample.info['resized'][0], y, x, sample.info['flip'])
        assert abs(sample.x - golden).max() < 1e-5
        golden = by_hand(image, Image.Resampling.BILINEAR, 32, 0, 0, False)
        assert abs(Preprocess.test(image).x - golden).max() < 1e-5


def test_batch_equals_one_by_one(images):
    drawn = [Preprocess.draw(np.random.default_rng(i)) for i in range(len(images))]
    batch = Preprocess.train_batch(images, drawn)
    for x, image, d in zip(batch, images, drawn):
        np.testing.assert_array_equal(x, Preprocess.train(image.astype(np.float32), drawn=d).x)
    np.testing.assert_array_equal(
        Preprocess.test_batch(images), [Preprocess.test(p).x for p in images]
    )


def test_flat_image_is_zero():
    flat = np.full((3, 32, 32), 77, np.uint8)
    assert not Preprocess.test(flat).x.any() and not Preprocess.train(flat).x.any()


def test_other_sizes_and_files(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    image.save(tmp_path / 'a.png')
    a = Preprocess.test(str(tmp_path / 'a.png')).x
    assert a.shape == (3, 32, 32) and a.dtype == np.float32
    np.testing.assert_array_equal(a, Preprocess.test(image).x)
    with pytest.raises(InputError, match='shape'):
        Preprocess.test(np.zeros((32, 32)))


def test_numpy_seed_decides_as_in_the_original(images):
    np.random.seed(5)
    a = Preprocess.train(images[0])
    np.random.seed(5)
    assert Preprocess.train(images[0]).info == a.info


def chi_square(counts, shares):
    """Return how many standard deviations the chi-square statistic is above its mean."""
    n = sum(counts.values())
    assert set(counts) <= set(shares)
    statistic = sum((counts[k] - n * p) ** 2 / (n * p) for k, p in shares.items())
    freedom = len(shares) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_twenty_thousand_draws():
    drawn = [Preprocess.draw(generator(1, 2, i)) for i in range(20000)]
    even = {side: 0.2 for side in range(32, 37)}
    assert chi_square(collections.Counter(d.side for d in drawn), even) < 4
    shares = {
        Image.Resampling.NEAREST: 0.25,
        Image.Resampling.BILINEAR: 0.25,
        Image.Resampling.BICUBIC: 0.5,
    }
    assert chi_square(collections.Counter(d.interpolation for d in drawn), shares) < 4
    assert chi_square(collections.Counter(d.flip for d in drawn), {True: 0.5, False: 0.5}) < 4
    for side in range(33, 37):
        n = side - 31
        cells = {(y, x): 1 / n**2 for y in range(n) for x in range(n)}
        found = collections.Counter((d.y, d.x) for d in drawn if d.side == side)
        assert chi_square(found, cells) < 4
    # Independent of each other: every combination of flip, side and interpolation.
    cells = {
        (f, s, i): 0.5 * 0.2 * p for f in (True, False) for s in even for i, p in shares.items()
    }
    found = collections.Counter((d.flip, d.side, d.interpolation) for d in drawn)
    assert chi_square(found, cells) < 4


def test_draws_are_a_function_of_seed_epoch_and_image():
    a = [Preprocess.draw(generator(0, 1, i)) for i in range(50)]
    assert a == [Preprocess.draw(generator(0, 1, i)) for i in range(50)]
    for other in ((1, 1), (0, 2)):
        b = [Preprocess.draw(generator(*other, i)) for i in range(50)]
        assert sum(x == y for x, y in zip(a, b)) < 10
