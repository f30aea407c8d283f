"""Images in an LMDB database, one large file: key -> encoded image and label.

Network and hard disks read one file of 150 GB faster than a million small ones.
``python -m trainer.datasets.lmdb DIR OUT`` writes such databases from a dataset of files.

A database is a folder:

* ``data.mdb``: LMDB's file. Keys are a number of eight digits, ``_`` and the image's name. Values
  are Caffe's ``Datum`` (caffe.proto): the encoded image file in ``data``, its ``label``, and
  ``encoded`` true, as Caffe's ``convert_imageset --encoded`` writes them.
* ``dataset.json``: ``classes``, the names in the order of the labels, and ``upright``, whether
  images are turned upright by their EXIF orientation.
* ``images.tsv``: label and key of each image, in the dataset's order. If it is missing, all of
  ``data.mdb`` is scanned instead.

Needs the package lmdb, an extra.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, BinaryIO

import tqdm

from trainer import arguments, datasets, extras, files
from trainer.datasets import folder
from trainer.errors import InputError
from trainer.text import printable
from trainer.transforms import decoding

DATA, DESCRIPTION, INDEX = 'data.mdb', 'dataset.json', 'images.tsv'

# For ImageNet's 14 million images it has 0.7 GB.
_MOST_INDEX = 1 << 30

# LMDB's limit.
_LONGEST_KEY, _PAGE = 511, 4096
_IMAGES_A_TRANSACTION = 256

# Fields of a Datum, and protobuf's encodings.
_IMAGE, _LABEL, _ENCODED = 4, 5, 7
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


class DatabaseImage(decoding.Encoded):
    """An image in a database.

    Args:
        database: Folder of the database.
        key: Its key.
        label: Its label in the index.
    """

    __slots__ = ('database', 'key', 'label')

    def __init__(self, database: str, key: bytes, label: int) -> None:
        self.database = database
        self.key = key
        self.label = label

    def __fspath__(self) -> str:
        return os.path.join(self.database, _name(self.key))

    def open(self) -> BinaryIO:
        with _environment(self.database).begin(buffers=True) as transaction:
            value = transaction.get(self.key)
            if value is None:
                raise InputError(f'not in {DATA}, but in {INDEX}')
            image, label = _read(value)
            if label != self.label:
                raise InputError(f'of class {label} in {DATA}, of {self.label} in {INDEX}')
            return io.BytesIO(image)


def _name(key):
    """Return the name of an image: its key without the number."""
    text = key.decode('utf-8', 'surrogateescape')
    return text[9:] if text[:8].isdigit() and text[8:9] == '_' and text[9:] else text


# Database -> this process's environment. A process must not use an inherited environment, nor open
# a database twice.
_environments: dict[str, Any] = {}


def _environment(database):
    if database not in _environments:
        lmdb = extras.need('lmdb', '--dataset lmdb')
        path = os.path.join(database, DATA)
        try:
            # Without locks: there are no writers, and network file systems may not have them. With
            # read-ahead: an image takes many pages.
            _environments[database] = lmdb.open(path, subdir=False, readonly=True, lock=False)
        except lmdb.Error as e:
            raise InputError(f'{path}: not a database of LMDB that can be read ({e})') from e
    return _environments[database]


def _close():
    while _environments:
        _environments.popitem()[1].close()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_close)


def load(data: str | None = None) -> datasets.Dataset:
    """Load one database, or ``train`` and one for testing, as a dataset.

    Args:
        data: A folder with databases ``train`` and ``val`` (or another of
            :data:`trainer.datasets.folder.TEST_FOLDERS`), or a database.

    Returns:
        A dataset whose images are read on demand; ``test`` is ``None`` if there is no database
        for testing.

    Raises:
        trainer.errors.InputError: There is no database, or it is damaged; or see
            :func:`trainer.datasets.folder.dataset`.
    """
    wanted = f'wanted is DIR/train/{DATA} and DIR/val/{DATA}, or DIR/{DATA}'
    if data is None:
        raise InputError(f'`dataset` lmdb: `data` DIR says which; {wanted}')
    root, test = data, None
    if _is_database(os.path.join(data, 'train')):
        root = os.path.join(data, 'train')
        others = (os.path.join(data, name) for name in folder.TEST_FOLDERS)
        test = next(filter(_is_database, others), None)
    if not _is_database(root):
        raise InputError(
            f'`data` {data}: no database of LMDB; {wanted}; "python -m trainer.datasets.lmdb" '
            'makes them of folders'
        )
    return folder.dataset('lmdb', images(root), None if test is None else images(test))


def _is_database(path):
    return os.path.isfile(os.path.join(path, DATA))


def images(database: str) -> folder.ImageFiles:
    """Return the images of a database.

    Args:
        database: Folder of the database.

    Returns:
        ImageFiles of :class:`DatabaseImage`.

    Raises:
        trainer.errors.InputError: The database is damaged.
    """
    classes, upright = _described(os.path.join(database, DESCRIPTION))
    _close()  # the database may have been replaced since it was read
    environment = _environment(database)
    number = environment.stat()['entries']
    index = os.path.join(database, INDEX)
    rows = _indexed(index) if os.path.lexists(index) else _walked(environment, database, number)
    if len(rows) != number:
        raise InputError(
            f'{index}: {len(rows)} images, in {DATA} there are {number}; remove it, and the '
            'database is gone through instead'
        )
    wrong = next((row for row in rows if not 0 <= row[0] < len(classes)), None)
    if wrong is not None:
        raise InputError(
            f'{database}: an image of label {wrong[0]}, but {DESCRIPTION} names {len(classes)} '
            'classes'
        )
    entries = [DatabaseImage(database, key, label) for label, key in rows]
    return folder.ImageFiles(entries, [row[0] for row in rows], classes, database, upright)


def _described(path):
    try:
        described = files.read_json(path)
        classes, upright = described['classes'], described.get('upright', True)
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError('classes are no list of names')
        if len(set(classes)) < len(classes) or not classes or not isinstance(upright, bool):
            raise ValueError('no classes, two of a name, or upright is neither true nor false')
        return classes, upright
    except OSError as e:
        raise InputError(
            f'{path}: cannot be read ({e.strerror}); it has the names of the classes in the order '
            'of the labels, as JSON: {"classes": ["cat", "dog"]}'
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f'{path}: damaged ({e}); it has the names of the classes') from e


def _indexed(path):
    try:
        lines = files.read_bounded(path, _MOST_INDEX).split(b'\n')
        rows = [line.split(b'\t', 1) for line in lines if line]
        return [(int(label), key) for label, key in rows]
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e
    except ValueError as e:
        raise InputError(
            f'{path}: damaged; remove it, and the database is gone through instead'
        ) from e


def _walked(environment, database, number):
    rows = []
    with environment.begin(buffers=True) as transaction:
        for key, value in tqdm.tqdm(
            transaction.cursor(), printable(database), number, unit=' images', disable=None
        ):
            key = bytes(key)
            try:
                rows.append((_read(value)[1], key))
            except InputError as e:
                raise InputError(f'{os.path.join(database, _name(key))}: {e}') from None
    return rows


def _read(value):
    """Return image (a part of ``value``) and label of a Datum.

    Raises:
        trainer.errors.InputError: It is not a Datum, or holds no encoded image.
    """
    found, at = {_LABEL: 0, _ENCODED: 0}, 0
    try:
        while at < len(value):
            tag, at = _varint(value, at)
            kind = tag & 7
            if kind == _VARINT:
                held, at = _varint(value, at)
            elif kind == _BYTES:
                length, at = _varint(value, at)
                held, at = value[at : at + length], at + length
            else:
                held, at = None, at + _FIXED[kind]
            found[tag >> 3] = held
        if at != len(value):
            raise ValueError('it is cut off')
    except (IndexError, KeyError, ValueError) as e:
        raise InputError('damaged: no Datum of Caffe') from e
    if _IMAGE not in found or not found[_ENCODED]:
        raise InputError('a Datum without an encoded image; "convert_imageset --encoded" makes one')
    if isinstance(found[_IMAGE], int) or not isinstance(found[_LABEL], int):
        raise InputError('damaged: no Datum of Caffe')
    return found[_IMAGE], found[_LABEL]


def _varint(value, at):
    number = shift = 0
    while True:
        byte = value[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError('a number of more than 64 bits')


def _as_varint(number):
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def datum(image: bytes, label: int) -> bytes:
    """Return Caffe's Datum of an encoded image and its label, from 0."""
    return b''.join(
        [
            *(_as_varint(_LABEL << 3 | _VARINT), _as_varint(label)),
            *(_as_varint(_ENCODED << 3 | _VARINT), b'\1'),
            *(_as_varint(_IMAGE << 3 | _BYTES), _as_varint(len(image)), image),
        ]
    )


