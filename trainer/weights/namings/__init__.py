"""How PyTorch projects call the parts of a network: one module a naming.

A naming is data: :mod:`trainer.weights.state_dict` does the rest.
"""

import collections


class Variants(
    collections.namedtuple('Variants', 'name deep_stem average_shortcut se', defaults=(None,) * 3)
):
    """How a project calls what only variants of a network have; ``None``: it has none such.

    Attributes:
        name (str): Whose names these are, for users.
        deep_stem (list of tuple): Each convolution of
            :class:`DeepStem <trainer.networks.layers.DeepStem>` and its batch normalisation.
        average_shortcut (callable): (stage, block), both from 0 -> convolution and batch
            normalisation of a shortcut that averages.
        se (callable): (stage, block) -> the two layers of
            :class:`SqueezeExcite <trainer.networks.layers.SqueezeExcite>`, 1x1 convolutions.
    """


class Naming(
    collections.namedtuple(
        'Naming',
        'name kind stem block classifier any_projections preprocessing variants pooling',
        defaults=(False, None, None, ()),
    )
):
    """The names of one project.

    Attributes:
        name (str): What users call it.
        kind (str): The networks it is for: 'ilsvrc' or 'paper-cifar'
            (:attr:`Network.kind <trainer.networks.base.Network.kind>`).
        stem (tuple of str): First convolution and its batch normalisation.
        block (callable): (stage, block), both from 0 -> dict of 'reduce', 'grouped',
            'expand' and 'shortcut' -> (convolution, batch normalisation).
        classifier (callable): Number of stages -> the fully connected layer.
        any_projections (bool): Whether the project's networks can have projection
            shortcuts anywhere, not just where sizes differ.
        preprocessing (str): The class of ``data_augmentation`` that the project's weights
            were trained with, where the network's kind does not tell.
        variants (Variants): ``None``: the project has the plain network alone.
        pooling (tuple): (name, value) of the network's arguments where its max pooling is
            another than PyTorch's.
    """


def table():
    """Return name -> list of :class:`Naming`, at most one for each kind of network."""
    from trainer.weights.namings import clcarwin, prlz77, senet, torchvision

    names = {'torchvision': torchvision.NAMINGS}
    # Their networks have torchvision's names, letter for letter.
    names['timm'] = names['lornatang'] = names['torchvision']
    names.update(clcarwin.TABLE)
    names['prlz77'] = prlz77.NAMINGS
    names['senet'] = senet.NAMINGS
    return names
