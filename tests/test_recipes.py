"""Recipes against their sources' formulas, written out here a second time."""

import json
import math
import os
import signal
import sys
import types

import chainer
import numpy as np
import pytest
from conftest import write_cifar10
from helpers.runs import assert_same_end, in_child
from PIL import Image

import data_augmentation
import main
import resnext
import resnext_ilsvrc
from trainer import datasets, recipes
from trainer.datasets import Dataset, folder, loading, quick
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.networks import initialization as initial
from trainer.optimizers import TorchSGD
from trainer.recipes.options import Options
from trainer.training import build, loop, run, schedules
from trainer.training.data import Load, data_path
from trainer.training.losses import LabelSmoothing
from trainer.training.resolve import resolve as resolve_options
from trainer.transforms import generator, trivial_augment
from trainer.weights import npz

pytestmark = pytest.mark.usefixtures('undrawn')

#: Sizes that train in moments, by network.
SMALL = {
    'original': dict(C=2, d=2, multi=2, block_num=(1, 1, 1)),
    'paper': dict(C=2, d=2, depth=11, widen_factor=1),
    'ilsvrc': dict(C=2, d=2, multi=2, block_num=(1, 1)),
}


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    return str(
        write_cifar10(tmp_path_factory.mktemp('recipes') / 'cifar-10-batches-bin', per_file=20)
    )


def train(path, data, say=lambda text: None, **given):
    return run.train(say=say, save_path=str(path), data=data, **given)


def small(name, **given):
    """Options for a recipe with a small network and, where its own is ImageNet, CIFAR's data."""
    recipe = recipes.get(name)
    given = dict(SMALL[recipe.network], recipe=name, dataset='cifar10', seed=3, **given)
    if recipe.dataset != 'cifar10':
        given['preprocessing'] = 'DataAugmentationCifarTorch7'
    return given


def resolve(**given):
    return resolve_options('nowhere', False, lambda text: None, given)[0]


# ---- learning rates


def torch7_cifar(epoch, epochs):
    decay = 2 if epoch / epochs > 0.74 else 1 if epoch / epochs > 0.49 else 0
    return 0.1 * 0.1**decay


