"""The geometry of testing: sizes against torchvision's, files, flags, inference by it."""

import dataclasses
import json
import pathlib
import re
import sys

import chainer
import numpy as np
import pytest
from helpers.images import random_image
from helpers.networks import network, softmax
from PIL import Image

import ilsvrc_converter
import predict
import resnext
import resnext_ilsvrc
import test_ilsvrc
from data_augmentation import DataAugmentationImagenetTorchvision as Torchvision
from data_augmentation import DataAugmentationNormalizeBigger as Bigger
from trainer import cli
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.training import build
from trainer.transforms import gpu_images, resize_crop
from trainer.transforms.geometry import INTERPOLATIONS, Geometry, of_class
from trainer.weights import description, safetensors

# (height, width), (img_size, crop_pct) -> size after torchvision's Resize of the short side
# that timm computes, (y, x) of its CenterCrop.
TORCHVISION = [
    ((300, 400), (224, 0.875), (256, 341), (16, 58)),
    ((333, 217), (224, 0.965), (356, 232), (66, 4)),
    ((257, 513), (288, 1.0), (288, 574), (0, 143)),
    ((640, 481), (288, 0.95), (403, 303), (58, 8)),
    ((231, 700), (160, 0.95), (168, 509), (4, 174)),
    ((150, 90), (176, 0.875), (335, 201), (80, 12)),
]


@pytest.mark.parametrize(('size', 'wanted', 'resized', 'place'), TORCHVISION)
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_what_is_cut_out(size, wanted, resized, place, interpolation):
    geometry = Geometry(*wanted, interpolation)
    image = Image.fromarray(random_image(*size))
    (y, x), side = place, wanted[0]
    whole = image.resize(resized[::-1], INTERPOLATIONS[interpolation])
    pixels = np.asarray(whole)[y : y + side, x : x + side].astype(np.float64)
    expected = (pixels / 255 - resize_crop.MEAN) / resize_crop.STD
    found, info = geometry.test(image)
    assert found.shape == geometry.shape == (3, side, side) and found.dtype == np.float32
    assert abs(found - expected.transpose(2, 0, 1)).max() < 1e-6
    assert info['resized'] == list(resized) and info['keypoints'] == [[y, y + side], [x, x + side]]
    assert np.array_equal(geometry.test_batch([image])[0], found)


def test_mean_and_std():
    image = random_image(256, 256)
    geometry = Geometry(224, 0.875, 'bicubic', (0.5, 0.25, 0), (1 / 255, 0.5, 2))
    plain = Geometry(224, 0.875, 'bicubic', (0, 0, 0), (1, 1, 1)).test(image).x.astype(np.float64)
    expected = (plain - np.reshape(geometry.mean, (3, 1, 1))) / np.reshape(geometry.std, (3, 1, 1))
    assert abs(geometry.test(image).x - expected).max() < 1e-4
    assert 'mean 0.5 0.25 0, std' in str(geometry) and 'mean' not in str(Geometry())


def test_the_classes_as_data():
    assert of_class(Bigger) == Geometry(224, 0.875, 'bicubic')
    assert of_class(Torchvision).short_side == 232
    image = random_image(300, 400)  # even: the place of the centre is the same
    for cls in (Bigger, Torchvision):
        assert np.array_equal(of_class(cls).test(image).x, cls.test(image).x)
    assert np.array_equal(Geometry().ten_crop(image).x, Bigger.ten_crop(image).x)


def test_rows():
    geometry, image = Geometry(64, 0.9, mean=(0.1, 0.2, 0.3)), random_image(99, 80)
    row = np.empty(geometry.row_bytes(), np.uint8)
    geometry.test_row(image, row)
    x = resize_crop.normalize(row.reshape(64, 64, 3), table=geometry.table)
    assert np.array_equal(x, geometry.test(image).x)
    rows = np.empty((10, geometry.row_bytes()), np.uint8)
    geometry.ten_crop_rows(image, rows)
    for row, x in zip(rows, geometry.ten_crop(image).x):
        assert np.array_equal(
            resize_crop.normalize(row.reshape(64, 64, 3), table=geometry.table), x
        )


