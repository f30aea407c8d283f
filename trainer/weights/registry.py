"""From what a file says of its network to the network."""

import importlib

import chainer

from trainer.errors import InputError
from trainer.transforms import table

#: What npz files call a network -> (module at the top, class).
NETWORKS = {
    'original-cifar': ('resnext', 'ResNext'),
    'paper-cifar': ('resnext', 'PaperResNext'),
    'ilsvrc': ('resnext_ilsvrc', 'ResNext'),
}

# Widths double from stage to stage: after so many they are absurd, and soon huge numbers.
_MAX_STAGES = 100


def architecture(network):
    """Return :meth:`Network.architecture`, and its preprocessing where it is not its class's."""
    own = {'preprocessing': network.preprocessing}
    return dict(
        network.architecture(),
        **({} if network.preprocessing == type(network).preprocessing else own),
    )


def build(architecture, path, weight_limit):
    """Build the network that a file describes, its weights zero.

    Args:
        architecture (dict): From :meth:`Network.architecture`, or a stranger's file.
        path (str): The file, for messages.
        weight_limit (int): The network may not have more weights than this.

    Raises:
        trainer.errors.InputError: The description is not one of ours.
    """
    try:
        arguments = dict(architecture)
        module, name = NETWORKS[arguments.pop('network')]
        if len(arguments.get('block_num', ())) > _MAX_STAGES:
            raise ValueError('{} stages'.format(len(arguments['block_num'])))
        classes = arguments.pop('classes', None)
        if classes is not None:
            classes = [str(c) for c in classes]
            if len(classes) != arguments['category_num']:
                raise ValueError(f'{len(classes)} class names')
        preprocessing = arguments.pop('preprocessing', None)
        if preprocessing not in (None, *table.CLASSES):
            raise ValueError(f'preprocessing {preprocessing!r}')
        with chainer.using_config('weight_limit', weight_limit):
            network = getattr(importlib.import_module(module), name)(initialize=False, **arguments)
        network.classes = classes
        if preprocessing is not None:
            network.preprocessing = preprocessing
        return network
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
        IndexError,
    ) as e:
        raise InputError(
            f'{path}: describes a network that cannot be built ({type(e).__name__}: {e}); it is damaged, '
            'or was written by a later version'
        ) from e


def check_flags(network, path, C=None, d=None, layers=None):
    """Refuse flags that contradict what a file holds.

    Args:
        network (trainer.networks.base.Network): What the file holds.
        path (str): The file, for messages.
        C (int): Cardinality (``-c``). d (int): Base width (``-d``).
        layers (int): Depth as the paper counts it (``-l``). ``None``: the flag was left out.

    Raises:
        trainer.errors.InputError: A flag is not as in the file.
    """
    for flag, given, held in (
        ('-c', C, network.C),
        ('-d', d, network.d),
        ('-l', layers, network.layers),
    ):
        if given is not None and given != held:
            raise InputError(
                f'{flag} {given}: {path} holds a network of {network.layers} layers, {network.C}x{network.d}d; leave {flag} out'
            )


def load(path, gpu=-1):
    """Load a network from a file of weights, which says what network it holds.

    Args:
        path (str): A file of any format that :func:`trainer.weights.formats.read`
            reads. In npz files of the 2017 program the architecture is read off the
            arrays; ILSVRC networks get Torch7's pooling, which their weights were
            trained with: set ``round_up_pooling`` to ``True`` for what that program
            computes.
        gpu (int): Where to put it; below 0 is the CPU.

    Returns:
        trainer.networks.base.Network: The network with its weights.

    Raises:
        trainer.errors.InputError: The file is damaged or not such a file.
    """
    from trainer.weights import formats

    network, _ = formats.read(path)
    network.check_gpu(gpu)
    return network
