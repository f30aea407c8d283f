"""The files of a run: resuming from them, and damaged ones."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT, write_cifar10
from helpers.runs import write

from trainer import recipes, run_folder
from trainer.datasets import splits
from trainer.errors import InputError
from trainer.recipes import options
from trainer.reports import comparison
from trainer.run_folder import snapshots as find
from trainer.training import loop, run

pytestmark = pytest.mark.usefixtures('undrawn')

SMALL = dict(C=2, d=2, block_num=(1, 1, 1), batch=60, epoch=1)
MODEL = str(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7')


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    return str(write_cifar10(tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp('images') / 'images'))


@pytest.fixture(scope='module')
def done(cifar, tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp('done')
    run.train(say=lambda text: None, save_path=str(folder), data=cifar, **SMALL)
    return folder


class Killed(BaseException):
    pass


def killed(folder, monkeypatch, **given):
    """Start or resume a run up to its first update; return its record."""

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(loop, 'ChunkedUpdater', kill)
        with pytest.raises(Killed):
            run.train(say=lambda text: None, save_path=str(folder), **given)
    assert not find(str(folder))
    return (folder / 'run.json').read_bytes()


def small(recipe):
    return dict(
        SMALL, recipe=recipe, block_num=(1,) * (4 if recipes.get(recipe).network == 'ilsvrc' else 3)
    )


@pytest.mark.parametrize('recipe', [name for name in recipes.available() if name != 'quick'])
def test_every_recipe_goes_on_before_its_first_snapshot(recipe, images, tmp_path, monkeypatch):
    for name, given in (
        *([] if recipe == 'fine_tune' else [('new', dict(small(recipe), batch=20))]),
        ('tuned', dict(load_model=MODEL, reset_classifier=True, recipe=recipe, batch=20)),
        ('model', dict(load_model=MODEL, reset_classifier=True, epoch=2)),
    ):
        folder = tmp_path / name
        began = killed(folder, monkeypatch, dataset='folder', data=images, **given)
        assert killed(folder, monkeypatch, resume=True) == began, name


OPTIONS = (
    dict(quick=True),
    dict(network='paper', C=2, d=4, widen_factor=1, depth=11, shortcut='C', recipe='prlz77'),
    dict(network='original', C=2, d=2, multi=3, block_num=(1, 1, 2), initialization='torch7'),
    dict(
        dataset='folder',
        preprocessing='DataAugmentationImagenetPaper',
        sampling='full-batches',
        epoch=3,
        schedule_epoch=9,
        batch=5,
        batch_scaling='lr',
        train_batch_divide=2,
        test_batch_divide=3,
        optimizer='torch-nesterov',
        momentum=0.8,
        weight_decay=0.01,
        lr=0.03,
        lr_schedule='cosine',
        lr_steps=(0.5, 2),
        lr_period=0.5,
        lr_min=0.001,
        warmup=1,
        label_smoothing=0.2,
        ema_decay=0.9,
        seed=5,
        workers=0,
        threads=1,
    ),
    dict(load_model=MODEL, reset_classifier=True, freeze=('stem', 'stage1'), head_lr=3.0),
    dict(
        auto_augment='ta_wide',
        mixup=0.2,
        cutmix=1.0,
        reprob=0.1,
        repeated_augmentation=2,
        sampling='every-image',
        norm_weight_decay=0.0,
        bias_weight_decay=0.1,
        clip_grad=1.0,
        ema_decay=0.9,
        ema_steps=2,
        warmup=1,
        warmup_by='epoch',
        zero_init_last=True,
        patience=3,
        block_num=(1, 1, 1),
        C=2,
        d=2,
    ),
)


@pytest.mark.parametrize('given', OPTIONS, ids=range(len(OPTIONS)))
def test_every_option_goes_on_before_the_first_snapshot(
    given, cifar, images, tmp_path, monkeypatch
):
    if not given.get('quick'):
        given = dict(given, data=images if given.get('dataset') else cifar)
    began = killed(tmp_path, monkeypatch, **given)
    recorded = json.loads(began)['options']
    for name, value in given.items():
        assert recorded[name] == (list(value) if isinstance(value, tuple) else value), name
    assert killed(tmp_path, monkeypatch, resume=True) == began
    assert killed(tmp_path, monkeypatch, resume=True, **given) == began


def test_what_2017_goes_on_with_goes_on(done, cifar, tmp_path, monkeypatch):
    given = dict(
        start_epoch=2,
        epoch=3,
        load_model=str(done / 'model' / 'ResNext_10_2_1.model'),
        load_optimizer=str(done / 'snapshot_iter_4'),
        load_log=str(done / 'log.json'),
    )
    monkeypatch.chdir(done)
    given = {n: os.path.relpath(v) if n.startswith('load') else v for n, v in given.items()}
    began = killed(tmp_path, monkeypatch, data=cifar, batch=60, **given)
    monkeypatch.chdir(tmp_path)
    assert killed(tmp_path, monkeypatch, resume=True) == began
    covered = set(given).union(*OPTIONS, ['data', 'save_path'])
    # Of the machine: there may be no GPU, and no tensorboardX.
    assert covered | {'gpu', 'engine', 'precision', 'tensorboard'} == set(
        options.Options.__dataclass_fields__
    )


def test_fine_tuning_killed_before_its_first_snapshot(images, tmp_path):
    """A process that is killed, and the command that goes on with it."""

    def child():
        loop.ChunkedUpdater = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        run.train(
            say=lambda text: None,
            save_path=str(tmp_path),
            load_model=MODEL,
            reset_classifier=True,
            dataset='folder',
            data=images,
            recipe='torch7_cifar',
            lr=0.01,
            epoch=1,
            batch=16,
        )

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    began = (tmp_path / 'run.json').read_bytes()
    said = subprocess.run(
        [sys.executable, 'main.py', '--resume', str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert 'DataAugmentationCifarTorch7' in said.stdout
    assert (tmp_path / 'run.json').read_bytes() == began


# ---- damaged files, and files made to harm


@pytest.mark.parametrize(
    'name, value',
    [
        ('batch', 0),
        ('batch', 3.5),
        ('batch', '60'),
        ('batch', True),
        ('batch', [60]),
        ('batch', 10**18),
        ('block_num', 3),
        ('block_num', [3, 0, 3]),
        ('freeze', 'stem'),
        ('freeze', [1]),
        ('dataset', '..training.run'),
        ('preprocessing', '__builtins__'),
        ('recipe', '../original'),
        ('shortcut', ['A']),
        ('sampling', {}),
        ('quick', 'yes'),
        ('data', 7),
        ('gpu', 'x'),
        ('lr', -1),
        ('lr_steps', [1.5]),
        ('lr_period', '3'),
        ('ema_decay', 1),
        ('weight_decay', 'small'),
        ('seed', -1),
        ('nonsense', 1),
    ],
)
def test_options_from_a_file_are_checked(name, value, done, tmp_path):
    record = json.loads((done / 'run.json').read_text())
    record['options'][name] = value
    (tmp_path / 'run.json').write_text(json.dumps(record))
    with pytest.raises(InputError, match=f'run.json: damaged .{name} ') as e:
        run.train(resume=True, say=print, save_path=str(tmp_path))
    assert len(str(e.value)) < 800
    with pytest.raises(InputError, match='run.json: damaged'):
        run_folder.dataset(str(tmp_path))


@pytest.mark.parametrize('d, blocks', [(100_000, 3), (2, 10_000_000)])
def test_networks_too_large_for_a_record(d, blocks, done, tmp_path):
    record = json.loads((done / 'run.json').read_text())
    record['network'].update(d=d, block_num=[blocks] * 3)
    (tmp_path / 'run.json').write_text(json.dumps(record))
    with pytest.raises(InputError, match='cannot be built') as e:
        run.summary(resume=True, save_path=str(tmp_path))
    assert str(tmp_path / 'run.json') in str(e.value)


def readers(folder):
    """Yield (name of a file, what reads it)."""
    yield 'run.json', lambda: run_folder.read_record(str(folder))
    yield 'split.json', lambda: splits.read(str(folder / 'split.json'))
    yield 'log.json', lambda: comparison.Run(str(folder))


HARMFUL = {
    'null': b'null',
    'text': b'"text"',
    'cut': b'{"options": {"lr": 0.',
    'no text': b'\xff\xfe\x00',
    'deep': b'[' * 100_000,
    'deep and whole': b'{"a":' * 200 + b'1' + b'}' * 200,
    'huge': b' ' * (1 << 26) + b'{}',
    'many': b'[' + b'[],' * (1 << 22) + b'[]]',
    'digits': b'{"options": {"batch": 1%b}, "network": {}}' % (b'0' * 400),
    'infinity': b'[{"_id": "test_parameter", "parameter": Infinity}]',
    'large': b'[{"_id": "test_parameter", "parameter": 1e999}]',
}


@pytest.mark.parametrize('kind', [*HARMFUL, 'pipe', 'zero', 'folder'])
def test_files_made_to_harm(kind, tmp_path):
    for name, read in readers(tmp_path):
        path = tmp_path / name
        if kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'zero':
            path.symlink_to('/dev/zero')
        elif kind == 'folder':
            path.mkdir()
        else:
            path.write_bytes(HARMFUL[kind])
        with pytest.raises(InputError, match=name) as e:
            read()
        assert len(str(e.value)) < 500
        path.rmdir() if kind == 'folder' else path.unlink()