WRONG = [
    ({'img_size': 0}, 'img_size 0'),
    ({'img_size': 5000}, 'img_size 5000'),
    ({'img_size': 224.0}, 'img_size 224.0'),
    ({'img_size': True}, 'img_size True'),
    ({'crop_pct': 0}, 'crop_pct 0.0'),
    ({'crop_pct': 1.5}, 'crop_pct 1.5'),
    ({'crop_pct': float('nan')}, 'crop_pct nan'),
    ({'interpolation': 'cubic'}, 'interpolation .cubic.: there are nearest, bilinear'),
    ({'mean': (0, 0)}, 'for each of three channels'),
    ({'mean': (123, 116, 103)}, 'mean .*: not of channels in 0..1'),
    ({'std': (1, 1, 0)}, 'std .*: not above 0'),
    ({'std': 'abc'}, 'for each of three channels'),
]


@pytest.mark.parametrize(('change', 'words'), WRONG)
def test_values_that_cannot_be_used(change, words):
    with pytest.raises(ValueError, match=words):
        Geometry(**change)
    described = resnext_ilsvrc.ResNext(3, (1,), 1, 4, 2).architecture()
    held = Geometry().as_json() | change
    with pytest.raises(InputError, match='describes a network that cannot be built'):
        description.build(described | {'geometry': held}, 'x.npz', None)


def test_images_that_become_too_large():
    image = np.zeros((2, 60_000, 3), np.uint8)
    with pytest.raises(InputError, match='too long and narrow'):
        Geometry(224, 1.0).test(image)
    with pytest.raises(InputError, match='too long and narrow'):
        Geometry(1024, 0.1).ten_crop(np.zeros((100, 1000, 3), np.uint8))


