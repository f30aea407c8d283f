"""All preprocessing classes, by the names that files and flags know them by."""

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
from trainer.transforms.torchvision import DataAugmentationImagenetTorchvision

#: Name -> class.
CLASSES: dict[str, type] = {
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


def of(network):
    """Return what a network's images are preprocessed by for testing.

    Args:
        network (trainer.networks.base.Network): The network.

    Returns:
        trainer.transforms.geometry.Geometry or type: Its geometry, else its class of
        :data:`CLASSES`; ``None`` where it has neither.
    """
    return network.geometry or CLASSES.get(network.preprocessing)
