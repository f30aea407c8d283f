"""What networks say about images."""

import collections

import numpy as np

from trainer.datasets import class_names, loading, parallel
from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.metrics import log_softmax, top_k
from trainer.text import printable
from trainer.transforms import decoding, device, table

#: One of the likeliest classes. number: index of the class; synset (str): of ImageNet,
#: or ``None``; name (str); probability (float): 0..1.
Answer = collections.namedtuple('Answer', 'number synset name probability')

#: What :func:`predict` says about one image. source: the image as it was given;
#: answers (list of Answer): the likeliest first, or none where error (str, or ``None``)
#: says why the image could not be read.
Prediction = collections.namedtuple('Prediction', 'source answers error')


def preprocessing(networks):
    """Return the preprocessing that networks share: a class of ``data_augmentation``, or a
    :class:`trainer.transforms.geometry.Geometry`.

    Args:
        networks (sequence of trainer.networks.base.Network): One or more.

    Raises:
        trainer.errors.InputError: They have different ones, or one has none.
    """
    names = sorted({str(network.geometry or network.preprocessing) for network in networks})
    if names[1:]:
        raise InputError(
            '-m: the models want images preprocessed differently: {}'.format('; '.join(names))
        )
    if table.of(networks[0]) is None:
        raise InputError(
            '-m: no preprocessing of images belongs to this network; from Python, '
            'call it with arrays'
        )
    return table.of(networks[0])


