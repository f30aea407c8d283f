"""Fixtures and helpers of all tests. Importing ``trainer`` first makes Chainer importable."""

import importlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import trainer  # noqa: F401  before Chainer

importlib.import_module('chainer')

# Tests fork, and OpenMP does not compute in a process that was forked when it had threads. They
# share their cores, too.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A shell starts what is in the background with Ctrl-C ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
FIXTURES = ROOT / 'tests' / 'fixtures'


def has_gpu():
    """Whether there is a GPU that CuPy can use; CuPy can be imported without a driver."""
    from chainer.backends import cuda

    return cuda.available and cuda.cupy.cuda.is_available()


def simulated():
    """Whether the GPU is the simulation in tests/simulated_gpu, where long tests are shortened."""
    from chainer.backends import cuda

    return has_gpu() and b'Simulated' in cuda.cupy.cuda.runtime.getDeviceProperties(0)['name']


def has_compiler():
    """Whether the simulated GPU can compile its kernels here."""
    return (
        sys.platform == 'linux'
        and shutil.which('g++') is not None
        and subprocess.run(
            ['g++', '-std=c++17', '-x', 'c++', '-fsyntax-only', '-'],
            input=b'_Float16 x = 1;',
            capture_output=True,
        ).returncode
        == 0
    )


def _cache_bytecode(config):
    """Keep bytecode in a folder of this run where it may not be kept beside the sources: the tests
    start hundreds of Pythons, each of which would compile all that it imports."""
    if os.environ.pop('PYTHONDONTWRITEBYTECODE', None):
        folder = tempfile.mkdtemp()
        os.environ['PYTHONPYCACHEPREFIX'] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    from helpers import time_left

    _cache_bytecode(config)

    time_left.register(config)
    config.addinivalue_line('markers', 'gpu: needs a GPU and CuPy')
    if 'simulated_gpu' in os.environ.get('PYTHONPATH', '') and not simulated():
        raise pytest.UsageError('the simulated GPU that PYTHONPATH names cannot be imported')
    if simulated():
        from trainer.engines.cudnn import timing

        # How long a plan takes says nothing there.
        timing.REPEATED = timing.ROUNDS = 1
        timing.WARM_UP = 0


def pytest_collection_modifyitems(items):
    # Conflicts between changes would be frequent where each test is marked by itself.
    slow = set((ROOT / 'tests' / 'slow.txt').read_text().split())
    for item in items:
        if item.nodeid.partition('[')[0] in slow:
            item.add_marker('slow')
    if not has_gpu():
        reason = 'needs a GPU with CuPy, and there is none here'
    elif simulated() and not has_compiler():
        reason = 'the simulated GPU needs Linux and a g++ that has _Float16 (12 on x86_64)'
    else:
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=['reference', 'numpy', 'onednn'])
def engine(request):
    """Each engine that trains on a CPU, which then computes the layers."""
    import chainer

    from trainer.engines.onednn import library

    if request.param == 'onednn' and library.unavailable():
        pytest.skip(f'needs oneDNN (extra cpu): {library.unavailable()}')
    with chainer.using_config('engine', request.param):
        yield request.param


@pytest.fixture
def no_plans(monkeypatch, tmp_path):
    """cuDNN's graphs have no plan as yet, and no earlier choice is known."""
    from trainer.engines.cudnn import graphs, timing

    monkeypatch.setattr(timing, '_path', lambda: str(tmp_path / 'choices.json'))
    monkeypatch.setattr(timing, '_ways', {})
    for name in (
        'conv_forward',
        'conv_backward_data',
        'group_backward_data',
        'conv_backward_weights',
        'group_backward_weights',
        'conv_bias',
    ):
        monkeypatch.setattr(graphs, name, graphs._once(getattr(graphs, 'build_' + name)))


@pytest.fixture
def undrawn(monkeypatch):
    """Write figures as files without content, as drawing takes half of the time of a tiny run."""
    from helpers import runs
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, 'savefig', runs.blank)


@pytest.fixture
def shared():
    """The folder of the original programs' numbers, which is not part of the project."""
    if not (SHARED / 'golden').is_dir():
        pytest.skip("needs the original programs' numbers (../shared/golden), which are not here")
    return SHARED


@pytest.fixture(scope='session')
def original():
    """Numbers of the 2017 program's small CIFAR network: name -> array."""
    with np.load(FIXTURES / 'original_cifar_small.npz') as f:
        return {name: f[name] for name in f.files}


@pytest.fixture
def run_converter(tmp_path, monkeypatch, capsys):
    """Run ilsvrc_converter.py in ``tmp_path``: (exit status, what it printed, its errors)."""
    import ilsvrc_converter
    from trainer import cli

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['ilsvrc_converter.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as e:
            cli.run(ilsvrc_converter.main)
        return (e.value.code or 0, *capsys.readouterr())

    return run


def relative(a, b):
    """Return how far b is from a, relative to the norm of a."""
    a, b = (np.asarray(array, np.float64) for array in (a, b))
    return np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)


def state_on_cpu(network):
    """Return what a network's file holds, name -> NumPy array, wherever the network is."""
    import chainer

    from trainer.weights import npz

    get = chainer.get_device('@numpy').send
    return {
        name: get(np.asarray(a) if not np.ndim(a) else a) for name, a in npz.state(network).items()
    }


def images_of_step(step, x, t):
    """Return what the network was given in a step: for each chunk a Variable."""
    import chainer

    given = []

    class Hook(chainer.LinkHook):
        def forward_preprocess(self, args):
            if args.link is step.network:
                given.append(args.args[0])

    with Hook():
        step(x, t)
    return given


def starting_with(arrays, prefix):
    """Return the arrays whose names start with ``prefix``, without it."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def write_cifar10(folder, per_file=40):
    """Write a small dataset in the form of CIFAR-10's binary version, of real images."""
    from trainer.datasets import quick

    images = quick.load()
    order = np.random.default_rng(0).permutation(len(images.train.labels))
    folder.mkdir()
    names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
    for i, name in enumerate(names):
        source = images.test if name == 'test_batch.bin' else images.train
        chosen = order[i * per_file : (i + 1) * per_file] % len(source.labels)
        records = np.concatenate(
            [
                source.labels[chosen, None].astype(np.uint8),
                source.images[chosen].reshape(per_file, -1),
            ],
            axis=1,
        )
        (folder / name).write_bytes(records.tobytes())
    return folder
