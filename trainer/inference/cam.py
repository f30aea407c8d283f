"""Class activation maps (Zhou et al. 2016, arXiv 1512.04150): where a network sees a class.

A network averages its last feature maps f_k and multiplies the means by the classifier's weights
w_k. So the sum of w_k f_k is a map whose mean, plus the bias, is the score. (In the 2017 CIFAR
network, w_k includes batch normalisation, and the score passes a ReLU.)
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, NamedTuple

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.inference import prediction
from trainer.networks import layers
from trainer.transforms import decoding

if TYPE_CHECKING:
    import numpy.typing as npt

    from trainer.inference.prediction import Prediction
    from trainer.networks.base import Network
    from trainer.transforms.table import Preprocessing
    from trainer.types import Source


class Explanation(NamedTuple):
    """The class activation maps of an image.

    Attributes:
        prediction: The prediction for the image.
        image: The network's input before normalisation, uint8 (height, width, 3).
        maps: A map for each answer of the prediction, float32 (answers, rows, columns).
    """

    prediction: Prediction
    image: np.ndarray
    maps: np.ndarray


def activation_maps(network: Network, x: np.ndarray, classes: npt.ArrayLike) -> np.ndarray:
    """Compute class activation maps.

    Args:
        network: The network, on any device.
        x: Images, float32 (batch, 3, height, width), preprocessed.
        classes: Numbers of classes, int (batch, n).

    Returns:
        float32 (batch, n, rows, columns), at the last stage's resolution: 7x7 for an image of
        224x224. The mean over rows and columns, plus :func:`bias`, is the score before a ReLU.
    """
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        x = chainer.Variable(network.device.send(np.asarray(x, np.float32)))
        # The last activation is the mean.
        (_, h), _ = collections.deque(network.activations(x), maxlen=2)
    get = chainer.get_device('@numpy').send
    weights = get(_classifier(network)[0])[np.asarray(classes)]
    return np.einsum('bnk,bkrc->bnrc', weights, get(h.array))


def _classifier(network):
    """Return the classifier's weights (classes, channels) and biases (classes,)."""
    if not isinstance(network.fc, layers.ConvBN):
        return network.fc.W.array, network.fc.b.array
    weights, bn = network.fc.conv.W.array, network.fc.bn
    scale = bn.gamma.array / (bn.avg_var + bn.eps) ** 0.5
    return weights.reshape(len(weights), -1) * scale[:, None], bn.beta.array - bn.avg_mean * scale


def bias(network: Network) -> np.ndarray:
    """Return the bias that is added to the mean of each class's map: float32 (classes,)."""
    return chainer.get_device('@numpy').send(_classifier(network)[1])


def seen(transform: Preprocessing, source: Source) -> np.ndarray:
    """Return the image that a network sees in evaluation, before normalisation.

    Args:
        transform: A class of ``data_augmentation``.
        source: An image, in any form that the class takes.

    Returns:
        uint8 (height, width, 3).
    """
    if hasattr(transform, 'test_pixels'):
        return transform.test_pixels(source).x.values
    size = transform.shape[:0:-1]
    return np.asarray(decoding.load_rgb(source).resize(size))


def explain(network: Network, said: Prediction, upright: bool = True) -> Explanation:
    """Compute the class activation maps of a prediction's answers.

    Args:
        network: The network.
        said: Prediction for an image that could be read.
        upright: See :func:`trainer.inference.prediction.predict`.

    Returns:
        Explanation

    Raises:
        trainer.errors.InputError: The image can no longer be read.
    """
    transform = prediction.preprocessing([network])
    source = decoding.upright(said.source) if upright else said.source
    numbers = [[answer.number for answer in said.answers]]
    (maps,) = activation_maps(network, transform.test(source).x[None], numbers)
    if not np.isfinite(maps).all():
        raise InputError(
            '-m: the network computes numbers that are not finite; its weights are damaged'
        )
    return Explanation(said, seen(transform, source), maps)
