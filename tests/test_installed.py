"""What an installed project holds: modules, commands and data files."""

import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT

COMMANDS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Return a folder with the wheel's files."""
    backend = pytest.importorskip('hatchling.build', reason='hatchling builds the wheel')
    folder = tmp_path_factory.mktemp('installed')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(ROOT)
        name = backend.build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as wheel:
        wheel.extractall(folder / 'site-packages')
    return folder / 'site-packages'


def python(installed, *arguments):
    """Run Python outside the checkout with the installed files first on its path."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=installed.parent,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(installed)),
    )


def test_every_file_of_the_library_is_installed(installed):
    def files(folder):
        found = (p.relative_to(folder) for p in (folder / 'trainer').rglob('*') if p.is_file())
        return {p for p in found if '__pycache__' not in p.parts}

    expected = files(ROOT)
    assert {'.py', '.cu', '.cuh', '.txt', '.webp'} <= {p.suffix for p in expected}
    assert files(installed) == expected


def test_modules_and_data_files_are_found(installed):
    process = python(
        installed,
        '-c',
        'import resnext, resnext_ilsvrc, data_augmentation, trainer.datasets.class_names as names\n'
        'from trainer import datasets\n'
        'print(resnext.__file__, resnext_ilsvrc.__file__, data_augmentation.__file__)\n'
        'print(len(datasets.load("quick").train.labels), len(names.imagenet()))',
    )
    assert process.returncode == 0, process.stderr
    *modules, train, classes = process.stdout.split()
    assert [os.path.dirname(m) for m in modules] == [str(installed)] * 3
    assert (train, classes) == ('2500', '1000')


def test_chainer_may_be_imported_first(installed):
    code = f"""
import site, sys
# What this environment has of it.
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Before']
sys.modules.pop('_resnext_chainer_before', None)
site.addsitedir({str(installed)!r})
import chainer, trainer
print(chainer.__version__, trainer.__file__)
"""
    process = python(installed, '-c', code)
    assert process.stdout.split() == ['7.8.1', str(installed / 'trainer' / '__init__.py')]


def test_commands(installed):
    code = f"""
import importlib, sys
for command, place in {COMMANDS}.items():
    module, _, function = place.partition(':')
    sys.argv = [command, '--help']
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as e:
        print('status', e.code)
"""
    process = python(installed, '-c', code)
    assert process.stdout.count('status 0\n') == len(COMMANDS), process.stderr
    for command in COMMANDS:
        assert f'usage: {command} ' in process.stdout