def prlz77_rates(batch):
    """train.py as it runs: the rate is multiplied as the epochs of the schedule come."""
    epochs, lr = 300 * 128 // batch, 0.1
    schedule = [x * 128 // batch for x in (150, 225)]
    rates = []
    for epoch in range(epochs):
        if epoch in schedule:
            lr *= 0.1
        rates.append(lr)
    return rates


def warm_restarts(epochs, lr=0.1, eta_min=5e-5):
    """CosineAnnealingWarmRestarts(T_0=epochs // 4, T_mult=1), stepped after each epoch."""
    t, rates = 0, []
    for _ in range(epochs):
        rates.append(eta_min + (lr - eta_min) * (1 + math.cos(math.pi * t / (epochs // 4))) / 2)
        t += 1
        if t >= epochs // 4:
            t = 0
    return rates


@pytest.mark.parametrize(
    'given, wanted',
    [
        (dict(recipe='original'), [0.1] * 150 + [0.01] * 75 + [0.001] * 75),
        (dict(recipe='torch7_cifar'), [torch7_cifar(e, 300) for e in range(1, 301)]),
        (dict(recipe='torch7_cifar', epoch=200), [torch7_cifar(e, 200) for e in range(1, 201)]),
        (
            dict(recipe='torch7_cifar', batch=32),
            [0.25 * torch7_cifar(e, 300) for e in range(1, 301)],
        ),
        (dict(recipe='torch7_imagenet'), [0.1 * 0.1 ** ((e - 1) // 30) for e in range(1, 101)]),
        (
            dict(recipe='torch7_imagenet', epoch=120),
            [0.1 * 0.1 ** ((e - 1) // 30) for e in range(1, 121)],
        ),
        (
            dict(recipe='paper'),
            [0.1 / 10 ** sum(e >= n for n in (31, 61, 91)) for e in range(1, 101)],
        ),
        (dict(recipe='paper_cifar'), [0.1] * 150 + [0.01] * 75 + [0.001] * 75),
        (dict(recipe='prlz77'), prlz77_rates(128)),
        (dict(recipe='prlz77', batch=64), prlz77_rates(64)),
        (dict(recipe='prlz77', batch=256), prlz77_rates(256)),
        (dict(recipe='lornatang'), warm_restarts(600)),
        (dict(recipe='lornatang', epoch=90, lr=0.4), warm_restarts(90, 0.4)),
        (
            dict(recipe='torchvision_v2'),
            [0.5 * (0.01 + 0.99 * e / 5) for e in range(5)]
            + [0.25 * (1 + math.cos(math.pi * e / 595)) for e in range(595)],
        ),
        (
            dict(lr_schedule='cosine', epoch=8),
            [0.05 * (1 + math.cos(math.pi * e / 8)) for e in range(8)],
        ),
    ],
)
def test_every_epoch_s_learning_rate(given, wanted):
    resolved = resolve(**given)
    schedule = schedules.of(resolved)
    assert resolved.epoch == len(wanted)
    np.testing.assert_allclose([schedule(e) for e in range(len(wanted))], wanted, rtol=1e-12)


@pytest.mark.parametrize(
    'name, first, last',
    [
        ('torch7_cifar', 147, 149),
        ('torch7_imagenet', 30, 31),
        ('paper', 60, 61),
        ('paper_cifar', 150, 151),
        ('prlz77', 225, 226),
        ('lornatang', 150, 152),
    ],
)
def test_rates_of_updates_around_a_change(name, first, last, cifar, tmp_path, monkeypatch):
    """-s begins where it says, without anything of the epochs before."""
    seen = []
    update_with = loop.ChunkedUpdater.update_with

    def watch(self, x, t):
        seen.append((self.iteration // 2 + 1, self.get_optimizer('main').lr))
        update_with(self, x, t)

    monkeypatch.setattr(loop.ChunkedUpdater, 'update_with', watch)
    whole = resolve(recipe=name)
    given = small(name, start_epoch=first, epoch=last, schedule_epoch=whole.epoch)
    train(tmp_path, cifar, **dict(given, batch=50, batch_scaling='none'))
    wanted = {'lornatang': warm_restarts(600)[149], 'prlz77': 0.01, 'paper': 0.01}.get(name, 0.1)
    assert [epoch for epoch, _ in seen] == [e for e in range(first, last + 1) for _ in range(2)]
    assert seen[0][1] == pytest.approx(wanted, rel=1e-12)
    schedule = schedules.of(whole)
    np.testing.assert_allclose([lr for _, lr in seen], [schedule(e - 1) for e, _ in seen])
    assert seen[0][1] != seen[-1][1]
    with open(tmp_path / 'log.json') as f:
        logged = [(e['epoch'], e['lr']) for e in json.load(f) if e['_id'] == 'lr']
    assert logged == seen[1::2]


def test_warm_up_climbs_update_by_update(cifar, tmp_path, monkeypatch):
    seen = []
    update_with = loop.ChunkedUpdater.update_with
    monkeypatch.setattr(
        loop.ChunkedUpdater,
        'update_with',
        lambda self, x, t: (seen.append(self.get_optimizer('main').lr), update_with(self, x, t)),
    )
    train(
        tmp_path, cifar, **small('torch7_cifar', epoch=3, warmup=2, lr_steps=(2,), batch=25, lr=0.8)
    )
    np.testing.assert_allclose(seen, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8] + [0.08] * 4)


def test_steps_behind_the_last_epoch_are_told():
    def said(epochs, steps):
        return schedules.describe(Options(epoch=epochs, schedule_epoch=300, lr=0.1, lr_steps=steps))

    assert said(300, (150, 225)) == 'divided by 10 after 150, 225 of 300 epochs'
    assert said(200, (150, 225)) == (
        'divided by 10 after 150 of 200 epochs; the steps after 225 epochs are not reached'
    )
    assert said(10, (140, 0.5)) == 'constant; the steps after 140, 150 epochs are not reached'
    assert said(10, ()) == 'constant'


def test_shares_are_of_the_epochs_that_a_run_began_with(cifar, tmp_path):
    given = small('torch7_cifar', batch=50)
    train(tmp_path, cifar, epoch=4, **given)
    run.train(resume=True, say=lambda text: None, save_path=str(tmp_path), epoch=6)
    with open(tmp_path / 'log.json') as f:
        rates = [e['lr'] for e in json.load(f) if e['_id'] == 'lr']
    np.testing.assert_allclose(rates, [0.1 * 50 / 128 / 10**n for n in (0, 1, 2, 2, 2, 2)])


def test_the_batch_scales_what_the_source_says():
    said = []
    resolved, _ = resolve_options(
        'nowhere', False, said.append, dict(recipe='torch7_cifar', batch=64)
    )
    assert resolved.lr == 0.05 and '0.05 = 0.1 x 64 / 128' in said[0]
    resolved, _ = resolve_options('nowhere', False, said.append, dict(recipe='prlz77', batch=64))
    assert (resolved.lr, resolved.epoch, resolved.lr_steps) == (0.1, 600, (300, 450))
    assert '600 epochs' in said[1] and len(said) == 2
    for given in (
        dict(recipe='torch7_cifar', batch=64, lr=0.1),
        dict(recipe='original', batch=64),
        dict(recipe='torch7_imagenet', batch=64),
        dict(recipe='lornatang', batch=64),
        dict(recipe='torch7_cifar', batch=64, batch_scaling='none'),
    ):
        assert resolve(**given).lr == 0.1


# ---- updates


def smoothed(label, classes, share):
    target = np.full(classes, share / classes)
    target[label] += 1 - share
    return target


def score_gradients(y, t, share):
    """Mean cross entropy of float64 scores against smoothed labels, differentiated by hand."""
    p = np.exp(y - y.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    targets = np.array([smoothed(label, y.shape[1], share) for label in t])
    return (p - targets) / len(t)


class Source:
    """Updates as a source makes them, written out around the network's own gradients."""

    def __init__(self, network, decay, momentum, kind, share=0.0, ema=0.0):
        self.network = network
        self.decay, self.momentum, self.kind, self.share, self.ema = (
            decay,
            momentum,
            kind,
            share,
            ema,
        )
        self.memory = {name: 0.0 for name, _ in network.namedparams()}
        self.average = None

    def update(self, x, t, lr, chunks):
        self.network.cleargrads()
        for xs, ts in zip(np.array_split(x, chunks), np.array_split(t, chunks)):
            y = self.network(chainer.Variable(xs))
            gradient = score_gradients(y.array, ts, self.share)
            y.grad = gradient * len(ts) / len(t)
            y.backward()
        for name, p in self.network.namedparams():
            g = p.grad + self.decay * p.array
            m = self.memory[name]
            if self.kind == 'chainer':
                m = self.momentum * m - lr * g
                step = m
            else:
                m = self.momentum * m + g
                step = -lr * (g + self.momentum * m if self.kind == 'nesterov' else m)
            self.memory[name] = m
            p.array = p.array + step
        now = {name: np.array(a, np.float64) for name, a in npz.state(self.network).items()}
        self.average = (
            now
            if self.average is None
            else {
                name: self.ema * self.average[name] + (1 - self.ema) * a for name, a in now.items()
            }
        )


class Enough(Exception):
    """Raised to end a run."""


@pytest.mark.parametrize(
    'name, decay, kind, share, ema, lr, chunks',
    [
        ('original', 5e-4, 'chainer', 0, 0, 0.1, 4),
        ('torch7_cifar', 5e-4, 'nesterov', 0, 0, 0.1 * 25 / 128, 1),
        ('torch7_imagenet', 1e-4, 'nesterov', 0, 0, 0.1, 1),
        ('paper', 1e-4, 'nesterov', 0, 0, 0.1, 1),
        ('paper_cifar', 5e-4, 'nesterov', 0, 0, 0.1, 1),
        ('prlz77', 5e-4, 'nesterov', 0, 0, 0.1, 1),
        ('lornatang', 2e-5, 'plain', 0.1, 0.99998, 0.1, 1),
    ],
)
def test_weights_after_three_updates(
    name, decay, kind, share, ema, lr, chunks, cifar, tmp_path, monkeypatch
):
    """In double precision, so that nothing but the formulas can differ."""
    batches, averages = [], []
    update_with = loop.ChunkedUpdater.update_with

    def three(self, x, t):
        if len(batches) == 3:
            raise Enough(self.get_optimizer('main').target)
        batches.append((x.astype(np.float64), t.copy()))
        update_with(self, *batches[-1])

    class Average(loop.extensions.MovingAverage):
        def __init__(self, *args):
            super().__init__(*args)
            averages.append(self.network)

    monkeypatch.setattr(loop.ChunkedUpdater, 'update_with', three)
    monkeypatch.setattr(loop.extensions, 'MovingAverage', Average)
    given = small(name, epoch=1, schedule_epoch=recipes.get(name).epoch, batch=25)
    with chainer.using_config('dtype', np.float64), pytest.raises(Enough) as end:
        train(tmp_path, cifar, **given)
    with chainer.using_config('dtype', np.float64):
        source = Source(
            build.of_options(resolve(**given), given, None, 10)[0], decay, 0.9, kind, share, ema
        )
    initial.fill(source.network, recipes.get(name).initialization, 3)
    before = {n: np.array(a) for n, a in npz.state(source.network).items()}
    for x, t in batches:
        source.update(x, t, lr, chunks)
    found, wanted = npz.state(end.value.args[0]), npz.state(source.network)
    assert_close(found, wanted)
    assert (
        abs(
            wanted['fc/W' if 'fc/W' in wanted else 'fc/conv/W']
            - before['fc/W' if 'fc/W' in before else 'fc/conv/W']
        ).max()
        > 1e-3
    )
    assert len(averages) == bool(ema)
    if ema:
        assert_close(npz.state(averages[0]), source.average)
        assert abs(source.average['stem/conv/W'] - wanted['stem/conv/W']).max() > 1e-3


def assert_close(found, wanted):
    assert sorted(found) == sorted(wanted)
    for name in found:
        if name.endswith('/N'):  # of BN's batches
            continue
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_torch_s_momentum_through_a_change_of_rate():
    """optim.sgd of Torch7 with dampening 0, on numbers: dfdx, its memory, the parameter."""
    gradients, rates = [1.0, -2.0, 0.5, 3.0], [0.1, 0.1, 0.01, 0.01]
    for nesterov in (False, True):
        link = chainer.Link()
        with link.init_scope():
            link.p = chainer.Parameter(np.array([2.0], np.float32))
        optimizer = TorchSGD(0.1, 0.9, nesterov).setup(link)
        x, memory = 2.0, None
        for g, lr in zip(gradients, rates):
            optimizer.lr = lr
            link.p.grad = np.array([g], np.float32)
            optimizer.update()
            memory = g if memory is None else 0.9 * memory + g
            x -= lr * (g + 0.9 * memory if nesterov else memory)
            assert link.p.array[0] == pytest.approx(x, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize('nesterov', [False, True])
def test_a_gpu_updates_and_averages_as_the_cpu_does(nesterov):
    found = []
    for device in ('@numpy', '@cupy:0'):
        network = build.of_options(
            resolve(network='paper', C=2, d=2, depth=11, widen_factor=1), {}, None, 10
        )[0]
        network.weight_initialization(0)
        network.to_device(device)
        optimizer = TorchSGD(0.1, 0.9, nesterov).setup(network)
        average = loop.extensions.MovingAverage(network, 0.9)
        rng = np.random.default_rng(0)
        for iteration in (1, 2, 3):
            for _, p in sorted(network.namedparams()):
                p.grad = network.device.send(rng.normal(0, 1, p.shape).astype(np.float32))
            optimizer.update()
            updater = types.SimpleNamespace(iteration=iteration)
            average(types.SimpleNamespace(updater=updater))
        found.append([npz.state(network), npz.state(average.network)])
    for cpu, gpu in zip(*found):
        for name in cpu:
            np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_chainer_s_nesterov_is_another():
    """Why there is TorchSGD: after one update NesterovAG has moved by .9^2 x lr x g more."""
    moved = []
    for optimizer in (TorchSGD(0.1, 0.9, True), chainer.optimizers.NesterovAG(0.1, 0.9)):
        link = chainer.Link()
        with link.init_scope():
            link.p = chainer.Parameter(np.zeros(1, np.float32))
        optimizer.setup(link)
        link.p.grad = np.ones(1, np.float32)
        optimizer.update()
        moved.append(-link.p.array[0])
    assert moved == pytest.approx([0.19, 0.19 + 0.081], rel=1e-5)


def test_label_smoothing():
    rng = np.random.default_rng(0)
    y, t = rng.normal(0, 3, (7, 5)).astype(np.float32), rng.integers(0, 5, 7).astype(np.int32)
    for share in (0.1, 0.5):
        log_p = y - np.log(np.exp(y.astype(np.float64)).sum(axis=1, keepdims=True))
        wanted = np.mean((1 - share) * -log_p[np.arange(7), t] + share * -log_p.mean(axis=1))
        variable = chainer.Variable(y)
        loss = LabelSmoothing(share)(variable, t)
        loss.backward()
        assert float(loss.array) == pytest.approx(wanted, rel=1e-6)
        np.testing.assert_allclose(
            variable.grad, score_gradients(y.astype(np.float64), t, share), atol=1e-7
        )


@pytest.mark.parametrize(
    'name, uniform, biased',
    [('torch7', True, False), ('prlz77', False, False), ('pytorch', True, True)],
)
def test_initial_weights(name, uniform, biased):
    """Of convolutions normal, 2 / n with n = kW kH outputs; of the classifier, the source's."""
    network = build.of_options(resolve(network='paper', C=4, d=32), {}, None, 500)[0]
    initial.fill(network, name, 1)
    for path, outputs, area in (
        ('stem', 64, 9),
        ('stage2/block1/grouped', 256, 9),
        ('stage3/block2/expand', 1024, 1),
        ('stage1/block1/shortcut', 256, 1),
    ):
        link = network
        for part in path.split('/'):
            link = link[part]
        w = link.conv.W.array
        assert w.shape[0] == outputs and w.shape[2] * w.shape[3] == area
        assert w.std() == pytest.approx((2 / (area * outputs)) ** 0.5, rel=0.05)
        assert abs((w**4).mean() / w.std() ** 4 - 3) < 0.3  # normal
        assert link.bn.gamma.array.min() == 1 and not link.bn.beta.array.any()
    w, b = network.fc.W.array, network.fc.b.array
    if uniform:
        assert 0.031 < abs(w).max() <= 1 / 32 and w.std() == pytest.approx(
            1 / 32 / 3**0.5, rel=0.01
        )
    else:
        assert w.std() == pytest.approx((2 / 1024) ** 0.5, rel=0.01) and abs(w).max() > 0.15
    assert (0.03 < abs(b).max() <= 1 / 32) if biased else not b.any()
    again = build.of_options(resolve(network='paper', C=4, d=32), {}, None, 500)[0]
    initial.fill(again, name, 1)
    np.testing.assert_array_equal(again.fc.W.array, w)


# ---- runs


def test_a_run_with_an_average_goes_on_bit_for_bit(cifar, tmp_path):
    given = small('lornatang', epoch=3, batch=25, warmup=1, lr_period=2)
    given.update(ema_decay=0.9, train_batch_divide=2)
    train(tmp_path / 'whole', cifar, **given)

    def stop():
        real = loop.ChunkedUpdater.update_core

        def update_core(self):
            real(self)
            if self.iteration == 5:
                os.kill(os.getpid(), signal.SIGINT)

        loop.ChunkedUpdater.update_core = update_core
        sys.exit(0 if train(tmp_path / 'part', cifar, **given) else 130)

    process = in_child(stop)
    process.join()
    assert process.exitcode == 130
    assert run.train(resume=True, say=lambda text: None, save_path=str(tmp_path / 'part'))
    assert_same_end(tmp_path / 'part', tmp_path / 'whole')


def test_what_is_evaluated_is_what_is_saved(cifar, tmp_path):
    train(tmp_path, cifar, **dict(small('lornatang', epoch=2, batch=25), ema_decay=0.8))
    test = datasets.load('cifar10', cifar).test
    network = resnext_ilsvrc.load(str(tmp_path / 'model' / 'ResNext_10_2_2.model'))
    chosen = prediction.preprocessing([network])
    assert chosen is data_augmentation.DataAugmentationCifarTorch7
    y = network(chosen.test_batch(test.images), train=False).array
    with open(tmp_path / 'log.json') as f:
        logged = [e['accuracy'] for e in json.load(f) if e['_id'] == 'test_accuracy'][-1]
    assert (y.argmax(axis=1) == test.labels).sum() == logged


def test_the_folder_says_everything(cifar, tmp_path):
    train(tmp_path, cifar, **small('prlz77', epoch=1, batch=50))
    with open(tmp_path / 'run.json') as f:
        record = json.load(f)
    recorded = record['options']
    assert set(recorded) == set(Options.__dataclass_fields__)
    assert (recorded['recipe'], recorded['network'], recorded['seed']) == ('prlz77', 'paper', 3)
    assert record['network']['preprocessing'] == 'DataAugmentationCifarPrlz77'
    assert set(record['versions']) == {'python', 'numpy', 'chainer', 'pillow'}
    # The same flags again, and others.
    train(tmp_path, cifar, resume=True, **small('prlz77', epoch=2, batch=50))
    for given in (dict(recipe='paper_cifar'), dict(network='original'), dict(depth=20)):
        with pytest.raises(InputError, match='the run in .* has'):
            train(tmp_path, cifar, resume=True, **given)


def test_a_model_brings_its_network_and_its_preprocessing(cifar, tmp_path):
    train(tmp_path / 'a', cifar, **small('prlz77', epoch=1, batch=50))
    model = str(tmp_path / 'a' / 'model' / 'ResNext_10_2_1.model')
    train(tmp_path / 'b', cifar, epoch=1, batch=50, load_model=model)
    with open(tmp_path / 'b' / 'run.json') as f:
        recorded = json.load(f)['options']
    assert (recorded['network'], recorded['d'], recorded['widen_factor'], recorded['depth']) == (
        'paper',
        2,
        1,
        11,
    )
    assert recorded['preprocessing'] == 'DataAugmentationCifarPrlz77'
    with pytest.raises(InputError, match='network original: .* holds PaperResNext'):
        train(tmp_path / 'c', cifar, load_model=model, network='original')
    with pytest.raises(InputError, match='widen_factor 2: .* holds'):
        train(tmp_path / 'c', cifar, load_model=model, widen_factor=2)


def test_cifar100_has_means_of_its_own():
    network = resnext.ResNext(100, (1, 1, 1), 1, 2, 2)
    for recipe, wanted in (
        ('torch7_cifar', 'DataAugmentationCifar100Torch7'),
        ('prlz77', 'DataAugmentationCifarPrlz77'),
        ('original', 'DataAugmentationCifar10NormalizeSmall'),
    ):
        given = dict(recipe=recipe, dataset='cifar100')
        assert build.preprocessing(resolve(**given), given, network) == wanted
    given = dict(
        recipe='torch7_cifar', dataset='cifar100', preprocessing='DataAugmentationCifarTorch7'
    )
    assert build.preprocessing(resolve(**given), given, network) == given['preprocessing']


@pytest.mark.parametrize(
    'given, kind, layers, C, d',
    [
        (dict(), resnext.ResNext, 29, 2, 64),
        (dict(depth=11), resnext.ResNext, 11, 2, 64),
        (dict(network='paper', C=1, d=8), resnext.PaperResNext, 29, 1, 8),
        (dict(network='paper', depth=20, C=2, d=4), resnext.PaperResNext, 20, 2, 4),
        (dict(network='ilsvrc', depth=101, C=2), resnext_ilsvrc.ResNext, 101, 2, 4),
        (dict(network='ilsvrc', depth=152, C=2), resnext_ilsvrc.ResNext, 152, 2, 4),
        (dict(network='ilsvrc', block_num=(1, 2), C=2), resnext_ilsvrc.ResNext, 11, 2, 4),
        (dict(recipe='paper'), resnext_ilsvrc.ResNext, 50, 32, 4),
        (dict(recipe='lornatang', d=1), resnext_ilsvrc.ResNext, 50, 32, 1),
    ],
)
def test_networks(given, kind, layers, C, d):
    network = build.of_options(resolve(**given), given, None, 10)[0]
    assert type(network) is kind
    assert (network.layers, network.C, network.d) == (layers, C, d)
    if kind is resnext_ilsvrc.ResNext:
        assert network.stages[0].out_channels == 256
    if kind is resnext.PaperResNext:
        assert network.stages[-1].out_channels == 1024 and network.stem_width == 64


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--recipe', 'nonsense'], "argument --recipe: invalid choice: 'nonsense'"),
        (['--recipe', 'paper', '--quick'], '--quick is a recipe of its own'),
        (['--depth', '30'], '9n + 2'),
        (['--network', 'ilsvrc', '--depth', '29'], '50, 101 or 152'),
        (['--network', 'paper', '--depth', '29', '--block_num', '3', '3', '3'], 'leave one out'),
        (['--network', 'paper', '--multi', '2'], '--multi 2: --network paper has no such size'),
        (['--widen_factor', '2'], '--widen-factor 2: --network original has no such size'),
        (['--label_smoothing', '1'], 'argument --label-smoothing'),
        (['--lr_steps', '1.5'], 'argument --lr-steps'),
        (['--lr_schedule', 'linear'], 'argument --lr-schedule'),
        (['--preprocessing', 'os'], 'argument --preprocessing'),
        (['--weight_decay', '-1'], 'argument --weight-decay: -1 is below zero'),
    ],
)
def test_one_line(argv, words, tmp_path, capsys):
    from trainer import cli

    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', ['main.py', '-p', str(tmp_path), *argv])
        with pytest.raises(SystemExit) as end:
            cli.run(main.main)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count('\n') == 1 and words in err, err
    assert not (tmp_path / 'run.json').exists()


def test_unknown_values_from_python(tmp_path):
    for given, words in (
        (dict(recipe='x'), 'recipe x: there are .*lornatang, original, paper'),
        (dict(optimizer='adam'), 'optimizer adam: there are momentum'),
        (dict(recipe='../original'), 'recipe'),
    ):
        with pytest.raises(InputError, match=words):
            train(tmp_path, None, **given)
    with pytest.raises(TypeError, match='learning'):
        train(tmp_path, None, learning=1)


# ---- data


def test_flags_name_every_value_of_a_recipe():
    flags = {action.dest for action in main.parser()._actions}
    assert set(Options.__dataclass_fields__) <= flags


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Files of several sizes and shapes, made of real images."""
    here = tmp_path_factory.mktemp('images')
    images = quick.load().train.images
    paths = []
    for i, (width, height) in enumerate(
        [(300, 260), (240, 500), (640, 480), (96, 64), (32, 32), (700, 90)]
    ):
        image = Image.fromarray(images[200 * i].transpose(1, 2, 0))
        paths.append(str(here / f'{i}.png'))
        image.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return folder.ImageFiles(paths, [0, 1, 0, 1, 0, 1], ['a', 'b'])


@pytest.mark.parametrize('name', sorted(data_augmentation.__all__))
def test_images_from_files_and_from_memory(name, images):
    preprocessing = getattr(data_augmentation, name)
    dataset = Dataset('some', ['a', 'b'], images, images)
    batches = []
    for workers in (0, 2):
        given = resolve(preprocessing=name, batch=4, workers=workers)
        *iterators, finish = data_path(dataset, given, preprocessing)
        assert finish is None
        batches.append([tuple(map(np.array, i.next())) for i in iterators for _ in range(2)])
        for i in iterators:
            i.finalize()
    shapes = [getattr(preprocessing, 'train_shape', preprocessing.shape)] * 2
    for (x, t), (x2, t2), shape in zip(*batches, shapes + [preprocessing.shape] * 2):
        assert x.dtype == np.float32 and x.shape[1:] == shape
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(t, t2)
    first = EveryImage(6, 4)(1)[0]
    for i, image in enumerate(first):
        x = preprocessing.train(images.paths[image], rng=generator(0, 1, image)).x
        np.testing.assert_array_equal(x, batches[0][0][0][i])
    memory = quick.load().train
    x = np.empty((2,) + shapes[0], np.float32)
    Load(memory, preprocessing, 0)([(1, 3), (1, 900)], x)
    again = preprocessing.train(
        Image.fromarray(memory.images[900].transpose(1, 2, 0)), rng=generator(0, 1, 900)
    ).x
    np.testing.assert_allclose(x[1], again, atol=1e-6)


def EveryImage(size, batch):
    return loading.EveryImageOnce(size, batch, 0)


def test_full_batches_leave_out_the_last():
    from trainer.datasets.loading import FullBatches

    plan = FullBatches(103, 10, seed=1)
    assert len(plan) == 10 and [len(b) for b in plan(2)] == [10] * 10
    assert len(set(np.concatenate(plan(2)).tolist())) == 100


# ---- transforms of CIFAR


@pytest.mark.parametrize(
    'name, mean, std, black',
    [
        ('DataAugmentationCifarTorch7', (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), False),
        ('DataAugmentationCifar100Torch7', (129.3, 124.1, 112.4), (68.2, 65.4, 70.4), False),
        ('DataAugmentationCifarPrlz77', (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), True),
    ],
)
def test_cifar_channels(name, mean, std, black):
    preprocessing = getattr(data_augmentation, name)
    images = quick.load().train.images[::50]
    drawn = [preprocessing.draw(generator(1, 1, i)) for i in range(len(images))]
    found = preprocessing.train_batch(images, drawn)

    def normalised(x):
        return np.stack([(x[c] / 255.0 - mean[c] / 255) / (std[c] / 255) for c in range(3)])

    for image, d, x in zip(images, drawn, found):
        if black:  # flip, pad, crop, to 0..1, normalise
            h = np.fliplr(image.transpose(1, 2, 0)) if d.flip else image.transpose(1, 2, 0)
            h = np.pad(h, ((4, 4), (4, 4), (0, 0)))[d.y : d.y + 32, d.x : d.x + 32]
            wanted = normalised(h.transpose(2, 0, 1))
        else:  # normalise, flip, pad, crop
            h = normalised(image)
            h = h[:, :, ::-1] if d.flip else h
            wanted = np.pad(h, ((0, 0), (4, 4), (4, 4)))[:, d.y : d.y + 32, d.x : d.x + 32]
        np.testing.assert_allclose(x, wanted, atol=2e-6)
    np.testing.assert_allclose(
        preprocessing.test_batch(images), [normalised(image) for image in images], atol=2e-6
    )
    many = [preprocessing.draw(generator(0, 1, i)) for i in range(4000)]
    for values in ([d.y for d in many], [d.x for d in many]):
        counts = np.bincount(values, minlength=9)
        assert len(counts) == 9 and (abs(counts / 4000 - 1 / 9) < 0.02).all()
    assert abs(np.mean([d.flip for d in many]) - 0.5) < 0.03


# ---- transforms of ImageNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(x):
    """(height, width, 3) in 0..1 to (3, height, width)."""
    return np.stack([(x[..., c] - MEAN[c]) / STD[c] for c in range(3)])


def colour_shift(normals):
    """Lighting of datasets/transforms.lua, its loops written out."""
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    values = [0.2175, 0.0188, 0.0045]
    return [sum(vectors[i][j] * normals[j] * values[j] for j in range(3)) for i in range(3)]


def grey(x):
    return 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def test_torch7_imagenet_step_by_step(images):
    preprocessing = data_augmentation.DataAugmentationImagenetTorch7
    fallbacks = 0
    for i in range(60):
        path = images.paths[i % 6]
        image = Image.open(path)
        d = preprocessing.draw(generator(0, 1, i))
        crop = None
        for area, aspect, exchange, y, x in d.attempts:
            target = (0.08 + area * (1 - 0.08)) * image.width * image.height
            ratio = 0.75 + aspect * (4 / 3 - 0.75)
            w, h = int((target * ratio) ** 0.5 + 0.5), int((target / ratio) ** 0.5 + 0.5)
            w, h = (h, w) if exchange < 0.5 else (w, h)
            if h <= image.height and w <= image.width:
                y, x = int(y * (image.height - h + 1)), int(x * (image.width - w + 1))
                crop = image.crop((x, y, x + w, y + h)).resize((224, 224), Image.BICUBIC)
                break
        if crop is None:
            fallbacks += 1
            short = 224 / min(image.size)
            size = [max(224, int(short * n)) if n > min(image.size) else 224 for n in image.size]
            crop = image.resize(size, Image.BICUBIC)
            left, top = (math.ceil((n - 224) / 2) for n in size)
            crop = crop.crop((left, top, left + 224, top + 224))
        h = np.asarray(crop) / 255.0
        for which in d.order:
            alpha = d.alphas[which]
            if which == 0:  # brightness
                h = alpha * h
            elif which == 1:  # contrast
                h = alpha * h + (1 - alpha) * grey(h).mean()
            else:  # saturation
                h = alpha * h + (1 - alpha) * grey(h)[..., None]
        h = h + colour_shift(d.lighting)
        wanted = normalised(h)
        wanted = wanted[:, :, ::-1] if d.flip else wanted
        np.testing.assert_allclose(preprocessing.train(path, drawn=d).x, wanted, atol=5e-5)
    assert fallbacks  # 700 x 90 has no such crop as a rule


def test_torch7_imagenet_draws():
    draw = data_augmentation.DataAugmentationImagenetTorch7.draw
    many = [draw(generator(0, 1, i)) for i in range(3000)]
    orders = [d.order for d in many]
    assert len(set(orders)) == 6 and all(400 < orders.count(o) < 600 for o in set(orders))
    alphas = np.array([d.alphas for d in many])
    assert alphas.min() >= 0.6 and alphas.max() <= 1.4 and abs(alphas.mean() - 1) < 0.01
    assert abs(alphas.std() - 0.8 / 12**0.5) < 0.01
    lighting = np.array([d.lighting for d in many])
    assert abs(lighting.std() - 0.1) < 0.003 and abs(lighting.mean()) < 0.005
    assert abs(np.mean([d.flip for d in many]) - 0.5) < 0.03
    box = data_augmentation.DataAugmentationImagenetTorch7.crop_box
    shares = [
        h * w / (400 * 500) for d in many[:1000] for _, _, h, w in [box(400, 500, d.attempts)]
    ]
    assert 0.079 < min(shares) < 0.1 and 0.9 < max(shares) <= 1


def test_paper_step_by_step(images):
    preprocessing = data_augmentation.DataAugmentationImagenetPaper
    sides = set()
    for i in range(40):
        path = images.paths[i % 5]
        image = Image.open(path)
        d = preprocessing.draw(generator(0, 1, i))
        sides.add(d.short_side)
        scale = d.short_side / min(image.size)
        size = [d.short_side if n == min(image.size) else int(scale * n) for n in image.size]
        resized = np.asarray(image.resize(size, Image.BICUBIC)) / 255.0
        y, x = int(d.y * (size[1] - 223)), int(d.x * (size[0] - 223))
        h = normalised(resized[y : y + 224, x : x + 224] + colour_shift(d.lighting))
        np.testing.assert_allclose(
            preprocessing.train(path, drawn=d).x, h[:, :, ::-1] if d.flip else h, atol=5e-5
        )
    many = [preprocessing.draw(generator(0, 1, i)) for i in range(4000)]
    sides = [d.short_side for d in many]
    assert (min(sides), max(sides)) == (256, 480) and abs(np.mean(sides) - 368) < 4
    assert abs(np.std([d.lighting for d in many]) - 0.1) < 0.003


@pytest.mark.parametrize(
    'name',
    [
        'DataAugmentationImagenetTorch7',
        'DataAugmentationImagenetPaper',
        'DataAugmentationImagenetLornatang',
        'DataAugmentationImagenetTorchvision',
    ],
)
def test_imagenet_evaluation(name, images):
    for path in images.paths[:4]:
        image = Image.open(path)
        bilinear = name.endswith(('Lornatang', 'Torchvision'))
        short = 232 if name.endswith('Torchvision') else 256
        scale = short / min(image.size)
        size = [short if n == min(image.size) else int(scale * n) for n in image.size]
        resized = image.resize(size, Image.BILINEAR if bilinear else Image.BICUBIC)
        left, top = ((round((n - 224) / 2) if bilinear else n // 2 - 112) for n in size)
        wanted = normalised(np.asarray(resized.crop((left, top, left + 224, top + 224))) / 255.0)
        np.testing.assert_allclose(getattr(data_augmentation, name).test(path).x, wanted, atol=1e-5)


def mapped(pixels, source):
    """Pixel (x, y) from source(x, y), positions of the pixels' centres; black from outside."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    sx, sy = (np.floor(v).astype(int) for v in source(x, y))
    inside = (sx >= 0) & (sx < width) & (sy >= 0) & (sy < height)
    out = np.zeros_like(pixels)
    out[inside] = pixels[sy[inside], sx[inside]]
    return out


def rotated(pixels, degrees):
    """Counter-clockwise about the centre."""
    angle = math.radians(degrees)
    cy, cx = pixels.shape[0] / 2, pixels.shape[1] / 2

    def source(x, y):
        x, y = x - cx, y - cy
        return (
            math.cos(angle) * x - math.sin(angle) * y + cx,
            math.sin(angle) * x + math.cos(angle) * y + cy,
        )

    return mapped(pixels, source)


def blended(pixels, other, factor):
    return np.clip(other + factor * (pixels - other), 0, 255)


def smooth(pixels):
    """A 3x3 mean in which the centre counts five times; the outermost pixels stay."""
    out = pixels.astype(float).copy()
    h, w = pixels.shape[:2]
    total = 4.0 * pixels[1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + pixels[dy : h - 2 + dy, dx : w - 2 + dx]
    out[1:-1, 1:-1] = total / 13
    return out


def equalised(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    used = counts[counts > 0]
    step = (used.sum() - used[-1]) // 255
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((before + step // 2) // step, 0, 255)[channel]


TRIVIAL = {
    'identity': lambda p, m: p,
    'shear-x': lambda p, m: mapped(p, lambda x, y: (x + 0.99 * m * y, y)),
    'shear-y': lambda p, m: mapped(p, lambda x, y: (x, y + 0.99 * m * x)),
    'translate-x': lambda p, m: mapped(p, lambda x, y: (x - int(32 * m), y)),
    'translate-y': lambda p, m: mapped(p, lambda x, y: (x, y - int(32 * m))),
    'rotate': lambda p, m: rotated(p, 135 * m),
    'brightness': lambda p, m: blended(p, 0, 1 + 0.99 * m),
    'colour': lambda p, m: blended(p, np.round(grey(p))[..., None], 1 + 0.99 * m),
    'contrast': lambda p, m: blended(p, np.round(np.round(grey(p)).mean()), 1 + 0.99 * m),
    'sharpness': lambda p, m: blended(p, smooth(p), 1 + 0.99 * m),
    'posterize': lambda p, m: p.astype(int) >> round(6 * m) << round(6 * m),
    'solarize': lambda p, m: np.where(p < 255 - 255 * m, p, 255 - p.astype(int)),
    'autocontrast': lambda p, m: np.clip(
        np.floor((p - p.min((0, 1)).astype(float)) * (255 / np.ptp(p, (0, 1)).astype(float))),
        0,
        255,
    ),
    'equalize': lambda p, m: np.stack([equalised(p[..., c]) for c in range(3)], axis=-1),
}
SIGNED = {
    'shear-x',
    'shear-y',
    'translate-x',
    'translate-y',
    'rotate',
    'brightness',
    'colour',
    'contrast',
    'sharpness',
}


def test_trivial_augment_has_these_operations():
    assert list(trivial_augment.OPERATIONS) == list(TRIVIAL)


@pytest.mark.parametrize('name', list(TRIVIAL))
def test_lornatang_step_by_step(name, images):
    preprocessing = data_augmentation.DataAugmentationImagenetLornatang
    image = Image.open(images.paths[2])
    for i, strength in enumerate((0, 7, 15, 30)):
        d = preprocessing.draw(generator(2, 1, i))._replace(
            operation=name,
            strength=strength,
            negated=bool(i % 2),
            angle=270 * i / 7,
            flip=bool(i % 2),
            upside_down=bool(i // 2),
        )
        for attempt in d.attempts:
            area, aspect, y, x = attempt
            target = (0.08 + area * 0.92) * image.width * image.height
            ratio = math.exp(math.log(3 / 4) + aspect * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
            if w <= image.width and h <= image.height:
                break
        y, x = int(y * (image.height - h + 1)), int(x * (image.width - w + 1))
        pixels = np.asarray(image.crop((x, y, x + w, y + h)).resize((224, 224), Image.BILINEAR))
        m = strength / 30 * (-1 if name in SIGNED and d.negated else 1)
        h = rotated(TRIVIAL[name](pixels, m), d.angle)
        h = h[:, ::-1] if d.flip else h
        h = h[::-1] if d.upside_down else h
        found = preprocessing.train(image, drawn=d).x
        wanted = normalised(h / 255.0)
        # Two grey levels for roundings; a few pixels whose source lies between two.
        far = (abs(found - wanted) * 255 * 0.23 > 2).any(axis=0)
        assert far.mean() < 0.01, (strength, far.mean())


def test_lornatang_draws_and_fallback():
    preprocessing = data_augmentation.DataAugmentationImagenetLornatang
    many = [preprocessing.draw(generator(0, 1, i)) for i in range(4200)]
    names = [d.operation for d in many]
    assert all(220 < names.count(name) < 380 for name in TRIVIAL)
    strengths = np.bincount([d.strength for d in many])
    assert len(strengths) == 31 and strengths.min() > 90
    angles = [d.angle for d in many]
    assert min(angles) >= 0 and 265 < max(angles) < 270 and abs(np.mean(angles) - 135) < 4
    for values in (
        [d.flip for d in many],
        [d.upside_down for d in many],
        [d.negated for d in many],
    ):
        assert abs(np.mean(values) - 0.5) < 0.03
    whole = np.ones((10, 4)) * 0.999  # 100 % of the area, 4/3: in none of these
    assert preprocessing.crop_box(90, 700, whole) == (0, 290, 90, 120)
    assert preprocessing.crop_box(700, 90, whole) == (290, 0, 120, 90)
    aspects = [
        w / h
        for d in many[:1000]
        for _, _, h, w in [preprocessing.crop_box(2000, 2000, d.attempts)]
    ]
    assert abs(np.mean(np.log(aspects))) < 0.02 and min(aspects) > 0.74 and max(aspects) < 1.35


@pytest.mark.parametrize(
    'name',
    [
        'DataAugmentationImagenetTorch7',
        'DataAugmentationImagenetPaper',
        'DataAugmentationImagenetLornatang',
    ],
)
def test_a_large_jpeg_may_be_decoded_smaller(name, tmp_path):
    from trainer.transforms import decoding

    preprocessing = getattr(data_augmentation, name)
    image = Image.fromarray(quick.load().train.images[600].transpose(1, 2, 0))
    path = str(tmp_path / 'a.jpg')
    image.resize((1500, 1203), Image.Resampling.BICUBIC).save(path, quality=95)
    whole = decoding.load(path)
    shrunk = 0
    for i in range(12):
        d = preprocessing.draw(generator(5, 1, i))
        d = d._replace(operation='identity', angle=0) if hasattr(d, 'operation') else d
        found, full = preprocessing.train(path, drawn=d).x, preprocessing.train(whole, drawn=d).x
        assert abs(found - full).mean() * 255 * 0.225 < 1.5
        shrunk += (found != full).any()
    assert shrunk >= 3  # otherwise nothing was tested


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    for name in data_augmentation.__all__:
        with pytest.raises(InputError, match='a.jpg: not an image'):
            getattr(data_augmentation, name).train(
                str(tmp_path / 'a.jpg'), rng=np.random.default_rng(0)
            )
