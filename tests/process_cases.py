"""What tests/test_processes.py has several processes do: ``mpiexec -n N python process_cases.py``.

The first argument names a function below; the others are its arguments. Each process
calls it.
"""

import os
import pathlib
import signal
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

import trainer  # noqa: E402,F401  before Chainer
from trainer.training import loop  # noqa: E402

# isort: split
import chainer  # noqa: E402
import numpy as np  # noqa: E402

import resnext  # noqa: E402
from trainer import cli  # noqa: E402
from trainer.datasets import parallel  # noqa: E402
from trainer.errors import InputError  # noqa: E402
from trainer.metrics import Tally  # noqa: E402
from trainer.training import launch, processes, run  # noqa: E402
from trainer.training.step import Step  # noqa: E402
from trainer.training.updater import ChunkedUpdater  # noqa: E402

#: As in tests/test_training.py; one thread of BLAS, whose number changes how sums round.
TINY = dict(
    C=2,
    d=2,
    multi=2,
    block_num=(1, 1, 1),
    batch=60,
    train_batch_divide=2,
    epoch=4,
    lr=0.05,
    lr_steps=(2, 3),
    seed=7,
    threads=1,
)


#: With everything that happens to images, labels and gradients.
MIXED = dict(
    TINY,
    epoch=2,
    sampling='full-batches',
    auto_augment='ta_wide',
    mixup=0.2,
    cutmix=1.0,
    reprob=0.3,
    repeated_augmentation=2,
    label_smoothing=0.1,
    norm_weight_decay=0.0,
    clip_grad=1.0,
    ema_decay=0.5,
    ema_steps=2,
    warmup=1,
    warmup_by='epoch',
)


def network(seed=0):
    made = resnext.ResNext(10, (1, 1, 1), 2, 2, 2, initialize=False)
    made.weight_initialization(seed)
    return made


def batches(sizes):
    """Return as many batches of noise, the same for everyone."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((size, 3, 32, 32)), rng.integers(0, 10, size).astype(np.int32))
        for size in sizes
    ]


def states(link):
    """Return a copy of all parameters and statistics of a network: name -> array."""
    held = {}
    chainer.serializers.DictionarySerializer(held).save(link)
    return {name: np.array(array) for name, array in held.items()}


class Plan:
    """Batches of consecutive numbers, of these sizes."""

    def __init__(self, sizes):
        self.sizes, self.size, self.batch = sizes, sum(sizes), max(sizes)

    def __len__(self):
        return len(self.sizes)

    def __call__(self, epoch):
        return np.split(np.arange(self.size), np.cumsum(self.sizes)[:-1])


def updates(group, sizes, divide):
    """Train with a group's share of batches of these sizes, in double precision.

    Returns:
        tuple: The updater; a list of what was reported; the statistics of the stem's
        outputs in each chunk of each update, (mean, unbiased variance).
    """
    x, t = [np.concatenate(arrays) for arrays in zip(*batches(sizes))]

    def load(items, out):
        out[...] = x[[i for _, i in items]]
        return {}

    plan = group.share(Plan(sizes), group.chunks(divide))
    iterator = parallel.Iterator(load, plan, t, x.shape[1:], dtype=x.dtype)
    net = network(seed=group.rank)  # they begin with the first's
    for param in net.params():  # in single precision rounding grows a hundredfold an update
        param.array = param.array.astype(np.float64)
    device = chainer.get_device('@numpy')
    optimizer = chainer.optimizers.MomentumSGD(0.05).setup(net)
    group.begin(device, net)
    updater = ChunkedUpdater(iterator, optimizer, device, group.chunks(divide), group=group)
    seen, reports, conv = [], [], net.stem.conv

    class Watch(chainer.LinkHook):
        name = 'Watch'

        def forward_postprocess(self, args):
            if args.link is conv:
                y = args.out.array
                count = y.size // y.shape[1]
                seen[-1].append(
                    (y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3)) * count / (count - 1))
                )

    with Watch():
        for _ in sizes:
            seen.append([])
            observation = {}
            reporter = chainer.Reporter()
            reporter.add_observer('main', net)
            with reporter.scope(observation), chainer.using_config('train', True):
                updater.update()
            reports.append([float(observation['main/' + k][0]) for k in ('loss', 'accuracy')])
    return updater, reports, seen


def shares(out):
    """Train, tally and average; every process writes down what it ends with."""
    with processes.joined() as group:
        held = {}
        for i, (sizes, divide) in enumerate(SHARES):
            updater, reports, _ = updates(group, sizes, divide)
            net = updater.get_optimizer('main').target
            for name, array in states(net).items():
                held[f'{i}/own/{name}'] = array
            group.mean_statistics(net)
            for name, array in states(net).items():
                held[f'{i}/{name}'] = array
            held[f'{i}/reports'] = np.array(reports)
        tally = Tally(10)
        rng = np.random.default_rng(group.rank)
        tally.add(rng.standard_normal((5 + group.rank, 10)), rng.integers(0, 10, 5 + group.rank))
        group.sum_tally(tally)
        held.update(confusion=tally.confusion, top5=tally.top5, loss=np.array(tally.loss))
        np.savez(
            os.path.join(out, f'rank{group.rank}.npz'),
            said=np.array(repr(agree(group))),
            unreadable=np.array(repr(unreadable(group))),
            **held,
        )


def exchanged(out, engine):
    """Write down, of each of three updates, how many gradients were sent during the backward pass,
    and the gradients of the last and of both processes' shares of it."""
    with processes.joined() as group, chainer.using_config('engine', engine):
        net, early = network(), []
        optimizer = chainer.optimizers.MomentumSGD(0.05).setup(net)
        net.stem.bn.gamma.update_rule.enabled = False
        group.begin(chainer.get_device('@numpy'), net)
        step = Step(optimizer, chainer.get_device('@numpy'), 2, group=group)
        finish = group._exchange.finish
        group._exchange.finish = lambda network: (
            early.append(len(group._exchange._requests)),
            finish(network),
        )
        found = {}
        for x, t in batches([24, 24, 24]):
            before = states(net)
            own = slice(12 * group.rank, 12 * group.rank + 12)
            with chainer.using_config('train', True):
                step(x[own].astype(np.float32), t[own])
        found['sent'] = np.array(early)
        found['params'] = np.array(len(list(net.params())) - 1)
        found |= {
            f'mean{name}': param.grad for name, param in net.namedparams() if param.grad is not None
        }
        # The same share by this process alone, from the same weights.
        for name, param in net.namedparams():
            param.array[...] = before[name[1:]]
        step = Step(optimizer, chainer.get_device('@numpy'), 2)
        with chainer.using_config('train', True):
            step(x[own].astype(np.float32), t[own])
        found |= {
            f'own{name}': param.grad for name, param in net.namedparams() if param.grad is not None
        }
        np.savez(os.path.join(out, f'rank{group.rank}.npz'), **found)


