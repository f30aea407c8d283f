"""Training on the CPU, side by side with PyTorch: whole steps, loss and update included.

    python benchmarks/cpu_training.py [-o cpu_training.json] [--only WORD] [--rounds 9]

CIFAR's ResNeXt-29 2x64d and ResNeXt-50 32x4d, with images in memory, by each engine and
precision that this machine has, by plain Chainer, and by PyTorch: eager in NCHW and in
channels_last, and compiled. Each runs in a process of its own. In each round each of them
computes some steps while the others wait, so that whatever else the machine does falls on all;
ratios are medians over the rounds of one round's times. Where other work has the cores, threads
wait for one another and wall-clock time says little: there ``--threads 1`` and the seconds of CPU
time, which are given as well, still compare.

'products' is a bound, not a contender: matrix products by oneDNN with as many operations as the
convolutions of a step have.

Needs PyTorch (``--torch`` names another Python that has it). OPENBLAS_CORETYPE is taken out of
the environment: where it is set it can halve the speed of NumPy's products.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np  # noqa: E402

#: name -> (image size, classes, batch)
CASES = {
    'cifar 2x64d b16': (32, 10, 16),
    'cifar 2x64d b64': (32, 10, 64),
    'resnext50 b8': (224, 1000, 8),
}

#: name -> (precision, what computes it)
CONTENDERS = {
    'reference float32': ('float32', 'reference'),
    'numpy float32': ('float32', 'numpy'),
    'onednn float32': ('float32', 'onednn'),
    'onednn bfloat16': ('bfloat16', 'onednn'),
    'products float32': ('float32', 'products'),
    'products bfloat16': ('bfloat16', 'products'),
    'pytorch NCHW float32': ('float32', 'NCHW'),
    'pytorch channels_last float32': ('float32', 'channels_last'),
    'pytorch compile float32': ('float32', 'compile'),
    'pytorch channels_last bfloat16': ('bfloat16', 'channels_last'),
    'pytorch compile bfloat16': ('bfloat16', 'compile'),
}

#: Size of image -> GFLOP of a step's convolutions for one image: three times the forward pass, less
#: the gradient of the images.
OPERATIONS = {32: 8.463, 224: 25.135}

LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4


def batch_of(case):
    size, classes, batch = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    return x, rng.integers(0, classes, batch).astype(np.int32)


def ours(case, precision, engine):
    """Return a function that performs a step and returns its loss."""
    import resnext
    import resnext_ilsvrc
    from trainer import engines
    from trainer.training.step import Step

    import chainer  # isort: skip

    engines.choose(-1, precision, engine=engine)
    if case.startswith('cifar'):
        network = resnext.PaperResNext(10, (3, 3, 3), C=2, d=64)
    else:
        network = resnext_ilsvrc.resnext50()
    network.weight_initialization(0)
    optimizer = chainer.optimizers.MomentumSGD(LEARNING_RATE, MOMENTUM).setup(network)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(DECAY))
    chainer.global_config.engine, chainer.global_config.precision = engine, precision
    step = Step(optimizer, chainer.get_device('@numpy'))
    x, t = batch_of(case)
    return lambda: step(x, t)[0]


def plain_products(case, precision, how):
    """Return a function that computes matrix products with the operations of a step."""
    from trainer.engines.onednn import maps, products

    size, _, batch = CASES[case]
    dtype = maps.BFLOAT16 if precision == 'bfloat16' else maps.FLOAT32
    side, operations = 2048, OPERATIONS[size] * 1e9 * batch
    number = math.ceil(operations / (2 * side**3))
    rows = round(operations / (2 * side**2 * number))
    rng = np.random.default_rng(0)
    x, w = (
        maps.convert(rng.standard_normal(shape).astype(np.float32), dtype)
        for shape in ((1, side, rows, 1), (side, side, 1, 1))
    )

    def step():
        for _ in range(number):
            y = products.forward(x, w)
        return float(y[0, 0, 0, 0])

    return step


def pytorch(case, precision, how):
    """As :func:`ours`, with PyTorch."""
    import torch
    import torch_networks

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    torch.manual_seed(0)
    if case.startswith('cifar'):
        model = torch_networks.Prlz77(torch_networks.Sizes((3, 3, 3), 2, 128, 256, 64, 10))
    else:
        model = torch_networks.Torchvision(
            torch_networks.Sizes((3, 4, 6, 3), 32, 128, 256, 64, 1000)
        )
    x, t = (torch.from_numpy(a) for a in batch_of(case))
    t = t.long()
    if how != 'NCHW':
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY
    )
    compute = torch.compile(model) if how == 'compile' else model

    def step():
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            loss = torch.nn.functional.cross_entropy(compute(x).float(), t)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def serve(case, contender):
    """Perform as many steps as each line of standard input asks for; answer in JSON."""
    precision, how = CONTENDERS[contender]
    kind = {'pytorch': pytorch, 'products': plain_products}.get(contender.split()[0], ours)
    step = kind(case, precision, how)
    start = time.perf_counter()
    loss = step()
    first = time.perf_counter() - start
    step()
    print(json.dumps({'first': first, 'loss': loss}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        found = {
            'seconds': (time.perf_counter() - wall) / int(line),
            'CPU seconds': (time.process_time() - cpu) / int(line),
            'peak MB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(found), flush=True)


class Worker:
    """A contender in its own process.

    Attributes:
        found (dict): Times of its steps: 'seconds' and 'CPU seconds', a list with a number for
            each round; 'first step, s' and 'peak MB', numbers.
    """

    def __init__(self, case, contender, python, threads):
        environment = {k: v for k, v in os.environ.items() if k != 'OPENBLAS_CORETYPE'}
        for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
            environment[name] = str(threads)
        self._process = subprocess.Popen(
            [python, __file__, '--serve', case, contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.found = {'seconds': [], 'CPU seconds': []}

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._process.stderr.read().strip().splitlines()[-1])
        return json.loads(line)

    def begin(self):
        self.found['first step, s'] = self._answer()['first']

    def steps(self, n):
        print(n, file=self._process.stdin, flush=True)
        answer = self._answer()
        for what in ('seconds', 'CPU seconds'):
            self.found[what].append(answer[what])
        self.found['peak MB'] = answer['peak MB']

    def end(self):
        self._process.stdin.close()
        self._process.wait()


def measure(case, contenders, rounds, steps, threads, pythons):
    """Return the results of each contender."""
    workers = {}
    for name in contenders:
        worker = Worker(case, name, pythons[name.startswith('pytorch')], threads)
        try:
            worker.begin()
        except RuntimeError as e:
            print(f'left out: {name}: {e}', flush=True)
            continue
        workers[name] = worker
    for _ in range(rounds):
        for worker in workers.values():
            worker.steps(steps)
    for worker in workers.values():
        worker.end()
    return {name: worker.found for name, worker in workers.items()}


def ratio(mine, other, what):
    """Return the speed ratio: the rounds' median, least and greatest."""
    ratios = np.divide(other[what], mine[what])
    return [float(f(ratios)) for f in (np.median, np.min, np.max)]