GEOMETRY = Geometry(96, 0.9, 'bilinear', (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def tested():
    made = network(3, 1, ['a', 'b', 'c'])
    made.set_geometry(**GEOMETRY.as_json())
    return made


def test_npz_keeps_it(tested, tmp_path):
    assert tested.geometry == GEOMETRY and tested.image_size == 96
    for layout in (None, 'form-b'):
        tested.save_model(tmp_path / 'x.npz', layout=layout)
        again = resnext_ilsvrc.load(tmp_path / 'x.npz')
        assert again.geometry == GEOMETRY and again.image_size == 96
    tested.set_geometry()
    tested.save_model(tmp_path / 'x.npz')
    again = resnext_ilsvrc.load(tmp_path / 'x.npz')
    assert again.geometry is None and again.image_size == 224
    with np.load(tmp_path / 'x.npz') as f:
        assert 'geometry' not in json.loads(str(f['architecture']))


def test_safetensors_keeps_it(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    tested = resnext_ilsvrc.ResNext(3, (1,), 1, 4, 2)
    tested.set_geometry(**GEOMETRY.as_json())
    safetensors.save(tmp_path / 'x.safetensors', tested)
    assert resnext_ilsvrc.load(tmp_path / 'x.safetensors').geometry == GEOMETRY
    from safetensors import numpy

    data = numpy.load_file(tmp_path / 'x.safetensors')
    numpy.save_file(data, tmp_path / 'y.safetensors', {'geometry': '{"img_size": "224"}'})
    with pytest.raises(InputError, match='its geometry cannot be used'):
        resnext_ilsvrc.load(tmp_path / 'y.safetensors')


def test_predictions_are_by_it(tested):
    images = [random_image(130, 120, seed=i) for i in range(3)]
    x = GEOMETRY.test_batch(images)
    with chainer.no_backprop_mode():
        y = tested(x, train=False).array.astype(np.float64)
    found = list(prediction.predict([tested], images, 3, workers=0))
    for said, p in zip(found, softmax(y)):
        assert [a.number for a in said.answers] == (-p).argsort().tolist()
        assert [a.probability for a in said.answers] == pytest.approx(sorted(p)[::-1], abs=1e-5)
    other = network(3, 2, ['a', 'b', 'c'])
    with pytest.raises(InputError, match='preprocessed differently: 96 of 106 pixels'):
        list(prediction.predict([tested, other], images))
    other.set_geometry(**GEOMETRY.as_json())
    assert len(list(prediction.predict([tested, other], images, workers=0, ten_crop=True))) == 3


def test_only_what_takes_224_pixels_is_normalised_on_a_gpu():
    net = network(3, 1)
    assert gpu_images.of(net).preprocessing is Bigger
    net.set_geometry(crop_pct=1)
    assert gpu_images.of(net).preprocessing == Geometry(crop_pct=1)
    net.set_geometry(img_size=160)
    assert gpu_images.of(net) is None


def run(script, capfd, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [script.__name__ + '.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as e:
        cli.run(script.main)
    return (e.value.code or 0,) + tuple(capfd.readouterr())


FLAGS = (
    *('--img-size', 96, '--crop-pct', 0.9, '--interpolation', 'bilinear'),
    *('--mean', 0.5, 0.4, 0.3, '--std', 0.2, 0.3, 0.4),
)


def test_flags(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        folder = tmp_path / 'val' / 'abc'[i]
        folder.mkdir(parents=True)
        Image.fromarray(random_image(120, 130, seed=i)).save(folder / 'x.png')
    plain = network(3, 1, ['a', 'b', 'c'])
    plain.save_model('plain.npz')
    code, out, err = run(
        ilsvrc_converter, capfd, monkeypatch, '-i', 'plain.npz', '-o', 'tested.npz', *FLAGS
    )
    assert code == 0, err
    assert resnext_ilsvrc.load('tested.npz').geometry == GEOMETRY
    images = ['val/a/x.png', 'val/b/x.png']
    reference = '--engine', 'reference', '--json', '-k', 3
    by_file = run(predict, capfd, monkeypatch, *images, '-m', 'tested.npz', *reference)
    by_flags = run(predict, capfd, monkeypatch, *images, '-m', 'plain.npz', *reference, *FLAGS)
    usual = run(predict, capfd, monkeypatch, *images, '-m', 'plain.npz', *reference)
    assert by_file[0] == 0 and by_file[1] == by_flags[1] != usual[1]
    assert 'images for testing: 96 of 106 pixels, bilinear, mean' in by_file[2]
    code, out, err = run(
        test_ilsvrc, capfd, monkeypatch, '-m', 'tested.npz', '-ld', '.', '--workers', 0
    )
    assert code == 0, err
    log = {entry['_id']: entry for entry in json.loads(pathlib.Path('log.json').read_text())}
    assert log['model']['network']['geometry'] == json.loads(json.dumps(GEOMETRY.as_json()))


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--img-size', '0'), '--img-size'),
        (('--img-size', '9999'), '--img-size 9999: not 1..1024 pixels'),
        (('--crop-pct', '1.5'), '--crop-pct 1.5: not between 0.1 and 1'),
        (('--interpolation', 'cubic'), '--interpolation'),
        (('--mean', '124', '116', '104'), '--mean .*: not of channels in 0..1'),
    ],
)
def test_flags_that_cannot_be_used(flags, words, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(random_image(120, 130)).save('x.png')
    network(3, 1).save_model('x.npz')
    code, _, err = run(predict, capfd, monkeypatch, 'x.png', '-m', 'x.npz', *flags)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 1
    assert re.search(words, lines[0])


def test_networks_of_small_images_have_none():
    with pytest.raises(InputError, match='img_size: ResNext of 10 classes.* takes images of 32'):
        resnext.ResNext(10, (1, 1, 1), 1, 4, 2).set_geometry(img_size=224)


def test_a_run_tests_as_it_trains(tmp_path):
    options = dataclasses.make_dataclass('O', ['preprocessing', 'load_model', 'dataset'])
    net = network(3, 1)
    net.set_geometry(crop_pct=1)
    said = []
    given = options('DataAugmentationImagenetTorch7', 'x.npz', 'folder')
    build.preprocessing(given, {}, net, said.append)
    assert net.geometry is None and net.image_size == 224
    assert said == [
        'note: -m was tested by 224 of 224 pixels, bicubic; this run tests as it trains, by '
        'DataAugmentationNormalizeBigger'
    ]
