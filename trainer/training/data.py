"""The data of a run: batches of images, preprocessed, for training and for testing.

On a GPU most preprocessing ends there (:mod:`trainer.transforms.gpu_images`): workers load rows
of numbers, from which ``finish`` computes the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from trainer.datasets import Dataset, LabelledImages, loading, parallel
from trainer.errors import InputError
from trainer.training import processes
from trainer.transforms import decoding, generator, gpu_images, mixing, resize_crop, trivial_augment

if TYPE_CHECKING:
    from trainer.datasets.folder import ImageFiles
    from trainer.recipes.options import Options
    from trainer.training.processes import Alone
    from trainer.transforms.cifar import OneImage
    from trainer.transforms.resize_crop import DataAugmentationNormalizeBigger
    from trainer.types import Array


class DataPath(NamedTuple):
    """The batches of a run.

    Attributes:
        train, test: Iterators over the batches.
        finish: Converts an x on the GPU to images, (batch, 3, height, width); ``None``: x are
            float32 images already.
    """

    train: parallel.Iterator
    test: parallel.Iterator
    finish: Callable[[Array], Array] | None


class Load:
    """Loads and preprocesses images in memory (for :class:`trainer.datasets.parallel.Iterator`).

    Args:
        part: The images.
        preprocessing: A class of :mod:`data_augmentation`.
        seed: The run's seed for training; ``None`` for testing.
        mirror: Whether images may be flipped.
        auto_augment: 'ta_wide': TrivialAugment before the preprocessing.
    """

    part: Any  # with images, or of LoadFile with paths
    preprocessing: Any

    def __init__(
        self,
        part: LabelledImages | ImageFiles,
        preprocessing: type,
        seed: int | None = None,
        mirror: bool = True,
        auto_augment: str = 'none',
    ) -> None:
        self.part = part
        self.preprocessing = preprocessing
        self.seed = seed
        self.mirror = mirror
        self.augments = seed is not None and auto_augment != 'none'

    def __call__(self, items: list[tuple[int, int]], out: np.ndarray) -> dict[int, str]:
        """Write the images of ``items``, each (epoch, number), to ``out``, float32
        (items, 3, height, width). Numbers are those of the plan
        (:mod:`trainer.datasets.loading`)."""
        images = self.part.images[self._indices(items)]
        if self.augments:
            images = np.stack([self._augment(*item, image) for item, image in zip(items, images)])
        if not getattr(self.preprocessing, 'arrays', False):
            images = [
                Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images
            ]
        if self.seed is None:
            out[...] = self.preprocessing.test_batch(images)
        else:
            drawn = [self._draw(*item) for item in items]
            out[...] = self.preprocessing.train_batch(images, drawn)
        return {}

    def _indices(self, items):
        return [number % len(self.part.labels) for _, number in items]

    def _augment(self, epoch, i, image):
        """Apply TrivialAugment to uint8 (3, height, width)."""
        drawn = trivial_augment.draw(self.seed, epoch, i)
        return trivial_augment.pixels(image.transpose(1, 2, 0), drawn).transpose(2, 0, 1)

    def _draw(self, epoch, i):
        drawn = self.preprocessing.draw(generator(self.seed, epoch, i))
        return (
            drawn
            if self.mirror
            else drawn._replace(
                **dict.fromkeys({'flip', 'upside_down'} & set(drawn._fields), False)
            )
        )


class LoadFile(Load):
    """Loads and preprocesses one image from a file (for
    :func:`trainer.datasets.parallel.one_by_one`).

    Args:
        part: The files, :class:`trainer.datasets.folder.ImageFiles`.
        preprocessing, seed, mirror: See :class:`Load`.
        auto_augment: 'ta_wide': TrivialAugment of the crop, before its colours are changed; with
            CIFAR's preprocessing, before all of it.
    """

    def __call__(  # type: ignore[override]  # of one image
        self, item: tuple[int, int], out: np.ndarray
    ) -> None:
        """Write the image of ``item``, (epoch, number), to ``out``, float32 (3, height, width).

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        if hasattr(self.preprocessing, 'train_pixels'):
            resize_crop.finish(self._pixels(item), out)
            return
        source = self._source(item)
        if self.seed is None:
            out[...] = self.preprocessing.test(source).x
            return
        if self.augments:
            source = self._augment(*item, decoding.load_chw(source))
        out[...] = self.preprocessing.train(source, drawn=self._draw(*item)).x

    def _source(self, item):
        source = self.part.paths[self._indices([item])[0]]
        return decoding.upright(source) if self.part.upright else source

    def _pixels(self, item):
        """Return :data:`trainer.transforms.resize_crop.Pixels`."""
        source = self._source(item)
        if self.seed is None:
            return self.preprocessing.test_pixels(source).x
        pixels = self.preprocessing.train_pixels(source, drawn=self._draw(*item)).x
        if self.augments:
            drawn = trivial_augment.draw(self.seed, *item)
            pixels = pixels._replace(values=trivial_augment.pixels(pixels.values, drawn))
        return pixels


