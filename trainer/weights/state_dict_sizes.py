"""Determines the sizes of a network from the names and shapes of its state dict."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.weights.namings import EPS

if TYPE_CHECKING:
    from trainer.types import Path
    from trainer.weights.namings import Naming
    from trainer.weights.state_dict import Tensor


def holds(layer: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has tensors of a layer."""
    return any(name.startswith(layer + '.') for name in tensors)


def _shape(naming, tensors, path, name, dimensions):
    if name + '.weight' not in tensors:
        raise InputError(f'{path}: has the names of {naming.name}, but no {name}.weight')
    found = tensors[name + '.weight'].shape
    if len(found) != dimensions or 0 in found:
        raise InputError(f'{path}: {name}.weight has shape {found}')
    return found


def architecture(naming: Naming, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the network's description, as :func:`trainer.weights.description.build` takes it.

    Args:
        naming: The naming of the state dict.
        tensors: The state dict, without prefixes of wrappers.
        path: The file, for messages.

    Raises:
        trainer.errors.InputError: A tensor that every ResNeXt has is missing.
    """
    shape = functools.partial(_shape, naming, tensors, path)
    variant = _variant(naming, tensors, shape)

    def there(i, j, part):
        name = naming.block(i, j)[part][0]
        if part == 'shortcut' and 'average_shortcut' in variant:
            name = naming.variants.average_shortcut(i, j)[0]
        return name + '.weight' in tensors

    stages: list[list] = []
    deep_stem = naming.variants.deep_stem if naming.variants else None
    stem = deep_stem[-1][0] if deep_stem and 'deep_stem' in variant else naming.stem[0]
    stem = channels = shape(stem, 4)[0]
    while there(len(stages), 0, 'reduce'):
        i = len(stages)
        blocks = 1
        while there(i, blocks, 'reduce'):
            blocks += 1
        width, per_group = shape(naming.block(i, 0)['grouped'][0], 4)[:2]
        out = shape(naming.block(i, 0)['expand'][0], 4)[0]
        stride = 2 if i else 1
        projections = 'first' if there(i, 0, 'shortcut') else 'none'
        if projections == 'first' and blocks > 1 and there(i, 1, 'shortcut'):
            projections = 'all'
        if projections == 'none' and (stride > 1 or channels != out):
            shape(naming.block(i, 0)['shortcut'][0], 4)
        stages.append([blocks, width, max(1, width // per_group), out, stride, projections])
        channels = out
    classifier = naming.classifier(len(stages))
    return {
        'network': naming.kind,
        'stages': stages,
        'stem_width': stem,
        'eps': EPS,
        'category_num': shape(classifier, 2)[0] if holds(classifier, tensors) else 1,
        **dict(naming.pooling),
        **variant,
    }


def _variant(naming, tensors, shape):
    """Return the variant's arguments of a network, from names and shapes."""
    variants, found = naming.variants, {}
    if variants is None:
        return found
    if variants.deep_stem and variants.deep_stem[0][0] + '.weight' in tensors:
        found['deep_stem'] = [shape(conv, 4)[0] for conv, _ in variants.deep_stem[:-1]]
    if variants.average_shortcut:
        names = (variants.average_shortcut(i, 0)[0] + '.weight' for i in range(2))
        if any(name in tensors and len(tensors[name].shape) == 4 for name in names):
            found['average_shortcut'] = True
    if variants.se and variants.se(0, 0)[0] + '.weight' in tensors:
        hidden, channels = shape(variants.se(0, 0)[0], 4)[:2]
        found['se_reduction'] = max(1, channels // hidden)
    return found
