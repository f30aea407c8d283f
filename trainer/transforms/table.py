"""The table of preprocessing classes, by their names in files and flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from trainer.transforms.cifar import DataAugmentationCifar10NormalizeSmall, OneImage
from trainer.transforms.cifar_channels import (
    DataAugmentationCifar100Torch7,
    DataAugmentationCifarPrlz77,
    DataAugmentationCifarTorch7,
)
from trainer.transforms.imagenet import (
    DataAugmentationImagenetLornatang,
    DataAugmentationImagenetPaper,
    DataAugmentationImagenetTorch7,
)
from trainer.transforms.imagenet_torchvision import DataAugmentationImagenetTorchvision
from trainer.transforms.resize_crop import DataAugmentationNormalizeBigger

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.transforms.geometry import Geometry

#: Preprocessing: a class of ``data_augmentation``, or a geometry.
Preprocessing: TypeAlias = 'type[OneImage] | type[DataAugmentationNormalizeBigger] | Geometry'

#: Name -> class.
CLASSES: dict[str, type[OneImage] | type[DataAugmentationNormalizeBigger]] = {
    cls.__name__: cls
    for cls in (
        DataAugmentationCifar10NormalizeSmall,
        DataAugmentationCifar100Torch7,
        DataAugmentationCifarPrlz77,
        DataAugmentationCifarTorch7,
        DataAugmentationNormalizeBigger,
        DataAugmentationImagenetLornatang,
        DataAugmentationImagenetPaper,
        DataAugmentationImagenetTorch7,
        DataAugmentationImagenetTorchvision,
    )
}


def of(network: Network) -> Preprocessing | None:
    """Return the test preprocessing of a network.

    Args:
        network: The network.

    Returns:
        Its geometry, else its class of :data:`CLASSES`; ``None`` if it has neither.
    """
    return network.geometry or CLASSES.get(network.preprocessing or '')
