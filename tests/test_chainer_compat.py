"""Chainer 7.8.1, unmodified, on this Python and NumPy: what we use of it runs."""

import io
import subprocess
import sys

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.training import extensions
from conftest import ROOT

from trainer import chainer_compat
from trainer.chainer_compat import functions, libraries, modules


def python(code):
    return subprocess.run(
        [sys.executable, '-W', 'error::ImportWarning', '-c', code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_only_what_is_missing_is_supplied():
    items = {item.name: item for item in modules.ITEMS + functions.ITEMS + libraries.ITEMS}
    for name, why in chainer_compat.supplied.items():
        assert why == items[name].why
        assert 'since' in why
    # Whoever has the names keeps his own: a second process brings them along.
    out = python("""
import sys, types, numpy
numpy.sctypes = mine = {'int': [numpy.int32], 'float': [numpy.float32]}
sys.modules['pkg_resources'] = own = types.ModuleType('pkg_resources')
own.__spec__ = __import__('importlib.machinery').machinery.ModuleSpec('pkg_resources', None)
class DistributionNotFound(Exception): pass
def require(requirement): raise DistributionNotFound
own.DistributionNotFound, own.require = DistributionNotFound, require
import trainer
print(numpy.sctypes is mine, sys.modules['pkg_resources'] is own,
      {'numpy.sctypes', 'pkg_resources'} & set(trainer.chainer_compat.supplied))
""")
    assert out.split() == ['True', 'True', 'set()']
    assert set(np.sctypes) >= {'int', 'float'}


def test_installing_again_changes_nothing():
    supplied = dict(chainer_compat.supplied)
    forward = F.array.pad_sequence.PadSequence.forward
    assert chainer_compat.install() == supplied
    assert F.array.pad_sequence.PadSequence.forward is forward


@pytest.mark.parametrize(
    'module',
    [
        'resnext',
        'resnext_ilsvrc',
        'data_augmentation',
        'main',
        'trainer.datasets.loading',
        'trainer.inference.evaluation',
    ],
)
def test_any_module_may_come_first(module):
    assert python(f'import {module}, chainer; print(chainer.__version__)') == '7.8.1\n'


def test_after_an_import_of_chainer_that_failed():
    out = python("""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Before']
try:
    import chainer
except Exception:
    pass
import resnext, chainer
print(type(resnext.ResNext(10, (1, 1, 1), 2, 2, 2)).__mro__[-5].__module__, chainer.__version__)
""")
    assert out.endswith(' 7.8.1\n')


def test_it_says_what_it_supplied():
    out = subprocess.run(
        [sys.executable, '-m', 'trainer'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert 'Chainer 7.8.1' in out
    for name in chainer_compat.supplied or ['nothing']:
        assert f'supplied to Chainer: {name}' in out


def test_nobody_waits_for_a_library_that_he_does_not_use():
    out = python("""
import sys, trainer
print([name for name in ('google.protobuf', 'onnx', 'scipy.stats') if name in sys.modules])
""")
    assert out == '[]\n'


def test_autograd_against_differences():
    rng = np.random.default_rng(0)
    x = chainer.Parameter(rng.standard_normal((2, 4, 5, 5)))
    W = chainer.Parameter(rng.standard_normal((6, 2, 3, 3)))

    def f(x, W):
        h = F.convolution_2d(x, W, stride=2, pad=1, groups=2)
        h = F.relu(F.batch_normalization(h, np.full(6, 1.5), np.full(6, 0.1)))
        return F.sum(F.average_pooling_2d(F.max_pooling_2d(h, 2, 1), 2) ** 2)

    f(x, W).backward()
    for p in (x, W):
        direction = rng.standard_normal(p.shape)
        before, step = p.array.copy(), 1e-6
        values = []
        for sign in (1, -1):
            p.array[...] = before + sign * step * direction
            values.append(float(f(x, W).array))
        p.array[...] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert abs((p.grad * direction).sum() - slope) < 1e-5 * abs(slope)


def test_as_strided_uses_the_supplied_names():
    x = chainer.Variable(np.arange(6, dtype=np.float32))
    y = F.as_strided(x, (2, 3), (3, 1), 0)
    F.sum(y * y).backward()
    np.testing.assert_array_equal(x.grad, 2 * x.array)


def test_momentum_sgd_with_weight_decay():
    link = L.Linear(1, 1, nobias=True, initialW=np.array([[2.0]], np.float32))
    optimizer = chainer.optimizers.MomentumSGD(0.1, 0.9).setup(link)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.5))
    w, v = 2.0, 0.0
    for _ in range(3):
        link.cleargrads()
        link(np.ones((1, 1), np.float32)).backward()
        optimizer.update()
        v = 0.9 * v - 0.1 * (1 + 0.5 * w)
        w += v
    assert abs(float(link.W.array[0, 0]) - w) < 1e-6


class Squares(chainer.dataset.DatasetMixin):
    def __len__(self):
        return 10

    def get_example(self, i):
        return np.float32([i]), np.float32([i * i])


def test_trainer_with_its_extensions(tmp_path):
    def build():
        np.random.seed(0)
        link = L.Classifier(L.Linear(1, 1), F.mean_squared_error)
        link.compute_accuracy = False
        optimizer = chainer.optimizers.MomentumSGD(1e-4).setup(link)
        iterator = chainer.iterators.SerialIterator(Squares(), 4)
        trainer = training.Trainer(
            training.updaters.StandardUpdater(iterator, optimizer), (4, 'epoch'), str(tmp_path)
        )
        test = chainer.iterators.SerialIterator(Squares(), 4, repeat=False, shuffle=False)
        trainer.extend(extensions.Evaluator(test, link))
        trainer.extend(extensions.LogReport())
        trainer.extend(extensions.PlotReport(['main/loss'], 'epoch', filename='loss.png'))
        trainer.extend(extensions.ProgressBar(update_interval=5, out=io.StringIO()))
        trainer.extend(extensions.snapshot(filename='snapshot'))
        return trainer

    first = build()
    first.run()
    assert (tmp_path / 'loss.png').stat().st_size > 1000
    second = build()
    chainer.serializers.load_npz(tmp_path / 'snapshot', second)
    a, b = (t.updater.get_optimizer('main').target.predictor.W.array for t in (first, second))
    np.testing.assert_array_equal(a, b)
    assert second.updater.epoch == 4


def test_multiprocess_iterator():
    iterator = chainer.iterators.MultiprocessIterator(
        Squares(), 4, repeat=False, shuffle=False, n_processes=2
    )
    found = [float(y[0]) for batch in iterator for _, y in batch]
    iterator.finalize()
    assert found == [float(i * i) for i in range(10)]


def test_workers_from_a_fork_server():
    # Python 3.14 begins to start workers so; they import Chainer before anything of ours.
    out = python("""
import multiprocessing
multiprocessing.set_start_method('forkserver')
import trainer
import chainer
iterator = chainer.iterators.MultiprocessIterator(list(range(8)), 4, repeat=False,
                                                  shuffle=False, n_processes=2)
print([i for batch in iterator for i in batch])
iterator.finalize()
""")
    assert out == '[0, 1, 2, 3, 4, 5, 6, 7]\n'


def test_multi_node_batch_normalization_is_copied():
    pytest.importorskip('mpi4py', reason='needs mpi4py')
    out = python("""
import copy, trainer, chainer, numpy
from chainermn import links
from chainermn.communicators.naive_communicator import NaiveCommunicator

class Communicator(NaiveCommunicator):
    def __init__(self): pass
    def __deepcopy__(self, memo): raise TypeError

net = chainer.Sequential(links.MultiNodeBatchNormalization(3, Communicator()))
twin = copy.deepcopy(net)
a, b = net[0], twin[0]
print(a.comm is b.comm, a is b, a.gamma is b.gamma, a.avg_mean is b.avg_mean)
print(dict(b.namedparams()).keys() == dict(a.namedparams()).keys(), b.eps == a.eps)
""")
    assert out == 'True False False False\nTrue True\n'


def test_multi_node_iterator_takes_the_size_of_its_master():
    pytest.importorskip('mpi4py', reason='needs mpi4py')
    out = python("""
import trainer, numpy
from chainermn.iterators import multi_node_iterator

class Communicator:
    sent = [numpy.float32([4]), numpy.float32([2, 0, 1, 3])]
    def bcast(self, value, root):
        return self.sent.pop(0)

iterator = multi_node_iterator._MultiNodeIteratorSlave(Communicator(), 0)
print(iterator.dataset_size, iterator._order)
""")
    assert out == '4 [2 0 1 3]\n'
