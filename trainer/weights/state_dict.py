"""State dicts of PyTorch: networks from names and shapes, and back."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.weights import description, namings, npz, state_dict_sizes
from trainer.weights.namings import EPS

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path
    from trainer.weights.namings import Naming

# AveragedModel's counter.
_NO_WEIGHTS = {'n_averaged'}

_LINEAR = (('weight', 'W'), ('bias', 'b'))
_BN = (
    ('weight', 'gamma'),
    ('bias', 'beta'),
    ('running_mean', 'avg_mean'),
    ('running_var', 'avg_var'),
    ('num_batches_tracked', 'N'),
)
_COUNTER = 'num_batches_tracked'


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: Name of its type in NumPy or PyTorch: 'float32', 'bfloat16'.
        shape: Its shape.
        load: () -> numpy.ndarray; bfloat16 as float32.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


class StateDict(NamedTuple):
    """What a state dict holds besides the network.

    Attributes:
        naming: Its naming.
        dtypes: Types of its weights, the most frequent first.
        project: Name of the project whose names it has, for users.
    """

    naming: Naming
    dtypes: str
    project: str

    @property
    def details(self) -> str:
        """str: Types and project, for users."""
        return f"{self.dtypes}, {self.project}'s names"


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Convert bfloat16 numbers, given as uint16, to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers of a network have added to a state dict's names.

    DataParallel, AveragedModel, torch.compile and many programs put 'module.', '_orig_mod.',
    'model.' or 'backbone.' before every name.
    """
    tensors = {name: t for name, t in tensors.items() if name not in _NO_WEIGHTS}
    while recognise(tensors) is None:
        first = next(iter(tensors), '')
        prefix = first[: first.find('.') + 1]
        if not prefix or not all(name.startswith(prefix) for name in tensors):
            break
        tensors = {name[len(prefix) :]: t for name, t in tensors.items()}
    return tensors


def recognise(tensors: dict[str, Tensor]) -> Naming | None:
    """Return the :class:`Naming` that a state dict has, or ``None``."""
    for of_project in namings.table().values():
        for naming in of_project:
            size = 7 if naming.kind == 'ilsvrc' else 3
            stems = [(naming.stem[0], size)]
            if naming.variants is not None and naming.variants.deep_stem:
                stems.append((naming.variants.deep_stem[0][0], 3))
            first = naming.block(0, 0)['reduce'][0] + '.weight'
            if first in tensors and any(
                stem + '.weight' in tensors and tensors[stem + '.weight'].shape[2:] == (k, k)
                for stem, k in stems
            ):
                return naming
    return None


def _of_block(naming, network, path):
    """Return the names of a block's layer, or of its convolution and normalisation."""
    stage, block, part, *inner = path.split('/')
    place = int(stage[5:]) - 1, int(block[5:]) - 1
    if part == 'se':
        return naming.variants.se(*place)[('down', 'up').index(*inner)]
    if part == 'shortcut' and 'average_shortcut' in network.variant:
        return naming.variants.average_shortcut(*place)
    return naming.block(*place)[part]


def _names(naming, network):
    """Return PyTorch name -> our name for all arrays of a network, in PyTorch's order."""
    names = {}
    for path, _ in network.named_layers():
        if path == 'fc':
            fc = naming.classifier(len(network.stages))
            names.update({fc + '.' + a: path + '/' + b for a, b in _LINEAR})
            continue
        if '/se/' in path:
            fc = _of_block(naming, network, path)
            names.update({fc + '.' + a: path + '/' + b for a, b in _LINEAR})
            continue
        if path == 'stem':
            conv, bn = naming.stem
        elif path.startswith('stem/'):
            conv, bn = naming.variants.deep_stem[int(path[-1]) - 1]
        else:
            conv, bn = _of_block(naming, network, path)
        names[conv + '.weight'] = path + '/conv/W'
        names.update({bn + '.' + a: path + '/bn/' + b for a, b in _BN})
    return names


