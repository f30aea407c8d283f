"""Fine-tuning: a new classifier, frozen layers, a faster classifier; also from the script."""

import json
import os
import subprocess
import sys
import time

import chainer
import numpy as np
import pytest
from conftest import FIXTURES, ROOT, write_cifar10
from helpers.runs import log, write

import main
import resnext
import resnext_ilsvrc
from trainer import cli, run_folder
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.optimizers import OPTIMIZERS, HeadRate
from trainer.training import resolve, run, transfer
from trainer.weights import formats, npz, sources

pytestmark = pytest.mark.usefixtures('undrawn')

CLASSES = ['a', 'b', 'c']


def networks():
    return [
        resnext.ResNext(10, (1, 1, 1), 2, 2, 2),
        resnext.PaperResNext(10, (2, 1, 1), 2, 4, 1),
        resnext_ilsvrc.ResNext(10, (1, 1, 1, 1), 2, 4, 2),
    ]


def arrays(network):
    return {name: np.array(array) for name, array in npz.state(network).items()}


@pytest.mark.parametrize('network', networks(), ids=lambda network: network.kind)
def test_reset_classifier(network):
    before = arrays(network)
    new = transfer.reset_classifier(network, CLASSES, seed=1)
    assert new.classes == CLASSES and new.category_num == 3 and type(new) is type(network)
    assert (new.C, new.d, new.block_num) == (network.C, network.d, network.block_num)
    for name, array in arrays(new).items():
        if not name.startswith('fc/'):
            np.testing.assert_array_equal(array, before[name], name)
    assert new(np.zeros((1, 3, 32, 32), np.float32), train=False).shape == (1, 3)
    head = {name: a for name, a in arrays(new).items() if name.startswith('fc/')}
    again, other = (arrays(transfer.reset_classifier(network, CLASSES, seed)) for seed in (1, 2))
    assert all((head[name] == again[name]).all() for name in head)
    assert any((head[name] != other[name]).any() for name in head)
    for name, array in arrays(network).items():
        np.testing.assert_array_equal(array, before[name], name)


def steps(network, optimizer, n=2):
    rng = np.random.default_rng(0)
    for _ in range(n):
        x = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
        network.cleargrads()
        with chainer.using_config('train', True):
            network.calc_loss(network(x), np.array([0, 1, 2, 0], np.int32)).backward()
        optimizer.update()


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_frozen_layers_stay(name):
    network = resnext.PaperResNext(3, (2, 1, 1), 2, 4, 1)
    network.weight_initialization(0)
    before = arrays(network)
    optimizer = OPTIMIZERS[name](0.1, 0.9).setup(network)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.1))
    transfer.Frozen(network, ['stem', 'stage1/block1', 'stage3'])
    steps(network, optimizer)
    after = arrays(network)
    for key, array in before.items():
        same = (after[key] == array).all()
        frozen = key.startswith(('stem/', 'stage1/block1/', 'stage3/'))
        # BN's statistics and everything that is trained move elsewhere.
        assert same == frozen or key.endswith('/N'), key
    assert chainer.config.train and chainer.config.enable_backprop


def test_nothing_is_computed_backwards_below_frozen_layers():
    network = resnext.PaperResNext(3, (1, 1, 1), 2, 4, 1)
    optimizer = OPTIMIZERS['momentum'](0.1, 0.9).setup(network)
    transfer.Frozen(network, ['stem', 'stage1'])
    x = np.zeros((2, 3, 32, 32), np.float32)
    features = dict(network.activations(chainer.Variable(x)))
    assert features['stem'].creator is features['stage1'].creator is None
    assert features['stage2'].creator is not None
    # A frozen layer above one that is trained passes gradients on.
    network = resnext.PaperResNext(3, (1, 1, 1), 2, 4, 1)
    network.weight_initialization(0)
    optimizer = OPTIMIZERS['momentum'](0.1, 0.9).setup(network)
    transfer.Frozen(network, ['stage2', 'stage3', 'fc'])
    before = arrays(network)
    steps(network, optimizer, 1)
    assert (arrays(network)['stem/conv/W'] != before['stem/conv/W']).any()


def test_frozen_batch_normalisation_is_that_of_evaluation():
    network = resnext.PaperResNext(3, (1, 1, 1), 2, 4, 1)
    network.weight_initialization(0)
    OPTIMIZERS['momentum'](0.1, 0.9).setup(network)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with chainer.using_config('train', True):  # moves the running statistics
        other = dict(network.activations(chainer.Variable(x)))['stage1'].array
    with chainer.using_config('train', False):
        golden = dict(network.activations(chainer.Variable(x)))['stage1'].array
    with chainer.using_config('train', True):
        transfer.Frozen(network, ['stem', 'stage1'])
        found = dict(network.activations(chainer.Variable(x)))['stage1'].array
    assert abs(other - golden).max() > 0.1
    np.testing.assert_array_equal(found, golden)


