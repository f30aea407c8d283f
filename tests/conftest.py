"""What the tests share. Importing ``trainer`` first makes Chainer importable."""
import pathlib

import numpy as np
import pytest

import trainer  # noqa: F401  before Chainer

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
FIXTURES = ROOT / 'tests' / 'fixtures'


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: needs a GPU and CuPy')


def pytest_collection_modifyitems(items):
    from chainer.backends import cuda
    if not cuda.available:
        skip = pytest.mark.skip(reason='needs a GPU with CuPy, and there is none here')
        for item in items:
            if 'gpu' in item.keywords:
                item.add_marker(skip)


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


def starting_with(arrays, prefix):
    """Return the arrays whose names start with ``prefix``, without it."""
    return {name[len(prefix):]: a for name, a in arrays.items() if name.startswith(prefix)}
