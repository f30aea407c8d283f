"""Photographs whose EXIF orientation says how to turn them: upright where people bring their own,
as stored in the evaluation on ImageNet."""

import io

import numpy as np
import pytest
from helpers.networks import network
from PIL import Image, ImageOps

from trainer import datasets
from trainer.datasets import folder, ilsvrc, quick
from trainer.inference import evaluation, prediction
from trainer.training.data import LoadFile
from trainer.transforms import decoding
from trainer.transforms.resize_crop import DataAugmentationNormalizeBigger as Bigger


@pytest.fixture(scope='module')
def upright():
    """A real image, not square."""
    image = Image.fromarray(quick.load().train.images[0].transpose(1, 2, 0))
    return image.resize((480, 320), Image.BICUBIC).crop((0, 0, 440, 320))


def stored(upright, orientation, form='PNG', **options):
    """Return a file of an image, stored as a telephone does that was held another way."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x112] = inverse
    turned = io.BytesIO()
    upright.save(turned, 'PNG', exif=exif)
    exif[0x112] = orientation
    data = io.BytesIO()
    ImageOps.exif_transpose(Image.open(turned)).save(data, form, exif=exif, **options)
    return data.getvalue()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation(orientation, upright, tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(stored(upright, orientation))
    turned = decoding.load_rgb(decoding.upright(str(path)))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(upright))
    with Image.open(path) as image:
        given = decoding.load_rgb(decoding.upright(image))
    np.testing.assert_array_equal(np.asarray(given), np.asarray(upright))
    as_stored = np.asarray(decoding.load_rgb(str(path)))
    assert (as_stored.shape == (440, 320, 3)) == (orientation > 4)


@pytest.mark.parametrize('form', ['JPEG', 'TIFF', 'WEBP', 'AVIF'])
def test_every_format(form, upright, tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(stored(upright, 6, form))
    turned = np.asarray(decoding.load_rgb(decoding.upright(path)), int)
    assert turned.shape == (320, 440, 3)
    assert abs(turned - np.asarray(upright)).mean() < 8  # JPEG loses some


def test_a_jpeg_that_is_decoded_smaller(upright, tmp_path):
    path = tmp_path / 'x.jpg'
    path.write_bytes(stored(upright, 6, 'JPEG', quality=95))
    sizes = []
    image, size = decoding.load_shrunk(
        decoding.upright(path), lambda *size: sizes.append(size) or 0.25
    )
    assert sizes == [(320, 440)] and size == (320, 440) and image.size == (220, 160)


def test_damaged_metadata_is_no_orientation(upright, tmp_path):
    path = tmp_path / 'x.jpg'
    upright.save(path, exif=b'Exif\0\0MM\0*' + b'\xff' * 40)
    assert decoding.load_rgb(decoding.upright(path)).size == (440, 320)


def test_prediction_is_upright(upright, tmp_path):
    net = network(5, 1)
    upright.save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(stored(upright, 6))
    paths = [str(tmp_path / name) for name in ('a.png', 'b.png')]
    predictor = net.predictor('reference')
    a, b = prediction.predict([predictor], paths, batch=1)
    assert a.answers == b.answers and b.source == paths[1]
    a, b = prediction.predict([predictor], paths, batch=1, upright=False)
    assert a.answers != b.answers


def test_class_folders_are_upright_and_imagenet_is_not(upright, tmp_path):
    for i, name in enumerate(('n01440764', 'n01443537')):
        (tmp_path / 'val' / name).mkdir(parents=True)
        (tmp_path / 'val' / name / '1.png').write_bytes(stored(upright, 6 + 2 * i))
    mine = datasets.load('folder', str(tmp_path / 'val')).train
    published = ilsvrc.find(str(tmp_path))
    sideways = Bigger.test(str(tmp_path / 'val' / 'n01440764' / '1.png')).x
    for images, wanted in ((mine, Bigger.test(upright).x), (published, sideways)):
        for part in (images, images.take([0])):
            x = np.empty(Bigger.shape, np.float32)
            LoadFile(part, Bigger)((0, 0), x)
            np.testing.assert_array_equal(x, wanted)

    net = network(2, 1)
    losses = [
        evaluation.evaluate([net.predictor('reference')], images, workers=0).tally.loss
        for images in (mine, published, folder.ImageFiles([upright] * 2, [0, 1], mine.categories))
    ]
    assert losses[0] == losses[2] != losses[1]
