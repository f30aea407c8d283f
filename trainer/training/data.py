"""The data of a run: batches of pictures, preprocessed, for training and for testing."""
import functools
import math
import os

import numpy as np
from PIL import Image

from trainer.datasets import loading, parallel
from trainer.errors import InputError
from trainer.training import processes
from trainer.transforms import generator


class FullBatches(loading.EveryPictureOnce):
    """As :class:`~trainer.datasets.loading.EveryPictureOnce`, without a last, smaller batch."""

    def __len__(self):
        return self.size // self.batch

    @functools.lru_cache(maxsize=2)
    def __call__(self, epoch):
        return super().__call__(epoch)[:len(self)]


_PLANS = {'every-picture': loading.EveryPictureOnce, 'full-batches': FullBatches,
          'original': loading.OriginalSampling}
SAMPLINGS = tuple(_PLANS)


class Load:
    """Load pictures in memory, preprocessed (for :func:`trainer.datasets.loading.iterator`).

    Args:
        pictures (trainer.datasets.Pictures): The pictures.
        preprocessing (type): A class of :mod:`data_augmentation`.
        seed (int): The run's, for training; ``None`` for testing.
        mirror (bool): Whether pictures may be flipped.
    """

    def __init__(self, pictures, preprocessing, seed=None, mirror=True):
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.seed = seed
        self.mirror = mirror

    def __call__(self, indices, epoch):
        """Return x, float32 (pictures, 3, height, width), and t, int32 (pictures,)."""
        labels = self.pictures.labels[indices]
        if not len(indices):
            return np.empty((0,) + self.preprocessing.shape, np.float32), labels
        images = self.pictures.images[indices]
        if not getattr(self.preprocessing, 'arrays', False):
            images = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
                      for image in images]
        if self.seed is None:
            return self.preprocessing.test_batch(images), labels
        drawn = [self._draw(epoch, i) for i in indices.tolist()]
        return self.preprocessing.train_batch(images, drawn), labels

    def _draw(self, epoch, i):
        drawn = self.preprocessing.draw(generator(self.seed, epoch, i))
        return drawn if self.mirror else drawn._replace(
            **dict.fromkeys({'flip', 'upside_down'} & set(drawn._fields), False))


class LoadFile(Load):
    """Load one picture from a file, preprocessed (for :class:`trainer.datasets.parallel.Iterator`).

    Args:
        pictures (trainer.datasets.folder.PictureFiles): The files.
        preprocessing, seed, mirror: See :class:`Load`.
    """

    def __call__(self, item, out):
        """Write the picture of ``item``, (epoch, index), to ``out``, float32 (3, height, width).

        Raises:
            trainer.errors.InputError: It cannot be read.
        """
        epoch, i = item
        path = self.pictures.paths[i]
        if self.seed is None:
            out[...] = self.preprocessing.test(path).x
        else:
            out[...] = self.preprocessing.train(path, drawn=self._draw(epoch, i)).x


def data_path(dataset, options, preprocessing, group=processes.Alone()):
    """Return the iterators of a run: training and test batches, preprocessed.

    Args:
        dataset (trainer.datasets.Dataset): The pictures, in memory or in files.
        options (dict): As in :func:`trainer.training.run.train`, complete.
        preprocessing (type): A class of :mod:`data_augmentation`.
        group (trainer.training.processes.Alone): The processes; each loads its share.

    Returns:
        tuple of chainer.dataset.Iterator: Over lists of pieces (x, t); see
        :mod:`trainer.datasets.loading`. A file that cannot be read ends training, and is
        left out of testing (:class:`trainer.datasets.parallel.Iterator`).

    Raises:
        trainer.errors.InputError: There are not enough pictures for a batch.
    """
    batch, workers = options['batch'], options['workers']
    if workers is None:
        # On a CPU the network is a thousand times slower than its data.
        most = 4 if hasattr(dataset.train, 'images') else parallel.cores()
        cores = max(1, (os.cpu_count() or 1) // group.local_size)
        workers = min(most, cores) if options['gpu'] >= 0 else 0
    plan = _PLANS[options['sampling']](len(dataset.train.labels), batch, options['seed'])
    if not len(plan):
        raise InputError('-b {}: there are only {} pictures to draw a batch from'.format(
            batch, len(dataset.train.labels)))
    test_plan = loading.InOrder(len(dataset.test.labels),
                                max(1, batch // options['test_batch_divide']))

    plan = group.share(plan, group.chunks(options['train_batch_divide']))
    test_plan = group.share(test_plan)

    def iterator(pictures, plan, seed, repeat):
        if hasattr(pictures, 'paths'):
            return parallel.Iterator(
                LoadFile(pictures, preprocessing, seed, dataset.mirror), plan, pictures.labels,
                preprocessing.shape, workers, repeat, leave_out=not repeat)
        picture = math.prod(preprocessing.shape) * 4 + 4
        return loading.iterator(
            Load(pictures, preprocessing, seed, dataset.mirror), plan, workers=workers,
            repeat=repeat,
            shared_mem=picture * -(-plan.batch // loading.MIN_PIECES))

    return (iterator(dataset.train, plan, options['seed'], True),
            iterator(dataset.test, test_plan, None, False))