def _there_shape(ours, array):
    """Return the shape that one of our arrays has in a state dict."""
    return array.shape + ((1, 1) if '/se/' in ours and ours.endswith('/W') else ())


def _load(tensor, name, path):
    if tensor.dtype not in ('float16', 'bfloat16', 'float32', 'float64'):
        raise InputError(f'{path}: {name} holds {tensor.dtype}, not weights')
    with np.errstate(over='ignore'):
        array = tensor.load().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f'{path}: {name} has numbers that are not finite in float32')
    if name.endswith('running_var') and (array + EPS <= 0).any():
        raise InputError(f'{path}: {name} has variances below 0')
    return array


def _count(tensor, name, path):
    if tensor.dtype not in ('int32', 'int64') or tensor.shape not in ((), (1,)):
        raise InputError(f'{path}: {name} is not a number of batches')
    return np.int64(tensor.load().reshape(()))


def _check_fits(path, network, naming, names, tensors):
    """Check that a state dict has exactly the arrays of a network, of the same shapes.

    Args:
        names: The network's names, from :func:`_names`.
    """
    missing = [name for name in names if name not in tensors and not name.endswith(_COUNTER)]
    extra = [name for name in tensors if name not in names]
    if missing or extra:
        raise InputError(
            '{}: does not fit {} in the names of {}: {} {}'.format(
                path,
                npz.describe(network),
                naming.name,
                'it has no' if missing else 'it also has',
                (missing or extra)[0],
            )
        )
    held = npz.state(network)
    for name, ours in names.items():
        if name.endswith(_COUNTER):
            continue
        fitting = _there_shape(ours, held[ours])
        if tensors[name].shape != fitting:
            raise InputError(
                f'{path}: does not fit {npz.describe(network)}: {name} is {tensors[name].shape} '
                f'there and {fitting} here'
            )


def _arrays(names, tensors, held, path):
    """Load a state dict.

    Returns:
        Arrays under our names, of the shapes of ``held``, and how many numbers there are of each
        type.
    """
    dtypes = collections.Counter()
    arrays = {}
    for name, ours in names.items():
        if name.endswith(_COUNTER):
            arrays[ours] = _count(tensors[name], name, path) if name in tensors else np.int64(0)
        else:
            arrays[ours] = _load(tensors[name], name, path).reshape(held[ours].shape)
            dtypes[tensors[name].dtype] += arrays[ours].size
    return arrays, dtypes


def read(tensors: dict[str, Tensor], path: Path) -> tuple[Network, StateDict]:
    """Build the network of a state dict.

    Names and shapes determine everything but the strides, the pooling and eps: those are
    the paper's and PyTorch's (1 in stage 1 and 2 in the others; rounding down; 1e-5). All
    names and shapes are checked before any number is read. Numbers of other precisions are
    converted to float32. ``num_batches_tracked`` becomes ``N``.

    Args:
        tensors: The state dict, in any naming of :mod:`trainer.weights.namings`, with or without
            prefixes of wrappers.
        path: The file, for messages.

    Returns:
        The network (:class:`resnext_ilsvrc.ResNext` or :class:`resnext.PaperResNext`) on the CPU,
        and :class:`StateDict`. If there is no classifier, the network has one class and its
        ``has_classifier`` is ``False``.

    Raises:
        trainer.errors.InputError: It is not a ResNeXt of a known naming.
    """
    tensors = strip(tensors)
    naming = recognise(tensors)
    if naming is None:
        raise InputError(
            '{}: its names are not those of a ResNeXt of {}; the first: {}'.format(
                path, ', '.join(namings.table()), next(iter(tensors), 'none')
            )
        )
    size = sum(int(np.prod(t.shape, dtype=object)) for t in tensors.values())
    network = description.build(
        state_dict_sizes.architecture(naming, tensors, path), path, weight_limit=size
    )
    names = _names(naming, network)
    network.has_classifier = state_dict_sizes.holds(naming.classifier(len(network.stages)), tensors)
    if not network.has_classifier:
        names = {name: ours for name, ours in names.items() if not ours.startswith('fc/')}
    _check_fits(path, network, naming, names, tensors)
    held = npz.state(network)
    arrays, dtypes = _arrays(names, tensors, held, path)
    chainer.serializers.NpzDeserializer(held | arrays).load(network)
    if naming.preprocessing is not None:
        network.preprocessing = naming.preprocessing
    project = naming.variants.name if network.variant and naming.variants else naming.name
    types = ', '.join(dtype for dtype, _ in dtypes.most_common())
    return network, StateDict(naming, types, project)


