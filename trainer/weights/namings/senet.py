"""The names of Cadene's ``senet.py``, which timm's ``legacy_seresnext`` networks share.

Their weights are those of hujie-frank/SENet, from Caffe, whose max pooling they keep.
"""

from trainer.weights.namings import Naming, Variants, torchvision


def _se(stage, block):
    here = f'layer{stage + 1}.{block}.se_module.'
    return here + 'fc1', here + 'fc2'


NAMINGS = [
    Naming(
        'senet',
        'ilsvrc',
        ('layer0.conv1', 'layer0.bn1'),
        torchvision.NAMINGS[0].block,
        lambda stages: 'last_linear',
        variants=Variants('senet', se=_se),
        pooling=(('round_up_pooling', True), ('pool_pad', 0)),
    )
]
