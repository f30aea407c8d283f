"""The preprocessing classes, by the names that the original's users know.

``.train(img).x`` and ``.test(img).x`` are float32 (3, height, width) arrays.
"""
from trainer.transforms.cifar import DataAugmentationCifar10NormalizeSmall

__all__ = ['DataAugmentationCifar10NormalizeSmall']
