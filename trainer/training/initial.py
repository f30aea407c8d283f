"""Initial weights as the sources draw them."""

import chainer.links as L
import numpy as np


def _he_by_inputs(shape, rng):
    """Normal of variance 2 / inputs."""
    return rng.normal(0, np.sqrt(2 / shape[1]), shape)


def _uniform(shape, rng, inputs=None):
    """Uniform within 1 / sqrt(inputs), as ``nn.Linear`` of Torch7 and of PyTorch begins."""
    bound = 1 / np.sqrt(inputs or shape[1])
    return rng.uniform(-bound, bound, shape)


#: Name -> (weights of a classifier, its biases or ``None`` for 0). The convolutions of all
#: of them are normal of variance 2 / (filter height x width x output channels).
SOURCES = {
    'torch7': (_uniform, None),  # models/resnext.lua
    'prlz77': (_he_by_inputs, None),  # models/model.py
    'pytorch': (_uniform, _uniform),  # Lornatang's model.py, and torchvision
}

#: ``'orthonormal'`` is :meth:`trainer.networks.base.Network.weight_initialization`.
INITIALIZATIONS = ('orthonormal',) + tuple(SOURCES)


def fill(network, initialization, seed):
    """Fill the weights of a network that was just built.

    Args:
        network (trainer.networks.base.Network): Its weights are zero.
        initialization (str): One of :data:`INITIALIZATIONS`.
        seed (int): The same seed gives the same weights.
    """
    if initialization == 'orthonormal':
        network.weight_initialization(seed)
        return
    weights, biases = SOURCES[initialization]
    rng = np.random.default_rng(seed)
    for _, link in sorted(network.namedlinks()):
        if isinstance(link, L.Convolution2D):
            out, _, height, width = link.W.shape
            link.W.array[...] = rng.normal(0, np.sqrt(2 / (height * width * out)), link.W.shape)
        elif isinstance(link, L.Linear):
            link.W.array[...] = weights(link.W.shape, rng)
            if biases is not None:
                link.b.array[...] = biases(link.b.shape, rng, link.W.shape[1])
