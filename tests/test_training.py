"""Training: the effect of each flag, and that nothing is lost."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import signal
import struct
import subprocess
import sys
import time

import chainer
import numpy as np
import pytest
from conftest import ROOT, has_gpu, write_cifar10
from helpers.runs import assert_same_end, in_child

import main
import resnext
from trainer import files, recipes, run_folder
from trainer.datasets import loading
from trainer.engines import onednn
from trainer.errors import InputError
from trainer.training import data, loop, run, schedules, snapshots
from trainer.training.resolve import resolve
from trainer.weights import npz

pytestmark = pytest.mark.usefixtures('undrawn')

#: A network that trains in moments; 200 images, four batches an epoch.
TINY = dict(
    C=2,
    d=2,
    multi=2,
    block_num=(1, 1, 1),
    batch=60,
    train_batch_divide=2,
    epoch=4,
    lr=0.05,
    lr_steps=(2, 3),
    seed=7,
)


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    return str(write_cifar10(tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'))


@pytest.fixture(scope='session')
def uninterrupted(cifar, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = str(tmp_path_factory.mktemp('uninterrupted'))
    assert train(folder, cifar)
    return folder


def train(folder, data, resume=False, **options):
    return run.train(
        resume=resume,
        say=lambda text: None,
        save_path=str(folder),
        data=data,
        **dict({} if resume else TINY, **options),
    )


def resume(folder, data, **options):
    """Start or resume a run, as a user would, with all options."""
    return run.train(
        resume=os.path.exists(os.path.join(folder, 'run.json')),
        say=lambda text: None,
        save_path=str(folder),
        data=data,
        **dict(TINY, **options),
    )


def test_a_file_and_its_folder_reach_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / 'x', []
    monkeypatch.setattr(
        files.os, 'fsync', lambda opened: synced.append((os.fstat(opened).st_ino, path.exists()))
    )
    files.save_json(path, [1])
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


class TestEngines:
    @pytest.mark.parametrize('engine', ['numpy', 'onednn'])
    def test_a_run_goes_on_bit_for_bit(self, cifar, tmp_path, engine):
        if engine == 'onednn' and onednn.unavailable():
            pytest.skip(onednn.unavailable())
        options = dict(engine=engine, threads=1)
        train(tmp_path / 'whole', cifar, epoch=2, **options)
        train(tmp_path / 'parts', cifar, epoch=1, **options)
        train(tmp_path / 'parts', cifar, resume=True, epoch=2)
        assert_same_end(tmp_path / 'parts', tmp_path / 'whole')

    def test_a_run_goes_on_with_another(self, cifar, tmp_path):
        train(tmp_path, cifar, epoch=1, engine='reference', threads=1)
        said = []
        run.train(
            resume=True,
            say=said.append,
            save_path=str(tmp_path),
            data=cifar,
            epoch=2,
            engine='numpy',
        )
        assert 'device: CPU, engine numpy, precision float32' in said
        assert os.path.exists(tmp_path / 'model' / 'ResNext_10_2_2.model')


class TestOutputs:
    def test_folder(self, uninterrupted):
        assert sorted(os.listdir(uninterrupted)) == [
            '.lock',
            'accuracy.jpg',
            'confusion.jpg',
            'confusion.json',
            'log.json',
            'loss.jpg',
            'model',
            'run.json',
            'snapshot_iter_12',
            'snapshot_iter_16',
        ]
        assert sorted(os.listdir(os.path.join(uninterrupted, 'model'))) == [
            f'ResNext_10_2_{n}.model' for n in (1, 2, 3, 4, 'best')
        ]

    def test_log(self, uninterrupted):
        with open(os.path.join(uninterrupted, 'log.json')) as f:
            log = json.load(f)
        kinds = {}
        for entry in log:
            kinds.setdefault(entry['_id'], []).append(entry)
        assert kinds['train_parameter'][0]['parameter'] == 200
        assert [e['epoch'] for e in kinds['train_loss']] == [1, 2, 3, 4]
        np.testing.assert_allclose(
            [e['lr'] for e in kinds['lr']], [0.05, 0.05, 0.005, 0.0005], rtol=1e-15
        )
        for name in ('train_loss', 'test_loss'):
            total = kinds[name.replace('loss', 'parameter')][0]['parameter']
            assert all(0.5 < e['loss'] / total < 5 for e in kinds[name])
        for epoch in range(4):
            by_class = sum(kinds[f'test_accuracy_{i}'][epoch]['accuracy'] for i in range(10))
            assert kinds['test_accuracy'][epoch]['accuracy'] == by_class

    def test_best_model_is_the_best(self, uninterrupted):
        with open(os.path.join(uninterrupted, 'log.json')) as f:
            right = [e['accuracy'] for e in json.load(f) if e['_id'] == 'test_accuracy']
        models = os.path.join(uninterrupted, 'model', 'ResNext_10_2_{}.model')
        best, named = (
            pathlib.Path(models.format(n)).read_bytes() for n in (1 + int(np.argmax(right)), 'best')
        )
        assert best == named

    def test_logged_accuracy_is_the_model_s(self, uninterrupted, cifar):
        from data_augmentation import DataAugmentationCifar10NormalizeSmall as preprocess
        from trainer import datasets

        test = datasets.load('cifar10', cifar).test
        network = resnext.load(os.path.join(uninterrupted, 'model', 'ResNext_10_2_4.model'))
        y = network(preprocess.test_batch(test.images), train=False).array
        with open(os.path.join(uninterrupted, 'log.json')) as f:
            logged = [e['accuracy'] for e in json.load(f) if e['_id'] == 'test_accuracy'][-1]
        assert (y.argmax(axis=1) == test.labels).sum() == logged
        assert network.classes[3] == 'cat'

    def test_learning_rate(self):
        schedule = schedules.steps(0.1, (150, 225))
        assert [schedule(e) for e in (0, 149, 150, 224, 225, 299)] == [
            0.1,
            0.1,
            0.01,
            0.01,
            0.001,
            0.001,
        ]


class TestNothingLost:
    def test_twenty_kills_at_random_moments(self, uninterrupted, cifar, tmp_path):
        rng = random.Random(0)
        killed = runs = 0
        while killed < 20:
            folder = tmp_path / str(runs)
            process = in_child(resume, folder, cifar, workers=killed % 3)
            process.join(rng.uniform(0.05, 1.0))
            if process.is_alive():
                killed += 1
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:  # it came through between two kills
                assert_same_end(folder, uninterrupted)
                runs += 1
        resume(folder, cifar)
        assert_same_end(folder, uninterrupted)

    def test_killed_at_each_write(self, uninterrupted, cifar, tmp_path):
        """Just before and just after each file takes its place, in the second epoch."""
        train(tmp_path, cifar, epoch=1)

        def die(at, after):
            real, count = os.replace, 0

            def replace(*args):
                nonlocal count
                count += 1
                if count == at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*args)
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            files.os.replace = replace
            resume(tmp_path, cifar)

        for at in range(1, 8):
            for after in (False, True):
                process = in_child(die, at, after)
                process.join()
                assert process.exitcode == -signal.SIGKILL
        resume(tmp_path, cifar)
        assert_same_end(tmp_path, uninterrupted)

    def interrupt(self, command, cifar, tmp_path, wait):
        """Press Ctrl-C when ``wait(process)`` returns; the run stops with a snapshot."""
        options = [f'--{k}={v}' for k, v in TINY.items() if not isinstance(v, tuple)]
        options += ['--block_num', '1', '1', '1', '--lr_steps', '2', '3', '--workers', '2']
        process = subprocess.Popen(
            [sys.executable, *command, '-p', str(tmp_path), '--data', cifar, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers too
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, '')
        assert 'nothing is lost; to go on:' in out
        assert len(run_folder.snapshots(tmp_path)) > 0

    def test_ctrl_c(self, uninterrupted, cifar, tmp_path):
        def wait(process):
            for line in process.stdout:
                if line.startswith('epoch'):
                    break
            time.sleep(0.3)

        self.interrupt(['main.py'], cifar, tmp_path, wait)
        assert train(tmp_path, cifar, resume=True)
        assert_same_end(tmp_path, uninterrupted)

    @pytest.mark.parametrize('method', ['forkserver', 'spawn'])  # of Python 3.14, of macOS
    def test_ctrl_c_while_workers_start(self, cifar, tmp_path, method):
        script, started = tmp_path / 'script.py', tmp_path / 'started'
        (tmp_path / 'sitecustomize.py').write_text(f"""
