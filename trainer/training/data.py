"""The data of a run: batches of pictures, preprocessed, for training and for testing."""
import functools
import math
import os

import numpy as np
from PIL import Image

from trainer.datasets import loading
from trainer.errors import InputError
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
    """Load pictures, preprocessed (for :func:`trainer.datasets.loading.iterator`).

    Args:
        pictures: Pictures in memory (:class:`trainer.datasets.Pictures`), or files: an
            object with paths and labels (:class:`trainer.datasets.folder.PictureFiles`).
        preprocessing (type): A class of :mod:`data_augmentation`.
        seed (int): The run's, for training; ``None`` for testing.
    """

    def __init__(self, pictures, preprocessing, seed=None):
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.seed = seed
        self._arrays = getattr(preprocessing, 'arrays', False)

    def __call__(self, indices, epoch):
        """Return x, float32 (pictures, 3, height, width), and t, int32 (pictures,).

        Raises:
            trainer.errors.InputError: A picture cannot be read.
        """
        labels = self.pictures.labels[indices]
        if not len(indices):
            return np.empty((0,) + self.preprocessing.shape, np.float32), labels
        drawn = None if self.seed is None else [
            self.preprocessing.draw(generator(self.seed, epoch, i)) for i in indices.tolist()]
        images = self._images(indices)
        if self._arrays and not isinstance(images, np.ndarray):  # they differ in size
            return np.stack([
                self.preprocessing.test(image).x if drawn is None else
                self.preprocessing.train(image, drawn=drawn[i]).x
                for i, image in enumerate(images)]), labels
        if drawn is None:
            return self.preprocessing.test_batch(images), labels
        return self.preprocessing.train_batch(images, drawn), labels

    def _images(self, indices):
        if not hasattr(self.pictures, 'images'):
            return [self.pictures.paths[i] for i in indices.tolist()]
        images = self.pictures.images[indices]
        return images if self._arrays else [
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]


def data_path(dataset, options, preprocessing):
    """Return the iterators of a run: training and test batches, preprocessed.

    Args:
        dataset (trainer.datasets.Dataset): The pictures, in memory or in files; see
            :class:`Load`.
        options (dict): As in :func:`trainer.training.run.train`, complete.
        preprocessing (type): A class of :mod:`data_augmentation`.

    Returns:
        tuple of chainer.dataset.Iterator: Over lists of pieces (x, t); see
        :mod:`trainer.datasets.loading`.

    Raises:
        trainer.errors.InputError: There are not enough pictures for a batch.
    """
    batch, workers = options['batch'], options['workers']
    if workers is None:
        # On a CPU the network is a thousand times slower than its data.
        workers = min(4, os.cpu_count() or 1) if options['gpu'] >= 0 else 0
    plan = _PLANS[options['sampling']](len(dataset.train.labels), batch, options['seed'])
    if not len(plan):
        raise InputError('-b {}: there are only {} pictures to draw a batch from'.format(
            batch, len(dataset.train.labels)))
    test_plan = loading.InOrder(len(dataset.test.labels),
                                max(1, batch // options['test_batch_divide']))

    def iterator(pictures, plan, seed, repeat):
        picture = math.prod(preprocessing.shape) * 4 + 4
        return loading.iterator(
            Load(pictures, preprocessing, seed), plan, workers=workers, repeat=repeat,
            shared_mem=picture * -(-plan.batch // loading.MIN_PIECES))

    return (iterator(dataset.train, plan, options['seed'], True),
            iterator(dataset.test, test_plan, None, False))
