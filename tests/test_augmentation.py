"""Mixing, erasing, TrivialAugment and repeated augmentation against formulas written out here."""

import itertools
import json
import math
import os
import signal
import sys

import chainer
import numpy as np
import pytest
from conftest import write_cifar10
from helpers.runs import assert_same_end, in_child
from PIL import Image

import data_augmentation
from trainer import datasets
from trainer.datasets import Dataset, LabelledImages, folder, loading, parallel, quick
from trainer.errors import InputError
from trainer.training import build, data, loop, losses, run
from trainer.training.resolve import resolve
from trainer.transforms import generator, mixing, trivial_augment

pytestmark = pytest.mark.usefixtures('undrawn')

HEIGHT, WIDTH = 24, 32


def options(**given):
    return resolve('nowhere', False, lambda text: None, given)[0]


def mixer(mixup=0.0, cutmix=0.0, reprob=0.0, chunks=1, first=0, images=500):
    labels = np.arange(images, dtype=np.int32) % 10
    return mixing.Mixing(mixup, cutmix, reprob, 5, (HEIGHT, WIDTH), labels, chunks, first)


def batch(n=12, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, 3, HEIGHT, WIDTH)).astype(dtype)


def items(n, epoch=1, first=0):
    return [(epoch, first + i) for i in range(n)]


def field(rows, name):
    return rows[:, mixing.FIELDS.index(name)]


# ---- mixing and erasing


def test_mixup_is_the_papers_formula():
    x, t = batch(), np.arange(12) % 10
    rows = mixer(mixup=0.2)(items(12), 3)
    kept = float(field(rows, 'own')[0])
    assert 0 < kept < 1 and (field(rows, 'own') == rows[0, 1]).all()
    other = np.concatenate([x[-1:], x[:-1]])  # rolled by one
    wanted = kept * x.astype(np.float64) + (1 - kept) * other
    np.testing.assert_allclose(mixing.apply(x, rows), wanted, atol=1e-6)
    np.testing.assert_array_equal(field(rows, 'share'), field(rows, 'own'))
    np.testing.assert_array_equal(field(rows, 'other'), np.roll(t, 1))


def test_cutmix_is_the_papers_formula():
    for position in range(40):
        x = batch(seed=position)
        rows = mixer(cutmix=1.0)(items(12), position)
        top, bottom, left, right = rows[0, 2:6].astype(int)
        assert (rows[:, 2:6] == rows[0, 2:6]).all()
        assert 0 <= top <= bottom <= HEIGHT and 0 <= left <= right <= WIDTH
        wanted = x.copy()
        wanted[:, :, top:bottom, left:right] = np.roll(x, 1, axis=0)[:, :, top:bottom, left:right]
        np.testing.assert_array_equal(mixing.apply(x, rows), wanted)
        share = 1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH)
        np.testing.assert_allclose(field(rows, 'share'), share, atol=1e-7)


def test_where_cutmix_puts_its_box():
    """The centre anywhere, sides in proportion to sqrt(1 - kept), cut off at the edges."""
    found = np.array([mixer(cutmix=1.0)(items(2), i)[0] for i in range(3000)])
    heights, widths = found[:, 3] - found[:, 2], found[:, 5] - found[:, 4]
    inside = (found[:, 2] > 0) & (found[:, 3] < HEIGHT) & (found[:, 4] > 0) & (found[:, 5] < WIDTH)
    rounded = 2 * np.floor(0.5 * (widths[inside] + 1) / WIDTH * HEIGHT)
    assert (abs(heights[inside] - rounded) <= 2).all()
    # Uniform: alpha 1. P(no side is cut off and the box has no area): r x WIDTH below 1.
    empty = 1 - (1 - (2 / HEIGHT) ** 2)
    assert abs((heights == 0).mean() - empty) < 0.01
    assert found[:, 2].min() == 0 and found[:, 3].max() == HEIGHT and found[:, 5].max() == WIDTH


