"""The data of a run: batches of images, preprocessed, for training and for testing.

On a GPU most preprocessing ends there (:mod:`trainer.transforms.device`): what is loaded
are rows of numbers, from which ``finish`` makes the images.
"""

import collections
import os

import numpy as np
from PIL import Image

from trainer.datasets import loading, parallel
from trainer.errors import InputError
from trainer.training import processes
from trainer.transforms import decoding, device, generator, ilsvrc

#: train, test (trainer.datasets.parallel.Iterator). finish (callable): makes images,
#: (batch, 3, height, width), of an x that was sent to the GPU; ``None`` where x are images
#: already, float32.
DataPath = collections.namedtuple('DataPath', 'train test finish')


class Load:
    """Load images in memory, preprocessed (for :class:`trainer.datasets.parallel.Iterator`).

    Args:
        part (trainer.datasets.LabelledImages): The images.
        preprocessing (type): A class of :mod:`data_augmentation`.
        seed (int): The run's, for training; ``None`` for testing.
        mirror (bool): Whether images may be flipped.
    """

    def __init__(self, part, preprocessing, seed=None, mirror=True):
        self.part = part
        self.preprocessing = preprocessing
        self.seed = seed
        self.mirror = mirror

    def __call__(self, items, out):
        """Write the images of ``items``, each (epoch, index), to ``out``, float32
        (items, 3, height, width)."""
        images = self.part.images[[i for _, i in items]]
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
    """Load one image from a file, preprocessed (for
    :func:`trainer.datasets.parallel.one_by_one`).

    Args:
        part (trainer.datasets.folder.ImageFiles): The files.
        preprocessing, seed, mirror: See :class:`Load`.
    """

    def __call__(self, item, out):
        """Write the image of ``item``, (epoch, index), to ``out``, float32 (3, height, width).

        Raises:
            trainer.errors.InputError: It cannot be read.
        """
        out[...] = self._preprocessed(item, self.preprocessing.train, self.preprocessing.test)

    def _preprocessed(self, item, train, test):
        epoch, i = item
        source = self.part.paths[i]
        if self.part.upright:
            source = decoding.upright(source)
        sample = test(source) if self.seed is None else train(source, drawn=self._draw(epoch, i))
        return sample.x


class LoadDrawn(Load):
    """Load what is drawn for images that lie on a GPU: rows for
    :class:`trainer.transforms.device.StoredImages`.

    Args:
        part, preprocessing, seed, mirror: See :class:`Load`.
        first (int): Number of the first of the images among those on the GPU.
    """

    def __init__(self, part, preprocessing, seed=None, mirror=True, first=0):
        super().__init__(part, preprocessing, seed, mirror)
        self.first = first
        self.fields = 1 + len(preprocessing.untouched)

    def __call__(self, items, out):
        """Write the rows of ``items``, each (epoch, index), to ``out``, int32 (items, fields)."""
        indices = np.array([i for _, i in items])
        out[:, 0] = indices + self.first
        out[:, 1:] = (
            self.preprocessing.untouched
            if self.seed is None
            else device.drawn(self.preprocessing, self.seed, items[0][0], len(self.part.labels))[
                indices
            ]
        )
        if not self.mirror:
            out[:, -1] = False
        return {}


class LoadPixels(LoadFile):
    """Load one image from a file as a row for :class:`trainer.transforms.device.ImageRows`;
    arguments are those of :class:`LoadFile`."""

    def __call__(self, item, out):
        """Write the image of ``item``, (epoch, index), to ``out``, uint8 (row bytes,).

        Raises:
            trainer.errors.InputError: It cannot be read.
        """
        ilsvrc.write_row(
            self._preprocessed(
                item, self.preprocessing.train_pixels, self.preprocessing.test_pixels
            ),
            out,
        )


def data_path(dataset, options, preprocessing, group=processes.ALONE):
    """Return what gives a run's training and test batches.

    Args:
        dataset (trainer.datasets.Dataset): The images, in memory or in files.
        options (trainer.recipes.options.Options): The run's.
        preprocessing (type): A class of :mod:`data_augmentation`.
        group (trainer.training.processes.Alone): The processes; each loads its share.

    Returns:
        DataPath: A file that cannot be read ends training, and is left out of testing
        (:class:`trainer.datasets.parallel.Iterator`).

    Raises:
        trainer.errors.InputError: There are not enough images for a batch.
    """
    in_memory = hasattr(dataset.train, 'images')
    on_device = options.gpu >= 0 and all(
        device.available(preprocessing, part) for part in (dataset.train, dataset.test)
    )
    plan = loading.PLANS[options.sampling](len(dataset.train.labels), options.batch, options.seed)
    if not len(plan):
        raise InputError(
            f'-b {options.batch}: there are only {len(dataset.train.labels)} images to draw a '
            'batch from'
        )
    test_plan = loading.InOrder(
        len(dataset.test.labels), max(1, options.batch // options.test_batch_divide)
    )
    workers = _workers(options, in_memory, on_device, group)

    def iterator(part, plan, training):
        seed = options.seed if training else None
        load, shape, dtype = _loader(
            dataset,
            part,
            preprocessing,
            seed,
            on_device,
            0 if training else len(dataset.train.labels),
        )
        return parallel.Iterator(
            load,
            plan,
            part.labels,
            shape,
            workers,
            repeat=training,
            leave_out=not training,
            dtype=dtype,
            piece=plan.batch if in_memory else 8,  # of images in memory, many at a time cost less
        )

    finish = None
    if on_device and in_memory:
        finish = device.StoredImages(preprocessing, dataset.train.images, dataset.test.images)
    elif on_device:
        finish = device.ImageRows(preprocessing)
    return DataPath(
        iterator(dataset.train, group.share(plan, group.chunks(options.train_batch_divide)), True),
        iterator(dataset.test, group.share(test_plan), False),
        finish,
    )


def _workers(options, in_memory, on_device, group):
    """Return how many processes load: as given, or as many as keep up with the device."""
    if options.workers is not None:
        return options.workers
    # On a CPU the network is far slower than its data; drawing takes nothing.
    if options.gpu < 0 or in_memory and on_device:
        return 0
    cores = max(1, (os.cpu_count() or 1) // group.local_size)
    return min(4 if in_memory else parallel.cores(), cores)


def _loader(dataset, part, preprocessing, seed, on_device, first):
    """Return what loads a part of a dataset, and shape and dtype of what it loads of an image.

    Args:
        seed (int): The run's, for training; ``None`` for testing.
        first (int): Number of the part's first image among those on a GPU.
    """
    given = part, preprocessing, seed, dataset.mirror
    if hasattr(part, 'images') and on_device:
        load = LoadDrawn(*given, first=first)
        return load, (load.fields,), np.int32
    if hasattr(part, 'images'):
        return Load(*given), preprocessing.shape, np.float32
    if on_device:
        shape = (preprocessing.row_bytes(training=seed is not None),)
        return parallel.one_by_one(LoadPixels(*given)), shape, np.uint8
    return parallel.one_by_one(LoadFile(*given)), preprocessing.shape, np.float32
