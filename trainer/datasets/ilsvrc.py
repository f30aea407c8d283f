"""ILSVRC 2012, as the tree of its published archive or as class folders."""

import os
from xml.parsers import expat

from trainer import files
from trainer.datasets import Dataset, folder
from trainer.datasets.folder import ImageFiles
from trainer.errors import InputError

#: Default path.
DEFAULT = './ILSVRC'

# The published annotations have about 1 KB.
_MAX_ANNOTATION = 1 << 20

#: Number of classes.
CLASSES = 1000


def find(path: str | None = None, split: str = 'val', flag: str = '-ld') -> ImageFiles:
    """Find the images of ILSVRC.

    Args:
        path: Either the published tree (``ImageSets/CLS-LOC/val.txt``,
            ``Annotations/CLS-LOC/val/*.xml`` and ``Data/CLS-LOC/val/*.JPEG``;
            ``Data/CLS-LOC/train/n01440764/*.JPEG``), or a folder with a folder ``val`` or ``train``
            of class folders, or such a folder itself. ``None``: :data:`DEFAULT`.
        split: 'val' or 'train'.
        flag: The flag or argument with the path, for messages.

    Returns:
        The images; the categories are the synsets, sorted.

    Raises:
        trainer.errors.InputError: There are no such images.
    """
    root = DEFAULT if path is None else path
    if not os.path.isdir(root):
        raise InputError(
            '{} {}: {}; wanted is the ILSVRC tree (ImageSets, Annotations, Data) '
            'or a folder with class folders, {}/n01440764/*.JPEG'.format(
                flag, root, 'not a folder' if os.path.exists(root) else 'no such folder', split
            )
        )
    if any(os.path.isdir(os.path.join(root, part)) for part in ('ImageSets', 'Data')):
        if split == 'val':
            return _published_val(root, flag)
        return folder.class_folders(
            _wanted(os.path.join(root, 'Data', 'CLS-LOC', split), root, flag)
        )
    here = {name for name in ('train', 'val') if os.path.isdir(os.path.join(root, name))}
    if here - {split}:
        _wanted(os.path.join(root, split), root, flag)
    return folder.class_folders(os.path.join(root, split) if here else root)


def load(data: str | None = None) -> Dataset:
    """Load ILSVRC for training and testing.

    Args:
        data: See :func:`find`.

    Returns:
        A dataset of files; its classes are the synsets, sorted.

    Raises:
        trainer.errors.InputError: There is no such dataset, a class has no images, or
            training and testing have different classes.
    """
    train, val = (find(data, split, '`data`') for split in ('train', 'val'))
    return folder.dataset('ilsvrc', train, val)


def _wanted(path, root, flag):
    if not os.path.exists(path):
        raise InputError(f'{flag} {root}: {path} is missing')
    return path


def _published_val(root, flag):
    images, annotations = (
        _wanted(os.path.join(root, part, 'CLS-LOC', 'val'), root, flag)
        for part in ('Data', 'Annotations')
    )
    listing = _wanted(os.path.join(root, 'ImageSets', 'CLS-LOC', 'val.txt'), root, flag)
    try:
        names = [line.split()[0] for line in files.read_lines(listing) if line.strip()]
    except UnicodeDecodeError as e:
        raise InputError(f'{listing}: not a list of images') from e
    except OSError as e:
        raise InputError(f'{listing}: cannot be read ({e.strerror})') from e
    if not names:
        raise InputError(f'{listing}: an empty list of images')
    synsets = [_synset(os.path.join(annotations, name + '.xml')) for name in names]
    categories = sorted(set(synsets))
    number = {synset: i for i, synset in enumerate(categories)}
    return ImageFiles(
        [os.path.join(images, name + '.JPEG') for name in names],
        [number[synset] for synset in synsets],
        categories,
        images,
    )


def _synset(path):
    """Return the name of the first object in an annotation.

    Raises:
        trainer.errors.InputError: The file is missing, too large, not XML, has
            a document type (which could define entities that grow), or no object.
    """
    try:
        xml = files.read_bounded(path, _MAX_ANNOTATION)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e
    here, names = [], []

    def in_name():
        return len(here) == 3 and here[1:] == ['object', 'name']

    def refuse(*doctype):
        raise ValueError('a document type declaration')

    def text(data):
        if in_name():
            names[-1] += data

    def start(name, attributes):
        here.append(name)
        if in_name():
            names.append('')

    parser = expat.ParserCreate()
    parser.buffer_text = True  # many pieces of text would be joined repeatedly
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: here.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(xml, True)
        return names[0].strip()
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise InputError(
            '{}: not an annotation that names an object ({})'.format(
                path, 'no object' if isinstance(e, IndexError) else e
            )
        ) from e
