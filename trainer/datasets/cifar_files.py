"""The files of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html).

Both versions can be read, as folders or archives: the binary version (records of label bytes
and 3072 pixel bytes) and the Python version, whose pickles are read without executing anything
(:mod:`trainer.pickled`).
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer import download, files, pickled, pickled_arrays
from trainer.datasets import Dataset, LabelledImages, archives
from trainer.errors import InputError


class Archive(NamedTuple):
    """A published archive: size in bytes, MD5 digest."""

    name: str
    size: int
    md5: str


class CifarSpec(NamedTuple):
    """One of the two datasets.

    Attributes:
        name: Name of the dataset.
        classes: Names of the classes.
        url: Address of the binary archive.
        folders: Names of the folders of the binary and the Python version.
        archives: The archives of the binary and the Python version.
        train, test: Names of the files; those of the binary version end in '.bin'.
        images: Name -> number of images in the published file.
        label_bytes: Bytes of labels in a binary record; the last one is used.
        labels: Key of the labels in the pickles.
    """

    name: str
    classes: Sequence[str]
    url: str
    folders: tuple[str, str]
    archives: tuple[Archive, Archive]
    train: tuple[str, ...]
    test: tuple[str, ...]
    images: dict[str, int]
    label_bytes: int
    labels: str


_PIXELS = 3 * 32 * 32

# The largest published file has 155 MB; the largest archive unpacks to 187 MB.
_MOST = 200_000_000
_MOST_UNPACKED = 1 << 28


class _Folder:
    def __init__(self, path):
        self.path = path

    def names(self):
        return {e.name for e in os.scandir(self.path) if e.is_file()}

    def read(self, name):
        path = os.path.join(self.path, name)
        try:
            return files.read_bounded(path, _MOST)
        except OSError as e:
            raise InputError(f'{path}: cannot be read ({e.strerror})') from e

    def where(self, name):
        return os.path.join(self.path, name)


class _Archive:
    """The regular files of a tar archive, by name without folders, in memory."""

    def __init__(self, path, wanted, published):
        self.path = path
        self.contents = archives.read(path, wanted, _MOST_UNPACKED, published)

    def names(self):
        return set(self.contents)

    def read(self, name):
        return self.contents.pop(name)

    def where(self, name):
        return f'{self.path} ({name})'


def read(spec: CifarSpec, data: str | None) -> Dataset:
    """Load one of the two datasets.

    Args:
        spec: The dataset.
        data: Folder or archive of the dataset, or a folder that contains one; ``None`` downloads
            the binary archive once.

    Returns:
        trainer.datasets.Dataset

    Raises:
        trainer.errors.InputError: The download failed, or a file is missing, damaged or
            truncated.
    """
    if data is None:
        data = download.fetch(spec.url, spec.archives[0].size, spec.archives[0].md5)
    source, binary = _find(spec, data)
    suffix, read_file = ('.bin', _read_binary) if binary else ('', _read_pickle)
    parts = {
        name: read_file(spec, source.read(name + suffix), source.where(name + suffix))
        for name in spec.train + spec.test
    }
    counts = {name: len(part.labels) for name, part in parts.items()}
    whole = [counts[name] == spec.images[name] for name in counts]
    # A smaller dataset of the same form is accepted; the published one must be complete.
    if any(whole) and not all(whole):
        name = next(n for n in counts if counts[n] != spec.images[n])
        raise InputError(
            f'{source.where(name + suffix)}: {counts[name]} images where the published file has '
            f'{spec.images[name]}; it is cut short or changed: fetch it again'
        )

    def join(names):
        return LabelledImages(
            np.concatenate([parts[n].images for n in names]),
            np.concatenate([parts[n].labels for n in names]),
        )

    return Dataset(spec.name, list(spec.classes), join(spec.train), join(spec.test))


def _find(spec, data):
    """Return (source of files, whether they are the binary version)."""
    wanted = {
        True: {n + '.bin' for n in spec.train + spec.test},
        False: set(spec.train + spec.test),
    }
    candidates = [data]
    if os.path.isdir(data):
        candidates += [os.path.join(data, name) for name in spec.folders]
        candidates += [os.path.join(data, archive.name) for archive in spec.archives]
    elif not os.path.exists(data):
        raise InputError(f'`data` {data}: no such file or folder')
    partly = None
    for path in candidates:
        if os.path.isdir(path):
            source = _Folder(path)
        elif os.path.isfile(path):
            source = _Archive(path, wanted[True] | wanted[False], spec.archives)
        else:
            continue
        for binary in (True, False):
            missing = wanted[binary] - source.names()
            if not missing:
                return source, binary
            if len(missing) < len(wanted[binary]):
                partly = partly or f'{source.where(min(missing))} is missing'
    raise InputError(
        '`data` {}: {}; wanted is {} or {}, as a folder or as the published archive'.format(
            data, partly or f'no {spec.name} there', *spec.folders
        )
    )


def _read_binary(spec, raw, where):
    record = spec.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise InputError(
            f'{where}: {len(raw)} bytes are no whole number of records of {record}; it is cut '
            'short: fetch it again'
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _images(spec, records[:, spec.label_bytes :], records[:, spec.label_bytes - 1], where)


def _read_pickle(spec, raw, where):
    try:
        table = pickled.read(raw, pickled_arrays.NAMES)
        if not isinstance(table, dict):
            raise ValueError('it holds no dict')
        table = {k.decode() if isinstance(k, bytes) else k: v for k, v in table.items()}
        pixels, labels = pickled_arrays.read(table['data']), table[spec.labels]
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
            raise ValueError(f'data is {pixels.dtype} {pixels.shape}')
        if not isinstance(labels, list) or any(type(label) is not int for label in labels):
            raise ValueError(f'{spec.labels} is no list of integers')
        if len(labels) != len(pixels):
            raise ValueError(f'{len(labels)} labels for {len(pixels)} images')
        labels = np.array(labels, np.int64)
    except (KeyError, ValueError, OverflowError) as e:
        raise InputError(
            f'{where}: not a whole file of the Python version ({e}); fetch it again'
        ) from e
    return _images(spec, pixels, labels, where)


def _images(spec, pixels, labels, where):
    if labels.size and not 0 <= labels.min() <= labels.max() < len(spec.classes):
        raise InputError(
            f'{where}: labels {labels.min()} to {labels.max()}, but {spec.name} has '
            f'{len(spec.classes)} classes'
        )
    return LabelledImages(
        np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32), labels.astype(np.int32)
    )
