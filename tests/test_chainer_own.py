"""Those of Chainer's own tests that concern what this project uses: none fails, but for two on
Python 3.14.

They are read from the folder that CHAINER_TESTS names: ``tests`` of Chainer's source, v7.8.1.
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

PARTS = (
    'functions_tests/activation_tests/test_relu.py',
    'functions_tests/array_tests/test_as_strided.py',
    'functions_tests/array_tests/test_concat.py',
    'functions_tests/connection_tests/test_convolution_2d.py',
    'functions_tests/connection_tests/test_linear.py',
    'functions_tests/evaluation_tests/test_accuracy.py',
    'functions_tests/loss_tests/test_softmax_cross_entropy.py',
    'functions_tests/normalization_tests/test_batch_normalization.py',
    'functions_tests/pooling_tests/test_average_pooling_2d.py',
    'functions_tests/pooling_tests/test_max_pooling_2d.py',
    'initializer_tests',
    'iterators_tests',
    'links_tests/connection_tests/test_convolution_2d.py',
    'links_tests/connection_tests/test_linear.py',
    'links_tests/model_tests/test_classifier.py',
    'links_tests/normalization_tests/test_batch_normalization.py',
    'optimizer_hooks_tests',
    'optimizers_tests',
    'serializers_tests/test_npz.py',
    'training_tests',
    'test_link.py',
    'test_optimizer.py',
    'test_reporter.py',
    'test_variable.py',
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'trainer.chainer_compat', 'benchmarks/chainer_tests.py', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_chainers_own_tests_of_what_is_used_here():
    folder = os.environ.get('CHAINER_TESTS')
    if not folder:
        pytest.skip("needs Chainer's own tests (CHAINER_TESTS names no folder)")
    pytest.importorskip('mock', reason="Chainer's own tests need mock")
    allowed = 2 if sys.version_info >= (3, 14) else 0  # docs/chainer_tests.md names them
    done = run(folder, *(f'chainer_tests/{part}' for part in PARTS), '--allow', str(allowed))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert '| **all** |' in done.stdout


def test_what_fails_is_counted_and_named(tmp_path):
    (tmp_path / 'setup.cfg').write_text('[tool:pytest]\nfilterwarnings = error\n')
    part = tmp_path / 'tests' / 'some_tests'
    part.mkdir(parents=True)
    (part / 'test_some.py').write_text("""
import unittest, warnings
import chainer, numpy

class Some(unittest.TestCase):
    def test_removed_name(self):
        assert numpy.product([2, 3]) == 6
    def test_wrong(self):
        raise ValueError('so it | is')
    def test_warning(self):
        warnings.warn('will go', DeprecationWarning)
    def test_device(self):
        chainer.get_device('native:0')
    @unittest.skip('elsewhere')
    def test_skipped(self):
        pass
""")
    (part / 'test_det.py').write_text("""
import numpy

def test_float():
    assert float(numpy.ones((1, 1))) == 1
""")
    page = tmp_path / 'page.md'
    page.write_text('# Page\n\n## other\n\nstays\n')
    arguments = (str(tmp_path / 'tests'), 'some_tests', '--table', str(page))
    assert run(*arguments, '--allow', '2').returncode == 1
    assert run(*arguments, '--allow', '3').returncode == 0
    text = page.read_text()
    assert text.startswith('# Page\n\n## other\n\nstays\n\n## some_tests on Python ')
    assert text.count('## some_tests on Python ') == 1
    assert '| some_tests | 2 | 1 | 3 |' in text
    assert '| `test_det.py` | float(array of one element); it is array.item() |' in text
    test = '| `tests/some_tests/test_some.py::Some::test_'
    for line in (
        'device` | needs ChainerX, a compiled part of Chainer |',
        'warning` | DeprecationWarning: will go |',
        'wrong` | ValueError: so it \\| is |',
    ):
        assert test + line in text