def test_what_is_drawn_for_a_chunk():
    both = mixer(mixup=0.2, cutmix=1.0)
    kept = np.array([both(items(2), i)[0, 1] for i in range(2000)])
    assert 0.46 < (kept == 0).mean() < 0.54  # CutMix as often as mixup
    only = np.array([mixer(mixup=0.2)(items(2), i)[0, 1] for i in range(2000)])
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 (2 alpha + 1)).
    assert abs(only.mean() - 0.5) < 0.03 and abs(only.var() - 1 / 5.6) < 0.01
    assert len(np.unique(only)) > 1800  # many are 0 or 1 to seven digits
    # As a function of seed, epoch, batch and chunk alone.
    np.testing.assert_array_equal(both(items(6), 4), both(items(6), 4))
    assert (both(items(6, epoch=2), 4) != both(items(6), 4)).any()


def test_random_erasing():
    """torchvision.transforms.RandomErasing: 2 to 33 % of the area, aspect ratio 0.3 to 3.3."""
    n = 4000
    rows = mixer(reprob=0.25, images=n)(items(n), 0)
    boxes = rows[:, 6:10].astype(int)
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    erased = heights > 0
    assert 0.23 < erased.mean() < 0.27
    area = heights[erased] * widths[erased] / (HEIGHT * WIDTH)
    ratio = heights[erased] / widths[erased]
    assert 0.012 < area.min() < 0.03 and 0.31 < area.max() < 0.36 and abs(area.mean() - 0.17) < 0.02
    assert 0.2 < ratio.min() < 0.4 and 2.6 < ratio.max() < 4 and abs(np.log(ratio).mean()) < 0.08
    assert boxes[erased, 0].min() == 0 and boxes[erased, 1].max() == HEIGHT
    assert (field(rows, 'share') == 1).all() and (field(rows, 'own') == 1).all()
    x = batch(50)
    wanted = x.copy()
    for image, (top, bottom, left, right) in zip(wanted, boxes[:50]):
        image[:, top:bottom, left:right] = 0
    rows[:50, 0] = 0  # the partner that nothing is taken of
    found = mixing.apply(x, rows[:50])
    np.testing.assert_array_equal(found, wanted)
    assert (found == 0).any() and (x != 0).all()


def test_erased_images_are_mixed():
    rows = mixer(mixup=0.2, reprob=0.9)(items(12), 0)
    x = batch()
    kept, wanted = rows[0, 1], batch().astype(np.float64)
    for image, box in zip(wanted, rows[:, 6:10].astype(int)):
        image[:, box[0] : box[1], box[2] : box[3]] = 0
    wanted = kept * wanted + (1 - kept) * np.roll(wanted, 1, axis=0)
    np.testing.assert_allclose(mixing.apply(x, rows), wanted, atol=1e-6)


def test_processes_draw_what_one_draws():
    """Two processes of two chunks each, and one of four."""
    for n in (16, 15, 3):
        whole = mixer(0.2, 1.0, 0.3, chunks=4)(items(n), 7)
        parts, begin = [], 0
        for rank in range(2):
            ends = [loading.part_start(n, 4, 2 * (rank + i)) for i in range(2)]
            share = items(n)[slice(*ends)]
            parts.append(mixer(0.2, 1.0, 0.3, chunks=2, first=2 * rank)(share, 7))
            begin += len(share)
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('nhwc', [False, True])
def test_a_gpu_mixes_the_same(dtype, nhwc):
    import cupy

    for given in (dict(mixup=0.2, reprob=0.5), dict(cutmix=1.0, reprob=0.5)):
        x, rows = batch(dtype=dtype), mixer(**given)(items(12), 1)
        there = cupy.asarray(x)
        if nhwc:
            memory = cupy.empty((12, HEIGHT, WIDTH, 3), dtype)
            memory[...] = there.transpose(0, 2, 3, 1)
            there = memory.transpose(0, 3, 1, 2)
        found = mixing.apply(there, cupy.asarray(rows))
        assert found.dtype == dtype and found.strides == there.strides
        wanted = mixing.apply(x.astype(np.float32), rows)
        tolerance = 1e-6 if dtype == np.float32 else 2e-3
        np.testing.assert_allclose(found.get(), wanted, atol=tolerance)


