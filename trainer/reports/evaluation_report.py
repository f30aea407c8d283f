"""Reports of an evaluation: progress, a table, ``log.json``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any, Self

import tqdm

from trainer.datasets import class_names
from trainer.reports.console import clock
from trainer.text import printable
from trainer.weights import description

if TYPE_CHECKING:
    from trainer.datasets.folder import ImageFiles
    from trainer.inference.evaluation import Evaluation
    from trainer.metrics import Tally
    from trainer.networks.base import Network

_BAR = '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}, {remaining} left{postfix}]'

# Most unreadable images and hard classes in the table.
_NAMED = 5


class Progress:
    """Shows the progress of an evaluation: a bar on a terminal, otherwise occasional lines.

    Args:
        total: Number of images.
    """

    #: Seconds after which a line is printed even for less than a tenth of progress.
    interval: int = 60

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._begun = self._told = time.perf_counter()
        self._due = total / 10
        self._bar = tqdm.tqdm(
            total=total,
            unit='img',
            bar_format=_BAR,
            leave=False,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def __call__(self, images: int, tally: Tally | None = None) -> None:
        """Add a number of images; show the errors of ``tally``."""
        self._done += images
        errors = ''
        if tally is not None and tally.images:
            errors = f'error {errors_of(tally)[0]:.2f}%'
            if has_top5(tally):
                errors += f' (top-5 {errors_of(tally)[1]:.2f}%)'
        if not self._bar.disable:
            self._bar.set_postfix_str(errors, refresh=False)
            self._bar.update(images)
            return
        now = time.perf_counter()
        if self._done >= self._due or now - self._told > self.interval:
            rate = self._done / (now - self._begun)
            print(
                '{}/{} [{:.0f} images/s, {} left{}]'.format(
                    self._done,
                    self._total,
                    rate,
                    clock((self._total - self._done) / rate),
                    ', ' + errors if errors else '',
                ),
                flush=True,
            )
            self._told = now
            while self._due <= self._done:
                self._due += self._total / 10


def has_top5(tally: Tally) -> bool:
    """Return whether top-5 error is meaningful: with five classes or fewer it is 0."""
    return len(tally.confusion) > 5


def errors_of(tally: Tally) -> tuple[float, float]:
    """Return top-1 and top-5 error in percent."""
    return 100 * (1 - tally.accuracy), 100 * (1 - tally.top5_accuracy)


def table(
    evaluation: Evaluation, models: list[str], network: Network, ten_crop: bool = False
) -> str:
    """Return the table of an evaluation as lines of at most 79 characters, if names permit.

    Args:
        evaluation: The evaluation.
        models: Names of the networks.
        network: The network, for the names of the classes.
        ten_crop: Whether there were ten crops of each image.
    """
    tally, unreadable, seconds, computed_by = evaluation
    n = tally.images
    top1, top5 = errors_of(tally)
    rows = [('model' if i == 0 else '', printable(model)) for i, model in enumerate(models)]
    if len(models) > 1:
        rows.append(('', 'their posteriors averaged'))
    rows.append(('images', '{:6,}{}'.format(n, ', ten crops of each' * ten_crop)))
    if unreadable:
        rows.append(('', f'{len(unreadable):6,} more could not be read and are not counted'))
    rows += [('top-1 error', f'{top1:6.2f} %  ({n - int(tally.confusion.trace()):,} wrong)')]
    if has_top5(tally):
        rows.append(('top-5 error', f'{top5:6.2f} %  ({n - int(tally.top5.sum()):,} wrong)'))
    rows += [
        ('loss', f'{tally.loss:8.4f}'),
        ('speed', f'{(n + len(unreadable)) / seconds:6.0f} images/s, {clock(seconds)}'),
        ('computed by', computed_by),
    ]
    lines = ['{:<12s} {}'.format(*row) for row in rows]
    accuracy = tally.class_accuracy
    hard = [i for i in accuracy.argsort(kind='stable').tolist() if accuracy[i] < 1]
    if len(hard) > 1 and (accuracy == accuracy).sum() > _NAMED:
        names = class_names.of(network)
        lines += ['', 'hardest classes, by top-1 error']
        lines += [
            f'{100 * (1 - accuracy[i]):6.2f} %  {printable(names[i])[:68]}' for i in hard[:_NAMED]
        ]
    return '\n'.join(lines + _unreadable_lines(unreadable, 'log.json'))


def features_table(
    path: str, images: Sized, unreadable: Sequence[tuple[str, str]], computed_by: str
) -> str:
    """Return lines about the file of :func:`trainer.inference.evaluation.save_features`."""
    rows = [
        f'{printable(path)}: {len(images):,} rows, {len(unreadable):,} of them nan',
        f'computed by {computed_by}',
    ]
    return '\n'.join(rows + _unreadable_lines(unreadable, os.path.splitext(path)[0] + '.json'))


def _unreadable_lines(unreadable, where):
    if not unreadable:
        return []
    lines = ['', 'could not be read'] + [
        '  ' + printable('{}: {}'.format(*u)) for u in unreadable[:_NAMED]
    ]
    if len(unreadable) > _NAMED:
        lines.append(f'  and {len(unreadable) - _NAMED:,} more, all of them in {where}')
    return lines


def log(
    evaluation: Evaluation,
    models: Sequence[str],
    images: ImageFiles,
    network: Network,
    ten_crop: bool = False,
) -> list[dict[str, Any]]:
    """Return the ``log.json`` of an evaluation: a list of dicts with ``_id``.

    As in the original: ``categories`` (are), ``test_parameter`` and
    ``test_parameter_<label>`` (parameter: number of images), ``test_loss`` (loss: mean
    times number of images), ``test_accuracy``, ``test_accuracy_<label>``,
    ``test_5_accuracy`` and ``test_5_accuracy_<label>`` (accuracy: number of correct
    images), and, if not 0, ``test_accuracy_<label>_<answer>`` (accuracy: number of
    confused images). ``test_parameter`` counts readable images. New: ``test_error``
    (top1, top5: percent), ``test_unreadable`` (images: path and error of each),
    ``model`` (paths and networks) and ``crops``.

    Args:
        images: The evaluated images.
        evaluation, models, network, ten_crop: See :func:`table`.
    """
    tally, unreadable = evaluation[:2]
    top1, top5 = errors_of(tally)
    categories = class_names.synsets(network) or network.classes or images.categories
    entries: list[dict[str, Any]] = [
        {'_id': 'categories', 'are': categories},
        {'_id': 'model', 'model': models, 'network': description.of(network)},
        {'_id': 'crops', 'crops': 10 if ten_crop else 1},
        {'_id': 'test_parameter', 'parameter': tally.images},
        {
            '_id': 'test_unreadable',
            'images': [{'path': path, 'error': error} for path, error in unreadable],
        },
        {'_id': 'test_loss', 'loss': tally.loss_sum},
        {'_id': 'test_error', 'top1': top1, 'top5': top5},
        {'_id': 'test_accuracy', 'accuracy': int(tally.confusion.trace())},
        {'_id': 'test_5_accuracy', 'accuracy': int(tally.top5.sum())},
    ]
    return entries + _of_labels(tally)


def _of_labels(tally):
    """Return the entries for each label, and for each label and wrong answer."""
    entries = []
    labels = zip(
        tally.confusion.sum(axis=1).tolist(),
        tally.confusion.diagonal().tolist(),
        tally.top5.tolist(),
    )
    for label, (n, right, right5) in enumerate(labels):
        entries += [
            {'_id': f'test_parameter_{label}', 'parameter': n},
            {'_id': f'test_accuracy_{label}', 'accuracy': right},
            {'_id': f'test_5_accuracy_{label}', 'accuracy': right5},
        ]
    for label, answer in zip(*tally.confusion.nonzero()):
        if label != answer:
            entries.append(
                {
                    '_id': f'test_accuracy_{label}_{answer}',
                    'accuracy': int(tally.confusion[label, answer]),
                }
            )
    return entries
