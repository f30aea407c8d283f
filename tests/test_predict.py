"""predict.py and what is behind it, and the documentation's example of loading one."""

import json
import os
import pathlib
import subprocess
import sys
import types

import chainer
import numpy as np
import pytest
from helpers.images import random_image
from helpers.networks import network, softmax
from PIL import Image

import predict as script
import resnext
import resnext_ilsvrc
import trainer  # noqa: F401
from data_augmentation import DataAugmentationNormalizeBigger as Bigger
from trainer import cli
from trainer.datasets import class_names
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.reports import drawing
from trainer.reports import prediction_report as report

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Images a.jpg, b.png, c/d.jpg, c/e/f.JPEG, and bad.jpg; models."""
    root = tmp_path_factory.mktemp('predict')
    (root / 'c' / 'e').mkdir(parents=True)
    for i, name in enumerate(('a.jpg', 'b.png', 'c/d.jpg', 'c/e/f.JPEG')):
        Image.fromarray(random_image(90 + 20 * i, 120, seed=i)).save(root / name)
    (root / 'bad.jpg').write_text('nothing')
    (root / 'c' / 'readme.txt').write_text('no image')
    network(1000, 1).save_model(root / 'm.npz')
    network(1000, 2).save_model(root / 'n.npz')
    network(3, 1, ['cat', 'dog', 'n01440764']).save_model(root / 'three.npz')
    return root


def run(monkeypatch, capfd, home, *arguments):
    # Other engines say on standard error that they computed.
    arguments += '--engine', 'reference'
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, 'argv', ['predict.py'] + [str(a) for a in arguments])
    with pytest.raises(SystemExit) as e:
        cli.run(script.main)
    return (e.value.code,) + tuple(capfd.readouterr())


def posteriors(model, *paths):
    """Straight from the network: float64 (images, classes)."""
    x = np.stack([Bigger.test(path).x for path in paths])
    with chainer.no_backprop_mode():
        return softmax(resnext_ilsvrc.load(model)(x, train=False).array.astype(np.float64))


def test_the_best_classes_of_a_image(home, monkeypatch, capfd):
    status, out, err = run(monkeypatch, capfd, home, 'a.jpg', '-m', 'm.npz')
    assert (status, err) == (0, '')
    p = posteriors('m.npz', 'a.jpg')[0]
    best = np.argsort(-p)[:5]
    names = list(class_names.imagenet().values())
    assert out == 'a.jpg\n' + ''.join(f'{100 * p[i]:7.2f} %  {names[i]}\n' for i in best)


def test_many_images_folders_and_models_as_json(home, monkeypatch, capfd):
    status, out, err = run(
        monkeypatch,
        capfd,
        home,
        'b.png',
        'c',
        'a.jpg',
        '-m',
        'm.npz',
        '-m',
        'n.npz',
        '--json',
        '-k',
        2,
        '-b',
        3,
    )
    assert (status, err) == (0, '')
    said = json.loads(out)
    paths = ['b.png', 'c/d.jpg', 'c/e/f.JPEG', 'a.jpg']
    assert [s['image'] for s in said] == paths
    p = (posteriors('m.npz', *paths) + posteriors('n.npz', *paths)) / 2
    for row, s in zip(p, said):
        assert [c['class'] for c in s['classes']] == np.argsort(-row)[:2].tolist()
        for c in s['classes']:
            assert c['probability'] == pytest.approx(row[c['class']], rel=1e-4)
            assert (c['synset'], c['name']) == list(class_names.imagenet().items())[c['class']]


def test_unreadable_images_are_named_and_the_others_told(home, monkeypatch, capfd):
    status, out, err = run(
        monkeypatch, capfd, home, 'bad.jpg', 'a.jpg', 'none.jpg', '-m', 'm.npz', '-k', 1
    )
    assert status == 2
    assert out.splitlines()[0] == 'a.jpg' and out.count('\n') == 2
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('predict.py: error: bad.jpg: not an image')
    assert lines[1] == (
        'predict.py: error: none.jpg: cannot be read as an image (No such file or directory)'
    )
    status, out, err = run(monkeypatch, capfd, home, 'bad.jpg', 'a.jpg', '-m', 'm.npz', '--json')
    assert status == 2 and err.count('\n') == 1
    bad, good = json.loads(out)
    assert bad['image'] == 'bad.jpg' and 'not an image' in bad['error']
    assert len(good['classes']) == 5


def test_names_in_the_file_and_fewer_classes_than_asked_for(home, monkeypatch, capfd):
    _, out, _ = run(monkeypatch, capfd, home, 'a.jpg', '-m', 'three.npz')
    assert sorted(line.split('%  ')[1] for line in out.splitlines()[1:]) == [
        'cat',
        'dog',
        'tench, Tinca tinca',
    ]


def test_ten_crops(home, monkeypatch, capfd):
    _, out, _ = run(monkeypatch, capfd, home, 'a.jpg', '-m', 'm.npz', '--ten-crop', '--json')
    net = resnext_ilsvrc.load('m.npz')
    with chainer.no_backprop_mode():
        p = softmax(net(Bigger.ten_crop('a.jpg').x, train=False).array.astype(float)).mean(axis=0)
    said = json.loads(out)[0]['classes']
    assert [c['class'] for c in said] == np.argsort(-p)[:5].tolist()
    assert said[0]['probability'] == pytest.approx(p.max(), rel=1e-4)


def test_cifar_networks(tmp_path, monkeypatch, capfd):
    Image.fromarray(random_image(50, 40)).save(tmp_path / 'a.png')
    net = resnext.ResNext(10, (1, 1, 1), 2, 4, 2)
    net.save_model(tmp_path / 'cifar.npz')
    status, out, _ = run(monkeypatch, capfd, tmp_path, 'a.png', '-m', 'cifar.npz', '-k', 10)
    assert status == 0
    assert sorted(line.split('%  ')[1] for line in out.splitlines()[1:]) == [
        'airplane',
        'automobile',
        'bird',
        'cat',
        'deer',
        'dog',
        'frog',
        'horse',
        'ship',
        'truck',
    ]


def test_from_python_images_need_no_files(home):
    net = resnext_ilsvrc.load(str(home / 'm.npz'))
    pixels = random_image(90, 120)
    sources = [pixels, Image.fromarray(pixels), pixels[:, :, :2].astype(float)]
    a, b, c = prediction.predict([net], sources, k=3)
    p = posteriors(str(home / 'm.npz'), pixels)[0]
    for said in (a, b):
        assert said.error is None
        assert [answer.number for answer in said.answers] == np.argsort(-p)[:3].tolist()
        assert [answer.probability for answer in said.answers] == pytest.approx(
            np.sort(p)[:-4:-1], rel=1e-4
        )
    assert a.source is pixels
    assert c.answers == [] and 'uint8' in c.error
    # By several processes, the same.
    paths = [str(home / name) for name in ('a.jpg', 'b.png', 'bad.jpg', 'c/d.jpg')]
    alone, together = (list(prediction.predict([net], paths, batch=1, workers=w)) for w in (0, 2))
    for x, y in zip(alone, together):
        assert x == y
    with pytest.raises(InputError, match='different classes'):
        list(prediction.predict([net, resnext_ilsvrc.load(str(home / 'three.npz'))], paths))


@pytest.mark.parametrize(
    'images, name',
    [
        (['a.jpg'], 'one.png'),
        (['a.jpg', 'b.png', 'bad.jpg', 'c'], 'four.jpg'),
        (['a.jpg'] * 5, 'five.PDF'),
    ],
)
def test_drawing(home, images, name, tmp_path, monkeypatch, capfd):
    path = tmp_path / name
    status, out, err = run(
        monkeypatch, capfd, home, *images, '-m', 'm.npz', '--draw', path, '-k', 12
    )
    assert status == (2 if 'bad.jpg' in images else 0)
    assert err.count('\n') == (status == 2)
    if name.endswith('PDF'):
        assert path.read_bytes().startswith(b'%PDF')
        return
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int)
    # The bars are there: that of the best class in its colour, as long as it is likely.
    blue = abs(pixels - (0x21, 0x71, 0xB5)).max(axis=2) < 12
    grey = abs(pixels - 0xEE).max(axis=2) < 6
    if name == 'one.png':
        row = blue.sum(axis=1).argmax()
        share = blue[row].sum() / (blue[row].sum() + grey[row].sum())
        assert share == pytest.approx(posteriors('m.npz', 'a.jpg').max(), abs=0.02)
    # So is the image: of the random colours, some are neither the page's nor the bars'.
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    assert ((saturation > 60) & ~blue).sum() > 5000


def test_drawing_names_that_are_hard_to_draw(tmp_path, recwarn, capfd):
    answers = [
        prediction.Answer(0, None, name, 0.5)
        for name in ('$\\frac{', 'x' * 500, '日本', 'a\nb\x07', '')
    ]
    path = str(tmp_path / 'odd.png')
    images = [tmp_path / name for name in ('$x.png', '日本 \n' + 'y' * 100 + '.png', '\udcff.png')]
    for image in images:
        Image.fromarray(random_image(9, 12)).save(image)
    drawing.draw(
        [prediction.Prediction(p, answers, None) for p in images]
        + [prediction.Prediction(random_image(9, 12), answers, None)],
        path,
    )
    assert [str(w.message) for w in recwarn.list] == [] and capfd.readouterr().err == ''
    with Image.open(path) as image:
        assert image.size[0] > 800


def test_the_users_image_stays_as_it_is(tmp_path):
    image = Image.fromarray(random_image(900, 1200))
    said = prediction.Prediction(image, [prediction.Answer(0, None, 'x', 1.0)], None)
    drawing.draw([said], str(tmp_path / 'x.png'))
    assert image.size == (1200, 900)


def test_lines_fit_a_terminal(monkeypatch):
    said = prediction.Prediction('x', [prediction.Answer(0, None, 'n' * 200, 0.5)], None)
    assert len(report.text(said).splitlines()[1]) > 200
    monkeypatch.setattr(sys, 'stdout', types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv('COLUMNS', '80')
    line = report.text(said).splitlines()[1]
    assert len(line) == 79 and line.endswith('…')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), 'IMAGE'),
        (('a.jpg',), '-m'),
        (('a.jpg', '-m', 'none.npz'), 'none.npz'),
        (('a.jpg', '-m', 'a.jpg'), 'a.jpg'),
        (('a.jpg', '-m', 'm.npz', '-k', '0'), '-k'),
        (('a.jpg', '-m', 'm.npz', '--draw', 'x.txt'), '--draw x.txt: a name that ends in'),
        (('a.jpg', '-m', 'm.npz', '--draw', 'no/x.png'), 'no such folder'),
        (('a.jpg',) * 61 + ('-m', 'm.npz', '--draw', 'x.png'), '61 images do not fit'),
        (('EMPTY', '-m', 'm.npz'), 'EMPTY: no images in this folder'),
        (('none.jpg', '-m', 'm.npz', '--draw', 'x.png'), 'none.jpg'),
        (('a.jpg', '-m', 'm.npz', '-m', 'three.npz'), 'different classes'),
    ],
)
def test_bad_input_is_one_line(home, arguments, message, monkeypatch, capfd):
    (home / 'EMPTY').mkdir(exist_ok=True)
    status, out, err = run(monkeypatch, capfd, home, *arguments)
    assert (status, out) == (2, '')
    assert err.count('\n') == 1 and message in err and 'Traceback' not in err
    assert not (home / 'x.png').exists()


def test_as_a_script_with_a_file_name_that_is_no_text(home, tmp_path):
    name = os.fsdecode(b'\xff.png')
    (tmp_path / name).write_bytes((home / 'b.png').read_bytes())
    process = subprocess.run(
        [sys.executable, ROOT / 'predict.py', name, '-m', home / 'm.npz', '--engine', 'reference'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and process.stderr == ''
    assert process.stdout.startswith('\\udcff.png\n') and process.stdout.count('%') == 5


EXAMPLE = (ROOT / 'tests' / 'fixtures' / 'loading_example.py').read_text()


def test_the_documentation_shows_the_loading_example():
    assert f'```python\n{EXAMPLE}```' in (ROOT / 'docs' / 'imagenet.md').read_text()


def test_the_loading_example_runs_as_written(tmp_path):
    model = resnext_ilsvrc.ResNext(1000, (3, 4, 6, 3), 32, 4, 2, initialize=False)
    model.fc.b.array[...] = np.arange(1000)
    (tmp_path / 'path/to/converted/chainer').mkdir(parents=True)
    model.save_model(tmp_path / 'path/to/converted/chainer/model')
    Image.fromarray(random_image(300, 400)).save(tmp_path / 'path/to/image', 'JPEG')
    process = subprocess.run(
        [sys.executable, '-c', EXAMPLE + '\nprint(y.shape, y.array.argmax())'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert (process.stderr, process.stdout) == ('', '(1, 1000) 999\n')