class LoadDrawn(Load):
    """Loads the random choices for images on a GPU: rows for
    :class:`trainer.transforms.gpu_images.StoredImages`.

    Args:
        part, preprocessing, seed, mirror: See :class:`Load`.
        first: Index of the first of these images among those on the GPU.
        repetitions: How often an image can occur in an epoch.
    """

    def __init__(
        self,
        part: LabelledImages,
        preprocessing: type,
        seed: int | None = None,
        mirror: bool = True,
        first: int = 0,
        repetitions: int = 1,
    ) -> None:
        super().__init__(part, preprocessing, seed, mirror)
        self.first = first
        self.repetitions = repetitions
        self.fields = 1 + len(self.preprocessing.untouched)

    def __call__(self, items: list[tuple[int, int]], out: np.ndarray) -> dict[int, str]:
        """Write the rows of ``items``, each (epoch, number), to ``out``, int32 (items, fields)."""
        numbers = np.array([number for _, number in items])
        images = len(self.part.labels)
        out[:, 0] = numbers % images + self.first
        out[:, 1:] = (
            self.preprocessing.untouched
            if self.seed is None
            else gpu_images.drawn(
                self.preprocessing, self.seed, items[0][0], images * self.repetitions
            )[numbers]
        )
        if not self.mirror:
            out[:, -1] = False
        return {}


class LoadPixels(LoadFile):
    """Loads one image from a file as a row for :class:`trainer.transforms.gpu_images.ImageRows`;
    see :class:`LoadFile` for the arguments."""

    def __call__(  # type: ignore[override]
        self, item: tuple[int, int], out: np.ndarray
    ) -> None:
        """Write the image of ``item``, (epoch, number), to ``out``, uint8 (row bytes,).

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        resize_crop.write_row(self._pixels(item), out)


def data_path(
    dataset: Dataset,
    options: Options,
    preprocessing: type[OneImage] | type[DataAugmentationNormalizeBigger],
    group: Alone = processes.ALONE,
) -> DataPath:
    """Return the iterators over a run's training and test batches.

    Args:
        dataset: The images, in memory or in files.
        options: The run's options.
        preprocessing: A class of :mod:`data_augmentation`.
        group: The processes; each loads its share.

    A file that cannot be read ends training, and is skipped in testing.

    Raises:
        trainer.errors.InputError: There are not enough images for a batch.
    """
    train, test = dataset.train, dataset.test
    assert test is not None  # the dataset is divided already
    in_memory, on_device = hasattr(train, 'images'), _on_device(preprocessing, train, test, options)
    plan, test_plan = _plans(dataset, options)
    workers = _workers(options, in_memory, on_device, group)
    chunks = group.chunks(options.train_batch_divide)
    size = _shape(preprocessing, True)[1:]
    mixed = mixing.of(options, size, train.labels, chunks, group.rank * chunks)

    def iterator(part, plan, training):
        load, shape, dtype = _loader(dataset, part, preprocessing, options, on_device, training)
        return parallel.Iterator(
            load,
            plan,
            part.labels,
            shape,
            workers,
            repeat=training,
            leave_out=not training,
            dtype=dtype,
            piece=plan.batch
            if in_memory
            else 8,  # loading many images in memory at a time costs less
            beside=mixed if training else None,
        )

    return DataPath(
        iterator(train, group.share(plan, chunks), True),
        iterator(test, group.share(test_plan), False),
        _finish(preprocessing, train, test) if on_device else None,
    )


def _on_device(preprocessing, train, test, options):
    """Return whether images are preprocessed on the GPU."""
    if options.gpu < 0 or not all(gpu_images.available(preprocessing, p) for p in (train, test)):
        return False
    # The kernels begin with the stored images.
    return not (hasattr(train, 'images') and options.auto_augment != 'none')


def _finish(preprocessing, train, test):
    """Return the function that computes images on the GPU from loaded rows, or ``None``."""
    if hasattr(train, 'images'):
        return gpu_images.StoredImages(preprocessing, train.images, test.images)
    return gpu_images.ImageRows(preprocessing)


def _shape(preprocessing, training):
    """Return the shape of a preprocessed image."""
    shape = preprocessing.shape
    return getattr(preprocessing, 'train_shape', shape) if training else shape


def _plans(dataset, options):
    """Return the plans of training and testing."""
    images = len(dataset.train.labels)
    arguments = images, options.batch, options.seed
    if options.sampling != 'original':
        arguments += (options.repeated_augmentation,)
    plan = loading.PLANS[options.sampling](*arguments)
    if not len(plan):
        raise InputError(f'-b {options.batch}: there are only {images} images to draw a batch from')
    batch = max(1, options.batch // options.test_batch_divide)
    return plan, loading.InOrder(len(dataset.test.labels), batch)


def _workers(options, in_memory, on_device, group):
    """Return the number of loading processes: as given, or enough to keep up with the device."""
    if options.workers is not None:
        return options.workers
    # On a CPU the network is far slower than loading; random choices take no time.
    if in_memory and (options.gpu < 0 or on_device):
        return 0
    if options.gpu < 0:
        return min(4, parallel.cores() // 4)
    cores = max(1, (os.cpu_count() or 1) // group.local_size)
    return min(4 if in_memory else parallel.cores(), cores)


def _loader(dataset, part, preprocessing, options, on_device, training):
    """Return the loader of a part of a dataset, and shape and dtype of a loaded image or row."""
    given = part, preprocessing, options.seed if training else None, dataset.mirror
    shape = _shape(preprocessing, training)
    if hasattr(part, 'images') and on_device:
        first = 0 if training else len(dataset.train.labels)  # index among the images on the GPU
        load = LoadDrawn(*given, first=first, repetitions=options.repeated_augmentation)
        return load, (load.fields,), np.int32
    if hasattr(part, 'images'):
        return Load(*given, options.auto_augment), shape, np.float32
    if on_device:
        load = LoadPixels(*given, options.auto_augment)
        return parallel.one_by_one(load), (preprocessing.row_bytes(training),), np.uint8
    return parallel.one_by_one(LoadFile(*given, options.auto_augment)), shape, np.float32
