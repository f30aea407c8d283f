"""The preprocessing classes, by the names that the original's users know.

``.train(img).x`` and ``.test(img).x`` are float32 (3, height, width) arrays.
"""
from trainer.transforms.cifar import DataAugmentationCifar10NormalizeSmall
from trainer.transforms.ilsvrc import DataAugmentationNormalizeBigger

__all__ = ['DataAugmentationCifar10NormalizeSmall', 'DataAugmentationNormalizeBigger']
