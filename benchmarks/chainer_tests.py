"""Chainer's own tests with what Chainer misses supplied: which pass, and why the others fail.

``python -m trainer.chainer_compat benchmarks/chainer_tests.py TESTS [PART ...] [--table FILE]``:
TESTS is the folder ``tests`` of Chainer's source at v7.8.1, PART a folder or file in it
(default: chainer_tests). Nothing is downloaded; MNIST is made up. ``-k`` and ``-m`` choose tests
as pytest's do. Under ``mpiexec -n 2`` the first process reports. The tests run under Chainer's own
``setup.cfg``, in which every warning is an error, but for those of :data:`WARNINGS`.

It needs pytest, and mock, SciPy, h5py and ONNX with its runtime for the tests that need those.
The exit status is 1 where more than ``--allow`` tests fail.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import tempfile

import numpy
import pytest
from chainer_examples import make_datasets, write_section  # first: it makes Chainer importable

# isort: split
import chainer

from trainer.training import launch

#: Without accelerators, and without Chainer's slow tests.
MARKS = 'not gpu and not cudnn and not ideep and not slow and not chainerx and not multi_gpu'

#: Warnings that are no errors: of files that tests leave open and of processes that they fork,
#: and those that the pytest of Chainer's day did not know. None is of NumPy.
WARNINGS = (
    'ignore::ResourceWarning',
    'ignore::pytest.PytestUnraisableExceptionWarning',
    'ignore::pytest.PytestUnhandledThreadExceptionWarning',
    'ignore:It is deprecated to return a value that is not None:DeprecationWarning',
    'ignore:This process .* is multi-threaded:DeprecationWarning',
)

#: What an error says -> why that is no fault of Chainer on this NumPy and Python.
REASONS = {
    'ChainerX is not available': 'needs ChainerX, a compiled part of Chainer',
    "module 'chainerx' has no attribute": 'needs ChainerX, a compiled part of Chainer',
    'Stalled dataset is detected': (
        'the test allows 0.1 s, and worker processes take longer to start: since Python 3.14 '
        'they are not forked from the program'
    ),
    'numpy.fix is deprecated': 'the test calls numpy.fix, deprecated since NumPy 2.5',
    "exceptions must be derived from Warning, not <class 'NoneType'>": (
        'the test calls pytest.warns(None), gone since pytest 8'
    ),
}

NAMES = 'trainer.chainer_compat.removed_names'

PACKAGES = (
    'chainer',
    'numpy',
    'scipy',
    'h5py',
    'protobuf',
    'onnx',
    'onnxruntime',
    'mpi4py',
    'pytest',
)


def _pad_sequence(test):
    if test.cls.pad == -1 and numpy.dtype(test.cls.dtype).kind == 'u':
        test.cls.pad = numpy.int64(-1)


def _softmax_cross_entropy(test):
    if hasattr(test.cls, 'expected_forward_with_reduce'):
        expected = test.cls.expected_forward_with_reduce
        test.cls.expected_forward_with_reduce = lambda self, x, t, weight: expected(
            self, x.astype('d'), t, weight
        ).astype(x.dtype)


def _det(test):
    test.module.float = lambda array: array.item()


#: Files of tests that say themselves what NumPy 2 refuses -> (what, how it is said instead).
PUT_RIGHT = {
    'test_pad_sequence.py': ('numpy.uint8(-1); the padding is numpy.int64(-1)', _pad_sequence),
    'test_softmax_cross_entropy.py': (
        'a sum of 300,000 terms in float16 (0.0 + float16 was float64); it is in float64',
        _softmax_cross_entropy,
    ),
    'test_det.py': ('float(array of one element); it is array.item()', _det),
}


def folder_of(test):
    """Return the folder of a test below ``tests``, without folders in it."""
    return '/'.join(test.split('::')[0].split('/')[1:-1][:2])


class Record:
    """Pytest plugin: corrects tests by :data:`PUT_RIGHT`, and keeps the outcomes."""

    def __init__(self, put_right):
        self.put_right = put_right
        self.changed = set()  # files of tests that were put right
        self.passed = collections.Counter()  # folder -> tests
        self.skipped = collections.Counter()
        self.failed = {}  # test -> error

    def pytest_collection_modifyitems(self, items):
        for test in items:
            if test.path.name in self.put_right:
                self.changed.add(test.path.name)
                _, put_right = self.put_right[test.path.name]
                put_right(test)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)

    def pytest_runtest_logreport(self, report):
        folder = folder_of(report.nodeid)
        if report.failed:
            self.failed[report.nodeid] = report.longreprtext
        elif report.skipped:
            self.skipped[folder] += 1
        elif report.when == 'call':
            self.passed[folder] += 1


def run(tests, parts, marks=MARKS, keyword='', put_right=PUT_RIGHT):
    """Run Chainer's tests in this process.

    Args:
        tests (pathlib.Path): Folder ``tests`` of Chainer's source, absolute.
        parts (list of str): Folders or files in it.
        marks (str): As pytest's ``-m``.
        keyword (str): As pytest's ``-k``.
        put_right (dict): As :data:`PUT_RIGHT`.

    Returns:
        Record: The outcomes.
    """
    root = tests.parent
    record = Record(put_right)
    arguments = [*(str(root / 'tests' / part) for part in parts), '-m', marks, '-k', keyword]
    arguments += ['-c', str(root / 'setup.cfg'), '--rootdir', str(root), '-o', 'addopts=']
    arguments += ['-q', '--tb=short', '-p', 'no:cacheprovider', '--continue-on-collection-errors']
    arguments += [word for warning in WARNINGS for word in ('-W', warning)]
    pytest.main(arguments, plugins=[record])
    return record


def reason(error):
    """Return why a test failed: a known reason, or the error's last line."""
    for text, why in REASONS.items():
        if text in error:
            return why
    lines = [line[1:].strip() for line in error.splitlines() if re.match(r'E\s+\S', line)]
    return (lines or error.strip().splitlines())[-1][:200]


