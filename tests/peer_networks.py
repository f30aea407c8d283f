"""What timm and chainercv compute with weights that a name and a seed give.

``python tests/peer_networks.py timm`` and ``... chainercv`` write the fixtures
``peer_timm.npz`` and ``peer_chainercv.npz`` anew; they need that package. Everything is
computed in float64. Of each network a fixture holds scores in evaluation, scores in training,
and of each parameter's gradient its product with seeded numbers and its norm.
"""

import pathlib
import sys
import zlib

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'

#: timm's networks, by the names of timm.create_model; the third has squeeze-and-excitation
#: and ResNet-D's stem and shortcuts.
TIMM = ('seresnext50_32x4d', 'resnext50d_32x4d', 'seresnext26d_32x4d', 'legacy_seresnext50_32x4d')

#: chainercv's classes.
CHAINERCV = ('SEResNeXt50', 'SEResNeXt101')

CLASSES = 7

#: Neither side is a multiple of 32: windows at the edge are not full.
SIZE = (2, 3, 70, 61)


def images():
    return np.random.default_rng(1).standard_normal(SIZE)


def numbers(name, shape):
    """Return float64 weights for an array of that name in a file."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(('running_var', 'avg_var')):
        return rng.uniform(0.5, 2, shape)
    if len(shape) > 1:
        return rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    if name.endswith(('weight', 'gamma')):
        return rng.uniform(0.3, 0.9, shape)
    return 0.1 * rng.standard_normal(shape)


def score_weights():
    """The weights of the sum of scores whose gradients are taken."""
    return np.random.default_rng(2).standard_normal((SIZE[0], CLASSES))


def digest(name, gradient):
    """Return the product of a gradient with seeded numbers, and its norm."""
    gradient = np.asarray(gradient, np.float64).ravel()
    seeded = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(gradient.size)
    return gradient @ seeded, np.linalg.norm(gradient)


def by_timm(name):
    import timm
    import torch

    network = timm.create_model(name, num_classes=CLASSES, drop_rate=0).double()
    for key, tensor in network.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            tensor.copy_(torch.from_numpy(numbers(key, tuple(tensor.shape))))
    x = torch.from_numpy(images())
    with torch.no_grad():
        scores = network.eval()(x).numpy()
    training = network.train()(x)
    (training * torch.from_numpy(score_weights())).sum().backward()
    gradients = {key: digest(key, p.grad.numpy()) for key, p in network.named_parameters()}
    return scores, training.detach().numpy(), gradients


def by_chainercv(name):
    import chainer
    import chainer.functions as F
    from chainercv.links.model import senet

    with chainer.using_config('dtype', np.float64):
        network = getattr(senet, name)(CLASSES)
        network.pick = 'fc6'
        x = images()
        with chainer.using_config('train', False):
            network(x)  # now all parameters have their sizes
    arrays = {}
    chainer.serializers.DictionarySerializer(arrays).save(network)
    given = {key: numbers(key, a.shape) if np.ndim(a) else a for key, a in arrays.items()}
    chainer.serializers.NpzDeserializer(given).load(network)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        scores = network(x).array
    with chainer.using_config('train', True):
        training = network(x)
    network.cleargrads()
    F.sum(training * score_weights()).backward()
    gradients = {key[1:]: digest(key[1:], p.grad) for key, p in network.namedparams()}
    return scores, training.array, gradients


def write_fixture(peer, names, compute):
    found = {}
    for name in names:
        scores, training, gradients = compute(name)
        keys = sorted(gradients)
        found |= {
            f'{name}/scores': scores,
            f'{name}/training': training,
            f'{name}/names': np.array(keys),
            f'{name}/gradients': np.array([gradients[key] for key in keys]),
        }
    np.savez_compressed(FIXTURES / f'peer_{peer}.npz', **found)


if __name__ == '__main__':
    if sys.argv[1] == 'timm':
        write_fixture('timm', TIMM, by_timm)
    else:
        import trainer  # noqa: F401  makes Chainer importable

        write_fixture('chainercv', CHAINERCV, by_chainercv)