#: Sizes of batches and train_batch_divide: uneven; fewer images than processes.
SHARES = [([30, 31, 29, 10, 32, 31], 1), ([20, 1, 2], 3), ([25, 26], 5)]


def agree(group):
    """Return what processes tell each other: results, errors, numbers."""
    said = [
        group.together(lambda: group.rank),
        group.first(lambda: group.rank + 10),
        group.in_turn(lambda: group.rank),
        group.sum(group.rank, 1),
    ]
    for failing in ((1,), (0, 1, 2), (2, 1)):

        def fail(failing=failing):
            if group.rank in failing:
                raise InputError(f'of {group.rank}')

        try:
            group.together(fail)
            said.append('nothing')
        except InputError as e:
            said.append(str(e))
    os.environ['CUDA_VISIBLE_DEVICES'] = str(group.rank)
    shown = processes.Processes(group._world)
    return said + [
        [group.local_rank, group.local_size, group.size],
        [group.gpu(-1), group.gpu(2), shown.gpu(2)],
    ]


def unreadable(group):
    """Return what each process gets of files of which one cannot be read, and then can."""
    broken = {8}

    def load(item, out):
        if item[1] in broken:
            raise InputError(f'image {item[1]}')
        out[...] = item[1]

    iterator = parallel.Iterator(
        parallel.one_by_one(load), group.share(Plan([6, 6, 2])), np.arange(14), (1,)
    )
    said = []
    for _ in range(4):
        try:
            x, t = group.together(iterator.next, undo=iterator.step_back)
            assert (x[:, 0] == t).all()
            said.append(t.tolist())
        except InputError as e:
            said.append(str(e))
            broken.clear()
    return said


def fails(folder, data, how, where):
    """Train, and in the sixth update let one process fail."""
    rank, _ = launch.launched()
    processes.PATIENCE = 1.0
    real = loop.ChunkedUpdater.update_core

    def update_core(self):
        if self.iteration == 5 and rank == int(where):
            if how == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == 'interrupt':
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise {'input': InputError, 'bug': ZeroDivisionError}[how]('the reason')
        real(self)

    loop.ChunkedUpdater.update_core = update_core
    return 0 if run.train(save_path=folder, data=data, **TINY) else 130


def train(folder, data, *options):
    """Train, TINY or MIXED, but for options of the form name=integer."""
    given = dict(MIXED if 'mixed' in options else TINY, save_path=folder, data=data)
    resume = 'resume' in options
    given.update(
        (name, int(value))
        for name, value in (option.split('=') for option in options if '=' in option)
    )
    return 0 if run.train(resume=resume, **given) else 130


if __name__ == '__main__':
    cli.run(lambda: globals()[sys.argv[1]](*sys.argv[2:]))
