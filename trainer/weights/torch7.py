"""Torch7's files (.t7) of the networks of facebookresearch/ResNeXt.

The architecture is determined by the modules, not by the file's name. Modules nested in
``nn.Sequential`` are read depth first, so that the published files and those of the published
code look alike. Modules that our networks cannot represent are refused by their place.
"""

from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer import files
from trainer.errors import InputError
from trainer.weights import description, formats, safetensors, t7, torch7_modules

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path


class Torch7File(NamedTuple):
    """What a file holds besides the network.

    Attributes:
        tensors: Torch7's type of its numbers, such as 'torch.FloatTensor'.
        image_size: Height and width of the images for which it was made, in pixels.
        shortcut: Type of its shortcuts: 'A', 'B' or 'C'.
    """

    tensors: str
    image_size: int
    shortcut: str


class _Numbers:
    """Loads the network's tensors, and checks that they do not overlap."""

    def __init__(self, f):
        self._f = f
        self.kinds = collections.Counter()
        self._extents = []

    def _note(self, module, key, tensor, gradient):
        extent = tensor.extent()  # checks the storage
        self._extents.append((tensor.storage.position, *extent, gradient, module, key))

    def load(self, module, key, *shapes, absent=None):
        """Load a tensor that has one of ``shapes``, as the first of them.

        If there is neither the tensor nor its gradient, return ``absent``.
        """
        gradient = module.fields.get(b'grad' + key.capitalize().encode())
        tensor = module.tensor(key, optional=absent is not None and gradient is None)
        if tensor is None:
            return absent
        if tensor.shape not in shapes:
            raise module.refuse(f'has {key} of shape {tensor.shape} where {shapes[0]} belongs')
        self._note(module, key, tensor, False)
        if tensor.storage.dtype.kind != 'f':
            raise module.refuse(f'has {key} in {tensor.kind}Tensor')
        if isinstance(gradient, t7.StridedTensor) and gradient.shape:
            self._note(module, key, gradient, True)
        numbers = tensor.load(self._f)
        with np.errstate(over='ignore'):
            finite = np.isfinite(numbers.astype(np.float32, copy=False)).all()
        if not finite:
            raise module.refuse(f'has {key} with numbers that are not finite in float32')
        self.kinds[tensor.kind + 'Tensor'] += numbers.size
        return numbers.reshape(shapes[0])

    def check_distinct(self):
        """Refuse overlapping tensors, which a damaged offset or reference can cause."""
        ends = {}
        for storage, first, end, gradient, module, key in sorted(
            self._extents, key=lambda extent: extent[:4]
        ):
            # Gradients may share their memory with one another.
            before = max(
                ends.get((storage, other), 0) for other in ((False,) if gradient else (False, True))
            )
            if first < before:
                raise module.refuse(f'has {key} where other numbers are')
            ends[storage, gradient] = max(end, ends.get((storage, gradient), 0))


