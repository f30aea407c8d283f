"""CIFAR-10: 50,000 training and 10,000 test images, 32x32, ten classes."""

from trainer.datasets import Dataset, cifar_files

_TRAIN = tuple(f'data_batch_{i}' for i in range(1, 6))

SPEC = cifar_files.CifarSpec(
    name='cifar10',
    classes=(
        'airplane',
        'automobile',
        'bird',
        'cat',
        'deer',
        'dog',
        'frog',
        'horse',
        'ship',
        'truck',
    ),
    url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
    folders=('cifar-10-batches-bin', 'cifar-10-batches-py'),
    archives=(
        cifar_files.Archive(
            'cifar-10-binary.tar.gz', 170052171, 'c32a1d4ab5d03f1284b67883e8d87530'
        ),
        cifar_files.Archive(
            'cifar-10-python.tar.gz', 170498071, 'c58f30108f718f92721af3b95e74349a'
        ),
    ),
    train=_TRAIN,
    test=('test_batch',),
    images=dict.fromkeys(_TRAIN + ('test_batch',), 10000),
    label_bytes=1,
    labels='labels',
)

#: Number of classes.
CLASSES = len(SPEC.classes)


def load(data: str | None = None) -> Dataset:
    """Load CIFAR-10; see :func:`trainer.datasets.cifar_files.read`."""
    return cifar_files.read(SPEC, data)