class Load:
    """Loads images for evaluation, as :func:`trainer.datasets.parallel.one_by_one` wants it.

    Args:
        transform (type or trainer.transforms.geometry.Geometry): A class of
            ``data_augmentation``, or data.
        sources (list): Paths, or whatever the class takes; items are indices into it.
        ten_crop (bool): Whether to take ten crops of each.
        rows (bool): Whether predictors make images of rows of bytes (:func:`take_rows`).
        upright (bool): Whether images are turned as their EXIF orientation says.

    Attributes:
        crops (int): Crops of each image: 1 or 10.
        shape (tuple of int): (3, height, width), or (10, 3, height, width); of rows,
            (row bytes,) or (10, row bytes).
        dtype: float32, or uint8.

    Raises:
        trainer.errors.InputError: The class makes no ten crops.
    """

    def __init__(self, transform, sources, ten_crop=False, rows=False, upright=False):
        if ten_crop and not hasattr(transform, 'ten_crop'):
            raise InputError(f'`ten_crop`: there is none in {transform.__name__}')
        self.sources = sources
        self.upright = upright
        self.crops = 10 if ten_crop else 1
        self.shape, self.dtype = transform.shape, np.float32
        self._transform = transform.ten_crop if ten_crop else transform.test
        if rows:
            self.shape, self.dtype = (transform.row_bytes(training=False),), np.uint8
            self._transform = transform.ten_crop_rows if ten_crop else transform.test_row
        self.shape = (10,) * ten_crop + self.shape

    def batches(self, batch, workers):
        """Load all images in order; see :func:`trainer.datasets.parallel.batches`.

        Args:
            batch (int): Images in a batch; of several crops, so many fewer.
            workers (int): Processes.
        """
        size = max(1, min(batch // self.crops, len(self.sources)))
        plan = loading.InOrder(len(self.sources), size)(0)
        load = parallel.one_by_one(self)
        return parallel.batches(load, plan, size, self.shape, workers, self.dtype)

    def __call__(self, i, out):
        source = self.sources[i]
        try:
            self._transform(decoding.upright(source) if self.upright else source, out=out)
        except InputError as e:
            # Whoever asked knows which image it is.
            raise InputError(str(e).removeprefix(printable(f'{source}:') + ' ')) from None


def predictors(networks):
    """Return the predictors of networks, by their default engine, where they are not yet ones.

    Args:
        networks (sequence): Of :class:`trainer.networks.base.Network` or
            :class:`trainer.inference.predictors.Predictor`.
    """
    return [n if isinstance(n, Predictor) else n.predictor() for n in networks]


def take_rows(predictors):
    """Return whether predictors make images of rows of bytes on their GPU
    (:class:`trainer.transforms.device.ImageRows`), as their networks want them."""
    return all(
        isinstance(p.finish, device.ImageRows) and p.finish.preprocessing == table.of(p.network)
        for p in predictors
    )


def _item(x):
    """Return the shape of one image, or row."""
    return x.shape[-1:] if x.dtype == np.uint8 else x.shape[-3:]


def compute(function, x, chunk=None):
    """Compute chunk by chunk, and check the numbers.

    Args:
        function (callable): A :class:`trainer.inference.predictors.Predictor`, or its ``features``.
        x (numpy.ndarray): float32 (images, 3, height, width), or with crops of each,
            (images, crops, 3, height, width); or rows, uint8 (images, row bytes) or
            (images, crops, row bytes), where :func:`take_rows` says so.
        chunk (int): Images or crops that are computed at a time; ``None``: all.

    Returns:
        numpy.ndarray: (images, ...), or (images, crops, ...).

    Raises:
        trainer.errors.InputError: It is not finite.
    """
    item = _item(x)
    flat = x.reshape((-1,) + item)
    chunk = chunk or len(flat)
    y = np.concatenate([function(flat[i : i + chunk]) for i in range(0, len(flat), chunk)])
    if not np.isfinite(y).all():
        raise InputError(
            '-m: the network computes numbers that are not finite; its weights are damaged'
        )
    return y.reshape(x.shape[: x.ndim - len(item)] + y.shape[1:])


def scores(networks, x, chunk=None):
    """Compute the scores of images, by one network or several together.

    The posteriors (softmax) of all networks for all crops of an image are averaged.

    Args:
        networks (sequence): Of the same classes; see :func:`predictors`.
        x, chunk: See :func:`compute`.

    Returns:
        numpy.ndarray: (images, classes): the scores before softmax of one network for
        one crop, otherwise the logarithms of the averaged posteriors, float64.
    """
    computed = [compute(predictor, x, chunk) for predictor in predictors(networks)]
    if len(computed) == 1 and x.ndim == 1 + len(_item(x)):
        return computed[0]
    each = []
    for p in map(log_softmax, computed):
        each += [p] if p.ndim == 2 else list(p.swapaxes(0, 1))
    return np.logaddexp.reduce(each) - np.log(len(each))


def check_classes(networks):
    """Check that networks can be averaged.

    Raises:
        trainer.errors.InputError: Their classes are not the same.
    """
    for network in networks[1:]:
        if network.category_num != networks[0].category_num or class_names.of(
            network
        ) != class_names.of(networks[0]):
            raise InputError(
                f'-m: the models know different classes ({networks[0].category_num} and '
                f'{network.category_num}); their average means nothing'
            )


def predict(networks, sources, k=5, batch=16, workers=None, ten_crop=False, upright=True):
    """Say what images show.

    Args:
        networks (sequence): One, or several whose posteriors are averaged; see
            :func:`predictors`.
        sources (sequence): Paths, or images as the network's preprocessing takes
            them (:mod:`data_augmentation`).
        k (int): Classes for each.
        batch (int): Images, or crops, that are computed at a time.
        workers (int): Processes that load; 0: this one loads; ``None``: it does where
            there is but one batch, otherwise one process for each core.
        ten_crop (bool): Whether to average over ten crops.
        upright (bool): Whether images are turned as their EXIF orientation says; the
            evaluation on ImageNet does not, as Torch7 did not.

    Yields:
        Prediction: In the order of ``sources``.

    Raises:
        trainer.errors.InputError: The networks cannot be used together, or with images.
    """
    computing = predictors(networks)
    networks = [predictor.network for predictor in computing]
    check_classes(networks)
    load = Load(preprocessing(networks), sources, ten_crop, take_rows(computing), upright)
    names, synsets = class_names.of(networks[0]), class_names.synsets(networks[0])
    if workers is None and len(sources) <= batch:
        workers = 0
    for items, x, errors in load.batches(batch, workers):
        read = [i for i in range(len(items)) if i not in errors]
        if read:
            p = np.exp(log_softmax(scores(computing, x[read], batch)))
            best = top_k(p, k)
        for i, item in enumerate(items):
            if i in errors:
                yield Prediction(sources[item], [], errors[i])
                continue
            row = read.index(i)
            yield Prediction(
                sources[item],
                [
                    Answer(j, synsets[j] if synsets else None, names[j], float(p[row, j]))
                    for j in best[row].tolist()
                ],
                None,
            )
