"""The numbers that modules of facebookresearch get in nested nn.Sequential.

clcarwin/convert_torch_to_pytorch makes one PyTorch module of each Torch7 module, in the
same nesting: ``4.0.0.0.0.0.weight`` is stage 1 (module 4, behind stem and pooling), block
0, its ConcatTable, the main path, the inner Sequential, the first convolution. The
released files nest the main path once more than facebookresearch's code does (-flat).
Cadene/pretrained-models.pytorch took its conversions of the released files and named the
whole ``features``.
"""

from trainer.weights.namings import Naming


def _naming(name, kind, nested, prefix='', classifier=None):
    # Convolution, batch normalisation, ReLU, and max pooling for ImageNet.
    first = 4 if kind == 'ilsvrc' else 3
    inner, expand = ('0.', 0) if nested else ('', 5)

    def block(stage, block):
        here = f'{prefix}{first + stage}.{block}.0.'
        parts = {
            'reduce': (inner + '0', inner + '1'),
            'grouped': (inner + '3', inner + '4'),
            'expand': (str(expand + 1), str(expand + 2)),
        }
        names = {part: (here + '0.' + conv, here + '0.' + bn) for part, (conv, bn) in parts.items()}
        return dict(names, shortcut=(here + '1.0', here + '1.1'))

    # After average pooling and view, Linear is the second module of a Sequential.
    return Naming(
        name,
        kind,
        (prefix + '0', prefix + '1'),
        block,
        lambda stages: classifier or f'{first + stages + 2}.1',
        True,
    )


TABLE = {
    name: [_naming(name, kind, nested) for kind in ('ilsvrc', 'paper-cifar')]
    for name, nested in (('clcarwin', True), ('clcarwin-flat', False))
}
TABLE['cadene'] = [_naming('cadene', 'ilsvrc', True, 'features.', 'last_linear')]
