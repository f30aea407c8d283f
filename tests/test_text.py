"""Text from outside is shown printable and short."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.runs import write
from PIL import Image

import compare
import ilsvrc_converter
import main
import resnext_ilsvrc
import test as test_script
from trainer import cli
from trainer.errors import InputError
from trainer.reports import comparison
from trainer.text import printable

EVIL = '\x1b[2J\r\u202e\x9b31m\udcff\x00'


def test_printable():
    for text in ('', 'plain', 'a  b', 'déjà vu', '猫', 'x' * 450):
        assert printable(text) == text
    assert printable('a\n\t b\r\nc ') == 'a b c'
    assert printable(EVIL) == r'\x1b[2J \u202e\x9b31m\udcff\x00'
    for long in ('head' + 'x' * 10**6 + 'tail', '\x1b' * 10**5 + 'tail'):
        line = printable(long)
        assert len(line) <= 450 and line.endswith('tail') and line.isprintable()
        assert printable(line) == line
    assert printable('head' + 'x' * 999).startswith('headxxx')


def test_errors_are_printable():
    error = InputError(f'x: {EVIL}' + 'y' * 999 + '; mend it')
    assert str(error).isprintable() and str(error).endswith('; mend it')
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # from a worker
    assert cli.reason(FileNotFoundError(2, 'No such file', EVIL)).isprintable()
    assert cli.reason(MemoryError(EVIL)).isprintable()


def test_flags(capsys):
    with pytest.raises(SystemExit):
        cli.ArgumentParser().parse_args(['--\x1b[2J' + 'x' * 999])
    line = capsys.readouterr().err.rstrip('\n')
    assert line.isprintable() and len(line) <= 500 and line.endswith('lists the flags)')


def test_predictions(tmp_path):
    """Names of classes and files reach the terminal as escapes."""
    network = resnext_ilsvrc.ResNext(3, (1, 1), 1, 1, 1, stem_width=4)
    network.classes = [EVIL.replace('\udcff', ''), 'b' * 10_000, 'c']
    network.save_model(tmp_path / 'x.npz')
    name = tmp_path / '\x1b[2J.png'
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(name)
    (tmp_path / '\x1b[31m.jpg').write_bytes(b'no image')
    result = subprocess.run(
        [sys.executable, 'predict.py', '-m', tmp_path / 'x.npz', tmp_path],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    said = (result.stdout + result.stderr).decode()
    assert all(line.isprintable() and len(line) <= 500 for line in said.splitlines()), said
    assert result.returncode == 2 and r'\x1b[31m.jpg: not an image' in said
    assert r'\x1b[2J.png' in said and r'\x9b31m\x00' in said and 'bbb ...' in said


def test_scripts_on_odd_names(tmp_path, capsys, monkeypatch):
    """Names of folders, classes and runs: what scripts print of them moves no cursor."""
    odd = '\x1b[2J\x9b31m\r'
    write(tmp_path / odd, 4, classes={3: odd + 'a', 5: 'b'})
    monkeypatch.chdir(tmp_path)
    tiny = ['--C', 1, '--d', 1, '--multi', 1, '--block-num', 1, 1, 1, '-b', 8, '-e', 1]
    tiny += ['--network', 'original', '--engine', 'reference', '--workers', 0]
    said = ''
    for script, *flags in [
        (main, '--dataset', 'folder', '--data', odd, '-p', odd + 'run', *tiny),
        (main, '--resume', odd + 'run'),
        (main, '--resume', odd + 'run', '--summary'),
        (test_script, odd + 'run', '--workers', '0', '--engine', 'reference'),
        (compare, odd + 'run', odd + 'run'),
        (ilsvrc_converter, '-i', odd + 'run', '-o', odd + '.npz'),
    ]:
        monkeypatch.setattr(sys, 'argv', ['script.py', *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run(script.main)
        out, err = capsys.readouterr()
        assert not end.value.code, err
        bad = [x for x in out.split('\n') if not x.isprintable() or len(x) > 500]
        assert not bad, (script.__name__, bad)
        said += out
    assert said.count(r'\x1b[2J\x9b31m') > 5


def test_runs(tmp_path):
    folder = tmp_path / '\x1b[2J'
    folder.mkdir()
    (folder / 'log.json').write_text(
        '[{"_id": "test_parameter", "parameter": 1}, {"_id": "test_accuracy", "accuracy": 1}]'
    )
    table = comparison.table([comparison.Run(str(folder))] * 2)
    assert all(line.isprintable() for line in table.splitlines()) and r'\x1b[2J' in table
    with pytest.raises(InputError) as e:
        comparison.Run(str(tmp_path / ('x\n' * 99)))
    assert str(e.value).isprintable()


def test_messages_name_arguments_and_scripts_flags():
    from trainer.errors import InputError

    error = InputError('`save_path` x: no', 'a `C` of 3: use --all, and `--this`')
    assert str(error) == 'save_path x: no; a C of 3: use --all, and `--this`'
    assert error.for_script() == ['--save-path x: no', 'a --C of 3: use --all, and `--this`']