def peers(found, precision):
    """Return the peers of an engine in a precision: name -> results."""
    eager = [
        found[name]
        for name in (f'pytorch {how} {precision}' for how in ('NCHW', 'channels_last'))
        if name in found
    ]
    given = {
        'plain Chainer': found.get('reference float32'),
        'PyTorch eager': min(eager, key=lambda o: np.median(o['seconds']), default=None),
        'torch.compile': found.get(f'pytorch compile {precision}'),
    }
    return {name: other for name, other in given.items() if other is not None}


def report(case, found):
    """Print a table, and add the ratios to the results."""
    batch = CASES[case][2]
    print(f'\n{case}: images/s and CPU seconds of a step (medians), first step, peak memory')
    for name, of in found.items():
        of['images/s'] = batch / float(np.median(of['seconds']))
        print(
            f'{name:32s} {of["images/s"]:8.2f} {np.median(of["CPU seconds"]):7.2f} s '
            f'{of["first step, s"]:7.2f} s {of["peak MB"]:7.0f} MB'
        )
    for name, of in found.items():
        if name.startswith(('pytorch', 'reference', 'products')):
            continue
        for peer, other in peers(found, name.split()[-1]).items():
            for what in ('seconds', 'CPU seconds'):
                median, least, most = of[f'{what}, times {peer}'] = ratio(of, other, what)
                print(f'{name:18s} {median:.2f} times {peer} [{least:.2f} to {most:.2f}], {what}')
    sys.stdout.flush()


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('-o', '--output', metavar='FILE', help='write the results to a JSON file')
    p.add_argument('--only', metavar='WORD', nargs='+', help='contenders whose names have a WORD')
    p.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--steps', type=int, default=2, help='of each contender in a round')
    p.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument('--torch', metavar='PYTHON', default=sys.executable)
    p.add_argument('--serve', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.serve:
        return serve(*args.serve)
    contenders = [
        name for name in CONTENDERS if not args.only or any(word in name for word in args.only)
    ]
    results = {}
    for case in args.cases:
        results[case] = measure(
            case, contenders, args.rounds, args.steps, args.threads, (sys.executable, args.torch)
        )
        report(case, results[case])
    if args.output:
        from trainer import files

        files.save_json(args.output, results)


if __name__ == '__main__':
    main()
