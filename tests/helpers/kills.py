"""Runs that are killed repeatedly, resumed, and compared with an uninterrupted one."""

import dataclasses
import importlib.util
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from conftest import ROOT, write_cifar10
from matplotlib.figure import Figure

from helpers import runs
from trainer.engines.onednn import library
from trainer.training import run

#: A run of two short epochs; one thread of BLAS, as the number of threads changes rounding.
TINY = dict(
    C=1, d=2, multi=2, block_num=(1, 1, 1), batch=20, train_batch_divide=2, epoch=2, lr=0.05,
    lr_steps=(1,), seed=7, threads=1, workers=0, engine='reference',
)  # fmt: skip

#: Kinds of runs: name -> options that differ; 'processes' are started by mpiexec.
CONFIGURATIONS = {
    'alone': {},
    'workers': {'workers': 2},
    'average': {'ema_decay': 0.5, 'ema_steps': 2, 'warmup': 1},
    'folder': {'dataset': 'folder', 'network': 'original', 'workers': 1},
    'onednn': {'engine': 'onednn'},
    'onednn, workers': {'engine': 'onednn', 'workers': 1, 'ema_decay': 0.5},
    'processes': {},
}

#: Python's audit events of file operations (sys.addaudithook); fsync has none.
OPERATIONS = {
    'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.listdir', 'os.scandir',
}  # fmt: skip


@dataclasses.dataclass
class Kills:
    """Outcomes of killed runs.

    Attributes:
        name: The configuration and when it was killed.
        kills: SIGKILLs that hit a run. ends: Runs that finished and were compared.
        differ: Differences, one line each.
    """

    name: str
    kills: int = 0
    ends: int = 0
    differ: list = dataclasses.field(default_factory=list)


def unavailable(name: str) -> str:
    """Return why a configuration cannot be run here, or an empty string."""
    if 'onednn' in name:
        return library.unavailable() or ''
    if name == 'processes' and (importlib.util.find_spec('mpi4py') is None or _mpiexec() is None):
        return 'no mpi4py or mpiexec'
    return ''


def _mpiexec():
    beside = shutil.which('mpiexec', path=os.path.dirname(sys.executable))
    return beside or shutil.which('mpiexec')


def _die_at(operation, folder):
    """Kill this process just before its n-th operation on files in a folder."""
    count, sync = 0, os.fsync

    def step():
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event, arguments):
        if event in OPERATIONS and str(arguments[0]).startswith(folder):
            step()

    def fsync(opened):
        step()
        sync(opened)

    os.fsync = fsync
    sys.addaudithook(hear)


class Campaign:
    """Kills runs of a configuration.

    Args:
        name: Of :data:`CONFIGURATIONS`. root: A folder for runs and data.
        how: 'moments', drawn at random, or 'operations', one after the other.
    """

    def __init__(self, name: str, root, how: str, seed: int):
        self.options = dict(TINY, **CONFIGURATIONS[name])
        self.processes, self.how = name == 'processes', how
        self.rng, self.root = random.Random(f'{name} {seed}'), pathlib.Path(root)
        self.data = str(self._data())
        self.found, self._operation, self._run = Kills(f'{name}, {how}'), 0, 0
        golden, start = self.root / 'golden', time.monotonic()
        self._finish(golden)
        self.seconds = time.monotonic() - start
        self.golden = golden

    def _data(self):
        if self.options.get('dataset') == 'folder':
            return runs.write(self.root / 'images', 8)
        return write_cifar10(self.root / 'cifar-10-batches-bin', 16)

    def _train(self, folder):
        Figure.savefig = runs.blank  # drawing takes two thirds of such a small run
        resume = (folder / 'run.json').exists()
        run.train(
            resume=resume, say=lambda text: None, save_path=str(folder), data=self.data,
            **self.options,
        )  # fmt: skip

    def _start(self, folder, operation=None):
        """Start a process that starts or resumes the run in a folder."""
        if not self.processes:

            def train():
                if operation is not None:
                    _die_at(operation, str(folder))
                self._train(folder)

            return runs.in_child(train)
        command = [str(ROOT / 'tests' / 'process_cases.py'), 'train', str(folder), self.data]
        resume = ['resume'] if (folder / 'run.json').exists() else []
        return _Mpi([_mpiexec(), '-n', '2', sys.executable, *command, 'epoch=2', *resume])

    def _finish(self, folder):
        process = self._start(folder)
        process.join(600)
        if process.exitcode != 0:
            process.kill()
            raise AssertionError(f'{self.found.name}: {folder} ended with {process.exitcode}')

    def kill(self) -> None:
        """Kill once; if the run finished instead, compare it."""
        folder = self.root / str(self._run)
        if self.how == 'operations':
            self._operation += 1
            process = self._start(folder, self._operation)
            process.join(600)
        else:
            process = self._start(folder)
            process.join(self.rng.uniform(0.02, 1) * self.seconds)
            process.kill()
            process.join()
        if process.exitcode == 0:
            self._compare(folder)
            self._operation = 0
        elif process.exitcode == -signal.SIGKILL:
            self.found.kills += 1
        else:
            self.found.differ.append(f'{self.found.name}: {folder} ended: {process.exitcode}')
            self._run += 1

    def end(self) -> Kills:
        """Let the last run finish, and compare it."""
        folder = self.root / str(self._run)
        if folder.exists():
            self._finish(folder)
            self._compare(folder)
        return self.found

    def _compare(self, folder):
        try:
            runs.assert_same_end(folder, self.golden)
            shutil.rmtree(folder)
        except AssertionError as e:
            self.found.differ.append(f'{self.found.name}: {folder}: {str(e)[:200]}')
        self.found.ends += 1
        self._run += 1


class _Mpi(subprocess.Popen):
    """mpiexec, with the methods of a process of multiprocessing."""

    def __init__(self, command):
        nowhere = subprocess.DEVNULL
        super().__init__(command, cwd=ROOT, stdout=nowhere, stderr=nowhere)

    def join(self, timeout=None):
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            return

    @property
    def exitcode(self):
        return self.returncode


def campaign(name, how, kills, seconds, seed=0, tell=lambda: None) -> Kills:
    """Kill a number of times, or for a number of seconds; see :class:`Campaign`."""
    with tempfile.TemporaryDirectory() as root:
        killing, start = Campaign(name, root, how, seed), time.monotonic()
        while killing.found.kills < kills and time.monotonic() - start < seconds:
            before = killing.found.kills
            killing.kill()
            if killing.found.kills > before:
                tell()
        return killing.end()
