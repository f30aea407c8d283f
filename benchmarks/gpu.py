"""Training and inference on a GPU, side by side with PyTorch, in one run.

    python benchmarks/gpu.py [-o gpu.json] [--only WORD ...] [--data FOLDER] [--together SECONDS]

ResNeXt-50 32x4d at 224x224 and the CIFAR networks, by this project's cuDNN engine
and by PyTorch, eager and compiled: images/s, median and range over blocks of 20 steps
after warming up, and peak device memory. Each row runs in a process of its own: one after
the other, or set up side by side (``--together``) and then measured one after the other, which
takes minutes where compiling and choosing plans would take an hour. Images of the bare steps
are on the device already, for both alike: NHWC, for inference in float16 where the network is.
Rows 'main.py' are whole epochs as a user has them, from the second on: data, augmentation and
logging included, and in brackets with evaluation and files as well; they need CIFAR-10
(``--data``).

Needs CuPy, nvidia-cudnn-frontend and PyTorch.
"""

import argparse
import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)

BLOCKS, STEPS = 5, 20

#: name -> (task, network, batch, library, how)
ROWS = {}


def _add(*row):
    task, network, batch, library, how = row
    ROWS[f'{task} {network} b{batch} {library} {how}'] = row


for batch in (128, 256):
    for how in ('mixed', 'tf32'):
        _add('train', 'resnext50', batch, 'ours', how)
    for how in ('tf32', 'bf16', 'bf16 compile'):
        _add('train', 'resnext50', batch, 'torch', how)
for batch in (1, 128, 256):
    for how in ('mixed', 'tf32'):
        _add('infer', 'resnext50', batch, 'ours', how)
    for how in ('tf32', 'fp16 compile'):
        _add('infer', 'resnext50', batch, 'torch', how)
for network in ('cifar2x64d', 'cifar8x64d'):
    _add('train', network, 128, 'ours', 'mixed')
    for how in ('bf16', 'bf16 compile'):
        _add('train', network, 128, 'torch', how)
    ROWS[f'main.py {network} b128 mixed'] = 'main', network, 128, 'ours', 'mixed'

#: (row, row of the peer, how many times as fast it is to be)
BARS = [
    (f'train resnext50 b{b} ours mixed', f'train resnext50 b{b} torch bf16 compile', 1.3)
    for b in (128, 256)
]
BARS += [
    (f'infer resnext50 b{b} ours mixed', f'infer resnext50 b{b} torch fp16 compile', wanted)
    for b, wanted in ((1, 1.0), (128, 1.4), (256, 1.3))
]
BARS += [
    (f'{task} resnext50 b{b} ours tf32', f'{task} resnext50 b{b} torch tf32', 1.1)
    for task in ('train', 'infer')
    for b in (128, 256)
]
BARS += [
    (f'main.py {network} b128 mixed', f'train {network} b128 torch bf16 compile', wanted)
    for network, wanted in (('cifar2x64d', 1.2), ('cifar8x64d', 1.4))
]

#: In the environment of a row's process that waits: a file that is locked while plans are timed.
WAITS = 'GPU_BENCHMARK_LOCK'
READY = 'ready'

#: Epochs of the rows main.py; the first does not count.
EPOCHS = 6


def blocks(step, wait, batch):
    for _ in range(10):
        step()
    wait()
    if WAITS in os.environ:  # for the other rows to be set up, and for its turn
        print(READY, flush=True)
        input()
        for _ in range(5):
            step()
        wait()
    rates = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
            if batch == 1:  # it is latency that matters
                wait()
        wait()
        rates.append(batch * STEPS / (time.perf_counter() - start))
    return rates


def images(task, precision, batch, side):
    """Return images on the device for the peer: NHWC in memory, and float16 if the whole network
    is; with float32 weights, the conversion is part of the step."""
    import cupy
    import numpy as np

    from trainer.engines.cudnn import generic

    half = task == 'infer' and precision == 'mixed'
    x = generic.empty(cupy, (batch, 3, side, side), np.float16 if half else np.float32)
    rng = np.random.default_rng(0)
    x[...] = cupy.asarray(rng.standard_normal(x.shape).astype(x.dtype))
    return x


def ours(task, network, batch, how, data):
    import trainer  # noqa: F401  before Chainer

    # isort: split
    import chainer
    import cupy
    import numpy as np

    import resnext
    import resnext_ilsvrc
    from trainer import engines
    from trainer.training.captured_step import CapturedStep

    engine, precision, why = engines.choose(0, how, task != 'infer')
    if engine != 'cudnn':
        sys.exit(why)
    if task == 'main':
        return main_py(network, batch, precision, data)
    if network == 'resnext50':
        model, side, classes = resnext_ilsvrc.resnext50(), 224, 1000
    else:
        C = int(network[5])
        model, side, classes = resnext.PaperResNext(10, C=C, d=64), 32, 10
    model.weight_initialization(0)
    model.check_gpu(0)
    x = images(task, precision, batch, side)
    wait = cupy.cuda.Device().synchronize
    if task == 'infer':
        predictor = model.predictor('cudnn', precision)
        rates = blocks(lambda: predictor(x), wait, batch)
        pool = predictor._room.pool
    else:
        optimizer = chainer.optimizers.MomentumSGD(0.01).setup(model)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-4))
        if precision == 'mixed':
            optimizer.loss_scaling()
        t = cupy.asarray(np.random.default_rng(0).integers(0, classes, batch).astype(np.int32))
        step = CapturedStep(optimizer, model.device)
        with chainer.using_config('engine', engine), chainer.using_config('precision', precision):
            rates = blocks(lambda: step(x, t), wait, batch)
        pool = step._room.pool
    return rates, cupy.get_default_memory_pool().total_bytes() + pool.total_bytes()


