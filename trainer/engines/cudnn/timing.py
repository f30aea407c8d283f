"""Chooses the fastest of several implementations by timing, and caches the choice on disk.

An implementation ("way") is a function without arguments: one of cuDNN's execution plans for a
graph, or one of several graphs and kernels that compute the same. Choices are cached for each
GPU model and version of cuDNN.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import chainer
import tqdm

from trainer import cuda, files
from trainer.engines.cudnn import library
from trainer.settings import settings

if TYPE_CHECKING:
    import cupy

    from trainer.types import R, T

#: Runs in each graph that is timed, so that launch overhead does not count.
REPEATED = 10

#: Seconds of warm-up before timing: an idle GPU has reduced clocks.
WARM_UP = 0.02

#: Rounds in which each way is timed in turn; the minimum counts.
ROUNDS = 3

#: Ways that take so many times as long as the fastest are not timed in further rounds.
HOPELESS = 2


def untimed(when: bool = True) -> AbstractContextManager[None]:
    """Return a context manager that disables timing if ``when`` is true."""
    return settings.using(plans=1 if when else settings.plans)


# The bars of :func:`progress`.
_bars: list[tqdm.tqdm] = []


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Show on a terminal how many shapes have been timed, if that takes longer than a second."""
    with tqdm.tqdm(
        desc='timed', unit=' shapes', delay=1, leave=False, ncols=79, disable=None
    ) as bar:
        _bars.append(bar)
        try:
            yield
        finally:
            _bars.remove(bar)


class NoPlan(Exception):
    """cuDNN has no plan for this."""


@contextlib.contextmanager
def _stream():
    """Enter the current stream, or a new one if that is the null stream, which cannot be
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
        cupy.get_default_memory_pool().free_all_blocks(stream)  # pools are per stream


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
        fastest_yet = min(least.values())
        for name, graph in graphs.items():
            if least[name] > HOPELESS * fastest_yet:
                continue
            graph.launch()  # keeps the GPU busy until the timed launch is queued
            begin.record()
            graph.launch()
            end.record()
            end.synchronize()
            least[name] = min(least[name], cupy.cuda.get_elapsed_time(begin, end) / REPEATED)
    return least


def milliseconds(run: Callable[[], object]) -> float:
    """Return the time of a function on the GPU, replayed as a CUDA graph.

    This is how it runs in a training step; launched from Python, small kernels would be
    limited by launch overhead.
    """
    run()
    with _stream() as stream:
        return _times({'': _capture(run, stream, REPEATED)}, stream)['']


def fastest(key: str, ways: Iterable[tuple[T, Callable[[], object]]], timed: bool) -> T:
    """Return the name of the fastest way, or of the first one if ``timed`` is false.

    Ways that cannot be captured in a CUDA graph are skipped.

    Args:
        key: What is computed.
        ways: Pairs of a name and a function that has already run once.
        timed: Whether to time them.

    Raises:
        NoPlan: No way can be captured.
    """
    graphs, why = {}, ''
    with _stream() as stream:
        # All run before any is captured: a way that caches arrays on its first run must not get
        # blocks that a captured graph writes.
        for name, run in list(ways) if timed else ways:
            try:
                graphs[name] = _capture(run, stream, REPEATED if timed else 1)
            except RuntimeError as e:
                why = str(e)  # keeping the exception would keep the arrays of its frames alive
                continue
            if not timed:
                return name
        if not graphs:
            raise NoPlan(f'{key} (not captured: {why})')
        times = _times(graphs, stream)
        return min(times, key=times.get)


# (GPU, operation) -> (name of the chosen way, whether the ways were timed).
_ways: dict[tuple[library.Device, str], tuple[str, bool]] = {}


def by_time(
    key: str, ways: Mapping[str, Callable[[], R]], changed: Sequence[cupy.ndarray] = ()
) -> R:
    """Compute in the fastest of several ways and remember the choice.

    Args:
        key: What is computed.
        ways: Name -> function; functions that raise :class:`NoPlan` are skipped.
        changed: Arrays that the functions update in place; they are restored before the result is
            computed.

    Raises:
        NoPlan: No way is supported.
    """
    key = f'{key} of {", ".join(ways)}'  # a choice among other ways is none among these
    timed, here = settings.plans > 1, (library.device(), key)
    name, was_timed = _ways.get(here) or (choices().get(key), True)
    if name is not None and name in ways and (was_timed or not timed):
        with contextlib.suppress(NoPlan):  # chosen on another machine
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
    """Run each way once; yield those that are supported."""
    runs, why = False, ''
    for name, way in ways.items():
        try:
            way()
        except NoPlan as e:
            why = why or str(e)
        else:
            runs = True
            yield name, way
    if not runs:
        raise NoPlan(why)


# The cache on disk.

#: The choices that come with the project, timed while nothing else ran on the GPU.
_OURS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'choices')


@functools.cache
def _name(device):
    import cupy

    # CUDA takes a millisecond to answer, and a step asks a thousand times.
    properties = cupy.cuda.runtime.getDeviceProperties(device)
    return properties['name'].decode().replace(' ', '_')


def _file():
    import cupy

    return f'{_name(cupy.cuda.Device().id)}_{library.version()}.json'


def _path():
    return os.path.join(chainer.dataset.get_dataset_directory('resnext'), f'cudnn_{_file()}')


@functools.cache
def _read(path):
    try:
        kept = files.read_json(path)
        return kept if isinstance(kept, dict) else {}
    except (OSError, ValueError):
        return {}


def choices() -> collections.ChainMap[str, str]:
    """Return the choices for this GPU model: key -> name of the plan or way.

    Cached choices precede those that come with the project (``choices/``).
    """
    return collections.ChainMap(_read(_path()), _read(os.path.join(_OURS, _file())))


def forget(key: str) -> None:
    """Forget a choice that cannot be used here."""
    for kept in choices().maps:
        kept.pop(key, None)


def keep(key: str, name: str) -> None:
    """Cache a choice for this and later processes."""
    for bar in _bars:
        bar.update()
    path = _path()
    kept = _read(path)
    kept[key] = name
    kept.update({**_read.__wrapped__(path), **kept})  # merges what other processes added
    with contextlib.suppress(OSError):  # without a cache the choice is made again next time
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