def _check_held(network, naming):
    """Refuse a network that a state dict in this naming would misrepresent."""

    def refuse(why):
        return InputError(
            f'`naming` {naming.name}: state dicts in this naming cannot hold the network: {why}; '
            'npz and ONNX can'
        )

    if network.eps != EPS:
        raise refuse(f"its batch normalisation has eps {network.eps}, PyTorch's {EPS}")
    pooling = dict(naming.pooling)
    if bool(network.round_up_pooling) != pooling.get('round_up_pooling', False):
        raise refuse(f'its max pooling rounds sizes {"up" if network.round_up_pooling else "down"}')
    if network.pool_pad != pooling.get('pool_pad', 1):
        raise refuse(f'its max pooling has {network.pool_pad} pixels of padding')
    for what in network.variant:
        if getattr(naming.variants, {'se_reduction': 'se'}.get(what, what), None) is None:
            raise refuse(f'they have no names for its {what}')
    channels = network.stem_width
    for i, stage in enumerate(network.stages):
        if stage.stride != (2 if i else 1):
            raise refuse(f'stage {i + 1} has stride {stage.stride}')
        needed = stage.stride > 1 or channels != stage.out_channels
        fits = stage.projections == ('first' if needed else 'none')
        if not fits and (needed and stage.projections == 'none' or not naming.any_projections):
            raise refuse(
                f'the shortcuts of stage {i + 1} are not projections just where sizes differ'
            )
        channels = stage.out_channels


def choose(network: Network, name: str | None = None) -> Naming:
    """Return the :class:`Naming` to write a network in.

    Args:
        network: The network.
        name: A name of :func:`trainer.weights.namings.table`. ``None``: torchvision's for ImageNet
            networks, prlz77's for CIFAR networks.

    Raises:
        trainer.errors.InputError: There is no such naming, or it cannot represent the network.
    """
    table = namings.table()
    if name is not None and name not in table:
        raise InputError('`naming` {}: there are {}'.format(name, ', '.join(table)))
    fitting = [
        naming
        for key, of_project in table.items()
        for naming in of_project
        if naming.kind == network.kind and name in (key, None)
    ]
    if not fitting:
        raise InputError(
            '{} no names for {}; npz and ONNX can hold it'.format(
                f'`naming` {name}: it has' if name else 'PyTorch state dicts: there are',
                npz.describe(network),
            )
        )
    _check_held(network, fitting[0])
    return fitting[0]


def write(network: Network, naming: str | None = None) -> dict[str, np.ndarray]:
    """Return the state dict of a network: the inverse of :func:`read`.

    Args:
        network: The network.
        naming: See :func:`choose`.

    Returns:
        Name -> array in PyTorch's order: float32, and int64 of shape () for
        ``num_batches_tracked``.

    Raises:
        trainer.errors.InputError: See :func:`choose`.
    """
    held = npz.state(network)
    arrays = {}
    for name, ours in _names(choose(network, naming), network).items():
        array = chainer.backends.cuda.to_cpu(held[ours]) if np.ndim(held[ours]) else held[ours]
        dtype = np.int64 if name.endswith(_COUNTER) else np.float32
        arrays[name] = np.asarray(array, dtype, order='C')
        if dtype == np.float32:
            arrays[name] = arrays[name].reshape(_there_shape(ours, array))
    return arrays