import pathlib, sys, time
if any('multiprocessing' in argument for argument in sys.orig_argv):
    pathlib.Path({str(started)!r}).touch()
    time.sleep(1)
""")
        script.write_text(f"""
import multiprocessing, os, sys
sys.path.insert(0, {str(ROOT)!r})
import main
os.environ['PYTHONPATH'] = {str(tmp_path)!r}
multiprocessing.set_start_method({method!r})
main.command()
""")

        def wait(process):
            while not started.exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)

        self.interrupt([str(script)], cifar, tmp_path / 'run', wait)

    def test_ctrl_c_in_the_middle_of_printing(self, tmp_path):
        """Python refuses to print once more: it is said after the update."""
        script = tmp_path / 'script.py'
        script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import trainer
from trainer.training.processes import ALONE
from trainer.training.run import say_on_console
from trainer.training.stop import Stop

with Stop(say_on_console, ALONE) as stop:
    os.set_blocking(1, False)
    try:
        while True:
            os.write(1, b'.')  # until nothing more goes into the pipe
    except BlockingIOError:
        os.set_blocking(1, True)
    print('waiting', file=sys.stderr, flush=True)
    say_on_console('row')
    print(stop.before(lambda trainer: False)(None))
""")
        process = subprocess.Popen(
            [sys.executable, script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: v for name, v in os.environ.items() if name != 'PYTHONUNBUFFERED'},
        )
        assert process.stderr.readline() == 'waiting\n'
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        rows = printed.lstrip('.').splitlines()
        assert rows[0] == 'row' and rows[-1] == 'True'
        assert sum(row.startswith('stopping after this update') for row in rows) == 1

    @pytest.mark.parametrize('update', [1, 2, 5])
    def test_interrupted_inside_an_epoch(self, uninterrupted, cifar, tmp_path, update):
        def stop():
            real = loop.ChunkedUpdater.update_core

            def update_core(self):
                real(self)
                if self.iteration == update - 1:
                    os.kill(os.getpid(), signal.SIGINT)

            loop.ChunkedUpdater.update_core = update_core
            sys.exit(0 if train(tmp_path, cifar) else 130)

        process = in_child(stop)
        process.join()
        assert process.exitcode == 130
        assert run_folder.snapshots(tmp_path)[0].endswith(f'snapshot_iter_{update}')
        assert train(tmp_path, cifar, resume=True, workers=1)
        assert_same_end(tmp_path, uninterrupted)

    @pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'lost', 'renamed'])
    def test_damaged_snapshot(self, uninterrupted, cifar, tmp_path, damage):
        train(tmp_path, cifar, epoch=3)
        newest = run_folder.snapshots(tmp_path)[0]
        raw = bytearray(pathlib.Path(newest).read_bytes())
        if damage == 'cut':
            raw = raw[: len(raw) // 2]
        elif damage == 'flip':  # one bit of one weight
            weights = npz.read_arrays(newest)['updater/model:main/fc/conv/W']
            raw[raw.index(weights.tobytes()) + 5] ^= 1
        elif damage == 'lost':  # the last entry of the archive's directory
            last, end = raw.rindex(b'PK\1\2'), raw.rindex(b'PK\5\6')
            size, start = struct.unpack_from('<II', raw, end + 12)
            struct.pack_into('<II', raw, end + 12, size - (end - last), start)
            del raw[last:end]
        elif damage == 'renamed':  # without this entry Chainer warns, and guesses
            raw = raw.replace(b'previous_iteration', b'previous_iteratiom')
        else:
            raw = b''
        with open(newest, 'wb') as f:
            f.write(raw)
        said = []
        run.train(resume=True, say=said.append, save_path=str(tmp_path), data=cifar, epoch=4)
        assert any(newest in text and 'skipping it' in text for text in said)
        assert any('snapshot_iter_8: going on after epoch 2' in text for text in said)
        assert_same_end(tmp_path, uninterrupted)

    def test_no_whole_snapshot(self, cifar, tmp_path):
        train(tmp_path, cifar, epoch=1)
        for path in run_folder.snapshots(tmp_path):
            open(path, 'wb').close()
        with pytest.raises(InputError, match='none of the 1 snapshots is whole and of this run'):
            train(tmp_path, cifar, resume=True, epoch=2)

    def test_a_clock_that_was_set_back(self, cifar, tmp_path):
        """Snapshots are kept by number; files that only resemble one, or are ahead, stay."""
        train(tmp_path, cifar, epoch=2)
        for name in ('snapshot_iter_4.bak', 'snapshot_iter_90', 'snapshot_iter_91'):
            (tmp_path / name).write_text('x')
        for name in ('snapshot_iter_4', 'snapshot_iter_8'):
            os.utime(tmp_path / name, (2**32, 2**32))
        train(tmp_path, cifar, resume=True, epoch=4)
        assert sorted(n for n in os.listdir(tmp_path) if n.startswith('snapshot')) == [
            'snapshot_iter_12',
            'snapshot_iter_16',
            'snapshot_iter_4.bak',
            'snapshot_iter_90',
            'snapshot_iter_91',
        ]

    def test_full_disk(self, uninterrupted, cifar, tmp_path):
        def full():
            # The kernel refuses to let a file grow further, as a full disk does.
            resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))
            try:
                train(tmp_path, cifar)
            except InputError as e:
                with open(tmp_path / 'said', 'w') as f:
                    f.write(str(e))

        in_child(full).join()
        said = (tmp_path / 'said').read_text()
        assert 'cannot be written' in said and '--resume' in said and '\n' not in said
        (tmp_path / 'said').unlink()
        resume(tmp_path, cifar)
        assert_same_end(tmp_path, uninterrupted)

    def test_no_worker_outlives_a_kill(self, cifar, tmp_path):
        process = in_child(resume, tmp_path, cifar, workers=2, epoch=50)
        deadline = time.time() + 30
        while len(children(process.pid)) < 2 and time.time() < deadline:
            time.sleep(0.05)
        workers = children(process.pid)
        assert len(workers) >= 2
        time.sleep(0.5)
        process.kill()
        process.join()
        deadline = time.time() + 10
        while any(alive(pid) for pid in workers) and time.time() < deadline:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)

    def test_a_killed_worker(self, uninterrupted, cifar, tmp_path):
        """As the kernel does when memory runs out: one line, and the run can go on."""

        def kill_one():
            main_process, real = os.getpid(), data.Load._draw

            def draw(self, epoch, i):
                if epoch == 2 and os.getpid() != main_process:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, epoch, i)

            data.Load._draw = draw
            try:
                train(tmp_path, cifar, workers=2)
            except InputError as e:
                (tmp_path / 'said').write_text(str(e))

        process = in_child(kill_one)
        process.join(120)
        hangs = process.is_alive()
        process.kill()
        assert not hangs
        said = (tmp_path / 'said').read_text()
        assert 'was killed' in said and '\n' not in said
        (tmp_path / 'said').unlink()
        assert train(tmp_path, cifar, resume=True)
        assert_same_end(tmp_path, uninterrupted)

    def test_an_earlier_run_is_moved_aside(self, cifar, tmp_path):
        train(tmp_path, cifar, epoch=1)
        before = (tmp_path / 'model' / 'ResNext_10_2_1.model').read_bytes()
        train(tmp_path, cifar, epoch=1, seed=8)
        kept = tmp_path / 'earlier' / '1'
        assert (kept / 'model' / 'ResNext_10_2_1.model').read_bytes() == before
        assert (tmp_path / 'model' / 'ResNext_10_2_1.model').read_bytes() != before
        assert run.train(resume=True, say=print, save_path=str(kept), data=cifar, epoch=2)

    @pytest.mark.parametrize('at', [1, 3, 9])
    def test_killed_while_an_earlier_run_is_moved(self, uninterrupted, cifar, tmp_path, at):
        """Killed before, between and after the moves of its eight files, it resumes."""
        train(tmp_path, cifar, epoch=1)

        def die():
            real, count = os.rename, 0

            def rename(*args):
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*args)

            os.rename = rename
            train(tmp_path, cifar, seed=8)

        process = in_child(die)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert train(tmp_path, cifar, resume=True, epoch=4)
        assert_same_end(tmp_path, uninterrupted)
        assert os.listdir(tmp_path / 'earlier') == []

    def test_what_was_begun_to_be_moved_overwrites_nothing(self, cifar, tmp_path):
        moving = tmp_path / 'earlier' / '.resnext-unfinished'
        moving.mkdir(parents=True)
        for path in (moving / 'run.json', tmp_path / 'run.json', moving / 'model'):
            path.write_text(str(path))
        with pytest.raises(InputError, match='there is another run.json in .*; move one away'):
            train(tmp_path, cifar)
        for path in (moving / 'run.json', tmp_path / 'run.json', moving / 'model'):
            assert path.read_text() == str(path)

    def test_files_of_others_stay(self, cifar, tmp_path):
        """Only the run's own unfinished files are removed, not those with similar names."""
        ours = '.resnext-unfinished-12-0123abcd-'
        theirs = [
            'tmp-thesis.txt',
            'tmp-12-log.json',
            ours + 'my.npz',  # a converter may be writing it
            ours + 'snapshot_iter_7.bak',
            ours[:-3] + '-log.json',
            '.resnext-unfinished-log.json',
        ]
        left = [ours + 'log.json', ours + 'snapshot_iter_7']
        resume(tmp_path, cifar, epoch=1)
        for name in theirs + left + ['model/tmp-data.npz', f'model/{ours}ResNext_2.model']:
            (tmp_path / name).write_text('precious')
        for name in ('tmp-data', ours + 'loss.jpg'):
            (tmp_path / name).mkdir()
            (tmp_path / name / 'x').write_text('precious')
        (tmp_path / (ours + 'run.json')).symlink_to(tmp_path / 'tmp-thesis.txt')
        resume(tmp_path, cifar, epoch=2)
        kept = theirs + ['tmp-data/x', ours + 'loss.jpg/x', ours + 'run.json', 'model/tmp-data.npz']
        for name in kept:
            assert (tmp_path / name).read_text() == 'precious', name
        for name in left + [f'model/{ours}ResNext_2.model']:
            assert not (tmp_path / name).exists(), name

    def test_two_runs_in_one_folder(self, cifar, tmp_path):
        process = in_child(resume, tmp_path, cifar, epoch=50)
        deadline = time.time() + 30
        while not (tmp_path / 'run.json').exists() and time.time() < deadline:
            time.sleep(0.05)
        with pytest.raises(InputError, match='another run is writing there'):
            train(tmp_path, cifar)
        process.kill()
        process.join()


