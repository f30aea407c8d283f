"""Small networks, their weights, and one step of training."""

import copy

import chainer
import numpy as np
from conftest import state_on_cpu

import resnext
import resnext_ilsvrc
from data_augmentation import DataAugmentationNormalizeBigger as Bigger
from helpers.images import SIZES, random_image
from trainer.weights import npz


def cifar():
    return resnext.ResNext(10, (1, 1, 1), C=2, d=4, multiplier=2), (4, 3, 32, 32)


def paper_cifar():
    return resnext.PaperResNext(10, (1, 1, 1), C=2, d=8), (4, 3, 32, 32)


def ilsvrc():
    return resnext_ilsvrc.ResNext(10, (1, 2, 1, 1), C=4, d=4, multiplier=2), (2, 3, 65, 57)


def squeeze_excite():
    """Of odd sizes throughout; ResNet-D's stem and shortcuts as well."""
    network = resnext_ilsvrc.ResNext(
        10,
        (1, 2, 1, 1),
        C=4,
        d=4,
        multiplier=2,
        deep_stem=(8, 16),
        average_shortcut=True,
        se_reduction=8,
        pool_pad=0,
        round_up_pooling=True,
    )
    return network, (2, 3, 65, 57)


NETWORKS = [cifar, paper_cifar, ilsvrc, squeeze_excite]


def build(make, dtype=np.float32, seed=0):
    with chainer.using_config('dtype', dtype):
        network, shape = make()
    network.weight_initialization(0)
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return network, x, np.arange(len(x), dtype=np.int32)


def step(network, x, t, engine, precision='float32', gpu=-1):
    """Compute a forward and backward pass: (scores, gradients, state)."""
    network = copy.deepcopy(network)
    network.check_gpu(gpu)
    send, get = network.device.send, chainer.get_device('@numpy').send
    with (
        chainer.using_config('engine', engine),
        chainer.using_config('precision', precision),
        chainer.using_config('train', True),
    ):
        network.cleargrads()
        y = network(chainer.Variable(send(x)))
        network.calc_loss(y, send(t)).backward()
    gradients = {name: get(p.grad) for name, p in network.namedparams()}
    return get(y.array), gradients, state_on_cpu(network)


def small(kind='ilsvrc', **arguments):
    """Return a network with random weights and running statistics."""
    cls = resnext_ilsvrc.ResNext if kind == 'ilsvrc' else resnext.PaperResNext
    arguments = dict(
        {'stem_width': 4, 'stages': [[2, 4, 2, 8, 1, 'first'], [1, 8, 2, 16, 2, 'first']]},
        **arguments,
    )
    network = cls(3, **arguments)
    rng = np.random.default_rng(0)
    for array in npz.state(network).values():
        if np.ndim(array):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return network


def same(a, b):
    """Return whether two networks are equal, bit for bit."""
    a, b = npz.state(a), npz.state(b)
    return list(a) == list(b) and all(
        np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes() for name in a
    )


def randomise(network, seed=0):
    network.weight_initialization(seed)
    rng = np.random.default_rng(seed)
    for name, array in npz.state(network).items():
        if name.endswith(('bn/gamma', 'bn/avg_var')):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith(('bn/beta', 'bn/avg_mean', 'fc/b')):
            array[...] = rng.normal(0, 0.5, array.shape)
    return network


def batches(size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, 3) + size).astype(np.float32) for batch in (1, 3, 8)]


def relative(a, b):
    return abs(a.astype(np.float64) - b).max() / abs(b).max()


def network(category_num, seed, classes=None):
    """A small network that answers different images differently."""
    made = resnext_ilsvrc.ResNext(category_num, (1, 1, 1, 1), 2, 2, 2, stem_width=8)
    made.weight_initialization(seed)
    rng = np.random.default_rng(seed)
    for link in made.links():
        if isinstance(link, chainer.links.BatchNormalization):
            link.avg_var[...] = rng.uniform(0.5, 1.5, link.avg_var.shape)
            link.avg_mean[...] = rng.normal(0, 0.1, link.avg_mean.shape)
    x = np.stack([Bigger.test(random_image(*SIZES[i % len(SIZES)], seed=i)).x for i in range(12)])
    with chainer.no_backprop_mode():
        y = made(x, train=False).array
    scale = 2 / y.std(axis=0)
    made.fc.W.array *= scale[:, None]
    made.fc.b.array[...] = -y.mean(axis=0) * scale
    made.classes = classes
    return made


def softmax(y):
    e = np.exp(y - y.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
