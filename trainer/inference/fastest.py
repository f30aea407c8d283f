"""Chooses the fastest installed engine for inference on this CPU, by timing once.

Whether OpenVINO or ONNX Runtime is faster depends on the CPU. The choice is cached in Chainer's
dataset folder, per CPU and package version.
"""

import contextlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable

import chainer
import numpy as np

from trainer import files

#: Engines that run the network's ONNX graph, in the order of preference if untimed.
CANDIDATES = ('openvino', 'onnxruntime')

#: Batch sizes that are timed, and number of rounds.
_BATCHES, _ROUNDS = (1, 8), 3


def _cpu():
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
        for line in f:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _key(names):
    versions = (f'{name} {importlib.metadata.version(name)}' for name in names)
    return '; '.join((_cpu(), f'{os.cpu_count()} cores', *versions))


def _path():
    return os.path.join(chainer.dataset.get_dataset_directory('resnext'), 'inference.json')


def _cached():
    with contextlib.suppress(OSError, ValueError):
        kept = files.read_json(_path())
        if isinstance(kept, dict):
            return kept
    return {}


def _time(engines, side):
    """Return the name with the smallest product of times over the batches."""
    names = list(engines)
    times = dict.fromkeys(names, 1.0)
    for batch in _BATCHES:
        x = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
        least = dict.fromkeys(names, np.inf)
        for engine in engines.values():
            engine(x)
        for _ in range(_ROUNDS):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine(x)
                least[name] = min(least[name], time.perf_counter() - start)
        for name in names:
            times[name] *= least[name]
    return min(times, key=times.get)


def engine(names: list, make: Callable, side: int) -> str:
    """Return the fastest of some engines, timed or from the cache.

    Args:
        names: Names of installed engines, at least one.
        make: Returns the predictor of an engine, given its name.
        side: Width and height of the timed images, in pixels.
    """
    if len(names) == 1:
        return names[0]
    key, kept = _key(names), _cached()
    if kept.get(key) in names:
        return kept[key]
    print(f'timing {" and ".join(names)} on this CPU, once', file=sys.stderr)
    kept[key] = _time({name: make(name) for name in names}, side)
    with contextlib.suppress(OSError):  # without a cache, the next call times them again
        files.save_json(_path(), kept)
    return kept[key]
