"""Predictions of networks for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainer.datasets import class_names, loading, parallel
from trainer.errors import InputError
from trainer.inference.predictors import Predictor
from trainer.metrics import log_softmax, top_k
from trainer.text import printable
from trainer.transforms import decoding, gpu_images, table

if TYPE_CHECKING:
    from trainer.inference.model import Model
    from trainer.networks.base import Network
    from trainer.transforms.table import Preprocessing
    from trainer.types import Source


class Answer(NamedTuple):
    """One of the likeliest classes.

    Attributes:
        number: Index of the class.
        synset: ImageNet's synset of the class, or ``None``.
        name: Name of the class.
        probability: 0..1.
    """

    number: int
    synset: str | None
    name: str
    probability: float


class Prediction(NamedTuple):
    """Prediction for one image.

    Attributes:
        source: The image, as passed to :func:`predict`.
        answers: The likeliest classes, best first; empty if the image could not be read.
        error: Why the image could not be read, or ``None``.
    """

    source: Source
    answers: list[Answer]
    error: str | None


def preprocessing(networks: Sequence[Network]) -> Preprocessing:
    """Return the preprocessing that networks share: a class of ``data_augmentation``, or a
    :class:`trainer.transforms.geometry.Geometry`.

    Args:
        networks: One or more networks.

    Raises:
        trainer.errors.InputError: Their preprocessing differs, or one has none.
    """
    names = sorted({str(network.geometry or network.preprocessing) for network in networks})
    if names[1:]:
        raise InputError(
            '-m: the models want images preprocessed differently: {}'.format('; '.join(names))
        )
    found = table.of(networks[0])
    if found is None:
        raise InputError(
            '-m: no preprocessing of images belongs to this network; from Python, '
            'call it with arrays'
        )
    return found


class ImageLoader:
    """Loads images for evaluation, for :func:`trainer.datasets.parallel.one_by_one`.

    Args:
        transform: A class of ``data_augmentation``, or a geometry.
        sources: Paths, or other images that the class takes; items are indices into it.
        ten_crop: Whether to take ten crops of each image.
        rows: Whether predictors make images of rows of bytes (:func:`take_rows`).
        upright: Whether images are turned upright by their EXIF orientation.

    Attributes:
        crops: Crops of each image: 1 or 10.
        shape: (3, height, width) or (10, 3, height, width); for rows, (row bytes,) or (10, row
            bytes).
        dtype: float32, or uint8.

    Raises:
        trainer.errors.InputError: The class cannot make ten crops.
    """

    def __init__(
        self,
        transform: Preprocessing,
        sources: Sequence[Source],
        ten_crop: bool = False,
        rows: bool = False,
        upright: bool = False,
    ) -> None:
        if ten_crop and not hasattr(transform, 'ten_crop'):
            raise InputError(f'`ten_crop`: there is none in {transform.__name__}')
        self.sources = sources
        self.upright = upright
        self.crops: int = 10 if ten_crop else 1
        makes: Any = transform  # only some classes can make crops and rows
        shape: tuple[int, ...] = makes.shape
        self.dtype: type[np.generic] = np.float32
        self._transform = makes.ten_crop if ten_crop else makes.test
        if rows:
            shape, self.dtype = (makes.row_bytes(training=False),), np.uint8
            self._transform = makes.ten_crop_rows if ten_crop else makes.test_row
        self.shape = (10,) * ten_crop + shape

    def batches(self, batch: int, workers: int | None) -> Iterator[parallel.Batch]:
        """Load all images in order; see :func:`trainer.datasets.parallel.batches`.

        Args:
            batch: Images in a batch; with several crops, crops in a batch.
            workers: Processes.
        """
        size = max(1, min(batch // self.crops, len(self.sources)))
        plan = loading.InOrder(len(self.sources), size)(0)
        load = parallel.one_by_one(self)
        return parallel.batches(load, plan, size, self.shape, workers, self.dtype)

    def __call__(self, i: int, out: np.ndarray) -> None:
        source = self.sources[i]
        try:
            self._transform(decoding.upright(source) if self.upright else source, out=out)
        except InputError as e:
            # The caller knows which image it is.
            raise InputError(str(e).removeprefix(printable(f'{source}:') + ' ')) from None


def predictors(networks: Sequence[Model | Predictor]) -> list[Predictor]:
    """Return predictors: given ones as they are, and networks with their default engine.

    Args:
        networks: Instances of :class:`trainer.networks.base.Network` or
            :class:`trainer.inference.predictors.Predictor`.
    """
    return [n if isinstance(n, Predictor) else n.predictor() for n in networks]


def take_rows(predictors: Sequence[Predictor]) -> bool:
    """Return whether predictors convert rows of bytes to their networks' images on a GPU
    (:class:`trainer.transforms.gpu_images.ImageRows`)."""
    return all(
        isinstance(p.finish, gpu_images.ImageRows) and p.finish.preprocessing == table.of(p.network)
        for p in predictors
    )


def _item(x):
    """Return the shape of one image, or row."""
    return x.shape[-1:] if x.dtype == np.uint8 else x.shape[-3:]


def compute(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, chunk: int | None = None
) -> np.ndarray:
    """Compute chunk by chunk, and check the numbers.

    Args:
        function: A :class:`trainer.inference.predictors.Predictor`, or its ``features``.
        x: float32 (images, 3, height, width) or (images, crops, 3, height, width); or, if
            :func:`take_rows`, uint8 (images, row bytes) or (images, crops, row bytes).
        chunk: Images or crops per call of ``function``; ``None``: all.

    Returns:
        (images, ...), or (images, crops, ...).

    Raises:
        trainer.errors.InputError: The result is not finite.
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


