"""Class activation maps against gradients and scores, and drawn by the script."""

import sys

import chainer
import numpy as np
import pytest
from helpers.images import random_image
from helpers.networks import build, cifar, ilsvrc, paper_cifar
from helpers.networks import network as small_network
from PIL import Image

import predict
from trainer import cli
from trainer.errors import InputError
from trainer.inference import cam, prediction
from trainer.reports import drawing as report
from trainer.transforms import resize_crop as preprocessing


@pytest.fixture(params=[cifar, paper_cifar, ilsvrc], ids=lambda make: make.__name__)
def computed(request):
    """A network with statistics of its own, images, its last feature maps, its scores."""
    network, x, _ = build(request.param)
    rng = np.random.default_rng(3)
    for link in network.links():
        if isinstance(link, chainer.links.BatchNormalization):
            link.beta.array[...] = rng.normal(0.3, 0.3, link.beta.shape)
            link.avg_var[...] = rng.uniform(0.5, 1.5, link.avg_var.shape)
            link.avg_mean[...] = rng.normal(0, 0.1, link.avg_mean.shape)
    with chainer.using_config('train', False):
        for name, h in network.activations(chainer.Variable(x)):
            if name == f'stage{len(network.stages)}':
                features = chainer.Variable(h.array)
        pooled = chainer.functions.average_pooling_2d(features, features.shape[2:])
        scores = network.classify(pooled)
    return network, x, features, scores


def test_weights_are_the_gradients(computed):
    """The map of a class is the gradient of its score times the features times the pixels."""
    network, x, features, scores = computed
    best = scores.array.argmax(axis=1)
    assert (scores.array.max(axis=1) > 0).all()
    scores.grad = np.eye(scores.shape[1], dtype=np.float32)[best]
    scores.backward()
    pixels = features.shape[2] * features.shape[3]
    wanted = (pixels * features.grad * features.array).sum(axis=1)
    found = cam.activation_maps(network, x, best[:, None])[:, 0]
    assert found.shape == wanted.shape and pixels > 1
    assert abs(found - wanted).max() < 1e-5 * abs(wanted).max()


def test_the_mean_is_the_score(computed):
    network, x, _, scores = computed
    classes = np.tile(np.arange(network.category_num), (len(x), 1))
    found = cam.activation_maps(network, x, classes).mean(axis=(2, 3)) + cam.bias(network)
    if getattr(network.fc, 'relu', False):  # the 2017 CIFAR network
        found = found.clip(0)
    assert abs(found - scores.array).max() < 1e-5 * abs(scores.array).max()


def test_a_network_looks_where_the_thing_is():
    """A classifier of what the stem sees says 'here' of a bright corner."""
    network = small_network(3, 0)
    for link in network.links():
        if isinstance(link, chainer.links.BatchNormalization):
            link.avg_mean[...], link.avg_var[...], link.beta.array[...] = 0, 1, 0
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[:60, 150:] = 255
    x = preprocessing.normalize(pixels)[None] - preprocessing.normalize(0 * pixels)[None]
    (maps,) = cam.activation_maps(network, x, [[0, 1, 2]])
    corner = abs(maps[:, :2, 5:]).mean(axis=(1, 2))
    far = abs(maps[:, 4:, :2]).mean(axis=(1, 2))
    assert (corner > 3 * far).all()


def test_what_is_drawn(tmp_path):
    network = small_network(4, 0, ['cat', 'dog', 'a class of a name that is too long ' * 4, 'd'])
    paths = [str(tmp_path / f'{i}.png') for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(random_image(300 + 50 * i, 260, i)).save(path)
    said = list(prediction.predict([network], paths, k=3))
    found = [cam.explain(network, one) for one in said]
    for one, path in zip(found, paths):
        assert one.image.shape == (224, 224, 3) and one.maps.shape == (3, 7, 7)
        seen = network_preprocessing(network).test(path).x
        np.testing.assert_array_equal(preprocessing.normalize(one.image), seen)
    report.draw_maps(found, str(tmp_path / 'cam.png'))
    with Image.open(tmp_path / 'cam.png') as drawn:
        assert drawn.width > 800 and np.asarray(drawn).std() > 20


def network_preprocessing(network):
    return prediction.preprocessing([network])


def test_the_command(tmp_path, monkeypatch, capsys):
    small_network(4, 0, ['cat', 'dog', 'horse', 'hen']).save_model(str(tmp_path / 'model.npz'))
    Image.fromarray(random_image(300, 260)).save(tmp_path / 'photo.png')

    def predict_photo(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['predict.py', 'photo.png', *arguments])
        with pytest.raises(SystemExit) as end:
            cli.run(predict.main)
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    status, out, err = predict_photo('-m', 'model.npz', '--cam', 'cam.png')
    assert status == 0 and 'photo.png' in out, err
    assert (tmp_path / 'cam.png').stat().st_size > 10_000
    for arguments, words in (
        (('-m', 'model.npz', '-m', 'model.npz', '--cam', 'a.png'), '--cam takes one model'),
        (('-m', 'model.npz', '--ten-crop', '--cam', 'a.png'), '--cam takes one model and one crop'),
        (('-m', 'model.npz', '--cam', 'a.xyz'), '--cam a.xyz: a name that ends in'),
    ):
        status, _, err = predict_photo(*arguments)
        assert status == 2 and words in err and err.count('\n') == 1
    assert not (tmp_path / 'a.png').exists()


def test_an_image_that_is_gone(tmp_path):
    network = small_network(4, 0)
    path = tmp_path / 'photo.png'
    Image.fromarray(random_image(300, 260)).save(path)
    (said,) = prediction.predict([network], [str(path)])
    path.unlink()
    with pytest.raises(InputError, match='photo.png'):
        cam.explain(network, said)
