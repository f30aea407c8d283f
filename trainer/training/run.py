"""A training run: everything that ``main.py`` does, from Python."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer import datasets, earlier, run_folder
from trainer.errors import InputError
from trainer.recipes.options import Options
from trainer.reports import augmented, drawing
from trainer.reports.log import Log
from trainer.reports.summary import summary as summarise
from trainer.text import escaped, printable, wrapped
from trainer.training import build, processes, transfer
from trainer.training.data import data_path
from trainer.training.loop import Loop
from trainer.training.resolve import resolve
from trainer.training.setup import introduce, set_up, take_over
from trainer.transforms import mixing
from trainer.transforms.table import CLASSES


def say_on_console(text: str) -> None:
    """Print a message immediately; a single line is broken to fit a terminal."""
    # Names and file contents in a message may hold any characters.
    print(escaped(text) if '\n' in text else wrapped(printable(text)), flush=True)


def train(
    resume: bool = False, say: Callable[[str], object] = say_on_console, **given: Any
) -> bool:
    """Train a network, as ``main.py`` does with the same flags.

    Args:
        resume: Whether to resume the run in ``save_path``, with its options.
        say: Called with each message, including each row of the table.
        given: Options (:class:`trainer.recipes.options.Options`).

    Returns:
        ``True`` if the last epoch is done, ``False`` if the run was interrupted and can be resumed.

    Raises:
        trainer.errors.InputError: An option cannot be used; nothing was overwritten or lost.
        SystemExit: The same, in all but the first of several processes
            (:mod:`trainer.training.processes`).
    """
    folder = _folder(given)
    with processes.joined() as group:
        lock = group.together(lambda: None if group.rank else run_folder.claim(folder, resume))
        try:
            return _train(folder, resume, (lambda text: None) if group.rank else say, given, group)
        except OSError as e:
            raise InputError(
                f'{e.filename or folder}: cannot be written ({e.strerror or e}); fix that and go '
                'on with --resume'
            ) from e
        finally:
            if lock is not None:
                lock.release()


def _folder(given):
    """Return the folder of a run; by default, a named recipe writes below runs/."""
    usual = Options.save_path
    named = 'quick' if given.get('quick') is True else given.get('recipe', Options.recipe)
    if named != Options.recipe and isinstance(named, str):
        usual = os.path.join('runs', named)
    folder = given.get('save_path', usual)
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(
            f'`save_path` {folder!r}: it is of type {type(folder).__name__}, not a path'
        )
    return os.fspath(folder)


def _train(folder, resume, say, given, group):
    setup = set_up(folder, resume, say, given, group)
    introduce(setup, say, group.size)
    setup.device.use()
    optimizer = build.optimizer(setup.options, setup.network)
    log = Log(setup.dataset)
    # Reads all named files before changing the folder, as they may be in it.
    if not setup.going_on:
        take_over(setup, optimizer, log)
    data = data_path(setup.dataset, setup.options, CLASSES[setup.options.preprocessing], group)
    group.first(lambda: _begin_folder(setup, resume, say))
    loop = Loop(setup, optimizer, data, log, say, group)
    if setup.going_on:
        loop.restore()
    elif setup.options.start_epoch > 1:
        loop.begin_after(setup.options.start_epoch - 1)
    return loop.run()


def _begin_folder(setup, resume, say):
    if not resume and (left := run_folder.outputs(setup.folder)):
        earlier.move_aside(setup.folder, left, say)
    run_folder.begin(setup.folder, setup.options, setup.network, setup.images, setup.split)


def show_augmented(path: str, resume: bool = False, **given: Any) -> int:
    """Draw the images of the first batch as :func:`train` would pass them to the network.

    They are preprocessed, augmented, erased and mixed; nothing is trained.

    Args:
        path: The file to write; its suffix determines the format.
        resume, given: See :func:`train`.

    Returns:
        Number of images of the first batch, all of which are drawn up to a limit.

    Raises:
        trainer.errors.InputError: An option cannot be used.
    """
    drawing.check(path, augmented.MOST, '`show_augmented`')
    # A GPU would compute the same images.
    given = given | {'gpu': -1, 'engine': 'reference', 'precision': None}
    setup = set_up(_folder(given), resume, lambda message: None, given, processes.ALONE)
    preprocessing = CLASSES[setup.options.preprocessing]
    batches = data_path(setup.dataset, setup.options, preprocessing).train
    try:
        x, t, *rows = batches.next()
        chunks = min(setup.options.train_batch_divide, len(t))
        if rows:
            x = np.concatenate(
                [
                    mixing.apply(*chunk)
                    for chunk in zip(np.array_split(x, chunks), np.array_split(rows[0], chunks))
                ]
            )
        x, t, *rows = (array[: augmented.MOST] for array in (x, t, *rows))
        words = augmented.titles(setup.dataset.classes, t, *rows)
        augmented.draw(augmented.visible(preprocessing, x), words, path)
    finally:
        batches.finalize()
    return len(t)


def summary(resume: bool = False, **given: Any) -> str:
    """Describe the network that :func:`train` would train, without loading images.

    Args:
        resume, given: See :func:`train`.

    Returns:
        See :func:`trainer.reports.summary.summary`.

    Raises:
        trainer.errors.InputError: An option cannot be used.
    """
    folder = _folder(given)
    options, architecture = resolve(folder, resume, lambda message: None, given)
    name = 'quick' if options.quick else options.dataset
    classes = datasets.class_count(name)
    reset = options.reset_classifier and architecture is None
    if classes is None and (reset or architecture is None and options.load_model is None):
        classes = len(datasets.load(name, options.data).classes)
    built, _ = build.of_options(options, given, architecture, classes)
    if reset and classes is not None:
        built = transfer.reset_classifier(built, map(str, range(classes)), options.seed)
    return summarise(built)
