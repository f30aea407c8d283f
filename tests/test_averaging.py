"""The mean of a run's models: weights in float64, statistics computed anew."""

import os
import subprocess
import sys

import chainer
import numpy as np
import pytest
from conftest import ROOT, write_cifar10

import data_augmentation
import resnext
from trainer import datasets
from trainer.errors import InputError
from trainer.reports.comparison import Run
from trainer.training import averaging, run
from trainer.training.data import data_path
from trainer.training.resolve import resolve
from trainer.weights import npz, sources

pytestmark = pytest.mark.usefixtures('undrawn')

GIVEN = dict(C=2, d=2, multi=2, block_num=(1, 1, 1), batch=40, train_batch_divide=2, lr=0.05)


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'cifar-10-batches-bin'
    return str(write_cifar10(folder, per_file=20))


@pytest.fixture(scope='module')
def trained(cifar, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('run'))
    run.train(say=lambda text: None, data=cifar, save_path=folder, epoch=5, mixup=0.2, **GIVEN)
    return folder


def model(folder, epoch):
    return sources.of_run(folder, epoch)


def test_which_models(trained):
    assert averaging.checkpoints(trained, 2) == [(e, model(trained, e)) for e in (4, 5)]
    errors = {row['epoch']: row['test_error'] for row in Run(trained).epochs}
    wanted = sorted(sorted(errors, key=lambda e: (errors[e], -e))[:3])
    assert [e for e, _ in averaging.checkpoints(trained, 3, best=True)] == wanted
    with pytest.raises(InputError, match='-n 6: there are 5 models'):
        averaging.checkpoints(trained, 6)


def test_weights_are_means(trained):
    found, epochs = averaging.average(trained, 3)
    assert epochs == [3, 4, 5]
    states = [npz.state(resnext.load(model(trained, e))) for e in epochs]
    moved = 0
    for name, array in npz.state(found).items():
        if np.ndim(array) and not name.endswith(('avg_mean', 'avg_var')):
            wanted = np.mean([np.array(s[name], np.float64) for s in states], axis=0)
            np.testing.assert_allclose(array, wanted, rtol=1e-6, atol=1e-9)
            moved += abs(array - states[-1][name]).max() > 1e-4
    assert moved > 10 and found.classes == resnext.load(model(trained, 5)).classes


def test_statistics_are_means_over_chunks(trained, cifar):
    """Of the first convolution's outputs, chunk by chunk of an epoch as it is trained."""
    found, _ = averaging.average(trained, 3)
    options = resolve(trained, True, lambda text: None, {})[0]
    dataset = datasets.load('cifar10', cifar)
    batches = data_path(
        dataset, options, data_augmentation.DataAugmentationCifar10NormalizeSmall
    ).train
    means, variances = [], []
    for _ in range(3):  # 100 images in batches of 40
        x, _, rows = batches.next()
        for part, mixed in zip(np.array_split(x, 2), np.array_split(rows, 2)):
            y = found.stem.conv(averaging.mixing.apply(part, mixed)).array
            n = y.size // y.shape[1]
            means.append(y.mean(axis=(0, 2, 3)))
            variances.append(y.var(axis=(0, 2, 3)) * n / (n - 1))
    assert len(means) == 6
    np.testing.assert_allclose(found.stem.bn.avg_mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
    eps = found.stem.bn.eps  # the 2017 network's running variances include it
    np.testing.assert_allclose(
        found.stem.bn.avg_var, np.mean(variances, axis=0) + eps, rtol=1e-3, atol=1e-4
    )
    assert all(
        link.decay == 0.9
        for link in found.links()
        if isinstance(link, chainer.links.BatchNormalization)
    )


def test_frozen_statistics_stay(cifar, trained, tmp_path):
    folder = str(tmp_path)
    given = dict(GIVEN, load_model=model(trained, 5), freeze=('stem',), epoch=2)
    run.train(say=lambda text: None, data=cifar, save_path=folder, **given)
    found, _ = averaging.average(folder, 2)
    before = resnext.load(model(trained, 5))
    np.testing.assert_allclose(found.stem.bn.avg_mean, before.stem.bn.avg_mean, rtol=1e-6)
    assert abs(found.stage2.block1.reduce.bn.avg_mean).sum() > 0
    assert (found.fc.bn.avg_mean != before.fc.bn.avg_mean).any()


def test_the_command(trained, tmp_path):
    def average(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / 'average.py', trained, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    done = average('-n', '3', '--best')
    assert done.returncode == 0 and 'top-1 error' in done.stdout, done.stderr
    assert os.path.exists(sources.of_run(trained, 'average'))
    assert not [line for line in done.stdout.splitlines() if len(line) > 200]
    done = average('-n', '99')
    assert done.returncode == 2 and '-n 99: there are 5 models' in done.stderr
    done = average('-n', '2', '-o', 'no/x.npz')
    assert done.returncode == 2 and '-o no/x.npz: there is no such folder' in done.stderr
    done = average('-n', '2', '-o', 'x.npz', '--images', '40')
    assert done.returncode == 0 and (tmp_path / 'x.npz').exists()