def scores(
    networks: Sequence[Model | Predictor], x: np.ndarray, chunk: int | None = None
) -> np.ndarray:
    """Compute the scores of images with one network or several.

    The posteriors (softmax) of all networks for all crops of an image are averaged.

    Args:
        networks: Networks with the same classes; see :func:`predictors`.
        x, chunk: See :func:`compute`.

    Returns:
        (images, classes): scores before softmax of one network for one crop; otherwise logarithms
        of the averaged posteriors, float64.
    """
    computed = [compute(predictor, x, chunk) for predictor in predictors(networks)]
    if len(computed) == 1 and x.ndim == 1 + len(_item(x)):
        return computed[0]
    each = []
    for p in map(log_softmax, computed):
        each += [p] if p.ndim == 2 else list(p.swapaxes(0, 1))
    return np.logaddexp.reduce(each) - np.log(len(each))


def averaged(networks: Sequence[Model | Predictor]) -> list[Predictor]:
    """Return :func:`predictors` of networks whose posteriors are averaged.

    Raises:
        trainer.errors.InputError: The networks have different classes.
    """
    computing = predictors(networks)
    first, *others = (predictor.network for predictor in computing)
    for network in others:
        if network.category_num != first.category_num or (
            class_names.of(network) != class_names.of(first)
        ):
            raise InputError(
                f'-m: the models know different classes ({first.category_num} and '
                f'{network.category_num}); their average means nothing'
            )
    return computing


def predict(
    networks: Sequence[Model | Predictor],
    sources: Sequence[Source],
    k: int = 5,
    batch: int = 16,
    workers: int | None = None,
    ten_crop: bool = False,
    upright: bool = True,
) -> Iterator[Prediction]:
    """Classify images.

    Args:
        networks: One network, or several, whose posteriors are averaged; see :func:`predictors`.
        sources: Paths, or images as the network's preprocessing takes them
            (:mod:`data_augmentation`).
        k: Answers per image.
        batch: Images, or crops, in a batch.
        workers: Processes that load images; 0: this process; ``None``: this process if there is
            only one batch, otherwise one per core.
        ten_crop: Whether to average over ten crops.
        upright: Whether images are turned upright by their EXIF orientation; the evaluation on
            ImageNet does not do that, as Torch7 did not.

    Yields:
        Predictions, in the order of ``sources``.

    Raises:
        trainer.errors.InputError: The networks cannot be used together, or not with images.
    """
    computing = averaged(networks)
    shown = [predictor.network for predictor in computing]
    load = ImageLoader(preprocessing(shown), sources, ten_crop, take_rows(computing), upright)
    names, synsets = class_names.of(shown[0]), class_names.synsets(shown[0])
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
            answers = [
                Answer(j, synsets[j] if synsets else None, names[j], float(p[row, j]))
                for j in best[row].tolist()
            ]
            yield Prediction(sources[item], answers, None)
