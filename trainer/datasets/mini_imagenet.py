"""MiniImageNet as it is published: ``images/*.jpg``, and ``train.csv``, ``val.csv`` and
``test.csv`` with the columns ``filename`` and ``label`` (Ravi and Larochelle, Optimization as a
Model for Few-Shot Learning, ICLR 2017; their lists are in twitter-research/meta-learning-lstm).

Those lists divide the classes (64, 16 and 20, of 600 images each) for few-shot learning. To train
and test on the same classes, all images are taken together and divided within each class.
"""

import csv
import io
import os

from trainer import files
from trainer.datasets import Dataset, folder
from trainer.errors import InputError

#: Names of the lists, in the folder of the dataset.
LISTS = ('train', 'val', 'test')

#: Largest list in bytes; 60,000 lines, for all images, have 2.4 MB.
_MOST_BYTES = 1 << 26

_LAYOUT = 'wanted is DIR/images/*.jpg and DIR/train.csv, val.csv and test.csv'


def load(data: str | None = None) -> Dataset:
    """Load MiniImageNet.

    Args:
        data: Folder of the dataset. Files are looked up in its ``images``, also in a subfolder
            with the label's name.

    Returns:
        A dataset of files; classes are the labels (synsets), sorted. If the lists divide the
        classes, all images are in ``train`` and ``test`` is ``None``; otherwise ``test`` has the
        images of ``test.csv``, or else of ``val.csv``.

    Raises:
        trainer.errors.InputError: A list or an image is missing, a list is damaged, or lists
            share some of their classes, but not all.
    """
    if data is None:
        raise InputError(f'`dataset` mini_imagenet: `data` DIR says where it is; {_LAYOUT}')
    if not os.path.isdir(data):
        raise InputError(f'`data` {data}: not a folder; {_LAYOUT}')
    lists = {name: os.path.join(data, name + '.csv') for name in LISTS}
    parts = {name: _rows(path, data) for name, path in lists.items() if os.path.lexists(path)}
    if 'train' not in parts:
        raise InputError(f'`data` {data}: train.csv is missing; {_LAYOUT}')
    labels = {name: {label for _, label in rows} for name, rows in parts.items()}
    together = set().union(*labels.values())
    if sum(map(len, labels.values())) == len(together):  # as published, or a single list
        rows = [row for name in parts for row in parts[name]]
        divided = [f'{len(labels[name])} classes of {name}.csv' for name in parts if len(parts) > 1]
        notes = [f'{", ".join(divided)}: taken together, as no class is in two'] if divided else []
        return folder.dataset('mini_imagenet', _files(rows, data), None, notes)
    test = next(name for name in ('test', 'val') if name in parts)
    unused = [f'{name}.csv is not used' for name in parts if name not in ('train', test)]
    train, tested = (_files(parts[name], data) for name in ('train', test))
    return folder.dataset('mini_imagenet', train, tested, unused)


def _rows(path, data):
    """Return (path of an image, label) of each line of a list."""
    try:
        text = files.read_bounded(path, _MOST_BYTES).decode('utf-8-sig')
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: not a list of images in UTF-8') from e
    table = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True)
    rows = []
    try:
        if not {'filename', 'label'} <= set(table.fieldnames or ()):
            raise InputError(f'{path}: its first line must name the columns filename and label')
        for row in table:
            name, label = row['filename'], row['label']
            if not name or not label:
                raise InputError(f'{path}: line {table.line_num} has no file name or no label')
            rows.append((_image(path, data, name, label), label))
    except csv.Error as e:
        raise InputError(f'{path}: not a list of images ({e})') from e
    if not rows:
        raise InputError(f'{path}: an empty list of images')
    return rows


def _image(listing, data, name, label):
    for part in (name, label):
        if os.path.isabs(part) or {'..', '\0'} & {*part.replace('\\', '/').split('/'), *part}:
            raise InputError(f'{listing}: {part} does not lie in {os.path.join(data, "images")}')
    for below in (name, os.path.join(label, name)):
        path = os.path.join(data, 'images', below)
        if os.path.isfile(path):
            return path
    raise InputError(f'{os.path.join(data, "images", name)}: missing, but {listing} names it')


def _files(rows, data):
    classes = sorted({label for _, label in rows})
    number = {label: i for i, label in enumerate(classes)}
    paths, labels = zip(*rows)
    root = os.path.join(data, 'images')
    return folder.ImageFiles(paths, [number[label] for label in labels], classes, root, True)