def write(images: folder.ImageFiles, database: str) -> None:
    """Write a database, with a progress bar. It is complete once :data:`DESCRIPTION` exists.

    Args:
        images: The images; files are copied unchanged.
        database: Folder to create.

    Raises:
        trainer.errors.InputError: There is a database already, or an image cannot be read or has
            a name that cannot be a key.
    """
    lmdb = extras.need('lmdb', 'writing LMDB')
    if _is_database(database):
        raise InputError(f'{database}: there is a database already; remove it or write elsewhere')
    keys = [_key(i, name) for i, name in enumerate(images.names())]
    size = sum(_size_of(path) + 2 * _PAGE for path in images.paths) + (64 << 20)
    os.makedirs(database, exist_ok=True)
    with files.replacing(os.path.join(database, DATA)) as unfinished:
        # The file is synced to disk when it is renamed.
        options = {'subdir': False, 'lock': False, 'sync': False}
        with lmdb.open(unfinished, map_size=size, **options) as environment:
            _fill(environment, keys, images, database)
    rows = zip(images.labels.tolist(), keys)
    with files.replacing(os.path.join(database, INDEX)) as unfinished, open(unfinished, 'wb') as f:
        f.writelines(b'%d\t%s\n' % row for row in rows)
    described = {'classes': images.categories, 'upright': images.upright, 'images': len(images)}
    files.save_json(os.path.join(database, DESCRIPTION), described)