def row(*cells):
    return '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'


def table(record):
    """Return the versions in use and the outcomes, in Markdown."""
    packages = ', '.join(
        f'{name} {importlib.metadata.version(name)}'
        for name in PACKAGES
        if any(importlib.metadata.distributions(name=name))
    )
    lines = [
        f'Python {platform.python_version()}, {packages}.',
        '',
        row('tests in', 'passed', 'skipped', 'failed'),
        '|:--|--:|--:|--:|',
    ]
    failed = collections.Counter(map(folder_of, record.failed))
    for folder in sorted({*record.passed, *record.skipped, *failed}):
        counts = (record.passed[folder], record.skipped[folder], failed[folder])
        lines.append(row(folder, *(f'{n:,}' for n in counts)))
    totals = (record.passed.total(), record.skipped.total(), failed.total())
    lines.append(row('**all**', *(f'**{n:,}**' for n in totals)))
    if record.failed:
        lines += ['', row('failing test', 'reason'), '|:--|:--|']
        lines += [row(f'`{test}`', reason(error)) for test, error in record.failed.items()]
    if record.changed:
        lines += ['', row('put right', 'what the tests say, and say instead'), '|:--|:--|']
        lines += [row(f'`{file}`', PUT_RIGHT[file][0]) for file in sorted(record.changed)]
    return '\n'.join(lines) + '\n'


def parser():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('tests', type=pathlib.Path, help="folder tests of Chainer's source, v7.8.1")
    p.add_argument('parts', nargs='*', default=['chainer_tests'], help='folders or files in it')
    p.add_argument('-m', default=MARKS, help=f'marks, as for pytest (default: {MARKS})')
    p.add_argument('-k', default='', help='names, as for pytest')
    p.add_argument('--as-published', action='store_true', help='put no test right')
    p.add_argument('--table', type=os.path.abspath, help='page in Markdown for the table')
    p.add_argument('--allow', type=int, default=20, help='failing tests allowed (default: 20)')
    return p


def main():
    args = parser().parse_args()
    if not (args.tests.parent / 'setup.cfg').is_file() or NAMES not in sys.modules:
        parser().error(
            "it runs under python -m trainer.chainer_compat, on Chainer's tests with the "
            'setup.cfg beside them'
        )
    put_right = {} if args.as_published else PUT_RIGHT
    tests = args.tests.resolve()
    # onnx_chainer's tests write into the current folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        make_datasets(pathlib.Path(scratch))
        chainer.dataset.set_dataset_root(scratch)
        record = run(tests, args.parts, args.m, args.k, put_right)
    if launch.launched()[0] == 0:
        page = table(record)
        print(page)
        if args.table:
            versions = f'Python {platform.python_version()}, NumPy {numpy.__version__}'
            write_section(args.table, f'{", ".join(args.parts)} on {versions}', page)
    return int(len(record.failed) > args.allow)


if __name__ == '__main__':
    sys.exit(main())
