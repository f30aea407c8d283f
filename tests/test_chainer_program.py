"""``python -m trainer.chainer_compat`` runs programs for Chainer that know nothing of us."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from trainer.chainer_compat import __main__ as command
from trainer.chainer_compat import removed_names


@pytest.fixture
def run(tmp_path):
    """Run a program's text, with arguments: the completed process."""
    program = tmp_path / 'program.py'

    def run_program(text, *arguments):
        program.write_text(text)
        return subprocess.run(
            [sys.executable, '-m', 'trainer.chainer_compat', program, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run_program


def test_a_program_as_it_was_written(run, tmp_path):
    done = run(
        """
import sys
import chainer
import numpy as np
link = chainer.links.Linear(2, np.product((2, 3)))
print(link(np.zeros((1, 2), np.float32)).shape, np.dtype(np.float), np.dtype(np.float))
print(__name__, sys.argv[1:])
raise SystemExit(3)
""",
        '-x',
        '1',
    )
    assert done.stdout == "(1, 6) float64 float64\n__main__ ['-x', '1']\n"
    assert done.stderr.splitlines() == [
        f'{tmp_path}/program.py:{line}: NumPy has no numpy.{name} any more; {successor} '
        'stands for it'
        for line, name, successor in ((5, 'product', 'numpy.prod'), (6, 'float', 'float'))
    ]
    assert done.returncode == 3


def test_its_processes_run_likewise_and_repeat_no_report(run):
    done = run("""
import multiprocessing, subprocess, sys
import chainer
import numpy as np

def work(n):
    return float(chainer.as_variable(np.ones(n, np.float)).array.sum())

if __name__ == '__main__':
    np.float
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(pool.map(work, [2, 3]))
    command = 'import chainer, numpy; print(chainer.__version__, numpy.float)'
    print(subprocess.check_output([sys.executable, '-c', command], text=True).strip())
""")
    assert done.stdout == "[2.0, 3.0]\n7.8.1 <class 'float'>\n"
    assert done.stderr.count('\n') == 1
    assert done.returncode == 0


def test_names_are_there_for_that_command_alone(run):
    for name in ('float', 'product', 'NaN'):
        assert not hasattr(np, name)
    done = run(f"""
import numpy
for name in {list(removed_names.NAMES)}:
    getattr(numpy, name)
print(numpy.in1d([[1, 2]], [2]), numpy.msort([2, 1]), numpy.asfarray([1]))
numpy.no_such_name
""")
    assert done.stdout == '[False  True] [1 2] [1.]\n'
    assert done.stderr.endswith("has no attribute 'no_such_name'\n")
    assert done.returncode == 1


def test_usage(capsys):
    assert command.main([]) == 2
    assert capsys.readouterr().err.startswith('usage: python -m trainer.chainer_compat SCRIPT.py')
    assert command.main(['--help']) == 0
    assert '-m MODULE' in capsys.readouterr().out
