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


def choose(gpu, precision=None, training=False):
    """Choose the engine for the layers, by device and precision.

    Args:
        gpu (int): Number of the GPU; below 0 is the CPU.
        precision (str): 'float32', 'tf32' or 'mixed'; ``None``: 'mixed' for training by
            cuDNN, else 'float32'.
        training (bool): What it is for.

    Returns:
        tuple of str: The engine, the precision, and why it is not cuDNN on a GPU (or ``None``).

    Raises:
        trainer.errors.InputError: Only cuDNN has the precision, and it cannot be used.
    """
    if gpu >= 0:
        from trainer.engines import cudnn

        why = cudnn.unavailable(gpu)
        if why is None:
            return 'cudnn', precision or ('mixed' if training else 'float32'), None
        why = f'cuDNN is not used: {why}'
    else:
        why = None
    if precision not in (None, 'float32'):
        raise InputError(
            '--precision {}: {}; leave it out for float32'.format(
                precision, why or 'it is for GPUs (-g)'
            )
        )
    return 'reference', 'float32', why


#: The engines that have a predictor.
INFERENCE = ('reference', 'openvino', 'cudnn')


class Predictor:
    """A network ready for inference; an engine's ``predictor(network, precision)`` makes it.

    Called with float32 (batch, 3, height, width), preprocessed, it returns the scores
    before softmax: float32 (batch, classes), both NumPy's.

    Attributes:
        finish (callable): Makes the pictures, on the device, of what it is called with;
            ``None``: it is called with pictures.
        network (trainer.networks.base.Network): The network.
        engine (str): The engine's name.
        description (str): What computes, and in which precision.
    """

    def __init__(self, network, engine, description, finish=None):
        self.finish = finish
        self.network = network
        self.engine = engine
        self.description = description

    def __call__(self, x):
        raise NotImplementedError

    def features(self, x):
        """Return what enters the classifier: float32 (batch, channels, 1, 1)."""
        raise NotImplementedError

    def refresh(self):
        """Learn the network's weights anew, where they were changed in place."""
        raise NotImplementedError


def predictor(network, engine=None, precision='float32', finish=None):
    """Make a network ready for inference; see :meth:`Network.predictor`.

    Args:
        finish (callable): Makes the pictures, on the device, of what the predictor is given
            (:class:`trainer.training.data.DataPath`). ``None``: on a GPU, with a network for
            pictures of 224x224, :class:`trainer.transforms.device.Pixels`, which takes
            pictures as well.
    """
    from trainer.engines import openvino

    on_cpu = network.model_is_cpu_mode()
    if engine is None and not on_cpu:
        engine, precision, _ = choose(network.device.device.id, precision)
    elif engine is None:
        engine = 'openvino' if openvino.available() else 'reference'
    if engine not in INFERENCE:
        raise InputError(
            'engine {}: for inference there are {}'.format(engine, ' and '.join(INFERENCE))
        )
    if engine == 'openvino' and not on_cpu:
        raise InputError('engine openvino: it computes on the CPU, and the network is on a GPU')
    if engine == 'cudnn' and on_cpu:
        raise InputError('engine cudnn: it computes on a GPU, which -g chooses')
    if finish is None and not on_cpu:
        from trainer.transforms import device

        finish = device.of(network)
    finish = {} if finish is None else {'finish': finish}
    return importlib.import_module('trainer.engines.' + engine).predictor(
        network, precision, **finish
    )