# ---- the loss


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_of_mixed_labels(smoothing):
    rng = np.random.default_rng(0)
    y = (5 * rng.standard_normal((12, 10))).astype(np.float32)
    t = (np.arange(12) % 10).astype(np.int32)
    for position in range(5):
        rows = mixer(0.2, 1.0)(items(12), position)
        share = field(rows, 'share').astype(np.float64)[:, None]
        target = share * np.eye(10)[t] + (1 - share) * np.eye(10)[np.roll(t, 1)]
        target = (1 - smoothing) * target + smoothing / 10
        wide = y.astype(np.float64)
        log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
        scores = chainer.Variable(y)
        loss = losses.LabelSmoothing(smoothing)(scores, t, rows)
        wanted = -(target * log_p).sum(axis=1).mean()
        assert abs(float(loss.array) - wanted) < 1e-6 * max(1, wanted)
        loss.backward()
        np.testing.assert_allclose(scores.grad, (np.exp(log_p) - target) / 12, atol=1e-6)
        larger = np.where(share[:, 0] >= 0.5, t, np.roll(t, 1))
        np.testing.assert_array_equal(mixing.counted(t, rows), larger)


# ---- TrivialAugment


def bilinear(pixels, source):
    """Pixel (x, y) from source(x, y), positions of centres; black from outside."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    sx, sy = source(x, y)
    inside = (sx >= 0) & (sx < width) & (sy >= 0) & (sy < height)
    sx, sy = sx - 0.5, sy - 0.5
    left, top = np.floor(sx).astype(int), np.floor(sy).astype(int)
    out = np.zeros(pixels.shape)
    for dy, dx in itertools.product((0, 1), repeat=2):
        weight = abs(1 - dx - (sx - left)) * abs(1 - dy - (sy - top))
        row, column = (top + dy).clip(0, height - 1), (left + dx).clip(0, width - 1)
        out += weight[..., None] * pixels[row, column]
    return np.where(inside[..., None], out, 0)


def turned(degrees, height, width):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = width / 2, height / 2
    return lambda x, y: (c * (x - cx) - s * (y - cy) + cx, s * (x - cx) + c * (y - cy) + cy)


@pytest.mark.parametrize(
    'name, source',
    [
        ('shear-x', lambda m, h, w: lambda x, y: (x + 0.99 * m * y, y)),
        ('shear-y', lambda m, h, w: lambda x, y: (x, y + 0.99 * m * x)),
        ('translate-x', lambda m, h, w: lambda x, y: (x - int(32 * m), y)),
        ('translate-y', lambda m, h, w: lambda x, y: (x, y - int(32 * m))),
        ('rotate', lambda m, h, w: turned(135 * m, h, w)),
    ],
)
def test_trivial_augment_moves_bilinearly(name, source):
    image = Image.fromarray(quick.load().train.images[3].transpose(1, 2, 0)).resize((90, 70))
    pixels = np.asarray(image)
    for strength, negated in itertools.product((0, 7, 15, 30), (False, True)):
        drawn = trivial_augment.TrivialDrawn(name, strength, negated)
        m = strength / 30 * (-1 if negated else 1)
        found = np.asarray(trivial_augment.apply(image, drawn)).astype(float)
        wanted = bilinear(pixels, source(m, 70, 90))
        far = abs(found - wanted).max(axis=2) > 2
        assert far.mean() < 0.01, (strength, negated, far.mean())  # pixels on the edge


def test_trivial_augment_draws():
    drawn = [trivial_augment.draw(0, 1, i) for i in range(4200)]
    names = [d.operation for d in drawn]
    assert all(220 < names.count(name) < 380 for name in trivial_augment.OPERATIONS)
    strengths = np.bincount([d.strength for d in drawn])
    assert len(strengths) == 31 and strengths.min() > 90
    assert 0.46 < np.mean([d.negated for d in drawn]) < 0.54
    assert drawn[:5] == [trivial_augment.draw(0, 1, i) for i in range(5)]
    assert drawn != [trivial_augment.draw(0, 2, i) for i in range(4200)]


def test_where_it_stands_in_preprocessing(tmp_path):
    """Of CIFAR's arrays before everything; of images in files after the crop and the flip."""
    memory = quick.load().train
    cifar = data_augmentation.DataAugmentationCifarTorch7
    found = np.empty((6, 3, 32, 32), np.float32)
    data.Load(memory, cifar, 4, auto_augment='ta_wide')(items(6, epoch=2), found)
    for i, x in enumerate(found):
        pixels = memory.images[i].transpose(1, 2, 0)
        pixels = trivial_augment.pixels(pixels, trivial_augment.draw(4, 2, i)).transpose(2, 0, 1)
        wanted = cifar.train(pixels, drawn=cifar.draw(generator(4, 2, i))).x
        np.testing.assert_array_equal(x, wanted)

    paths = [str(tmp_path / f'{i}.png') for i in range(6)]
    for i, path in enumerate(paths):
        image = Image.fromarray(memory.images[100 * i].transpose(1, 2, 0))
        image.resize((250, 230 + i), Image.Resampling.BICUBIC).save(path)
    files = folder.ImageFiles(paths, [0] * 6, ['a'])
    for name in ('DataAugmentationImagenetTorchvision', 'DataAugmentationImagenetTorch7'):
        preprocessing = getattr(data_augmentation, name)
        load = data.LoadFile(files, preprocessing, 4, auto_augment='ta_wide')
        plain = data.LoadFile(files, preprocessing, 4)
        for i in range(6):
            before = plain._pixels((2, i))
            wanted = trivial_augment.pixels(before.values, trivial_augment.draw(4, 2, i))
            after = load._pixels((2, i))
            np.testing.assert_array_equal(after.values, wanted)
            assert (after.colour is None) == (name == 'DataAugmentationImagenetTorchvision')


