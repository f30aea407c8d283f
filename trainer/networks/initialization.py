"""Initial weights, drawn as each source draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chainer.links as L
import numpy as np

if TYPE_CHECKING:
    from trainer.networks.base import Network


def orthonormal_relu(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw the weights of a convolution or fully connected layer, as the original does.

    Source: ``nutszebra_initialization.py``, ``orthonorm``.

    Each output filter is a matrix of (input channels, filter height x width):
    Gaussian numbers, orthonormalised (arXiv 1312.6120), then scaled to the
    variance 2 / fan-in (arXiv 1502.01852).

    Args:
        shape: (out, in, height, width) or (out, in).
        rng: Source of the Gaussian numbers.

    Returns:
        float32 of ``shape``.
    """
    out, channels = shape[:2]
    area = int(np.prod(shape[2:], dtype=int))
    gaussian = rng.standard_normal((out, channels, area))
    if area == 1:
        q = gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True)
    else:
        u, _, v = np.linalg.svd(gaussian, full_matrices=False)
        q = u if u.shape == gaussian.shape else v
    # A filter of one weight has no variance to scale.
    std = q.std(axis=(1, 2), keepdims=True)
    q = q / np.where(std == 0, 1, std) * np.sqrt(2.0 / (channels * area))
    return q.reshape(shape).astype(np.float32)


def _he_by_inputs(shape, rng):
    """Draw from a normal distribution of variance 2 / inputs."""
    return rng.normal(0, np.sqrt(2 / shape[1]), shape)


def _uniform(shape, rng, inputs=None):
    """Draw uniformly within 1 / sqrt(inputs), as ``nn.Linear`` of Torch7 and PyTorch does."""
    bound = 1 / np.sqrt(inputs or shape[1])
    return rng.uniform(-bound, bound, shape)


#: Name -> functions that draw the classifier's weights and biases (``None``: biases are 0). All
#: sources draw convolutions from a normal distribution of variance 2 / (filter height x width x
#: output channels).
SOURCES = {
    'torch7': (_uniform, None),  # models/resnext.lua
    'prlz77': (_he_by_inputs, None),  # models/model.py
    'pytorch': (_uniform, _uniform),  # Lornatang's model.py, and torchvision
}


def fill(network: Network, initialization: str, seed: int) -> None:
    """Initialise the weights of a new network.

    Args:
        network: A network with zero weights.
        initialization: One of :data:`SOURCES`, or 'orthonormal', which is
            :meth:`trainer.networks.base.Network.weight_initialization`.
        seed: The same seed gives the same weights.
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


def zero_last(network: Network) -> None:
    """Set the last scale of batch normalisation in each block to 0, so that the block starts as
    its shortcut (arXiv 1706.02677, section 5.1).

    Args:
        network: A network with initialised weights.
    """
    for i in range(1, len(network.stages) + 1):
        for block in network[f'stage{i}'].children():
            block.expand.bn.gamma.array[...] = 0
