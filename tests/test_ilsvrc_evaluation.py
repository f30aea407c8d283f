"""test_ilsvrc.py and what is behind it: a small ILSVRC tree, and numbers computed by hand."""

import json
import os
import pathlib
import sys

import chainer
import numpy as np
import pytest
from helpers.images import SIZES, make_tree, random_image
from helpers.networks import network, softmax
from PIL import Image

import resnext
import resnext_ilsvrc
import test_ilsvrc as script
import trainer  # noqa: F401
from data_augmentation import DataAugmentationNormalizeBigger as Bigger
from trainer import cli
from trainer.datasets import class_names, folder, ilsvrc
from trainer.errors import InputError
from trainer.inference import evaluation, prediction
from trainer.reports import evaluation_report as report

ROOT = pathlib.Path(__file__).resolve().parents[1]
SYNSETS = ['n01440764', 'n01443537', 'n02123045', 'n03000684', 'n04146614', 'n15075141']
N = 20


class Tree:
    """The same images in both layouts, their labels, and networks for them."""

    def __init__(self, root):
        rng = np.random.default_rng(0)
        self.labels = rng.permutation(np.arange(N) % len(SYNSETS))
        self.synsets = [SYNSETS[i] for i in self.labels]
        self.published, self.folders = root / 'published' / 'ILSVRC', root / 'folders'
        names = make_tree(self.published, self.synsets, self._save)
        self.paths = [self.published / 'Data' / 'CLS-LOC' / 'val' / (n + '.JPEG') for n in names]
        for path, synset in zip(self.paths, self.synsets):
            (self.folders / 'val' / synset).mkdir(parents=True, exist_ok=True)
            (self.folders / 'val' / synset / path.name).write_bytes(path.read_bytes())
        self.models = []
        for seed in (1, 2):
            self.models.append(str(root / f'{seed}.npz'))
            network(6, seed).save_model(self.models[-1])
        self.bad = {
            'M': self.models[0],
            'SEVEN': root / 'seven.npz',
            'NAN': root / 'nan.npz',
            'CIFAR': root / 'cifar.npz',
            'EMPTY': root / 'empty',
            'FILE': root / 'FILE',
        }
        network(7, 1).save_model(self.bad['SEVEN'])
        broken = resnext_ilsvrc.load(self.models[0])
        broken.fc.W.array[0, 0] = np.nan
        broken.save_model(self.bad['NAN'])
        resnext.ResNext(6, (1, 1, 1), 2, 4, 2).save_model(self.bad['CIFAR'])
        self.bad['EMPTY'].mkdir()
        self.bad['FILE'].touch()

    @staticmethod
    def _save(i, path):
        image = Image.fromarray(random_image(*SIZES[i % len(SIZES)], seed=i))
        if i % 4 == 1:
            image = image.convert('L')
        image.save(path, ['JPEG', 'PNG'][i % 5 == 2])

    def logits(self, model, function=Bigger.test, n=N):
        """Scores of the first n, straight from the network: (n, ..., classes)."""
        net = resnext_ilsvrc.load(model)
        x = np.stack([function(path).x for path in self.paths[:n]])
        with chainer.no_backprop_mode():
            y = net(x.reshape((-1,) + x.shape[-3:]), train=False).array
        return y.reshape(x.shape[:-3] + (-1,)).astype(np.float64)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp('tree'))


def by_hand(p, labels):
    """From posteriors: (images right, among the best five, sum of the losses)."""
    top1 = top5 = loss = 0
    for row, label in zip(p, labels):
        better = (row > row[label]).sum()
        top1 += better == 0
        top5 += better < 5
        loss -= np.log(row[label])
    return int(top1), int(top5), float(loss)


