"""Engines compute the layers; the networks are defined once, in :mod:`trainer.networks`.

An engine is a module here with the functions of :mod:`trainer.engines.reference`,
which says what each must compute. Every other engine is tested against it.
"""
import importlib

import chainer

from trainer.errors import InputError

chainer.global_config.engine = 'reference'


def current():
    """Return the engine module that ``chainer.config.engine`` names.

    Choose another for a while with ``chainer.using_config('engine', name)``.
    """
    return importlib.import_module('trainer.engines.' + chainer.config.engine)


#: The engines that have a predictor.
INFERENCE = ('reference', 'openvino')


class Predictor:
    """A network ready for inference; an engine's ``predictor(network, precision)`` makes it.

    Called with float32 (batch, 3, height, width), preprocessed, it returns the scores
    before softmax: float32 (batch, classes), both NumPy's.

    Attributes:
        network (trainer.networks.base.Network): The network.
        engine (str): The engine's name.
        description (str): What computes, and in which precision.
    """

    def __init__(self, network, engine, description):
        self.network = network
        self.engine = engine
        self.description = description

    def __call__(self, x):
        raise NotImplementedError

    def features(self, x):
        """Return what enters the classifier: float32 (batch, channels, 1, 1)."""
        raise NotImplementedError


def predictor(network, engine=None, precision='float32'):
    """Make a network ready for inference; see :meth:`Network.predictor`."""
    from trainer.engines import openvino
    on_cpu = network.model_is_cpu_mode()
    if engine is None:
        engine = 'openvino' if on_cpu and openvino.available() else 'reference'
    if engine not in INFERENCE:
        raise InputError('engine {}: for inference there are {}'.format(
            engine, ' and '.join(INFERENCE)))
    if engine == 'openvino' and not on_cpu:
        raise InputError('engine openvino: it computes on the CPU, and the network is on a GPU')
    return importlib.import_module('trainer.engines.' + engine).predictor(network, precision)
