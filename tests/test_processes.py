"""Several processes compute the same as one, and all end if one does."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import process_cases
import pytest
from conftest import ROOT, write_cifar10
from process_cases import TINY

from trainer import run_folder
from trainer.datasets import loading
from trainer.errors import InputError
from trainer.training import launch as mpiexec
from trainer.training import processes, run
from trainer.weights import npz

pytestmark = pytest.mark.usefixtures('undrawn')

CASES = ROOT / 'tests' / 'process_cases.py'
#: Seconds; a run takes four to eight.
LIMIT = 120


def _mpiexec():
    beside = shutil.which('mpiexec', path=os.path.dirname(sys.executable))
    return beside or shutil.which('mpiexec')


needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec('mpi4py') is None or _mpiexec() is None,
    reason='needs mpi4py and mpiexec (uv sync --inexact --extra mpi), which are not here',
)


def start(n, *command):
    """Start ``mpiexec -n n python command ...``."""
    return subprocess.Popen(
        [_mpiexec(), '-n', str(n), sys.executable, *map(str, command)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, OPENBLAS_NUM_THREADS='1'),
    )


def finish(process, limit=LIMIT):
    """Return exit status, output and errors of what :func:`start` started."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        everyone = [process.pid] + descendants(process.pid)
        for pid in everyone:
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f'it did not end within {limit} s')
    return process.returncode, out, err


def launch(n, *arguments):
    """Call a function of process_cases in n processes."""
    return finish(start(n, CASES, *arguments))


