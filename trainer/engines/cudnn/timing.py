"""Of several ways to compute the same the fastest one, found by time and kept on disk.

A way is a function without arguments: a plan of cuDNN's for a graph, or one graph where two
would do. Choices are kept for each kind of GPU and version of cuDNN.
"""

import contextlib
import functools
import math
import os
import sys
import time

import chainer

from trainer import cuda, files
from trainer.engines.cudnn import library

# How many plans are timed for each graph, once. 1 takes the best one known so far, or the
# first that runs: for shapes that are seldom computed timing is not worth its time, and while
# a CUDA graph is captured it is not possible.
chainer.global_config.plans = 6

#: Runs in each graph that is timed.
REPEATED = 10

#: Seconds of work before anything is timed: a GPU that was idle runs slowly at first.
WARM_UP = 0.02

#: How often each way is timed, in turn with the others; the least time counts.
ROUNDS = 3


def untimed(when: bool = True):
    """Return a context manager in which no plans are timed, if ``when`` is true."""
    return chainer.using_config('plans', 1 if when else chainer.config.plans)


class NotSupported(Exception):
    """cuDNN has no plan for this."""


@contextlib.contextmanager
def _stream():
    """Enter the current stream, or another where that is the null stream, which cannot be
    captured."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    if stream.ptr != cupy.cuda.Stream.null.ptr:
        yield stream
        return
    stream, device = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Device()
    device.synchronize()
    try:
        with stream:
            yield stream
    finally:
        device.synchronize()
        cupy.get_default_memory_pool().free_all_blocks(stream)  # it is kept for each stream


def _capture(run, stream, times):
    def repeated():
        for _ in range(times):
            run()

    return cuda.capture(stream, repeated)[0]


def _times(graphs, stream):
    """Return the milliseconds of a run in each of several captured graphs, by name."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    until = time.perf_counter() + WARM_UP
    while time.perf_counter() < until:
        next(iter(graphs.values())).launch()
        stream.synchronize()
    least = dict.fromkeys(graphs, math.inf)
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            graph.launch()  # the timed one is then queued before the GPU gets to it
            begin.record()
            graph.launch()
            end.record()
            end.synchronize()
            least[name] = min(least[name], cupy.cuda.get_elapsed_time(begin, end) / REPEATED)
    return least


def milliseconds(run) -> float:
    """Return the time of a function on the GPU, replayed as a CUDA graph.

    So it runs in a training step; launched one by one, what is small would take as long as
    Python does.
    """
    run()
    with _stream() as stream:
        return _times({'': _capture(run, stream, REPEATED)}, stream)['']


def fastest(key: str, ways, timed: bool):
    """Return the name of the fastest of several ways, or of the first if they are not timed.

    A way that cannot be captured in a CUDA graph is passed over.

    Args:
        key (str): What is computed.
        ways (iterable): Pairs of a name and a function, which has run by then.
        timed (bool): Whether to time them.

    Raises:
        NotSupported: None can be captured.
    """
    graphs, why = {}, ''
    with _stream() as stream:
        # All have run before any is captured: memory that a graph uses must not become that of
        # what another way makes once and keeps.
        for name, run in list(ways) if timed else ways:
            try:
                graphs[name] = _capture(run, stream, REPEATED if timed else 1)
            except RuntimeError as e:
                why = str(e)  # an exception that is kept would keep the arrays of its frames
                continue
            if not timed:
                return name
        if not graphs:
            raise NotSupported(f'{key} (not captured: {why})')
        times = _times(graphs, stream)
        return min(times, key=times.get)


# What is computed in which of several ways in this process: (GPU, key) -> (name, whether they
# were timed).
_ways = {}


def by_time(key: str, ways: dict, changed=()):
    """Compute in the fastest of several ways, name -> function; remember which that is.

    Args:
        key (str): What is computed.
        ways (dict): The functions; one that raises :class:`NotSupported` is passed over.
        changed (sequence of cupy.ndarray): Arrays that they change.

    Raises:
        NotSupported: In no way.
    """
    timed, here = chainer.config.plans > 1, (library.device(), key)
    name, was_timed = _ways.get(here) or (choices().get(key), True)
    if name in ways and (was_timed or not timed):
        with contextlib.suppress(NotSupported):  # it was chosen on another machine
            return ways[name]()
    before = [array.copy() for array in changed]
    name = fastest(key, _running(ways), timed)
    for array, kept in zip(changed, before, strict=True):
        array[...] = kept
    _ways[here] = name, timed
    if timed:
        keep(key, name)
    return ways[name]()


def _running(ways):
    """Yield the ways that run, once each has."""
    runs, why = False, ''
    for name, way in ways.items():
        try:
            way()
        except NotSupported as e:
            why = why or str(e)
        else:
            runs = True
            yield name, way
    if not runs:
        raise NotSupported(why)


# The choices of earlier processes.


def _path():
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    folder = chainer.dataset.get_dataset_directory('resnext')
    name = properties['name'].decode().replace(' ', '_')
    return os.path.join(folder, f'cudnn_{name}_{library.version()}.json')


@functools.cache
def _read(path):
    try:
        kept = files.read_json(path)
        return kept if isinstance(kept, dict) else {}
    except (OSError, ValueError):
        return {}


def choices() -> dict:
    """Return what was chosen on GPUs of this kind: key of a graph -> name of the plan or way."""
    return _read(_path())


def keep(key: str, name: str) -> None:
    """Keep a choice, for this process and later ones."""
    kept, path = choices(), _path()
    kept[key] = name
    kept.update({**_read.__wrapped__(path), **kept})  # another process may time others
    with contextlib.suppress(OSError):  # a choice that cannot be kept is made again
        files.save_json(path, kept)


@functools.cache
def _say(path):
    print(
        'timing what cuDNN offers for these shapes, once for this GPU: a minute or more; the '
        f'choice goes to\n{path}',
        file=sys.stderr,
        flush=True,
    )


def say_once() -> None:
    """Say, once for each kind of GPU, that plans are being timed."""
    _say(_path())