def main_py(network, batch, precision, data):
    """Time the epochs of a run with the original's recipe and the paper's network."""
    import cupy

    from trainer.training import extensions, run

    times = []

    class Timed(extensions.LearningRate):
        def __call__(self, trainer):
            super().__call__(trainer)
            at = trainer.updater.iteration % self.iterations
            if at in (0, 1):  # after the last update of an epoch, and after the first
                cupy.cuda.Device().synchronize()
                times.append(time.perf_counter())

    extensions.LearningRate = Timed
    with tempfile.TemporaryDirectory() as folder:
        run.train(
            save_path=folder,
            data=data,
            gpu=0,
            precision=precision,
            batch=batch,
            train_batch_divide=1,
            network='paper',  # the peer's network, not the original's
            depth=29,
            C=int(network[5]),
            d=64,
            epoch=EPOCHS,
            seed=0,
            say=lambda text: print(text, file=sys.stderr),
        )
    images = 50000 - batch
    bare = [images / (end - begin) for begin, end in zip(times[2::2], times[3::2])]
    whole = [50000 / (after - before) for before, after in zip(times[1::2], times[3::2])]
    assert len(bare) == EPOCHS - 1
    return bare, cupy.cuda.Device().mem_info[1] - cupy.cuda.Device().mem_info[0], whole


def torch_network(network):
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels, width, out, stride, groups):
            super().__init__()
            self.main = nn.Sequential(
                nn.Conv2d(channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, out, 1, bias=False),
                nn.BatchNorm2d(out),
            )
            self.shortcut = (
                nn.Identity()
                if (channels, stride) == (out, 1)
                else nn.Sequential(
                    nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )
            )
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.main(x) + self.shortcut(x))

    def stages(channels, counts, width, groups):
        parts, out = [], 256
        for i, count in enumerate(counts):
            for j in range(count):
                parts.append(Block(channels, width << i, out << i, 2 if i and not j else 1, groups))
                channels = out << i
        return parts, channels

    if network == 'resnext50':
        head = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        parts, channels = stages(64, (3, 4, 6, 3), 128, 32)
        classes = 1000
    else:
        C = int(network[5])
        head = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        parts, channels = stages(64, (3, 3, 3), 64 * C, C)
        classes = 10
    return nn.Sequential(
        *head, *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    ), classes


