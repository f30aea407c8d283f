"""A dataset, a format, a recipe, a network and an engine are each one new file."""

import functools

import chainer
import numpy as np
import pytest

import resnext
import trainer.datasets
import trainer.engines
import trainer.networks.table
import trainer.recipes
import trainer.weights
from trainer.networks import table
from trainer.training import resolve, run
from trainer.weights import formats

TINY = dict(C=1, d=2, block_num=(1, 1, 1), multi=2, batch=4, epoch=1, lr=0.1)


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Put one file into a package, for the time of a test."""

    def add_file(package, name, text):
        folder = tmp_path / 'added'
        folder.mkdir()
        (folder / f'{name}.py').write_text(text)
        monkeypatch.setattr(package, '__path__', [*package.__path__, str(folder)])
        monkeypatch.delitem(__import__('sys').modules, f'{package.__name__}.{name}', False)

    return add_file


def train(folder, **given):
    return run.train(say=lambda text: None, save_path=str(folder), **dict(TINY, **given))


def test_a_dataset(add, tmp_path):
    add(
        trainer.datasets,
        'stripes',
        """
import numpy as np
from trainer.datasets import Dataset, LabelledImages

CLASSES = 2


def load(data=None):
    labels = np.arange(8, dtype=np.int32) % 2
    images = np.zeros((8, 3, 32, 32), np.uint8)
    images[labels == 0, :, ::2] = 255
    images[labels == 1, :, :, ::2] = 255
    part = LabelledImages(images, labels)
    return Dataset('stripes', ['lying', 'standing'], part, part)
""",
    )
    assert train(tmp_path / 'run', dataset='stripes')
    model = resnext.load(str(tmp_path / 'run' / 'model' / 'ResNext_2_1_best.model'))
    assert model.classes == ['lying', 'standing']


def test_a_recipe(add):
    add(
        trainer.recipes,
        'short',
        """
from trainer.recipes.options import Options

RECIPE = Options(network='paper', epoch=7, batch=16, lr=0.3, weight_decay=0.0, widen_factor=2)
""",
    )
    options, _ = resolve.resolve('nowhere', False, print, {'recipe': 'short', 'batch': 8})
    assert (options.recipe, options.epoch, options.batch, options.lr) == ('short', 7, 8, 0.3)
    assert (options.network, options.widen_factor, options.C) == ('paper', 2, 8)


def test_a_format(add, tmp_path, monkeypatch):
    add(
        trainer.weights,
        'stacked',
        """
import json
import numpy as np
from trainer.weights import description, formats, npz


def _write(path, network):
    arrays = {n: np.asarray(a).tolist() for n, a in npz.state(network).items()}
    with open(path, 'w') as f:
        json.dump({'stacked': description.of(network), 'arrays': arrays}, f)


def _read(path, entry):
    with open(path) as f:
        held = json.load(f)
    network = description.build(held['stacked'], path, None)
    for name, array in npz.state(network).items():
        if array.ndim:
            array[...] = held['arrays'][name]
    return network, 'numbers as text', None


FORMAT = formats.Format(
    'stacked', ('.stacked',), lambda head: head[:11] == b'{"stacked":', _read, _write
)
""",
    )
    monkeypatch.setattr(formats, 'available', functools.cache(formats.available.__wrapped__))
    network = resnext.ResNext(3, (1, 1, 1), C=1, d=2, multiplier=2)
    path = str(tmp_path / 'x.stacked')
    formats.write(path, network, formats.kind_for(path))
    again, contents = formats.read(path)
    assert contents.format == 'stacked'
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(
        network(x, train=False).array, again(x, train=False).array, rtol=1e-6
    )


def test_a_network(add, tmp_path):
    add(
        trainer.networks.table,
        'narrow',
        """
import resnext
from trainer.networks.table import Entry


class Narrow(resnext.ResNext):
    kind = 'narrow'

    def features(self, x):
        return super().features(x) * 2


ENTRY = Entry(
    'narrow',
    'narrow',
    __name__ + ':Narrow',
    'narrow CIFAR',
    {'C': 1, 'd': 2, 'multi': 2, 'block_num': (1, 1, 1), 'shortcut': 'A'},
)
""",
    )
    assert train(tmp_path, quick=True, network='narrow', batch=250)
    network = resnext.load(str(tmp_path / 'model' / 'ResNext_10_1_best.model'))
    assert type(network) is table.get('narrow').cls and type(network) is not resnext.ResNext


def test_an_engine(add):
    add(
        trainer.engines,
        'counting',
        """
from trainer.engines.reference import *
from trainer.engines import reference

calls = 0


def conv_bn(*args, **kwargs):
    global calls
    calls += 1
    return reference.conv_bn(*args, **kwargs)
""",
    )
    network = resnext.ResNext(3, (1, 1, 1), C=1, d=2, multiplier=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    wanted = network(x, train=False).array
    with chainer.using_config('engine', 'counting'):
        found = network(x, train=False).array
        assert trainer.engines.current().calls == network.layers
    np.testing.assert_array_equal(found, wanted)
