"""The walks of docs/architecture.md: the files that a trace finds are those that the page names."""

import io
import os
import pathlib
import re
import sys

import chainer
import numpy as np
import pytest
from conftest import FIXTURES
from PIL import Image

import ilsvrc_converter
import main
import predict
import resnext
import resnext_ilsvrc
from trainer.networks.base import Network
from trainer.training.losses import LabelSmoothing
from trainer.weights import formats, strided

ROOT = pathlib.Path(__file__).resolve().parent.parent

#: What every flag and every file passes: parsing, checks, opening.
COMMON = {
    'trainer/arguments.py',
    'trainer/errors.py',
    'trainer/files.py',
    'trainer/recipes/flags.py',
    'trainer/training/resolve.py',
    'trainer/values.py',
}

#: Where walks that load a network end: its class.
NETWORK = {'resnext.py', 'trainer/networks/base.py', 'trainer/networks/paper_network.py'}


class Arrived(BaseException):
    """The walk has come to its end."""


def walked(monkeypatch, script, arguments, handles, end):
    """Return the files with a function that an object is given to, held in or returned by.

    Args:
        handles: Value -> whether it is the object.
        end: (file, function, event) of the end.
    """
    found = set()

    def look(frame, event, result):
        code = frame.f_code
        if event not in ('call', 'return') or not code.co_filename.startswith(str(ROOT)):
            return
        file = os.path.relpath(code.co_filename, ROOT)
        if file.startswith(('tests', '.venv')):
            return
        values = list(frame.f_locals.values())
        values += [item for v in values if type(v) in (list, tuple) and len(v) < 20 for item in v]
        if any(map(handles, values)) or event == 'return' and handles(result):
            found.add(file)
        if (file, code.co_name, event) == end:
            raise Arrived

    monkeypatch.setattr(sys, 'argv', [script.__name__ + '.py', *arguments])
    sys.setprofile(look)
    try:
        with pytest.raises(Arrived):
            script.main()
    finally:
        sys.setprofile(None)
    return found - COMMON


def named(title):
    """Return the files that the first paragraph of a walk names, and their number there."""
    page = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')
    paragraph = page.split(f'### {title}\n\n')[1].split('\n\n')[0]
    return set(re.findall(r'`([\w/]+\.py)`', paragraph)), int(paragraph.split()[0])


def is_file(value, path):
    return (
        value == path
        if isinstance(value, str)
        else isinstance(value, io.IOBase) and value.name == path
    )


def check(title, found):
    files, number = named(title)
    assert (found, len(found)) == (files, number)


@pytest.fixture
def weights(tmp_path):
    def of(network):
        path = str(tmp_path / 'weights.npz')
        formats.write(path, network, 'npz')
        return path

    return of


def test_an_image(tmp_path, monkeypatch, weights):
    path = str(tmp_path / 'image.jpg')
    Image.fromarray(np.zeros((250, 260, 3), np.uint8)).save(path)
    model = weights(resnext_ilsvrc.ResNext(5, (1, 1, 1, 1), C=2, d=2, multiplier=2))

    def handles(value):
        if isinstance(value, (np.ndarray, chainer.Variable)):
            return value.size >= 3 * 224 * 224
        if isinstance(value, os.PathLike):
            return vars(value).get('path') == path if hasattr(value, '__dict__') else False
        return isinstance(value, Image.Image) or isinstance(value, str) and value == path

    arguments = ['-m', model, '--engine', 'reference', path]
    end = 'trainer/networks/base.py', 'forward', 'call'
    check('An image from disk to scores', walked(monkeypatch, predict, arguments, handles, end))


def test_a_model_to_start_from(tmp_path, monkeypatch, weights):
    path = weights(resnext.PaperResNext(10, (1, 1, 1), C=2, d=4))
    arguments = ['--quick', '-m', path, '-p', str(tmp_path / 'run')]
    found = walked(
        monkeypatch,
        main,
        arguments,
        lambda value: isinstance(value, Network) or is_file(value, path),
        ('trainer/training/build.py', 'network', 'return'),
    )
    check('`-m FILE`', found - NETWORK)


def test_a_torch7_file(tmp_path, monkeypatch):
    path = str(FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7')
    kinds = Network, strided.StridedTensor, strided.Storage
    found = walked(
        monkeypatch,
        ilsvrc_converter,
        ['-i', path, '-o', str(tmp_path / 'x.npz')],
        lambda value: isinstance(value, kinds) or is_file(value, path),
        ('trainer/weights/formats.py', 'read', 'return'),
    )
    check('A `.t7` file', found - NETWORK)


def test_label_smoothing(tmp_path, monkeypatch):
    found = walked(
        monkeypatch,
        main,
        ['--quick', '--label-smoothing', '0.0625', '-p', str(tmp_path / 'run')],
        lambda value: isinstance(value, LabelSmoothing) or type(value) is float and value == 0.0625,
        ('trainer/training/losses.py', '_target', 'return'),
    )
    check('`--label-smoothing`', found)
