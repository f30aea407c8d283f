"""The libraries of the extra cuda13; none of these tests needs a GPU."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import ask_cudnn

FIND = """
import json
from cuda import pathfinder
from cupy import _environment

found = {name: pathfinder.load_nvidia_dynamic_lib(name) for name in ('cudart', 'nvrtc', 'cublas')}
print(json.dumps({
    'headers': pathfinder.find_nvidia_header_directory('cudart'),
    'CuPy': _environment.get_cuda_path(),
    **{name: lib.found_via for name, lib in found.items()},
}))
"""


@pytest.fixture
def installed():
    try:
        importlib.metadata.version('cupy-cuda13x')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs the extra cuda13, which is not installed')


def test_headers_and_libraries_are_in_the_environment(installed):
    """On a machine with only a driver, CuPy and cuDNN have no other libraries."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('LD_LIBRARY_PATH', 'PYTHONPATH', 'CUDA_PATH', 'CUDA_HOME')
    }
    run = subprocess.run(
        [sys.executable, '-c', FIND], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    headers, root = found.pop('headers'), found.pop('CuPy')
    assert os.path.isfile(os.path.join(headers, 'cuda_fp16.h'))
    assert os.path.samefile(headers, os.path.join(root, 'include'))
    assert found == dict.fromkeys(found, 'site-packages')


@pytest.mark.skipif(shutil.which('gcc') is None, reason='needs gcc, for a libcuda')
@pytest.mark.parametrize(
    'network, precision',
    [(n, 'mixed') for n in ('resnext50', 'cifar2x64d', 'cifar8x64d')]
    + [('resnext50', 'tf32'), ('cifar2x64d', 'float32')],
)
def test_every_graph_has_a_plan_or_another_way(installed, network, precision, tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / 'tests' / 'helpers' / 'ask_cudnn.py', network, precision],
        env=ask_cudnn.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer['compiled'] is True  # cuDNN found NVRTC and its builtins
    graphs = answer['graphs']
    for kind in ('forward', 'data gradient', 'weight gradient', 'inference'):
        having, lacking = graphs.pop(kind)
        assert len(having) > 10 and not lacking, kind
    # What remains is computed in two steps, or rounded to float16, where there is no plan.
    others = {'data gradient and addition'}
    others |= {'forward and sums', 'weight gradient in float32'} if precision == 'mixed' else set()
    assert set(graphs) == others
    assert graphs['data gradient and addition'][0]


def test_chainer_s_search_for_nccl_prints_nothing():
    """Otherwise every run on a single GPU would start with several lines of CuPy's advice."""
    code = r"""
import warnings
import trainer, chainer
warnings.warn('\nnccl library could not be loaded.\n\nReason: ImportError (libnccl.so.2)\n')
"""
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, '')


NO_DRIVER = """
import cupy

def fails(*args):
    raise cupy.cuda.runtime.CUDARuntimeError('cudaErrorInsufficientDriver', 'no driver')

cupy.cuda.is_available = lambda: False
cupy.cuda.runtime.getDeviceCount = cupy.cuda.runtime.getDeviceProperties = fails
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the simulated CuPy needs Linux')
def test_pytest_with_cupy_and_without_a_driver(tmp_path):
    """Everything marked gpu is skipped there, and the rest runs."""
    (tmp_path / 'no_driver.py').write_text(NO_DRIVER)
    for package in (ROOT / 'tests' / 'simulated_gpu').iterdir():
        (tmp_path / package.name).symlink_to(package)
    tests = ['tests/test_captured_step.py', 'tests/test_cudnn_engine.py::TestChoice']
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no_driver', *tests, '-p', 'no:cacheprovider'],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert ' passed' in last and ' skipped' in last
