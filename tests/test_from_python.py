"""From Python: arguments that cannot be used are named in one line, files may be file objects,
Chainer may come first."""

import io
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.networks import same, small
from helpers.runs import TINY, write

import resnext
import resnext_ilsvrc
from trainer.errors import InputError
from trainer.training import run


@pytest.mark.parametrize(
    'given, words',
    [
        ({'dataset': 'x'}, 'dataset x: there are cifar10, '),
        ({'epoch': '3'}, "epoch '3': it is of type str, not a number"),
        ({'lr': -1}, 'lr -1: -1 is not above zero'),
        ({'lr': float('nan')}, 'lr nan: nan is no number'),
        ({'block_num': 3}, 'block_num 3: it is of type int, not a list'),
        ({'lr_steps': [1, 'a']}, 'it is of type str, not a number'),
        ({'quick': 1}, 'quick 1: it is of type int, not a bool'),
        ({'save_path': None}, 'save_path None: it is of type NoneType, not a path'),
    ],
)
def test_options_are_named(given, words, tmp_path):
    with pytest.raises(InputError) as e:
        run.train(say=pytest.fail, **{'save_path': str(tmp_path), **given})
    assert words in str(e.value) and '\n' not in str(e.value)


def test_several_wrong_options_are_told_at_once_and_names_are_guessed(tmp_path):
    with pytest.raises(InputError) as e:
        run.train(save_path=tmp_path, epoch='3', lr=-1)
    assert len(e.value.args) == 2
    with pytest.raises(TypeError, match="no option 'epochs'; 'epoch' may be meant"):
        run.train(save_path=tmp_path, epochs=3)


@pytest.mark.parametrize(
    'build, words',
    [
        (lambda: resnext.ResNext(-1), 'category_num=-1: a positive integer'),
        (lambda: resnext.ResNext('3'), "category_num='3': a positive integer"),
        (lambda: resnext.ResNext(10, C=0), 'C=0: a positive integer'),
        (lambda: resnext.ResNext(10, block_num=3), 'block_num=3: positive integers'),
        (lambda: resnext.ResNext(10, d=2.5), 'd=2.5: a positive integer'),
        (lambda: resnext.PaperResNext(10, widen_factor=-1), 'widen_factor=-1: a positive number'),
        (lambda: resnext_ilsvrc.ResNext(0), 'category_num=0: a positive integer'),
        (lambda: resnext_ilsvrc.resnext50(d=0), 'd=0: a positive integer'),
        (lambda: resnext_ilsvrc.ResNext(10, multiplier=0), 'multiplier=0: a positive number'),
    ],
)
def test_arguments_of_networks_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_say_receives_every_line(tmp_path, capfd):
    data = write(tmp_path / 'images', 4)
    said = []
    given = dict(TINY, batch=4, epoch=1)
    assert run.train(say=said.append, save_path=tmp_path / 'run', data=data, **given)
    text = '\n'.join(said)
    assert 'epoch  train loss' in text and '\n    1  ' in text and 'best accuracy' in text
    assert capfd.readouterr() == ('', '')


def test_load_takes_file_objects(tmp_path):
    network = small()
    network.save_model(tmp_path / 'x.npz')
    data = (tmp_path / 'x.npz').read_bytes()
    with open(tmp_path / 'x.npz', 'rb') as f:
        for source in (io.BytesIO(data), f, tmp_path / 'x.npz'):
            assert same(resnext_ilsvrc.load(source), network)
    with pytest.raises(InputError, match='^the file object: not a whole npz file'):
        resnext_ilsvrc.load(io.BytesIO(data[:-100]))
    with (
        open(tmp_path / 'x.npz', encoding='latin-1') as f,
        pytest.raises(InputError, match="x.npz: is open as text; open it with mode 'rb'"),
    ):
        resnext_ilsvrc.load(f)


def test_chainer_may_come_first(tmp_path):
    """As installed: a .pth file in site-packages, which Python reads when it starts."""
    before = ROOT / 'startup' / '_resnext_chainer_before.py'
    code = f"""
import runpy, sys
# What this environment has of it.
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Before']
sys.path[:] = [p for p in sys.path if p]
{{}}
runpy.run_path({str(before)!r})
try:
    import chainer
    print(chainer.__version__, 'trainer.chainer_compat' in sys.modules)
except AttributeError as e:
    print('as it was published:', str(e)[:22])
"""

    def python(first):
        done = subprocess.run(
            [sys.executable, '-c', code.format(first)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python(f'sys.path.insert(0, {str(ROOT)!r})') == '7.8.1 True\n'
    # A trainer of the program's own is neither run nor taken for this project's.
    (tmp_path / 'trainer.py').write_text('raise SystemExit(3)')
    own = python(f'sys.path.insert(0, {str(tmp_path)!r})')
    assert own.startswith(('as it was published: `np.sctypes` was remov', '7.8.1 False'))


@pytest.mark.parametrize(
    'given, folder',
    [
        ({}, './'),  # as in 2017
        ({'recipe': 'original'}, './'),
        ({'quick': True}, 'runs/quick'),
        ({'recipe': 'torch7'}, 'runs/torch7'),
        ({'recipe': 'torch7', 'save_path': 'a'}, 'a'),
        ({'quick': True, 'save_path': './'}, './'),
    ],
)
def test_where_a_run_is(given, folder):
    assert run._folder(given) == folder


@pytest.mark.parametrize('method', ['forkserver', 'spawn'])  # of Python 3.14, of macOS
@pytest.mark.parametrize('where', ['project', 'script'])
def test_scripts_without_a_guard_load_in_processes(where, method, tmp_path):
    """Python would run the script again in each; where it defines what is loaded it has to."""
    loads = 'functools.partial(operator.setitem, {0: 0})' if where == 'project' else 'load'
    script = tmp_path / 'script.py'
    script.write_text(f"""
import functools, multiprocessing, operator, sys
sys.path.insert(0, {str(ROOT)!r})
multiprocessing.set_start_method({method!r}, force=True)
import trainer
from trainer.datasets import parallel

def load(item, out):
    pass

print('begun')
found = parallel.batches(parallel.one_by_one({loads}), [[0, 1], [2, 3]], 2, (3,), 2)
print([batch.items for batch in found])
""")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    if where == 'project':
        assert done.stdout == 'begun\n[[0, 1], [2, 3]]\n', done.stderr
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert 'under `if __name__ == "__main__":`, or set workers to 0' in last
