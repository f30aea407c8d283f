"""Output for users: results per image, augmented images, TensorBoard, the summary of a run."""

import csv
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import write_cifar10
from helpers.images import random_image
from helpers.networks import network as small_network
from helpers.networks import softmax
from PIL import Image

import data_augmentation
import ilsvrc_converter
import main
import predict
import resnext_ilsvrc
import test as test_script
import test_ilsvrc
from trainer import cli, run_folder
from trainer.datasets import folder
from trainer.errors import InputError
from trainer.inference import evaluation
from trainer.reports import augmented, results
from trainer.training import loop, patience, processes, run
from trainer.transforms import mixing

CLASSES = ['cat, "big"', 'dog', 'hen']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """Images of three classes, one of which cannot be read, and a network for them."""
    root = tmp_path_factory.mktemp('tree')
    for label, name in enumerate(CLASSES):
        (root / 'val' / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(random_image(230 + i, 240, seed=10 * label + i))
            image.save(root / 'val' / name / f'{i}.png')
    (root / 'val' / 'dog' / '9.png').write_bytes(b'no image')
    small_network(3, 0, CLASSES).save_model(str(root / 'model.npz'))
    return root


def test_an_image_a_line(tree, tmp_path):
    network = resnext_ilsvrc.load(str(tree / 'model.npz'))
    images = folder.class_folders(str(tree / 'val'))
    path = str(tmp_path / 'out.csv')
    with results.Results(network, images, path) as each:
        found = evaluation.evaluate([network], images, batch=5, workers=0, each=each)
        assert not os.path.exists(path)  # it appears whole
        each.end(found.unreadable)
    with open(path, newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 13 and list(rows[0]) == list(results.COLUMNS)
    test = data_augmentation.DataAugmentationNormalizeBigger.test
    right = 0
    for row in rows[:-1]:
        (label,) = (
            i for i, name in enumerate(CLASSES) if f'{os.sep}{name}{os.sep}' in row['image']
        )
        p = softmax(network(test(row['image']).x[None], train=False).array.astype(np.float64))[0]
        assert int(row['label']) == label and row['label_name'] == CLASSES[label]
        assert int(row['answer']) == p.argmax() and row['answer_name'] == CLASSES[p.argmax()]
        assert float(row['probability']) == pytest.approx(p.max(), abs=2e-6)
        assert float(row['label_probability']) == pytest.approx(p[label], abs=2e-6)
        assert int(row['rank']) == 1 + (p > p[label]).sum() and row['error'] == ''
        right += p.argmax() == label
    assert right == found.tally.confusion.trace()
    assert rows[-1]['image'].endswith('9.png') and rows[-1]['error'] and rows[-1]['answer'] == ''


def test_mistakes_are_those_that_it_is_surest_of(monkeypatch):
    images = folder.ImageFiles([f'{i}.png' for i in range(100)], [0] * 100, CLASSES)
    network = small_network(3, 0, CLASSES)
    each = results.Results(network, images, mistakes='x.png')
    drawn = []
    monkeypatch.setattr(each, '_draw', lambda: drawn.extend(sorted(each._worst, reverse=True)))
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((100, 3))
    for part in np.array_split(np.arange(100), 7):
        each(part, np.zeros(len(part), int), scores[part])
    each.end([])
    p = softmax(scores)
    wrong = [i for i in range(100) if p[i].argmax()]
    wrong.sort(key=lambda i: -p[i].max())
    assert [-item for _, item, *_ in drawn] == wrong[: results.MOST_MISTAKES]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script in a folder: its exit status, output and errors."""

    def run_script(script, *arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, 'argv', [script.__name__ + '.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.run(script.main)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(script, end.value.code or 0, out, err)

    return run_script


def test_nothing_that_is_read_is_replaced(tree, tmp_path, command):
    model, image = tree / 'model.npz', tree / 'val' / CLASSES[0] / '0.png'
    before = model.read_bytes(), image.read_bytes()
    given = ('-m', model, '-ld', tree)
    for script, *arguments in (
        (predict, image, '-m', model, '--draw', image),
        (predict, tree / 'val', '-m', model, '--cam', image),
        (test_ilsvrc, *given, '--mistakes', image),
        (ilsvrc_converter, '-i', model, '-o', model),
    ):
        done = command(script, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, '')
        assert 'give another name' in done.stderr and done.stderr.count('\n') == 1
    assert (model.read_bytes(), image.read_bytes()) == before
    done = command(predict, image, '-m', model, '--draw', 'a.png', '--cam', './a.png', cwd=tmp_path)
    assert done.returncode == 2 and '--cam ./a.png: --draw writes this file' in done.stderr


def test_the_log_of_a_run_stays(tree, tmp_path, command):
    """Both scripts write log.json to ./ by default."""
    for name in ('run.json', 'log.json'):
        (tmp_path / name).write_text('{}')
    done = command(test_ilsvrc, '-m', tree / 'model.npz', '-ld', tree, cwd=tmp_path)
    assert done.returncode == 2
    assert '-p ./: the log.json there is that of a run' in done.stderr
    assert (tmp_path / 'log.json').read_text() == '{}'


def test_the_commands(tree, tmp_path, command):
    given = ('-m', tree / 'model.npz', '-ld', tree, '--workers', '0')
    done = command(test_ilsvrc, *given, '--results', 'a.csv', '--mistakes', 'a.png', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'a.csv: one line per image' in done.stdout and 'a.png: the' in done.stdout
    assert len((tmp_path / 'a.csv').read_text().splitlines()) == 14
    with Image.open(tmp_path / 'a.png') as drawn:
        assert drawn.width > 300 and np.asarray(drawn).std() > 20
    for arguments, words in (
        (('--results', 'a.txt'), '--results a.txt: a name that ends in .csv'),
        (('--mistakes', 'no/a.png'), '--mistakes no/a.png: there is no such folder'),
        (('--features', 'f.npy', '--results', 'b.csv'), '--features measures nothing'),
    ):
        done = command(test_ilsvrc, *given, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'b.csv').exists()
    # Nothing is left of an evaluation that fails.
    (tmp_path / 'none' / 'val' / 'cat').mkdir(parents=True)
    (tmp_path / 'none' / 'val' / 'cat' / 'x.png').write_bytes(b'no image')
    done = command(
        test_script, tree / 'model.npz', '--dataset', 'folder', '--data', tree / 'val',
        '--results', 'c.csv', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / 'c.csv').exists(), done.stderr


# ---- augmented images


@pytest.mark.parametrize(
    'name, exact',
    [
        ('DataAugmentationCifarTorch7', True),
        ('DataAugmentationImagenetTorchvision', True),
        ('DataAugmentationCifar10NormalizeSmall', False),
    ],
)
def test_normalisation_is_undone(name, exact):
    preprocessing = getattr(data_augmentation, name)
    side = preprocessing.shape[-1]
    pixels = random_image(side, side)
    if exact and side == 32:
        x = preprocessing.test(pixels.transpose(2, 0, 1)).x
        wanted = pixels
    elif exact:
        sample = preprocessing.test_pixels(pixels).x
        x, wanted = preprocessing.test(pixels).x, sample.values
    else:
        x = preprocessing.test(pixels.transpose(2, 0, 1)).x
        wide = pixels.astype(float)
        wanted = np.rint((wide - wide.min()) / np.ptp(wide) * 255)
    found = augmented.visible(preprocessing, x[None])[0]
    assert abs(found.astype(int) - wanted).max() <= (0 if exact else 1)


def test_labels_in_words():
    rows = np.zeros((4, len(mixing.FIELDS)), np.float32)
    rows[:, mixing.FIELDS.index('share')] = 0.7, 0.25, 0.999, 0.5
    rows[:, mixing.FIELDS.index('other')] = 1, 2, 0, 2
    assert augmented.titles(CLASSES, np.array([1, 0, 2, 2]), rows) == [
        'dog', '25 % cat, "big"\n75 % hen', 'hen', 'hen'
    ]  # fmt: skip
    assert augmented.titles(CLASSES, np.array([1])) == ['dog']


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'
    return str(write_cifar10(folder, per_file=20))


TINY = dict(C=2, d=2, multi=2, block_num=(1, 1, 1), batch=20, train_batch_divide=1, lr=0.05)


def test_show_augmented(cifar, tmp_path, monkeypatch, command):
    seen = {}
    real = augmented.draw

    def draw(images, words, path):
        seen.update(images=images, words=words)
        real(images, words, path)

    monkeypatch.setattr(augmented, 'draw', draw)
    given = dict(TINY, data=cifar, preprocessing='DataAugmentationCifarTorch7', seed=2)
    number = run.show_augmented(str(tmp_path / 'a.png'), mixup=0.2, reprob=0.5, **given)
    assert number == 20 and os.listdir(tmp_path) == ['a.png']
    assert seen['images'].shape == (20, 32, 32, 3)
    assert all(re.fullmatch(r'[a-z]+|\d+ % [a-z]+\n\d+ % [a-z]+', words) for words in seen['words'])
    mixed = seen['images']
    run.show_augmented(str(tmp_path / 'b.png'), **given)
    assert (seen['images'] != mixed).any()
    done = command(main, '--data', cifar, '--show-augmented', 'c.png', '-p', 'run', cwd=tmp_path)
    assert done.returncode == 0 and 'c.png: 24 images of the first batch' in done.stdout
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'b.png', 'c.png']
    with pytest.raises(InputError, match='show_augmented x.txt: a name'):
        run.show_augmented('x.txt', **given)


# ---- the end of a run


def test_patience_by_the_log():
    class Log:
        log = []

    told = patience.Patience(2, Log, processes.ALONE)
    ends = []
    for accuracy in (0.5, 0.7, 0.6, 0.7, 0.8, 0.1, 0.2, 0.9):
        Log.log.append({'validation/main/accuracy': accuracy})
        ends.append(told())
    assert ends == [False, False, False, True, False, False, True, False]


def test_a_run_ends_when_it_gets_no_better(cifar, tmp_path, monkeypatch):
    scores = iter([0.1, 0.4, 0.3, 0.2, 0.35, 0.5, 0.1, 0.2, 0.3])
    real = loop.extensions.Evaluator.evaluate

    def evaluate(self):
        found = real(self)
        found['validation/main/accuracy'] = next(scores)
        return found

    monkeypatch.setattr(loop.extensions.Evaluator, 'evaluate', evaluate)
    said = []
    given = dict(say=said.append, save_path=str(tmp_path))
    assert run.train(data=cifar, epoch=9, patience=2, **TINY, **given)
    assert [os.path.basename(p) for p in run_folder.snapshots(str(tmp_path))][0].endswith('_20')
    assert any('ended after epoch 4: no better for 2 epochs' in line for line in said)
    assert (tmp_path / 'loss.jpg').exists()
    # It says so again, and a higher one takes it further.
    assert run.train(resume=True, **given)
    assert any('a higher --patience takes it further' in line for line in said)
    assert run.train(resume=True, patience=4, **given)
    assert run_folder.snapshots(str(tmp_path))[0].endswith('_45')


# ---- TensorBoard


def scalars(path):
    """Read the numbers that a run wrote: {(name, epoch): value}."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401
    from tensorboardX.proto import event_pb2

    found = {}
    for name in sorted(os.listdir(path)):
        data, at = pathlib.Path(path, name).read_bytes(), 0
        while at < len(data):  # length, its checksum, an event, its checksum
            size = int.from_bytes(data[at : at + 8], 'little')
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found.update({(v.tag, event.step): v.simple_value for v in event.summary.value})
            at += 16 + size
    return found


def test_tensorboard_has_the_log(cifar, tmp_path):
    pytest.importorskip('tensorboardX', reason='needs tensorboardX (extra tensorboard)')
    given = dict(say=lambda text: None, save_path=str(tmp_path))
    run.train(data=cifar, epoch=2, tensorboard=True, **TINY, **given)
    run.train(resume=True, epoch=3, **given)
    found = scalars(tmp_path / 'tensorboard')
    names = {'loss/train', 'loss/test', 'accuracy/train', 'accuracy/test', 'accuracy/test_top5'}
    assert set(found) == {(n, e) for n in names | {'learning_rate'} for e in (1, 2, 3)}
    from trainer.reports.comparison import Run

    for row in Run(str(tmp_path)).epochs:
        assert found['accuracy/test', row['epoch']] == pytest.approx(1 - row['test_error'] / 100)
        assert found['loss/train', row['epoch']] == pytest.approx(row['train_loss'], rel=1e-5)
    # A new run in the folder does not mix with it.
    run.train(data=cifar, epoch=1, **TINY, **given)
    assert not (tmp_path / 'tensorboard').exists()


def test_tensorboard_of_a_run_continued_within_a_second(cifar, tmp_path, monkeypatch):
    """The names of its files have the time in seconds."""
    writer = pytest.importorskip(
        'tensorboardX.event_file_writer', reason='needs tensorboardX (extra tensorboard)'
    )
    stopped = types.SimpleNamespace(**{**vars(time), 'time': lambda: 1.8e9})
    monkeypatch.setattr(writer, 'time', stopped)
    given = dict(say=lambda text: None, save_path=str(tmp_path))
    run.train(data=cifar, epoch=1, tensorboard=True, **TINY, **given)
    run.train(resume=True, epoch=2, **given)
    assert {epoch for _, epoch in scalars(tmp_path / 'tensorboard')} == {1, 2}


def test_tensorboard_is_not_there(cifar, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with pytest.raises(InputError, match='--tensorboard needs the package tensorboardX.*--extra'):
        run.train(data=cifar, tensorboard=True, save_path=str(tmp_path / 'run'), **TINY)
