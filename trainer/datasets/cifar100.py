"""CIFAR-100: 50,000 training and 10,000 test images, 32x32, a hundred classes."""

from trainer.datasets import Dataset, cifar_files

_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
    bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

SPEC = cifar_files.CifarSpec(
    name='cifar100',
    classes=tuple(_CLASSES.split()),
    url='https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
    folders=('cifar-100-binary', 'cifar-100-python'),
    archives=(
        cifar_files.Archive(
            'cifar-100-binary.tar.gz', 168513733, '03b5dce01913d631647c71ecec9e9cb8'
        ),
        cifar_files.Archive(
            'cifar-100-python.tar.gz', 169001437, 'eb9058c3a382ffc7106e4002c42a8d85'
        ),
    ),
    train=('train',),
    test=('test',),
    images={'train': 50000, 'test': 10000},
    label_bytes=2,
    labels='fine_labels',
)

#: Number of classes.
CLASSES = len(SPEC.classes)


def load(data: str | None = None) -> Dataset:
    """Load CIFAR-100 with its fine labels; see :func:`trainer.datasets.cifar_files.read`."""
    return cifar_files.read(SPEC, data)
