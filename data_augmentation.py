"""The preprocessing classes, by the names that the original's users know.

``.train(img).x`` and ``.test(img).x`` are float32 (3, height, width) arrays.
"""

from trainer.transforms.cifar import DataAugmentationCifar10NormalizeSmall
from trainer.transforms.cifar_channels import (
    DataAugmentationCifar100Torch7,
    DataAugmentationCifarPrlz77,
    DataAugmentationCifarTorch7,
)
from trainer.transforms.ilsvrc import DataAugmentationNormalizeBigger
from trainer.transforms.imagenet import (
    DataAugmentationImagenetLornatang,
    DataAugmentationImagenetPaper,
    DataAugmentationImagenetTorch7,
)

__all__ = [
    'DataAugmentationCifar10NormalizeSmall',
    'DataAugmentationCifar100Torch7',
    'DataAugmentationCifarPrlz77',
    'DataAugmentationCifarTorch7',
    'DataAugmentationNormalizeBigger',
    'DataAugmentationImagenetLornatang',
    'DataAugmentationImagenetPaper',
    'DataAugmentationImagenetTorch7',
]