def children(pid):
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as f:
            return [int(n) for n in f.read().split()]
    except OSError:
        return []


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


class TestFlags:
    def test_the_original_s(self):
        given = vars(
            main.parser().parse_args(
                [
                    '-m',
                    'a',
                    '-o',
                    'b',
                    '-l',
                    'c',
                    '-p',
                    'd',
                    '-e',
                    '1',
                    '-b',
                    '2',
                    '-g',
                    '-1',
                    '-s',
                    '3',
                    '-trb',
                    '4',
                    '-teb',
                    '5',
                    '-lr',
                    '0.5',
                    '-C',
                    '6',
                    '-d',
                    '7',
                    '-multi',
                    '8',
                ]
            )
        )
        assert given == {
            'load_model': 'a',
            'load_optimizer': 'b',
            'load_log': 'c',
            'save_path': 'd',
            'epoch': 1,
            'batch': 2,
            'gpu': -1,
            'start_epoch': 3,
            'train_batch_divide': 4,
            'test_batch_divide': 5,
            'lr': 0.5,
            'C': 6,
            'd': 7,
            'multi': 8,
        }

    def test_the_original_s_defaults(self):
        options = dataclasses.asdict(resolve('', False, print, {})[0])
        golden = dict(
            save_path='./',
            epoch=300,
            batch=256,
            gpu=-1,
            start_epoch=1,
            train_batch_divide=4,
            test_batch_divide=4,
            lr=0.1,
            C=2,
            d=64,
            multi=4,
            momentum=0.9,
            weight_decay=5e-4,
            lr_steps=(150, 225),
            load_model=None,
        )
        assert {k: options[k] for k in golden} == golden

    def test_going_on_by_hand_as_in_2017(self, uninterrupted, cifar, tmp_path):
        """-m -o -l -s take up a run where its files say, learning rate and all."""
        first = tmp_path / 'first'
        train(first, cifar, epoch=2)
        second = tmp_path / 'second'
        train(
            second,
            cifar,
            load_model=str(first / 'model' / 'ResNext_10_2_2.model'),
            load_optimizer=str(first / 'snapshot_iter_8'),
            load_log=str(first / 'log.json'),
            start_epoch=3,
        )
        golden = resnext.load(os.path.join(uninterrupted, 'model', 'ResNext_10_2_4.model'))
        found = resnext.load(str(second / 'model' / 'ResNext_10_2_4.model'))
        for (name, a), b in zip(npz.state(found).items(), npz.state(golden).values()):
            np.testing.assert_array_equal(a, b, name)
        with open(os.path.join(uninterrupted, 'log.json')) as f, open(second / 'log.json') as g:
            a, b = json.load(f), json.load(g)
        assert [e['_id'] for e in a] == [e['_id'] for e in b]
        for x, y in zip(a, b):
            value = next(k for k in x if k not in ('_id', 'epoch'))
            assert x == y or abs(x[value] - y[value]) < 1e-12 * abs(x[value])

    def test_optimizer_file_of_chainer(self, cifar, tmp_path):
        network = resnext.ResNext(10, (1, 1, 1), 2, 2, 2)
        optimizer = chainer.optimizers.MomentumSGD().setup(network)
        for p in network.params():
            p.grad = np.ones_like(p.array)
        optimizer.update()
        chainer.serializers.save_npz(str(tmp_path / 'opt'), optimizer)
        assert snapshots.optimizer_arrays(str(tmp_path / 'opt'))['t'] == 1
        network.save_model(str(tmp_path / 'm'))
        train(
            tmp_path / 'run',
            cifar,
            epoch=1,
            load_model=str(tmp_path / 'm'),
            load_optimizer=str(tmp_path / 'opt'),
        )
        with pytest.raises(InputError, match='-o .*neither a snapshot nor an optimizer'):
            train(tmp_path / 'run', cifar, load_optimizer=str(tmp_path / 'm'))

    def test_model_brings_its_sizes(self, cifar, tmp_path):
        network = resnext.ResNext(10, (1, 1, 1), 4, 2, 2)
        network.save_model(str(tmp_path / 'm'))
        options = {k: v for k, v in TINY.items() if k not in ('C', 'd', 'multi', 'block_num')}
        run.train(
            say=print,
            save_path=str(tmp_path / 'run'),
            data=cifar,
            load_model=str(tmp_path / 'm'),
            **dict(options, epoch=1),
        )
        assert (tmp_path / 'run' / 'model' / 'ResNext_10_4_1.model').exists()
        with pytest.raises(InputError, match='C 2: .* holds .*4x2d'):
            train(tmp_path / 'run', cifar, load_model=str(tmp_path / 'm'))

    def test_precision_is_for_gpus(self, cifar, tmp_path):
        with pytest.raises(InputError, match='precision mixed: .*has float32.* here'):
            train(tmp_path / 'run', cifar, precision='mixed')

    def test_options_of_a_run_are_its_own(self, cifar, tmp_path):
        train(tmp_path, cifar, epoch=1)
        with pytest.raises(InputError, match='batch 50: the run in .* has 60'):
            train(tmp_path, cifar, resume=True, batch=50)
        said = []
        assert run.train(resume=True, say=said.append, save_path=str(tmp_path), data=cifar)
        assert 'all 1 epochs are done' in said[-1]

    def test_class_count(self, cifar, tmp_path):
        resnext.ResNext(100, (1, 1, 1), 2, 2, 2).save_model(str(tmp_path / 'm'))
        with pytest.raises(InputError, match='a network of 100 classes, but cifar10 has 10'):
            train(tmp_path / 'run', cifar, load_model=str(tmp_path / 'm'))
        assert os.listdir(tmp_path / 'run') == ['.lock']

    @pytest.mark.parametrize('log', ['{', '[1]', '{"a": 1}', '[]', '[{"_id": "train_loss"}]'])
    def test_bad_log(self, cifar, tmp_path, log):
        (tmp_path / 'log').write_text(log)
        with pytest.raises(InputError, match='-l '):
            train(tmp_path / 'run', cifar, load_log=str(tmp_path / 'log'), start_epoch=2)

    def test_original_log(self, cifar, tmp_path):
        """A log of the 2017 program: no epochs in it, sums in float."""
        entries = [
            {'_id': 'categories', 'are': list(range(10))},
            {'_id': 'train_parameter', 'parameter': 200},
        ]
        for i in range(3):
            entries += [
                {'_id': 'train_loss', 'loss': 200.0 - i},
                {'_id': 'test_loss', 'loss': 50.0},
                {'_id': 'test_accuracy', 'accuracy': 20 + i},
            ]
        (tmp_path / 'log').write_text(json.dumps(entries))
        train(tmp_path / 'run', cifar, load_log=str(tmp_path / 'log'), start_epoch=4)
        with open(tmp_path / 'run' / 'log.json') as f:
            log = json.load(f)
        assert [e['accuracy'] for e in log if e['_id'] == 'test_accuracy'][:3] == [20, 21, 22]
        assert [e['epoch'] for e in log if e['_id'] == 'test_accuracy'] == [1, 2, 3, 4]