def test_wrong_layers():
    network = resnext.PaperResNext(3, (1, 1, 1), 2, 4, 1)
    OPTIMIZERS['momentum'](0.1, 0.9).setup(network)
    with pytest.raises(
        InputError,
        match='freeze stage: there is no such layer; there are stem, stage1, stage2, stage3, fc',
    ):
        transfer.Frozen(network, ['stage'])
    with pytest.raises(InputError, match='nothing would be left to train'):
        transfer.Frozen(network, ['stem', 'stage1', 'stage2', 'stage3', 'fc'])


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_head_rate_is_a_learning_rate(name):
    """The head moves as with another learning rate, the rest as before; also when it changes."""

    def trained(lr, factor):
        network = resnext.PaperResNext(3, (1, 1, 1), 2, 4, 1)
        network.weight_initialization(0)
        for param in network.params():
            param.array = param.array.astype(np.float64)
        optimizer = OPTIMIZERS[name](lr, 0.9).setup(network)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.01))
        if factor != 1:
            optimizer.add_hook(HeadRate(list(network.fc.params()), factor))
        rng = np.random.default_rng(1)
        for i in range(4):
            for _, param in sorted(network.namedparams()):
                param.grad = rng.standard_normal(param.shape)
            optimizer.lr = lr / (1 + i)
            optimizer.update()
        return {path: param.array for path, param in network.namedparams()}

    base, fast, golden = trained(0.01, 1), trained(0.01, 10), trained(0.1, 1)
    for path in base:
        np.testing.assert_allclose(
            fast[path], (golden if path.startswith('/fc/') else base)[path], rtol=1e-9, atol=1e-12
        )
    assert abs(base['/fc/W'] - fast['/fc/W']).max() > 1e-3