def descendants(pid):
    """Return the processes below a process."""
    found = []
    for task in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            parent = int((task / 'stat').read_text().rsplit(')', 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += [int(task.name), *descendants(int(task.name))]
    return found


def alive(pid):
    try:
        stat = pathlib.Path('/proc', str(pid), 'stat').read_text()
        return stat.rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def arrays_of(folder):
    """Return the newest snapshot's numbers: what is trained, and the running statistics."""
    arrays = npz.read_arrays(run_folder.snapshots(folder)[0])
    arrays.pop('_snapshot_elapsed_time')
    statistics = {
        name: arrays.pop(name) for name in sorted(arrays) if name.endswith(('avg_mean', 'avg_var'))
    }
    return arrays, statistics


def assert_same_weights(folder, golden):
    """Everything in the snapshots but the running statistics, and what follows from them."""
    found, expected = arrays_of(folder)[0], arrays_of(golden)[0]
    assert sorted(found) == sorted(expected)
    assert sum(name.endswith('/W') for name in found) > 10
    for name in found:
        if name.startswith('updater/'):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


def log_of(folder):
    with open(os.path.join(folder, 'log.json')) as f:
        return json.load(f)


def alone(folder, data, **options):
    return run.train(
        say=lambda text: None,
        save_path=str(folder),
        data=data,
        **dict({} if options.get('resume') else TINY, **options),
    )


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    return str(write_cifar10(tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'))


@pytest.fixture(scope='module')
def one(cifar, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp('one')
    assert alone(folder, cifar)
    return str(folder)


@pytest.fixture(scope='module')
def two(cifar, tmp_path_factory):
    """The folder of the same run of two processes."""
    folder = tmp_path_factory.mktemp('two')
    status, out, err = launch(2, 'train', folder, cifar)
    assert status == 0 and not err, err
    assert out.count('epoch  train loss') == 1 and out.count('processes: 2') == 1
    return str(folder)


@needs_mpi
@pytest.mark.parametrize('engine', ['reference', 'numpy'])
def test_gradients_are_exchanged_during_the_backward_pass(tmp_path, engine):
    """From the second update on, all reported gradients are sent early; means are exact."""
    status, out, err = launch(2, 'exchanged', tmp_path, engine)
    assert status == 0 and not err, err
    ranks = [dict(np.load(tmp_path / f'rank{rank}.npz')) for rank in range(2)]
    for found in ranks:
        params = int(found['params'])
        assert found['sent'].tolist() == [0, *[params if engine == 'numpy' else 0] * 2]
        means = [name for name in found if name.startswith('mean/')]
        assert not found['mean/stem/bn/gamma'].any()  # frozen
        means.remove('mean/stem/bn/gamma')
        assert len(means) == params
        for name in means:
            own = [r[name.replace('mean', 'own')] for r in ranks]
            np.testing.assert_array_equal(found[name], (own[0] + own[1]) / 2, err_msg=name)


@needs_mpi
def test_a_gradient_that_several_layers_add_to_is_sent_at_the_end():
    """Of a process that had no image in the first update, too."""
    import chainer
    from mpi4py import MPI

    import resnext
    from trainer.settings import settings
    from trainer.training.exchange import Exchange

    class World:
        size, sent = 1, []

        def bcast(self, value):
            return value

        def Iallreduce(self, where, array):  # noqa: N802
            self.sent.append(float(array.flat[0]))
            return MPI.REQUEST_NULL

    network = resnext.ResNext(10, (1,), 1, 2, 2)
    chainer.optimizers.SGD(0.1).setup(network)
    params = list(network.params())
    exchange = Exchange(World())
    for _ in range(2):
        World.sent.clear()
        network.cleargrads()
        with exchange.during(network):
            for param in (*params, params[0]):  # the first is reported twice, with a half each
                part = np.full_like(param.array, 0.5 if param is params[0] else 1)
                param.grad = part if param.grad is None else param.grad + part
                settings.complete(param.node, part)
        exchange.finish(network)
        assert World.sent == [1.0] * len(params)
        assert all((param.grad == 1).all() for param in params)


@needs_mpi
class TestTheSameAsOne:
    def test_weights(self, one, two):
        """200 images in batches of 60, the last of 20, in two chunks or by two processes."""
        assert_same_weights(two, one)

    def test_files(self, one, two):
        assert sorted(os.listdir(two)) == sorted(os.listdir(one))
        for name in ('model', '.'):
            assert sorted(os.listdir(os.path.join(two, name))) == sorted(
                os.listdir(os.path.join(one, name))
            )

    def test_training_is_logged_for_all_images(self, one, two):
        a, b = log_of(one), log_of(two)
        assert [e['_id'] for e in a] == [e['_id'] for e in b]
        for x, y in zip(a, b):
            if x['_id'] == 'train_accuracy' or x['_id'].endswith('parameter'):
                assert x == y
            elif x['_id'] == 'train_loss':
                assert abs(x['loss'] - y['loss']) < 1e-4

    def test_evaluation_is_exact(self, two, cifar):
        """The logged numbers are those of the saved model, evaluated by one process."""
        import resnext
        from data_augmentation import DataAugmentationCifar10NormalizeSmall as preprocess
        from trainer import datasets
        from trainer.metrics import Tally

        test = datasets.load('cifar10', cifar).test
        tally = Tally(10)
        network = resnext.load(os.path.join(two, 'model', 'ResNext_10_2_4.model'))
        tally.add(network(preprocess.test_batch(test.images), train=False).array, test.labels)
        logged = {e['_id']: e for e in log_of(two) if e.get('epoch') == 4}
        assert logged['test_accuracy']['accuracy'] == tally.confusion.trace()
        assert logged['test_5_accuracy']['accuracy'] == tally.top5.sum()
        assert abs(logged['test_loss']['loss'] - tally.loss_sum) < 1e-4
        for i in range(10):
            assert logged[f'test_accuracy_{i}']['accuracy'] == tally.confusion[i, i]


@needs_mpi
def test_images_are_mixed_and_augmented_as_by_one(cifar, tmp_path):
    alone(tmp_path / 'one', cifar, **process_cases.MIXED)
    status, _, err = launch(2, 'train', tmp_path / 'two', cifar, 'mixed')
    assert status == 0 and not err, err
    assert_same_weights(tmp_path / 'two', tmp_path / 'one')


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """What three processes wrote down: a list of name -> array."""
    folder = tmp_path_factory.mktemp('three')
    status, out, err = launch(3, 'shares', folder)
    assert status == 0, err
    held = []
    for rank in range(3):
        with np.load(folder / f'rank{rank}.npz') as f:
            held.append({name: f[name] for name in f.files})
    return held


@needs_mpi
class TestUnevenShares:
    @pytest.mark.parametrize('case', range(len(process_cases.SHARES)))
    def test_weights_and_statistics(self, three, case):
        """Chunks of different sizes, processes without an image, several chunks a process."""
        sizes, divide = process_cases.SHARES[case]
        chunks = -(-divide // 3)
        updater, reports, seen = process_cases.updates(processes.Alone(), sizes, 3 * chunks)
        golden = process_cases.states(updater.get_optimizer('main').target)
        prefix = f'{case}/'
        for held in three:
            np.testing.assert_allclose(held[prefix + 'reports'], reports, rtol=0, atol=1e-12)
            for name, array in golden.items():
                if not name.endswith(('avg_mean', 'avg_var')):
                    assert array.dtype == np.float64 or array.ndim == 0
                    np.testing.assert_allclose(
                        held[prefix + name], array, rtol=0, atol=1e-12, err_msg=name
                    )
        for rank, held in enumerate(three):
            own = [0.0, 1.0]  # what they begin with
            for update in seen:
                for mean, variance in update[rank * chunks : (rank + 1) * chunks]:
                    own = [0.9 * own[0] + 0.1 * mean, 0.9 * own[1] + 0.1 * variance]
            for name, array in zip(('avg_mean', 'avg_var'), own):
                np.testing.assert_allclose(
                    held[f'{prefix}own/stem/bn/{name}'], array, rtol=1e-5, atol=1e-6
                )
        for name in golden:
            if name.endswith(('avg_mean', 'avg_var')):
                mean = np.mean([held[prefix + 'own/' + name] for held in three], axis=0)
                for held in three:
                    np.testing.assert_allclose(held[prefix + name], mean, rtol=1e-6, atol=1e-7)

    def test_formula_of_the_statistics(self, three):
        """With one chunk a process: decay x statistics + (1 - decay) x mean of the chunks'."""
        sizes, divide = process_cases.SHARES[0]
        _, _, seen = process_cases.updates(processes.Alone(), sizes, 3)
        for i, (name, value) in enumerate((('avg_mean', 0.0), ('avg_var', 1.0))):
            for update in seen:
                value = 0.9 * value + 0.1 * np.mean([chunk[i] for chunk in update], axis=0)
            np.testing.assert_allclose(three[0]['0/stem/bn/' + name], value, rtol=1e-5, atol=1e-6)

    def test_tally(self, three):
        from trainer.metrics import Tally

        tally = Tally(10)
        for rank in range(3):
            rng = np.random.default_rng(rank)
            tally.add(rng.standard_normal((5 + rank, 10)), rng.integers(0, 10, 5 + rank))
        for held in three:
            np.testing.assert_array_equal(held['confusion'], tally.confusion)
            np.testing.assert_array_equal(held['top5'], tally.top5)
            assert abs(held['loss'] - tally.loss) < 1e-12

    def test_what_processes_tell_each_other(self, three):
        for rank, held in enumerate(three):
            assert str(held['said']) == repr(
                [
                    rank,
                    10,
                    rank,
                    [3.0, 3.0],
                    'of 1',
                    'of 0',
                    'of 1',
                    [rank, 3, 3],
                    [-1, 2 + rank, 2],
                ]
            )

    def test_a_file_that_cannot_be_read(self, three):
        """All stop before its batch, also those whose images could be read."""
        for rank, held in enumerate(three):
            assert str(held['unreadable']) == repr(
                [
                    [2 * rank, 2 * rank + 1],
                    'image 8',
                    [2 * rank + 6, 2 * rank + 7],
                    [[12], [13], []][rank],
                ]
            )

    @pytest.mark.parametrize('n, chunks', [(1, 1), (3, 1), (2, 4), (7, 2)])
    def test_shares_are_all_of_it(self, n, chunks):
        plan = loading.EveryImageOnce(101, 24, seed=0)
        shares = [loading.Share(plan, rank, n, chunks) for rank in range(n)]
        for epoch in (1, 2):
            for i, batch in enumerate(plan(epoch)):
                parts = [share(epoch)[i] for share in shares]
                np.testing.assert_array_equal(np.concatenate(parts), batch)
                whole = np.array_split(batch, n * chunks)
                for rank, part in enumerate(parts):
                    assert len(part) <= shares[rank].batch
                    for a, b in zip(np.array_split(part, chunks), whole[rank * chunks :]):
                        np.testing.assert_array_equal(a, b)
        assert all(len(share) == len(plan) for share in shares)


@needs_mpi
class TestEnds:
    def test_a_process_is_killed(self, one, cifar, tmp_path):
        """If the writing process is killed, all end, and one process can resume."""
        status, out, err = launch(2, 'fails', tmp_path, cifar, 'kill', '0')
        assert status != 0
        assert run_folder.snapshots(tmp_path)[0].endswith('snapshot_iter_4')
        assert alone(tmp_path, cifar, resume=True)
        assert_same_weights(tmp_path, one)

    def test_mpiexec_is_killed(self, one, cifar, tmp_path):
        process = start(2, CASES, 'train', tmp_path, cifar, 'epoch=50')
        deadline = time.time() + LIMIT
        while not run_folder.snapshots(tmp_path) and time.time() < deadline:
            time.sleep(0.02)
        below = descendants(process.pid)
        assert len(below) >= 2
        process.kill()
        process.communicate()
        deadline = time.time() + 20
        while any(map(alive, below)) and time.time() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, below))
        newest = int(run_folder.snapshots(tmp_path)[0].rsplit('_', 1)[1])
        assert alone(tmp_path, cifar, resume=True, epoch=newest // 4 + 1)
        assert len(log_of(tmp_path)) > 10

    def test_ctrl_c(self, one, cifar, tmp_path):
        """Started by one process, resumed by two, interrupted, and resumed by one."""
        assert alone(tmp_path, cifar, epoch=1)
        process = start(2, CASES, 'train', tmp_path, cifar, 'resume', 'epoch=400')
        for line in process.stdout:
            if line.split()[:1] == ['3']:  # the epoch
                break
        process.send_signal(signal.SIGINT)  # mpiexec passes it on
        status, out, err = finish(process)
        assert status == 130 and 'Traceback' not in err, err
        assert out.count('nothing is lost; to go on:') == 1
        newest = int(run_folder.snapshots(tmp_path)[0].rsplit('_', 1)[1])
        assert 12 <= newest < 1600
        assert alone(tmp_path, cifar, resume=True, epoch=newest // 4 + 1)

    def test_one_is_interrupted(self, two, cifar, tmp_path):
        """All stop after the same update; the resumed run ends like an uninterrupted one."""
        status, out, err = launch(2, 'fails', tmp_path, cifar, 'interrupt', '1')
        assert status == 130, err
        assert run_folder.snapshots(tmp_path)[0].endswith('snapshot_iter_6')
        status, out, err = launch(2, 'train', tmp_path, cifar, 'resume')
        assert status == 0, err
        assert_same_weights(tmp_path, two)
        found, expected = arrays_of(tmp_path)[1], arrays_of(two)[1]
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)

    def test_what_a_user_can_mend(self, cifar, tmp_path):
        status, out, err = launch(2, 'fails', tmp_path, cifar, 'input', '1')
        assert status == 2 and 'Traceback' not in err
        lines = [line for line in err.splitlines() if 'the reason' in line]
        assert len(lines) == 1 and lines[0].startswith('process_cases.py: error: the reason'), err
        assert 'process 2 of 2' in lines[0]
        assert npz.read_arrays(run_folder.snapshots(tmp_path)[0])  # whole

    def test_what_nobody_foresaw(self, one, cifar, tmp_path):
        status, out, err = launch(2, 'fails', tmp_path, cifar, 'bug', '1')
        assert status == 1
        assert 'ZeroDivisionError: the reason' in err and 'process 2 of 2' in err
        assert alone(tmp_path, cifar, resume=True)
        assert_same_weights(tmp_path, one)

    def test_wrong_flags(self, tmp_path):
        """All fail alike: one line from one of them."""
        for flags, words in (
            (['-b', '0'], 'argument --batch/-b'),
            (['-m', tmp_path / 'nowhere'], 'nowhere: cannot be read'),
        ):
            status, out, err = finish(
                start(2, 'main.py', '--quick', '-p', tmp_path / 'run', *flags)
            )
            assert status == 2 and err.count('\n') == 1 and words in err, err


@needs_mpi
def test_mpiexec_of_another_mpi(tmp_path):
    manager = {'MV2_COMM_WORLD_SIZE': '2', 'MV2_COMM_WORLD_RANK': '0'}  # MVAPICH's
    process = subprocess.run(
        [sys.executable, 'main.py', '--quick', '-p', tmp_path / 'run'],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        env=dict(os.environ, **manager),
        timeout=LIMIT,
    )
    assert process.returncode == 2 and process.stderr.count('\n') == 1
    assert 'mpiexec started 2 processes, but mpi4py sees 1' in process.stderr


class TestWithoutMPI:
    def test_it_is_not_imported(self, cifar, tmp_path):
        # In a process of its own: other tests import it.
        code = (
            'import sys\nfrom trainer.training import run\n'
            f'run.train(data={cifar!r}, save_path={str(tmp_path)!r}, C=1, d=2, multi=2, epoch=1, '
            'block_num=(1, 1, 1), batch=100)\n'
            'print(sorted({"mpi4py", "chainermn"} & set(sys.modules)))'
        )
        said = subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert said.stdout.splitlines()[-1] == '[]', said.stderr

    @pytest.mark.parametrize('manager', ['PMI_{}', 'OMPI_COMM_WORLD_{}', 'MV2_COMM_WORLD_{}'])
    def test_mpi4py_is_missing(self, monkeypatch, manager, tmp_path):
        monkeypatch.setitem(sys.modules, 'mpi4py', None)
        monkeypatch.setenv(manager.format('SIZE'), '2')
        monkeypatch.setenv(manager.format('RANK'), '0')
        with pytest.raises(InputError, match='mpi4py cannot be imported.*pip install mpi4py'):
            run.train(save_path=str(tmp_path / 'run'))
        monkeypatch.setenv(manager.format('RANK'), '1')
        with pytest.raises(SystemExit) as end:
            run.train(save_path=str(tmp_path / 'run'))
        assert end.value.code == 2 and not os.listdir(tmp_path)


class TestCores:
    """Processes on one machine share its cores."""

    @pytest.fixture
    def bound(self, monkeypatch):
        """The cores that a process was bound to, of a machine with eight that it may use."""
        found = []
        for name in ('MPI_LOCALNRANKS', 'MPI_LOCALRANKID'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, 'cpu_count', lambda: 8)
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(
            os, 'sched_setaffinity', lambda _, cores: found.append(cores), raising=False
        )
        return found

    def begin(self, monkeypatch, rank, size):
        monkeypatch.setenv('MPI_LOCALRANKID', str(rank))
        monkeypatch.setenv('MPI_LOCALNRANKS', str(size))
        mpiexec.share_cores()

    @pytest.mark.parametrize('size', [2, 3, 8])
    def test_each_has_its_own(self, bound, monkeypatch, size):
        for rank in range(size):
            self.begin(monkeypatch, rank, size)
        assert sorted(sum(bound, [])) == list(range(8)) and len(bound) == size
        assert all(bound)

    def test_nothing_is_bound_without_need(self, bound, monkeypatch):
        mpiexec.share_cores()  # one process
        self.begin(monkeypatch, 0, 9)  # more processes than cores
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {2, 3})
        self.begin(monkeypatch, 0, 4)  # mpiexec bound them
        assert not bound

    @needs_mpi
    def test_libraries_start_so_many_threads(self):
        """Of NumPy's BLAS and of what asks for the cores, in two processes."""
        code = (
            'from trainer.training import launch; launch.share_cores(); import os, sys; '
            'sys.stdout.write("%s\\n" % sorted(os.sched_getaffinity(0)))'
        )
        run = subprocess.run(
            [_mpiexec(), '-n', '2', sys.executable, '-c', code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        there = sorted(os.sched_getaffinity(0))
        cores = [json.loads(line) for line in run.stdout.splitlines()]
        if len(there) < 2 or len(there) <= os.cpu_count() // 2:
            pytest.skip('this process may use too few of the cores')
        assert sorted(sum(cores, [])) == there and len(cores) == 2