def test_workers_change_nothing(cifar):
    from data_augmentation import DataAugmentationCifar10NormalizeSmall as preprocess
    from trainer import datasets

    dataset = datasets.load('cifar10', cifar)
    seen = []
    for workers in (0, 1, 3):
        options = recipes.get('original').replace(batch=60, workers=workers)
        iterator = run.data_path(dataset, options, preprocess).train
        seen.append(
            [tuple(map(np.array, iterator.next())) for _ in range(9)]
        )  # into the third epoch
        iterator.finalize()
    for other in seen[1:]:
        for (x, t), (x2, t2) in zip(seen[0], other):
            np.testing.assert_array_equal(x, x2)
            np.testing.assert_array_equal(t, t2)
    assert [len(t) for _, t in seen[0][:4]] == [60, 60, 60, 20]


class TestPlans:
    def test_every_image_once(self):
        plan = loading.EveryImageOnce(103, 10, seed=1)
        for epoch in (1, 2):
            batches = plan(epoch)
            assert len(batches) == len(plan) == 11 and len(batches[-1]) == 3
            assert sorted(np.concatenate(batches)) == list(range(103))
        assert (np.concatenate(plan(1)) != np.concatenate(plan(2))).any()
        np.testing.assert_array_equal(
            np.concatenate(plan(1)), np.concatenate(loading.EveryImageOnce(103, 10, 1)(1))
        )
        assert (
            np.concatenate(plan(1)) != np.concatenate(loading.EveryImageOnce(103, 10, 2)(1))
        ).any()

    def test_original_sampling(self):
        plan = loading.OriginalSampling(50000, 256, seed=0)
        batches = plan(1)
        assert len(batches) == len(plan) == 195
        assert all(len(set(b.tolist())) == 256 for b in batches)
        share = len(np.unique(np.concatenate(batches))) / 50000
        assert abs(share - (1 - (1 - 256 / 50000) ** 195)) < 0.01  # 63 %


