"""Start and interruption of scripts: flags are checked before slow imports, and Ctrl-C ends in one
line."""

import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from trainer import datasets, engines
from trainer.datasets import loading
from trainer.engines import cudnn, onednn
from trainer.networks import initialization
from trainer.optimizers import OPTIMIZERS
from trainer.recipes.options import SPECS
from trainer.transforms import table

SCRIPTS = ['main', 'test', 'predict', 'test_ilsvrc', 'ilsvrc_converter', 'compare', 'average']

HEAVY = {'numpy', 'chainer', 'matplotlib', 'PIL', 'multiprocessing'}


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('flag, status', [('--help', 0), ('--no-such-flag', 2)])
def test_flags_wait_for_nothing_heavy(script, flag, status):
    code = f"""
import runpy, sys
sys.argv = ['{script}.py', '{flag}']
try:
    runpy.run_path('{script}.py', run_name='__main__')
finally:
    print('imported:', sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith('imported: []\n')
    assert 'usage' in done.stdout if status == 0 else 'error: ' in done.stderr


def test_prediction_does_not_wait_for_matplotlib(tmp_path):
    code = """
import sys
import predict
sys.argv = ['predict.py', 'none.jpg', '-m', 'none']
try:
    predict.command()
finally:
    import trainer.inference.prediction, trainer.reports.prediction_report
    import trainer.weights.formats as f
    f.available()
    print([name for name in ('matplotlib', 'setuptools') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'none: cannot be read' in done.stderr
    assert done.stdout == '[]\n'


def test_workers_import_nothing_that_draws():
    """What unpickling brings into a process that loads images, where it begins with nothing."""
    code = f"""
import sys
import {', '.join(SCRIPTS[:-1])}
import trainer.datasets.parallel, trainer.inference.prediction, trainer.training.data
print([name for name in ('matplotlib', 'setuptools', 'onnx') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr


def test_the_names_that_flags_list_are_those_that_are_there():
    assert SPECS['sampling'].choices() == tuple(loading.PLANS)
    assert SPECS['initialization'].choices() == ('orthonormal', *initialization.SOURCES)
    assert SPECS['optimizer'].choices() == tuple(OPTIMIZERS)
    assert SPECS['preprocessing'].choices() == tuple(table.CLASSES)
    assert set(engines.PRECISIONS) == {*cudnn.PRECISIONS, *onednn.PRECISIONS}
    for name in datasets.available():
        assert callable(datasets._module(name).load)


@pytest.mark.parametrize('seconds', [0.1, 0.4, 0.8])
def test_ctrl_c_is_one_line(seconds, tmp_path):
    """While modules are imported, and later."""
    if sys.platform == 'win32':
        pytest.skip('there, Ctrl-C goes to all processes of the console')
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
print('started', flush=True)
import predict
sys.argv = ['predict.py', *['none.jpg'] * 10**6, '-m', 'none']
from trainer import cli
cli.run(lambda: [predict.main() for _ in range(1000)])
"""
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'started\n'
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].endswith(': interrupted'), err
    assert process.returncode == 130


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('module', ['trainer.cli', 'trainer.inference.predictors', 'gettext'])
def test_ctrl_c_while_a_module_is_imported(script, module):
    code = f"""
import runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.modules.pop({module!r}, None)
sys.argv = ['{script}.py', '--help']
runpy.run_path('{script}.py', run_name='__main__')
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f'\n{script}.py: interrupted\n')


@pytest.mark.parametrize('script', SCRIPTS)
def test_the_help_fits_a_screen_and_shows_one_style_of_flags(script, capsys):
    parser = __import__(script).parser()
    short, whole = parser.format_help(), parser.format_help(everything=True)
    for text in (short, whole):
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(r'--\w*_\w', text)
    assert len(short.splitlines()) <= 44 and f'examples:\n  python {script}.py' in short
    for action in parser._actions:
        long = [flag for flag in action.option_strings if flag.startswith('--')]
        assert not long or long[0] in whole
        hidden = action.dest in parser.rare or action.dest == 'help_all' and not parser.rare
        assert not long or hidden or long[0] in short


def test_flags_of_2017_are_accepted():
    import main

    argv = '--save_path a -lr 0.1 -multi 2 --block_num 1 1 1 -trb 2 --train_batch_divide=3'
    given = vars(main.parser().parse_args(argv.split()))
    assert given == {
        'save_path': 'a',
        'lr': 0.1,
        'multi': 2,
        'block_num': [1, 1, 1],
        'train_batch_divide': 3,
    }
    dashed = vars(main.parser().parse_args(argv.replace('_', '-').split()))
    assert dashed == given


def test_all_flags_are_told_on_request(capsys):
    import main

    with pytest.raises(SystemExit) as end:
        main.parser().parse_args(['--help-all'])
    assert not end.value.code
    out = capsys.readouterr().out
    assert (
        '--label-smoothing SHARE' in out and '--label-smoothing' not in main.parser().format_help()
    )
