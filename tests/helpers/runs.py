"""Runs of training on small data: starting, killing and comparing them."""

import multiprocessing
import os
import pathlib
import threading

import numpy as np
import tqdm
from PIL import Image

from trainer import run_folder
from trainer.datasets import quick
from trainer.training import run
from trainer.weights import npz

FORK = multiprocessing.get_context('fork')


def blank(figure, path, **options):
    """Write a file in place of a figure: a stand-in for Matplotlib's ``Figure.savefig``."""
    pathlib.Path(path).write_bytes(b'x' * 20_000)


def in_child(function, *args, **kwargs):
    """Start ``function`` in a process that may be killed."""

    def child():
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        # tqdm's lock is shared with processes forked from here: killed, they would keep it.
        tqdm.tqdm.set_lock(threading.RLock())
        function(*args, **kwargs)

    process = FORK.Process(target=child)
    process.start()
    return process


def final_state(folder):
    """Return everything that a run leaves behind, except times."""
    newest = run_folder.snapshots(folder)[0]
    arrays = npz.read_arrays(newest)
    arrays.pop('_snapshot_elapsed_time')
    state = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
    state['snapshot'] = os.path.basename(newest)
    state['log'] = pathlib.Path(folder, 'log.json').read_text()
    models = os.path.join(folder, 'model')
    for name in sorted(os.listdir(models)):
        state[name] = pathlib.Path(models, name).read_bytes()
    state['names'] = sorted(set(os.listdir(folder)) - {'earlier'})
    return state


def assert_same_end(folder, golden):
    a, b = final_state(folder), final_state(golden)
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name] == b[name], name


#: Classes of the images in trainer/datasets/quick -> names of class folders.
CLASSES = {3: 'felines', 5: 'canines', 9: 'lorries'}


TINY = dict(
    network='original',
    C=2,
    d=2,
    multi=2,
    block_num=(1, 1, 1),
    batch=20,
    train_batch_divide=1,
    epoch=2,
    lr=0.05,
    lr_steps=(),
    seed=7,
    dataset='folder',
)


def write(root, per_class=10, first=0, classes=CLASSES, suffix='.png'):
    """Write real images of CIFAR-10 into class folders."""
    train = quick.load().train
    for label, name in classes.items():
        (root / name).mkdir(parents=True)
        for i in np.flatnonzero(train.labels == label)[first : first + per_class]:
            Image.fromarray(train.images[i].transpose(1, 2, 0)).save(
                root / name / f'{i:04d}{suffix}'
            )
    return root


def train(save_path, data, resume=False, say=lambda text: None, **options):
    return run.train(
        resume=resume,
        say=say,
        save_path=str(save_path),
        data=str(data),
        **dict({} if resume else TINY, **options),
    )


def log(path):
    return (path / 'log.json').read_text()