def peer(task, network, batch, how, data):
    import torch

    if WAITS in os.environ:  # compiling; nothing else runs while a row is measured
        os.nice(10)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model, classes = torch_network(network)
    kind = {'tf32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}[how.split()[0]]
    side = 224 if network == 'resnext50' else 32
    x = torch.randn(batch, 3, side, side, device='cuda').to(memory_format=torch.channels_last)
    t = torch.randint(0, classes, (batch,), device='cuda')
    model = model.cuda().to(memory_format=torch.channels_last)
    compiled = how.endswith('compile')
    if task == 'infer':
        model.eval()
        if kind is not None:
            model, x = model.to(kind), x.to(kind)
        if compiled:
            model = torch.compile(model, mode='reduce-overhead')  # as fast as max-autotune, sooner

        def step():
            with torch.inference_mode():
                model(x)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
        loss = torch.nn.CrossEntropyLoss()
        if compiled:
            model = torch.compile(model, mode='reduce-overhead' if side == 32 else None)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast('cuda', kind or torch.float32, enabled=kind is not None):
                value = loss(model(x), t)
            value.backward()
            optimizer.step()

    rates = blocks(step, torch.cuda.synchronize, batch)
    return rates, torch.cuda.max_memory_allocated()


@contextlib.contextmanager
def in_turn():
    """Time plans while no other process does, if rows are set up side by side."""
    if WAITS not in os.environ:
        yield
        return
    import fcntl

    from trainer.engines.cudnn import timing

    compute = timing._times

    def locked(*args):
        with open(os.environ[WAITS], 'a') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return compute(*args)

    with mock.patch.object(timing, '_times', locked):
        yield


def measure_row(row, data):
    task, network, batch, library, how = ROWS[row]
    if library == 'ours':
        with in_turn():
            found = ours(task, network, batch, how, data)
    else:
        found = peer(task, network, batch, how, data)
    rates, memory, *whole = found
    print(json.dumps({'rates': rates, 'memory': memory, 'whole': whole and whole[0]}))


class Process:
    """The process of a row; with a lock, it waits after its set-up until it is asked."""

    def __init__(self, row, data, lock=None):
        self.row = row
        self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115  it is read at the end
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
        if lock is not None:
            environment[WAITS] = lock
            # Else the peer's compilers take the cores from everything that is set up beside them.
            environment.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '4')
        self.process = subprocess.Popen(
            [sys.executable, __file__, '--row', row] + (['--data', data] if data else []),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ready(self, seconds):
        """Return whether it is set up within a number of seconds."""
        lines, _, _ = select.select([self.process.stdout], [], [], max(0, seconds))
        return bool(lines) and self.process.stdout.readline().strip() == READY

    def stop(self):
        self.process.kill()
        self.process.wait()

    def result(self):
        """Return the measurement, or the last line of the error."""
        try:
            lines = self.process.communicate('\n')[0].splitlines()
        except BrokenPipeError:
            lines = []
        self.log.seek(0)
        errors = self.log.read().strip().splitlines() or ['?']
        if self.process.wait() or not lines:
            return None, errors[-1][:60]
        return json.loads(lines[-1]), None


def one_by_one(rows, data):
    """Yield rows and their processes."""
    for row in rows:
        yield row, Process(row, data)


def side_by_side(rows, data, seconds):
    """As :func:`one_by_one`, but all rows are set up at once, within a number of seconds.

    Runs of main.py cannot wait: they come last.
    """
    alone = [row for row in rows if row.startswith('main.py')]
    with tempfile.TemporaryDirectory() as folder:
        lock = os.path.join(folder, 'lock')
        processes = [Process(row, data, lock) for row in rows if row not in alone]
        end = time.monotonic() + seconds
        waiting = []
        for process in processes:
            if process.ready(end - time.monotonic()):
                waiting.append(process)
            else:
                process.stop()
        for process in processes:
            yield process.row, process if process in waiting else None
    yield from one_by_one(alone, data)


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('-o', '--output', default='gpu.json', help='where the numbers go, as JSON')
    p.add_argument('--only', nargs='+', default=[''], help='only the rows with one of these words')
    p.add_argument('--data', help='folder with CIFAR-10, for the rows main.py')
    p.add_argument(
        '--together',
        type=float,
        metavar='SECONDS',
        help='set the rows up side by side, for so many seconds at most; needs the memory of all',
    )
    p.add_argument('--row', help=argparse.SUPPRESS)
    return p


def versions():
    found = subprocess.run(
        [
            sys.executable,
            '-c',
            'import cupy, cudnn, torch; print(torch.cuda.get_device_name(0), '
            '"CuPy", cupy.__version__, "cuDNN", cudnn.backend_version(), "PyTorch", '
            'torch.__version__)',
        ],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        _refuse(
            'needs a GPU, CuPy, nvidia-cudnn-frontend and PyTorch: '
            f'{found.stderr.strip().splitlines()[-1]}'
        )
    return found.stdout.strip()


def _refuse(why):
    print(f'gpu.py: error: {why}', file=sys.stderr)
    sys.exit(2)


def print_row(row, found):
    rates, whole = found['rates'], found['whole']
    print(
        '{:44s} {:10,.0f} {:>17s} {:8.2f}{}'.format(
            row,
            statistics.median(rates),
            f'{min(rates):,.0f}..{max(rates):,.0f}',
            found['memory'] / 2**30,
            f' ({statistics.median(whole):,.0f})' if whole else '',
        ),
        flush=True,
    )


def print_bars(found):
    print('\n{:44s} {:>10s} {:>17s} {:>8s}'.format('', 'times peer', 'wanted', 'memory'))
    for row, other, wanted in BARS:
        if row in found and other in found:
            ours_, theirs = found[row], found[other]
            speed = statistics.median(ours_['rates']) / statistics.median(theirs['rates'])
            memory = ours_['memory'] / theirs['memory']
            print(f'{row:44s} {speed:10.2f} {wanted:17.1f} {memory:8.2f}')


def main():
    args = parser().parse_args()
    if args.row:
        measure_row(args.row, args.data)
        return
    found = {'machine': versions()}
    print(found['machine'])
    from trainer import files  # not in the processes that PyTorch is measured in

    try:
        files.save_json(args.output, found)
    except OSError as e:
        _refuse(f'-o {args.output}: cannot be written ({e.strerror})')
    rows = [row for row in ROWS if any(word in row for word in args.only)]
    if not args.data:
        for row in rows:
            if row.startswith('main.py'):
                print(f'{row:44s} not run: needs --data')
        rows = [row for row in rows if not row.startswith('main.py')]
    print('{:44s} {:>10s} {:>17s} {:>8s}'.format('', 'images/s', 'range', 'GiB'))
    if args.together is None:
        processes = one_by_one(rows, args.data)
    else:
        processes = side_by_side(rows, args.data, args.together)
    for row, process in processes:
        result, why = (None, 'not set up in time') if process is None else process.result()
        if result is None:
            print(f'{row:44s} failed: {why}')
            continue
        found[row] = result
        print_row(row, result)
        files.save_json(args.output, found)
    print_bars(found)


if __name__ == '__main__':
    main()