def _fill(environment, keys, images, database):
    rows = zip(keys, images.paths, images.labels.tolist())
    progress = tqdm.tqdm(rows, printable(database), len(keys), unit=' images', disable=None)
    transaction = environment.begin(write=True)
    for i, (key, path, label) in enumerate(progress):
        transaction.put(key, datum(_bytes_of(path), label), append=True)
        if (i + 1) % _IMAGES_A_TRANSACTION == 0:
            transaction.commit()
            transaction = environment.begin(write=True)
    transaction.commit()


def _key(i, name):
    key = f'{i:08d}_{name}'.encode('utf-8', 'surrogateescape')
    if len(key) > _LONGEST_KEY or b'\n' in key:
        raise InputError(
            f'{name}: an image in LMDB has a name of one line, at most {_LONGEST_KEY - 9} bytes; '
            'rename it'
        )
    return key


def _bytes_of(path):
    try:
        with decoding.open_encoded(path) as f:
            return f.read()
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e


def _size_of(path):
    if isinstance(path, decoding.Encoded):
        return len(_bytes_of(path))
    try:
        return os.stat(path).st_size
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror})') from e


def main() -> int:
    """Write the databases of a dataset of files: ``python -m trainer.datasets.lmdb --help``."""
    p = arguments.ArgumentParser(
        prog='python -m trainer.datasets.lmdb',
        description='Write a dataset of image files as LMDB databases, OUT/train and OUT/val, or '
        'OUT where it is not divided. main.py --dataset lmdb --data OUT trains on them.',
        usage='%(prog)s DIR OUT [flags]',
    )
    p.add_argument('data', metavar='DIR', help='the dataset, as --data of main.py has it')
    p.add_argument('out', metavar='OUT', help='folder to write to')
    p.add_argument('--dataset', default='folder', help='of what kind it is (default: %(default)s)')
    args = p.parse_args()
    try:
        if args.dataset not in datasets.available():
            raise InputError(
                f'`dataset` {args.dataset}: there are {", ".join(datasets.available())}'
            )
        loaded = datasets.load(args.dataset, args.data)
        if not isinstance(loaded.train, folder.ImageFiles):
            raise InputError(f'`dataset` {args.dataset}: its images are not files')
        parts = {'': loaded.train}
        if isinstance(loaded.test, folder.ImageFiles):
            parts = {'train': loaded.train, 'val': loaded.test}
        for name, images in parts.items():
            write(images, os.path.join(args.out, name) if name else args.out)
    except (InputError, OSError) as e:
        p.exit(2, f'{p.prog}: error: {printable(str(e))}\n')
    except KeyboardInterrupt:
        p.exit(130, f'\n{p.prog}: interrupted\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
