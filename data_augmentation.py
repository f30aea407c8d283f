"""The preprocessing classes, under the names of the 2017 program.

``.train(img).x`` and ``.test(img).x`` are float32 (3, height, width) arrays.
"""

from trainer.transforms.table import (
    DataAugmentationCifar10NormalizeSmall,
    DataAugmentationCifar100Torch7,
    DataAugmentationCifarPrlz77,
    DataAugmentationCifarTorch7,
    DataAugmentationImagenetLornatang,
    DataAugmentationImagenetPaper,
    DataAugmentationImagenetTorch7,
    DataAugmentationImagenetTorchvision,
    DataAugmentationNormalizeBigger,
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
    'DataAugmentationImagenetTorchvision',
]