# ---- as a user does it


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    from trainer.weights import formats

    network, _ = formats.read(str(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7'))
    path = str(tmp_path_factory.mktemp('converted') / 'tiny.npz')
    network.save_model(path)
    return path


def command(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_fine_tuning_from_the_command_line(converted, tmp_path):
    """A converted fixture, real images of other classes; and it resumes."""
    data, start = write(tmp_path / 'images', 20), time.perf_counter()
    flags = [
        'main.py',
        '--retrain',
        converted,
        '--reset-classifier',
        '--freeze',
        'stem',
        'stage1',
        '--head_lr',
        10,
        '--recipe',
        'torch7_cifar',
        '--dataset',
        'folder',
        '--data',
        data,
        '-b',
        16,
        '--lr',
        0.01,
        '--lr_steps',
        2,
        '-p',
    ]
    done = command(*flags, tmp_path / 'a', '-e', 2)
    assert done.returncode == 0, done.stderr
    assert 'new classifier; the classifier learns 10 times' in ' '.join(done.stdout.split())
    assert 'frozen: stem, stage1\n' in done.stdout
    assert time.perf_counter() - start < 120
    part = run.train(
        say=print,
        save_path=str(tmp_path / 'b'),
        epoch=1,
        load_model=converted,
        reset_classifier=True,
        freeze=('stem', 'stage1'),
        head_lr=10.0,
        recipe='torch7_cifar',
        dataset='folder',
        data=str(data),
        batch=16,
        lr=0.01,
        lr_steps=(2,),
    )
    assert part and run_folder.snapshots(str(tmp_path / 'b'))
    os.rename(converted, converted + '.away')  # going on needs nothing but the folder
    try:
        done = command('main.py', '--resume', tmp_path / 'b', '-e', 2)
    finally:
        os.rename(converted + '.away', converted)
    assert done.returncode == 0, done.stderr
    assert log(tmp_path / 'a') == log(tmp_path / 'b')
    for name in os.listdir(tmp_path / 'a' / 'model'):
        assert (tmp_path / 'a' / 'model' / name).read_bytes() == (
            tmp_path / 'b' / 'model' / name
        ).read_bytes(), name

    # What is frozen is the converted network's, what is not has moved.
    old, new = (formats.load(path) for path in (converted, sources.of_run(str(tmp_path / 'a'))))
    new_arrays = arrays(new)
    for name, array in arrays(old).items():
        if name.startswith(('stem/', 'stage1/')):
            np.testing.assert_array_equal(array, new_arrays[name], name)
        elif name.startswith('stage2') and name.endswith('/W'):
            assert (array != new_arrays[name]).any(), name

    # Evaluation and prediction know the classes.
    assert new.classes == ['canines', 'felines', 'lorries']
    done = command('test.py', tmp_path / 'a', '--workers', 0)
    assert done.returncode == 0, done.stderr
    entries = json.loads(log(tmp_path / 'a'))
    right = max(e['accuracy'] for e in entries if e['_id'] == 'test_accuracy')
    assert f'({12 - right:,} wrong)' in done.stdout
    image = next((data / 'lorries').iterdir())
    (said,) = prediction.predict([new], [str(image)], k=3)
    assert sorted(a.name for a in said.answers) == new.classes
    assert sum(a.probability for a in said.answers) == pytest.approx(1)


def test_wrong_flags(converted, tmp_path, capsys):
    data = str(write(tmp_path / 'images', 4))
    cifar = str(write_cifar10(tmp_path / 'cifar-10-batches-bin'))
    ours = resnext.ResNext(10, (1, 1, 1), 2, 2, 2)
    ours.classes = list('0123456789')
    ours.save_model(str(tmp_path / 'digits'))
    p = ('-p', str(tmp_path / 'run'))
    for argv, words in [
        (('--reset-classifier', *p, '--data', cifar), '--retrain'),
        (
            (
                '--retrain',
                converted,
                '--recipe',
                'original',
                '--dataset',
                'folder',
                '--data',
                data,
                *p,
            ),
            'a network of 10 classes, but folder has 3; --reset-classifier',
        ),
        (
            ('--retrain', str(tmp_path / 'digits'), '--data', cifar, *p),
            'its classes are not those of cifar10 (0 where there is airplane now)',
        ),
        (
            (
                '--retrain',
                converted,
                '--reset-classifier',
                '--freeze',
                'stage9',
                '--dataset',
                'folder',
                '--data',
                data,
                *p,
            ),
            '--freeze stage9: there is no such layer',
        ),
        (('--head_lr', '0', *p), 'argument --head-lr'),
    ]:
        with pytest.MonkeyPatch.context() as m:
            m.setattr(sys, 'argv', ['main.py', *argv])
            with pytest.raises(SystemExit) as end:
                cli.run(main.main)
        out, err = capsys.readouterr()
        assert 'frozen' not in out
        assert end.value.code == 2 and err.count('\n') == 1 and words in err, err
    assert not (tmp_path / 'run' / 'run.json').exists()


def test_fine_tuning_is_the_default_with_a_folder(converted, tmp_path):
    data, said = str(write(tmp_path / 'images', 8)), []
    given = dict(load_model=converted, dataset='folder', data=data, epoch=1, seed=1)
    run.train(say=said.append, save_path=str(tmp_path / 'a'), **given)
    options = run_folder.read_record(str(tmp_path / 'a'))['options']
    assert options['recipe'] == 'fine_tune' and options['reset_classifier']
    # Three stages, of which the last is trained; the model's own preprocessing.
    assert options['freeze'] == ('stem', 'stage1', 'stage2')
    assert options['preprocessing'] == formats.load(converted).preprocessing
    assert any('with a new classifier' in line for line in said)
    first = sources.of_run(str(tmp_path / 'a'), 1)
    before, after = (arrays(formats.load(path)) for path in (converted, first))
    for name, array in before.items():
        kept = name.startswith(('stem/', 'stage1/', 'stage2/'))
        if np.ndim(array):
            same = array.shape == after[name].shape and (array == after[name]).all()
            assert same == kept or name.endswith('/beta') and kept, name

    # Going on with its result keeps the classifier, unless a new one is asked for.
    for more, wanted in ((dict(), False), (dict(reset_classifier=True), True)):
        folder = str(tmp_path / str(wanted))
        again = dict(given, load_model=first, lr=1e-9, head_lr=1.0, warmup=1) | more
        run.train(say=said.append, save_path=folder, **again)
        assert run_folder.read_record(folder)['options']['reset_classifier'] == wanted
        weights = formats.load(sources.of_run(folder, 1)).fc.W.array
        assert np.allclose(weights, after['fc/W'], atol=1e-5) != wanted

    # Flags come before the recipe; other recipes and going on by hand as before.
    def resolved(**more):
        return resolve.resolve('nowhere', False, said.append, dict(given, **more))[0]

    assert resolved(freeze=('stem',), head_lr=2.0).freeze == ('stem',)
    assert resolved(recipe='prlz77').recipe == 'prlz77'
    assert resolved(start_epoch=2).recipe == 'original'
    assert resolved(dataset='cifar10').recipe == 'original'
    with pytest.raises(InputError, match='recipe fine_tune: there is no model'):
        run.train(recipe='fine_tune', data=data, save_path=str(tmp_path / 'b'))


def test_summary_is_of_the_new_classifier(converted, tmp_path):
    def total(**given):
        text = run.summary(load_model=converted, **given)
        return next(
            int(line.split()[1].replace(',', ''))
            for line in text.splitlines()
            if line.startswith('total')
        )

    data = str(write(tmp_path / 'images', 4))
    new = total(reset_classifier=True, dataset='folder', data=data)
    assert total() - new == 7 * (128 + 1)  # three classes of ten, of 128 features