def test_torchvision_step_by_step(tmp_path):
    preprocessing = data_augmentation.DataAugmentationImagenetTorchvision
    pixels = quick.load().train.images[5].transpose(1, 2, 0)
    for i, size in enumerate([(300, 260), (240, 500), (96, 64)]):
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        d = preprocessing.draw(generator(2, 1, i))._replace(flip=bool(i % 2))
        for attempt in d.attempts:
            area, aspect, y, x = attempt
            target = (0.08 + area * 0.92) * image.width * image.height
            ratio = math.exp(math.log(3 / 4) + aspect * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
            if w <= image.width and h <= image.height:
                break
        y, x = int(y * (image.height - h + 1)), int(x * (image.width - w + 1))
        crop = image.crop((x, y, x + w, y + h)).resize((176, 176), Image.Resampling.BILINEAR)
        wanted = (np.asarray(crop) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        wanted = wanted[:, ::-1] if d.flip else wanted
        found = preprocessing.train(image, drawn=d).x
        np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), atol=1e-5)


# ---- repeated augmentation


def test_repeated_augmentation():
    """A batch has a quarter of the images, four times each, no two of them in a chunk."""
    plan = loading.FullBatches(70, 16, 3, repetitions=4)
    order = np.random.default_rng((3, 2, 1 << 32)).permutation(70)
    batches = plan(2)
    assert len(plan) == len(batches) == 4
    for i, numbers in enumerate(batches):
        np.testing.assert_array_equal(np.unique(numbers % 70), np.sort(order[4 * i : 4 * i + 4]))
        assert sorted(numbers // 70) == sorted([0, 1, 2, 3] * 4)
        for chunk in np.array_split(numbers, 4):
            assert len(np.unique(chunk % 70)) == len(chunk)
    whole = loading.EveryImageOnce(70, 16, 3, repetitions=4)
    assert sum(map(len, whole(1))) == 70 and len(np.unique(np.concatenate(whole(1)))) == 70
    one = loading.EveryImageOnce(70, 16, 3)
    np.testing.assert_array_equal(
        np.concatenate(one(1)), np.concatenate(loading.EveryImageOnce(70, 16, 3, 1)(1))
    )


def test_repetitions_are_augmented_anew():
    memory = quick.load().train
    some = LabelledImages(memory.images[:40], memory.labels[:40])
    used = options(
        recipe='torch7_cifar', batch=16, repeated_augmentation=4, seed=1, mixup=0.2, reprob=0.5
    )
    preprocessing = data_augmentation.DataAugmentationCifarTorch7
    dataset = Dataset('some', list('abcdefghij'), some, some)
    path = data.data_path(dataset, used, preprocessing)
    x, t, rows = path.train.next()
    numbers = loading.EveryImageOnce(40, 16, 1, 4)(1)[0]
    np.testing.assert_array_equal(t, some.labels[numbers % 40])
    assert len(np.unique(numbers % 40)) == 4
    for i, number in enumerate(numbers):
        wanted = preprocessing.train(
            some.images[number % 40], drawn=preprocessing.draw(generator(1, 1, number))
        ).x
        np.testing.assert_array_equal(x[i], wanted)
    wanted = mixing.Mixing(0.2, 0, 0.5, 1, (32, 32), some.labels)([(1, n) for n in numbers], 0)
    np.testing.assert_array_equal(rows, wanted)
    assert len(np.unique(rows[:, 6:10], axis=0)) > 4


def test_original_sampling_has_no_repetitions():
    with pytest.raises(InputError, match='repeated_augmentation 2: sampling original'):
        options(sampling='original', repeated_augmentation=2)


def test_workers_and_position_change_nothing():
    memory = quick.load().train
    some = LabelledImages(memory.images[:50], memory.labels[:50])
    dataset = Dataset('some', list('abcdefghij'), some, some)
    found = []
    for workers in (0, 2):
        used = options(
            recipe='torch7_cifar', batch=16, workers=workers, auto_augment='ta_wide', cutmix=1.0
        )
        path = data.data_path(dataset, used, data_augmentation.DataAugmentationCifarTorch7)
        found.append([tuple(map(np.array, path.train.next())) for _ in range(6)])
        path.train.finalize()
    path.train.skip(1)
    found.append(found[0][:4] + [tuple(map(np.array, path.train.next())) for _ in range(2)])
    path.train.finalize()
    for batches in zip(*found):
        for arrays in zip(*batches):
            np.testing.assert_array_equal(arrays[0], arrays[1])
            np.testing.assert_array_equal(arrays[0], arrays[2])
    assert isinstance(path.train, parallel.Iterator)


# ---- the recipe


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'
    return str(write_cifar10(folder, per_file=20))


#: torchvision_v2 with a small network, on images of CIFAR, in moments.
SMALL = dict(
    recipe='torchvision_v2',
    C=2,
    d=2,
    multi=2,
    block_num=(1, 1),
    dataset='cifar10',
    preprocessing='DataAugmentationCifarTorch7',
    batch=24,
    train_batch_divide=2,
    test_batch_divide=1,
    epoch=5,
    warmup=2,
    ema_decay=0.75,
    ema_steps=2,
    seed=3,
)


def train(path, data, **given):
    return run.train(
        resume=given.pop('resume', False),
        say=given.pop('say', lambda text: None),
        save_path=str(path),
        **(dict(SMALL, data=data) | given if not given.pop('bare', False) else given),
    )


def test_the_recipe_is_the_source_s():
    found = options(recipe='torchvision_v2')
    for name, value in dict(
        batch=1024,
        lr=0.5,
        momentum=0.9,
        weight_decay=2e-5,
        norm_weight_decay=0.0,
        bias_weight_decay=None,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        reprob=0.1,
        auto_augment='ta_wide',
        repeated_augmentation=4,
        epoch=600,
        warmup=5,
        ema_steps=32,
    ).items():
        assert getattr(found, name) == value, name
    # train.py: alpha = (1 - decay) x GPUs x images of each x steps / epochs.
    assert found.ema_decay == pytest.approx(1 - (1 - 0.99998) * (8 * 128 * 32 / 600), rel=1e-9)
    preprocessing = getattr(data_augmentation, found.preprocessing)
    assert preprocessing.train_shape == (3, 176, 176) and preprocessing.shape == (3, 224, 224)


def test_the_average_begins_after_the_warm_up(cifar, tmp_path, monkeypatch):
    """Taken after the first and every second of four updates; in two epochs it is a copy."""
    seen = []
    real = loop.extensions.MovingAverage.__call__

    def watch(self, trainer):
        real(self, trainer)
        seen.append((self._source.fc.W.array.copy(), self.network.fc.W.array.copy()))

    monkeypatch.setattr(loop.extensions.MovingAverage, '__call__', watch)
    train(tmp_path, cifar)
    assert len(seen) == 20
    average, copies = None, True
    for i, (weights, found) in enumerate(seen):
        epoch, update = divmod(i, 4)
        if update % 2 == 0:
            average = weights if copies else average + 0.25 * (weights - average)
            copies = epoch < 2
        np.testing.assert_allclose(found, average, atol=1e-6)


def test_a_run_goes_on_bit_for_bit(cifar, tmp_path):
    train(tmp_path / 'whole', cifar)

    def stop():
        real = loop.ChunkedUpdater.update_core

        def update_core(self):
            real(self)
            if self.iteration == 10:
                os.kill(os.getpid(), signal.SIGINT)

        loop.ChunkedUpdater.update_core = update_core
        sys.exit(0 if train(tmp_path / 'part', cifar) else 130)

    process = in_child(stop)
    process.join()
    assert process.exitcode == 130
    assert train(tmp_path / 'part', cifar, resume=True, bare=True)
    assert_same_end(tmp_path / 'part', tmp_path / 'whole')


def test_blocks_begin_as_their_shortcuts(cifar, tmp_path):
    built = {}
    for given in (False, True):
        used = options(network='paper', C=2, d=4, depth=20, zero_init_last=given)
        dataset = datasets.load('cifar10', cifar)
        built[given] = build.network(used, {}, None, dataset, False)[0]
    for name, link in built[True].namedlinks():
        if name.endswith('/bn'):
            wanted = 0 if '/expand/' in name else 1
            assert (link.gamma.array == wanted).all(), name
    for (name, a), (_, b) in zip(built[True].namedparams(), built[False].namedparams()):
        assert name.endswith('expand/bn/gamma') or (a.array == b.array).all(), name
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    block = built[True].stage1.block2
    with chainer.using_config('train', True):
        h = abs(built[True].stage1.block1(built[True].stem(x)).array)
        np.testing.assert_array_equal(block(h).array, h)


@pytest.mark.gpu
@pytest.mark.parametrize('auto_augment', ['none', 'ta_wide'])
def test_a_gpu_trains_as_the_cpu_does(cifar, tmp_path, auto_augment):
    """Images are made, erased and mixed in the captured step, or loaded and mixed there."""
    losses = []
    for gpu in (-1, 0):
        folder = tmp_path / str(gpu)
        given = dict(gpu=gpu, precision='float32', epoch=3, auto_augment=auto_augment)
        train(folder, cifar, lr=0.02, **given)
        entries = json.loads((folder / 'log.json').read_text())
        losses.append([e['loss'] for e in entries if e['_id'] in ('train_loss', 'test_loss')])
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