def _fill(numbers, link, parts):
    """Fill a ConvBN from its branches."""
    start = 0
    for conv, bn in parts:
        out, taken, groups, k = conv.out, conv.channels // conv.groups, conv.groups, conv.ksize
        here = slice(start, start + out)
        start += out
        link.conv.W.array[here] = numbers.load(
            conv.module,
            'weight',
            (out, taken, k, k),
            (out, taken * k * k),
            (groups, out // groups, taken, k, k),
        )
        link.bn.gamma.array[here] = numbers.load(bn, 'weight', (out,), absent=1)
        link.bn.beta.array[here] = numbers.load(bn, 'bias', (out,), absent=0)
        # Subtracting a bias from the mean has the same effect as adding it to the input.
        link.bn.avg_mean[here] = numbers.load(bn, 'running_mean', (out,)) - np.asarray(
            numbers.load(conv.module, 'bias', (out,), absent=0), np.float64
        )
        eps = bn.number('eps')
        with np.errstate(divide='ignore', over='ignore'):
            if b'running_std' in bn.fields and b'running_var' not in bn.fields:
                # Before 2016: 1 / sqrt(variance + eps).
                std = numbers.load(bn, 'running_std', (out,)).astype(np.float64)
                link.bn.avg_var[here] = std**-2 - eps
            else:
                link.bn.avg_var[here] = numbers.load(bn, 'running_var', (out,))
        variance = link.bn.avg_var[here]
        if not (np.isfinite(variance) & (variance + eps > 0)).all():
            raise bn.refuse('has variances that are infinite or below 0')


def _build(f, path):
    root, limit = t7.parse(f)
    held = torch7_modules.network(torch7_modules.root_of(root))
    eps = None
    links = [('stem', [held.stem])]
    for i, (_, blocks) in enumerate(held.stages, 1):
        for j, block in enumerate(blocks, 1):
            links += [(f'stage{i}/block{j}/{name}', parts) for name, parts in block.parts.items()]
    for _, bn in itertools.chain.from_iterable(parts for _, parts in links):
        eps = bn.number('eps') if eps is None else eps
        if bn.number('eps') != eps or not 0 < eps < 1:
            raise bn.refuse('has eps {} where others have {}'.format(bn.number('eps'), eps))
    architecture = {
        'network': 'paper-cifar' if held.rounds_up is None else 'ilsvrc',
        'category_num': held.classes,
        'stem_width': held.stem[0].out,
        'stages': [config for config, _ in held.stages],
        'eps': eps,
    }
    if held.rounds_up is not None:
        architecture['round_up_pooling'] = held.rounds_up
    else:  # facebookresearch has this form only for CIFAR, with channel means for each dataset
        architecture['preprocessing'] = 'DataAugmentationCifar{}Torch7'.format(
            100 if held.classes == 100 else ''
        )
    network = description.build(architecture, path, weight_limit=limit)
    here = dict(network.namedlinks())
    numbers = _Numbers(f)
    for name, parts in links:
        _fill(numbers, here['/' + name], parts)
    network.fc.W.array[...] = numbers.load(held.fc, 'weight', network.fc.W.shape)
    network.fc.b.array[...] = numbers.load(held.fc, 'bias', network.fc.b.shape, absent=0)
    numbers.check_distinct()
    return network, Torch7File(
        ', '.join(kind for kind, _ in numbers.kinds.most_common()),
        held.image_size,
        network.shortcut,
    )


def read(path: Path) -> tuple[Network, Torch7File]:
    """Build the network in a Torch7 file, and describe the file.

    The ImageNet and the CIFAR form, of any depth, widths, cardinality and number of
    classes; bottleneck types resnet, resnext_B (separate branches) and resnext_C (grouped);
    shortcut types A, B and C; tensors of any precision, which are converted to float32.
    Biases of convolutions are folded into the running means, exactly. Of a
    ``nn.DataParallelTable`` the first replica is used, of a table the only network in it.

    Args:
        path: The file.

    Returns:
        The network (:class:`resnext_ilsvrc.ResNext` or :class:`resnext.PaperResNext`) on the CPU,
        and :class:`Torch7File`.

    Raises:
        trainer.errors.InputError: The file is missing, damaged, or holds what these
            networks cannot represent; the message names the module, as Torch7 prints
            it: ``(5)(1)`` is the first module in the fifth.
    """
    try:
        with files.open_regular(path) as f:
            return _build(f, path)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except torch7_modules.Refused as e:
        raise InputError(f'{path}: cannot be converted: {e}') from None
    except t7.Damaged as e:
        raise InputError(f'{path}: not a whole Torch7 file ({e}); fetch it again') from e


def _recognises(head):
    binary = head[1:4] == bytes(3) and 0 < head[0] < 9 and not safetensors.recognises(head)
    return binary or head[:2] in (b'3\n', b'4\n')


def _read(path, entry):
    network, found = read(path)
    return network, found.tensors, found.image_size


FORMAT = formats.Format('t7', ('.t7',), recognises=_recognises, read=_read)