def run(monkeypatch, capsys, *arguments):
    """Run the script in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr(sys, 'argv', ['test_ilsvrc.py'] + [str(a) for a in arguments])
    with pytest.raises(SystemExit) as e:
        cli.run(script.main)
    return (e.value.code,) + capsys.readouterr()


def logged(path):
    """log.json as a dict: _id -> entry."""
    entries = json.loads((path / 'log.json').read_text())
    named = {entry['_id']: entry for entry in entries}
    assert len(named) == len(entries)
    return named


def check(log, p, labels):
    top1, top5, loss = by_hand(p, labels)
    n = len(labels)
    assert log['test_accuracy']['accuracy'] == top1
    assert log['test_5_accuracy']['accuracy'] == top5
    assert log['test_parameter']['parameter'] == n
    assert log['test_loss']['loss'] == pytest.approx(loss, rel=1e-5)
    assert log['test_error']['top1'] == pytest.approx(100 * (1 - top1 / n), abs=1e-9)
    assert log['test_error']['top5'] == pytest.approx(100 * (1 - top5 / n), abs=1e-9)
    answers = p.argmax(axis=1)
    for label in range(p.shape[1]):
        assert log[f'test_parameter_{label}']['parameter'] == (labels == label).sum()
        assert (
            log[f'test_accuracy_{label}']['accuracy']
            == ((labels == label) & (answers == label)).sum()
        )
        for answer in set(range(p.shape[1])) - {label}:
            mistaken = ((labels == label) & (answers == answer)).sum()
            entry = log.get(f'test_accuracy_{label}_{answer}', {'accuracy': 0})
            assert entry['accuracy'] == mistaken
    return top1, top5


@pytest.mark.parametrize('layout', ['published', 'folders'])
def test_errors_equal_those_by_hand(tree, layout, tmp_path, monkeypatch, capsys):
    p = softmax(tree.logits(tree.models[0]))
    status, out, err = run(
        monkeypatch,
        capsys,
        '-m',
        tree.models[0],
        '-ld',
        getattr(tree, layout),
        '-p',
        tmp_path / 'new',
        '-b',
        7,
        '-teb',
        2,
        '-c',
        2,
        '-d',
        2,
        '-l',
        14,
    )
    assert (status, err) == (0, '')
    log = logged(tmp_path / 'new')
    top1, top5 = check(log, p, tree.labels)
    assert 0 < top1 < top5 < N  # the numbers can tell right from wrong
    assert log['categories']['are'] == SYNSETS
    assert log['model']['model'] == [tree.models[0]]
    assert log['test_unreadable']['images'] == []
    errors = [100 * (1 - top / N) for top in (top1, top5)]
    for name, error, top in zip(('top-1', 'top-5'), errors, (top1, top5)):
        assert f'\n{name} error  {error:6.2f} %  ({N - top} wrong)\n' in out
    # The last line of the progress tells the same, and the ones before what was known then.
    told = [line for line in out.splitlines() if 'images/s' in line and f'/{N} [' in line]
    assert [int(line.split('/')[0]) for line in told] == [7, 14, 20]
    assert told[-1].endswith('error {:.2f}% (top-5 {:.2f}%)]'.format(*errors))
    if layout == 'published':
        seen = [100 * (1 - top / 7) for top in by_hand(p[:7], tree.labels[:7])[:2]]
        assert told[0].endswith('error {:.2f}% (top-5 {:.2f}%)]'.format(*seen))
    assert all(len(line) < 80 for line in out.splitlines() if not line.startswith('model'))


def test_ten_crops_average_their_posteriors(tree, tmp_path, monkeypatch, capsys):
    for synset in SYNSETS:
        (tmp_path / 'val' / synset).mkdir(parents=True)
    for path, synset in zip(tree.paths[:5], tree.synsets):
        (tmp_path / 'val' / synset / path.name).write_bytes(path.read_bytes())
    p = softmax(tree.logits(tree.models[0], Bigger.ten_crop, 5)).mean(axis=1)
    status, out, _ = run(
        monkeypatch,
        capsys,
        '-m',
        tree.models[0],
        '-ld',
        tmp_path,
        '-p',
        tmp_path,
        '--ten-crop',
        '-b',
        3,
        '--workers',
        1,
    )
    assert status == 0 and 'ten crops' in out
    log = logged(tmp_path)
    check(log, p, tree.labels[:5])
    assert log['crops']['crops'] == 10


def test_several_models_average_their_posteriors(tree, tmp_path, monkeypatch, capsys):
    each = [softmax(tree.logits(model)) for model in tree.models]
    status, out, _ = run(
        monkeypatch,
        capsys,
        '-m',
        tree.models[0],
        '-m',
        tree.models[1],
        '-ld',
        tree.folders,
        '-p',
        tmp_path,
        '--workers',
        0,
    )
    assert status == 0 and 'averaged' in out
    log = logged(tmp_path)
    check(log, sum(each) / 2, tree.labels)
    assert log['model']['model'] == tree.models


def test_averages_of_crops_and_networks():
    x = np.random.default_rng(0).normal(size=(2, 10, 3, 32, 32)).astype(np.float32)
    networks = [network(6, 1), network(6, 2)]
    with chainer.no_backprop_mode():
        p = (
            np.mean(
                [
                    softmax(net(x.reshape(20, 3, 32, 32), train=False).array.astype(float))
                    for net in networks
                ],
                axis=0,
            )
            .reshape(2, 10, 6)
            .mean(axis=1)
        )
    y = prediction.scores(networks, x, chunk=7)
    assert y.dtype == np.float64
    np.testing.assert_allclose(np.exp(y), p, rtol=1e-4)
    # One that is sure, another that is sure of something else: nothing becomes infinite.
    networks[0].fc.W.array[...] *= 1000
    assert np.isfinite(prediction.scores(networks, x)).all()
    # The mode is evaluation whatever the configuration, and the statistics stay.
    before = networks[1].stem.bn.avg_mean.copy()
    with chainer.using_config('train', True):
        prediction.scores(networks, x)
    assert (networks[1].stem.bn.avg_mean == before).all()


def test_features(tree, tmp_path, monkeypatch, capsys):
    net = resnext_ilsvrc.load(tree.models[0])
    broken = tmp_path / 'val' / SYNSETS[0] / 'broken.jpg'
    broken.parent.mkdir(parents=True)
    broken.write_text('nothing')
    (tmp_path / 'val' / SYNSETS[0] / 'c.png').write_bytes(tree.paths[2].read_bytes())
    (tmp_path / 'val' / 'x').mkdir()
    (tmp_path / 'val' / 'x' / 'd.jpg').write_bytes(tree.paths[1].read_bytes())
    out = tmp_path / 'features.npy'
    monkeypatch.chdir(tmp_path)
    for flags, function in (((), Bigger.test), (('--ten-crop',), Bigger.ten_crop)):
        # The classes need not be the network's.
        status, said, _ = run(
            monkeypatch,
            capsys,
            '-m',
            tree.models[0],
            '-ld',
            tmp_path,
            '--features',
            out,
            '-b',
            2,
            *flags,
        )
        assert status == 0 and '3 rows, 1 of them nan' in said and str(broken) in said
        features = np.load(out)
        beside = json.loads((tmp_path / 'features.json').read_text())
        assert features.dtype == np.float32 and features.shape == (3, 64)
        assert np.isnan(features[0]).all()
        for row, path in zip(features[1:], (tree.paths[2], tree.paths[1])):
            x = function(path).x.reshape(-1, 3, 224, 224)
            with chainer.no_backprop_mode(), chainer.using_config('train', False):
                expected = net.features(x).array[:, :, 0, 0].mean(axis=0)
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
        assert [os.path.basename(path) for path in beside['images']] == [
            'broken.jpg',
            'c.png',
            'd.jpg',
        ]
        assert beside['labels'] == [0, 0, 1] and beside['categories'] == [SYNSETS[0], 'x']
        assert [u['path'] for u in beside['unreadable']] == [str(broken)]
    assert not os.path.exists('log.json')


def test_unreadable_images_are_told_and_not_counted(tree, tmp_path, monkeypatch, capsys):
    root = tmp_path / 'ILSVRC'
    names = make_tree(root, tree.synsets, tree._save)
    data = root / 'Data' / 'CLS-LOC' / 'val'
    cut, gone = data / (names[4] + '.JPEG'), data / (names[5] + '.JPEG')
    cut.write_bytes(cut.read_bytes()[:900])
    gone.unlink()
    monkeypatch.chdir(tmp_path)  # ./ILSVRC, ./log.json
    status, out, err = run(monkeypatch, capsys, '-m', tree.models[0], '-b', 1)
    assert status == 0
    log = logged(tmp_path)
    read = [i for i in range(N) if i not in (4, 5)]
    check(log, softmax(tree.logits(tree.models[0]))[read], tree.labels[read])
    unreadable = log['test_unreadable']['images']
    assert [u['path'] for u in unreadable] == [
        './ILSVRC/Data/CLS-LOC/val/' + path.name for path in (cut, gone)
    ]
    assert 'truncated' in unreadable[0]['error'] and 'No such file' in unreadable[1]['error']
    assert '2 more could not be read and are not counted' in out
    assert cut.name in out and gone.name in out and 'images           18' in out
    for path in data.iterdir():
        path.write_text('')
    (tmp_path / 'log.json').write_text('before')
    status, out, err = run(monkeypatch, capsys, '-m', tree.models[0])
    assert status == 2 and err.count('\n') == 1 and 'none of the 20 images' in err
    assert (tmp_path / 'log.json').read_text() == 'before'


def test_some_synsets_of_a_thousand(tree, tmp_path, monkeypatch, capsys):
    model = str(tmp_path / 'm.npz')
    network(1000, 3).save_model(model)
    labels = np.array([list(class_names.imagenet()).index(s) for s in tree.synsets])
    assert set(labels) >= {0, 1, 281, 999}
    status, out, _ = run(monkeypatch, capsys, '-m', model, '-ld', tree.published, '-p', tmp_path)
    assert status == 0 and 'hardest classes' in out
    log = logged(tmp_path)
    top1, top5, loss = by_hand(softmax(tree.logits(model)), labels)
    assert log['test_accuracy']['accuracy'] == top1
    assert log['test_5_accuracy']['accuracy'] == top5
    assert log['test_loss']['loss'] == pytest.approx(loss, rel=1e-5)
    assert len(log['categories']['are']) == 1000
    assert log['test_parameter_281']['parameter'] == (labels == 281).sum() > 0


def test_labels_by_the_names_in_the_file(tree, tmp_path, monkeypatch, capsys):
    model = str(tmp_path / 'm.npz')
    classes = ['other'] + SYNSETS[::-1]
    network(7, 3, classes).save_model(model)
    labels = np.array([classes.index(s) for s in tree.synsets])
    assert run(monkeypatch, capsys, '-m', model, '-ld', tree.folders, '-p', tmp_path)[0] == 0
    log = logged(tmp_path)
    check(log, softmax(tree.logits(model)), labels)
    assert log['categories']['are'] == classes


def test_the_loss_column_and_the_table_from_python(tree):
    images = ilsvrc.find(str(tree.published))
    net = resnext_ilsvrc.load(tree.models[0])
    seen = []
    found = evaluation.evaluate(
        [net], images, batch=8, workers=0, progress=lambda n, tally: seen.append((n, tally.images))
    )
    assert seen == [(8, 8), (8, 16), (4, 20)]
    _, _, loss = by_hand(softmax(tree.logits(tree.models[0])), tree.labels)
    assert found.tally.loss == pytest.approx(loss / N, rel=1e-5)
    table = report.table(found, ['m'], net)
    (line,) = [line for line in table.splitlines() if line.startswith('loss ')]
    assert line == f'loss         {found.tally.loss:8.4f}'
    assert float(line.split()[1]) == pytest.approx(loss / N, abs=2e-4)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), '-m'),
        (('-m', 'none.npz'), 'none.npz'),
        (('-m', 'M', '-c', '3'), '-c 3'),
        (('-m', 'M', '-l', '50'), '-l 50'),
        (('-m', 'M', '-ld', 'nowhere'), '-ld nowhere: no such folder; wanted is the ILSVRC tree'),
        (('-m', 'M', '-ld', 'EMPTY'), 'no images in class folders; wanted is'),
        (('-m', 'M', '-b', '0'), '-b'),
        (('-m', 'M', '--workers', '-1'), '--workers'),
        (('-m', 'M', '-m', 'M', '--features', 'x.npy'), '--features'),
        (('-m', 'M', '--features', 'x.txt'), 'ends in .npy'),
        (('-m', 'SEVEN'), 'of 6 classes (n01440764, n01443537, ...), the network has 7'),
        (('-m', 'M', '-m', 'SEVEN'), 'different classes (6 and 7)'),
        (('-m', 'NAN'), 'not finite'),
        (('-m', 'CIFAR', '--ten-crop'), '--ten-crop'),
        (('-m', 'M', '-m', 'CIFAR'), 'preprocessed differently'),
        (('-m', 'M', '-p', 'FILE'), 'FILE'),
    ],
)
def test_bad_input_is_one_line(tree, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [tree.bad.get(a, a) for a in arguments]
    if '-ld' not in arguments:
        arguments += ['-ld', tree.folders]
    status, out, err = run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert err.count('\n') == 1 and message in err and 'Traceback' not in err
    assert not (tmp_path / 'log.json').exists() and not list(tmp_path.glob('*.npy'))


def test_without_data_the_default_is_told(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(monkeypatch, capsys, '-m', tree.models[0])
    assert (status, out) == (2, '')
    assert err.startswith('test_ilsvrc.py: error: -ld ./ILSVRC: no such folder; wanted')
    assert err.count('\n') == 1 and os.listdir(tmp_path) == []


def test_cifar_network_on_class_folders(tree, tmp_path):
    net = resnext.ResNext(6, (1, 1, 1), 2, 4, 2)
    found = evaluation.evaluate([net], folder.class_folders(str(tree.folders / 'val')), workers=0)
    assert found.tally.images == N and not found.unreadable
    with pytest.raises(InputError, match='no preprocessing'):
        net.preprocessing = None
        prediction.preprocessing([net])
