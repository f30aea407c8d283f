"""``log.json`` in the original's form (``nutszebra_log2.py``)."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import chainer
from chainer.training import extensions

from trainer import files
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.datasets import Dataset

#: Chainer's name of the total test accuracy.
ACCURACY = 'validation/main/accuracy'


class Log(extensions.LogReport):
    """Chainer's LogReport, written in the original's form: a list of dicts with ``_id``.

    First come ``categories`` (are), ``train_parameter``, ``test_parameter`` and
    ``test_parameter_<label>`` (parameter: number of images); then, for each
    epoch, ``train_loss`` and ``test_loss`` (loss: mean times number of images),
    ``test_accuracy``, ``test_accuracy_<label>`` and ``test_5_accuracy`` (accuracy:
    number of images), and, new here, ``train_accuracy`` and ``lr``. Each has its
    ``epoch``. Nothing in it depends on the clock: the same run gives the same file.
    For test images that cannot be read, the means of the others are assumed.

    Args:
        dataset: The dataset of the run.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(trigger=(1, 'epoch'), postprocess=lambda s: s.pop('elapsed_time'))
        self._log_name = None  # Chainer's own file is not written
        self._log: list[dict[str, Any]] = []
        assert dataset.test is not None
        labels = dataset.test.labels.tolist()
        self._train, self._test = len(dataset.train.labels), len(labels)
        self._of_class = [labels.count(i) for i in range(len(dataset.classes))]
        self._header: list[dict[str, Any]] = [
            {'_id': 'categories', 'are': dataset.classes},
            {'_id': 'train_parameter', 'parameter': self._train},
            {'_id': 'test_parameter', 'parameter': self._test},
        ]
        self._header += [
            {'_id': f'test_parameter_{i}', 'parameter': n} for i, n in enumerate(self._of_class)
        ]

    def serialize(self, serializer: chainer.Serializer) -> None:
        super().serialize(serializer)
        if isinstance(serializer, chainer.serializer.Deserializer):
            # Sums may continue on a GPU, where NumPy arrays cannot be added.
            for summary in self._summary._summaries.values():
                summary._x, summary._x2, summary._n = map(
                    float, (summary._x, summary._x2, summary._n)
                )

    def __call__(self, trainer: chainer.training.Trainer) -> None:
        epochs = len(self.log)
        super().__call__(trainer)
        if len(self.log) > epochs:
            files.save_json(os.path.join(trainer.out, 'log.json'), self.entries())

    def entries(self) -> list[dict[str, Any]]:
        """Return the content of ``log.json``."""
        entries = list(self._header)
        for epoch in self.log:
            for _id, key, name, total in self._kinds():
                if key in epoch and math.isfinite(epoch[key]):  # nan: a class without images
                    value = epoch[key] * total
                    value = round(value) if name == 'accuracy' else value
                    entries.append({'_id': _id, 'epoch': epoch['epoch'], name: value})
        return entries

    def _kinds(self):
        yield 'train_loss', 'main/loss', 'loss', self._train
        yield 'train_accuracy', 'main/accuracy', 'accuracy', self._train
        yield 'test_loss', 'validation/main/loss', 'loss', self._test
        yield 'test_accuracy', 'validation/main/accuracy', 'accuracy', self._test
        yield 'test_5_accuracy', 'validation/main/top5_accuracy', 'accuracy', self._test
        for i, total in enumerate(self._of_class):
            yield (f'test_accuracy_{i}', f'validation/main/accuracy/{i}', 'accuracy', total)
        yield 'lr', 'lr', 'lr', 1

    def load(self, path: str, epochs: int) -> None:
        """Load the first ``epochs`` epochs of this project's or the original's ``log.json``.

        Raises:
            trainer.errors.InputError: The file is not such a log, or has fewer epochs.
        """
        try:
            entries = files.read_json(path)
            values: dict[str, list[dict[str, Any]]] = {}
            for entry in entries:
                values.setdefault(entry['_id'], []).append(entry)
            # In the original's logs the n-th entry of a kind is of epoch n.
            found = min(len(values.get(_id, ())) for _id in ('train_loss', 'test_accuracy'))
            if found < epochs:
                raise InputError(
                    f'-l {path}: a log of {found} epochs, but {epochs} came before -s {epochs + 1}'
                )
            log = [{'epoch': i + 1} for i in range(epochs)]
            for _id, key, name, total in self._kinds():
                for epoch, entry in zip(log, values.get(_id, ())):
                    epoch[key] = entry[name] / max(total, 1)
            self._log = log
        except OSError as e:
            raise InputError(f'-l {path}: cannot be read ({e.strerror})') from e
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            raise InputError(f'-l {path}: not a log.json of a run ({type(e).__name__}: {e})') from e
