"""The list of published weights for users."""

from trainer.weights import sources

_ROW = '{:47s} {:>4s} {:>3s} {:>7s} {:8s} {}'
_SHORT = {'Apache 2.0': 'Apache', 'BSD 3-Clause': 'BSD', 'CC BY-NC 4.0': 'BY-NC'}


def table() -> str:
    """Return the published weights as lines of at most 80 columns."""
    lines = [_ROW.format('name', 'err.', 'M', 'pixels', 'resized', 'terms')]
    for weights in sources.table().values():
        geometry = weights.geometry
        pixels, how = ('224/256', 'bicubic')
        if geometry is not None:
            pixels, how = f'{geometry.img_size}/{geometry.short_side}', geometry.interpolation
        error = '' if weights.top1_error is None else f'{weights.top1_error:.1f}'
        licence = _SHORT.get(weights.licence, weights.licence or '-')
        lines.append(
            _ROW.format(
                weights.name, error, f'{weights.parameters:.0f}', pixels, how, licence
            ).rstrip()
        )
    return '\n'.join(
        [
            *lines,
            '',
            '-m NAME fetches them once. Without its last part (timm/resnext50_32x4d) a name',
            "means the publisher's default, the first of its network here. Top-1 errors are",
            "the publishers', in percent, by one crop: 224/256 is 224 of a short side of 256.",
            'M: million parameters.',
            'Licences: Apache 2.0, BSD 3-Clause, CC BY-NC 4.0 (not for commercial use);',
            '-: the source states none.',
        ]
    )