class TestCommandLine:
    def line(self, capsys, *argv):
        from trainer import cli

        with pytest.MonkeyPatch.context() as m:
            m.setattr(sys, 'argv', ['main.py', *map(str, argv)])
            with pytest.raises(SystemExit) as end:
                cli.run(main.main)
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count('\n') == 1 and 'Traceback' not in err, err
        return err

    def test_errors_are_one_line(self, capsys, tmp_path, cifar):
        (tmp_path / 'file').write_text('x')
        (tmp_path / 'empty').mkdir()
        p = ('-p', tmp_path / 'run')
        for argv, words in [
            (('-b', '0'), 'argument --batch/-b'),
            (('-e', 'many'), 'argument --epoch/-e'),
            (('--dataset', 'svhn'), 'cifar100'),
            (('--nonsense',), '--nonsense'),
            (('--seed', '-1'), '--seed'),
            (('-lr', 'nan'), 'argument --lr/-lr'),
            (('-p', tmp_path / 'file' / 'x'), 'cannot be written'),
            (('--data', tmp_path / 'nowhere', *p), 'no such file or folder'),
            (('--data', tmp_path / 'file', *p), 'not a whole tar archive'),
            (('--quick', '--data', cifar, *p), '--quick'),
            (('--quick', '-m', tmp_path / 'nowhere', *p), 'nowhere: cannot be read'),
            (('--quick', '-m', tmp_path / 'file', *p), 'not a file of weights'),
            (('--quick', '-b', '2501', '--sampling', 'original', *p), '-b 2501'),
            (('--resume', tmp_path / 'none'), 'there is no such folder'),
            (('--resume', cifar, '-p', tmp_path), 'name two folders'),
            (('--resume', tmp_path / 'empty'), 'no run: there is no run.json'),
            (('--resume', '--quick', '-p', tmp_path / 'none'), 'no run: there is no run.json'),
            (('--summary', '--resume', tmp_path / 'empty'), 'no run: there is no run.json'),
        ] + ([] if has_gpu() else [(('--quick', '-g', '0', *p), '-g 0: ')]):
            assert words in self.line(capsys, *argv), argv
        assert not (tmp_path / 'run' / 'run.json').exists()
        assert not os.listdir(tmp_path / 'empty') and not (tmp_path / 'none').exists()
