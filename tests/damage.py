"""Damaged files for the tests and for benchmarks/convert.py."""

import collections
import io
import pathlib
import tempfile
import time

import numpy as np
import t7_files

import resnext_ilsvrc
from trainer.errors import InputError
from trainer.weights import npz

# Lengths and counts as they stand in files, made absurd.
_HUGE = [
    (-1).to_bytes(4, 'little', signed=True),
    (2**31 - 1).to_bytes(4, 'little'),
    (-1).to_bytes(8, 'little', signed=True),
    (2**62).to_bytes(8, 'little'),
    (10**9).to_bytes(8, 'little'),
]


def damaged(data, rng, avoid=()):
    """Yield (what was done, damaged bytes) without end.

    Args:
        data (bytes): The whole file.
        rng (numpy.random.Generator): Where the damage is.
        avoid (list of tuple): (first, last + 1) of bytes that half of the damages spare:
            what is not numbers is little, and is where damage does most.
    """
    spared = np.ones(len(data), bool)
    for first, end in avoid:
        spared[first:end] = False
    places = np.flatnonzero(spared)
    while True:
        at = int(rng.choice(places) if rng.random() < 0.5 else rng.integers(len(data)))
        kind = rng.choice(
            [
                'cut',
                'bit',
                'bit',
                'byte',
                'byte',
                'huge',
                'huge',
                'insert',
                'delete',
                'zeros',
                'swap',
                'append',
            ]
        )
        damage = bytearray(data)
        if kind == 'cut':
            del damage[at if rng.random() < 0.7 else len(data) - int(rng.integers(1, 99)) :]
        elif kind == 'bit':
            damage[at] ^= 1 << int(rng.integers(8))
        elif kind == 'byte':
            damage[at] = int(rng.integers(256))
        elif kind == 'huge':
            huge = _HUGE[rng.integers(len(_HUGE))]
            damage[at : at + len(huge)] = huge
        elif kind == 'insert':
            damage[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 'delete':
            del damage[at : at + int(rng.integers(1, 9))]
        elif kind == 'zeros':
            end = min(at + int(rng.integers(1, 99)), len(data))
            damage[at:end] = bytes(end - at)
        elif kind == 'swap':
            other = int(rng.integers(len(data)))
            damage[at], damage[other] = damage[other], damage[at]
        else:
            damage += rng.bytes(int(rng.integers(1, 99)))
        if damage != data:
            yield f'{kind} at {at}', bytes(damage)


def places(data, storages):
    """Find the bytes of arrays in a file: a list of (first, last + 1)."""
    found = []
    for storage in storages:
        at = data.find(storage.tobytes())
        assert at >= 0
        found.append((at, at + storage.nbytes))
    return found


def compare(whole, read, data, damaged, numbers):
    """Judge what was read from a damaged file.

    Args:
        whole, read (dict): Arrays of the whole and of the damaged file.
        data, damaged (bytes): The files.
        numbers (list): From :func:`places`, of float32 arrays in a file without
            checksums: it cannot tell a damaged weight from another weight.

    Returns:
        str: 'equal arrays', 'damaged numbers as they are', or ``None``: read wrongly.
    """
    if set(whole) != set(read) or any(whole[n].shape != read[n].shape for n in whole):
        return None
    values = set()
    if len(data) == len(damaged):
        for at in np.flatnonzero(np.frombuffer(data, 'u1') != np.frombuffer(damaged, 'u1')):
            values |= {
                damaged[at - (at - first) % 4 :][:4] for first, end in numbers if first <= at < end
            }
    changed = {v.tobytes() for n in whole for v in read[n][whole[n] != read[n]]}
    if not changed:
        return 'equal arrays'
    return 'damaged numbers as they are' if changed <= values else None


def small_t7():
    """Make a small Torch7 file with all that a file can have: (bytes, places of its numbers)."""
    tree = t7_files.Builder(clear=False).network(
        'cifar', (2, 1), 2, 2, 8, 16, 3, bottleneck='resnext_B'
    )
    t7_files.share_storage(tree)
    with io.BytesIO() as f:
        t7_files.Writer(f).write(tree)
        data = f.getvalue()
    storages = {
        id(t.storage): t.storage.array
        for module in tree.walk()
        for t in module.fields.values()
        if isinstance(t, t7_files.Tensor) and t.storage is not None
    }
    return data, places(data, storages.values())


def small_npz():
    """Make a small npz file of this project: its bytes."""
    network = resnext_ilsvrc.ResNext(3, (2, 1), 2, 2, 2, stem_width=8)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'small.npz')
        network.save_model(path)
        return path.read_bytes()


def campaign(path, read, data, numbers, count, seed):
    """Read damaged files, each of which must end in the whole one's arrays or in one line.

    Args:
        path (pathlib.Path): Where to write them.
        read (callable): path -> network.
        data (bytes): The whole file.
        numbers (list): See :func:`compare`.
        count (int): How many. seed (int): Which.

    Returns:
        tuple: Counter of outcomes, and the longest time in s.
    """

    def arrays():
        return {name: np.array(array) for name, array in npz.state(read(path)).items()}

    path.write_bytes(data)
    whole = arrays()
    outcomes, slowest = collections.Counter(), 0
    damages = damaged(data, np.random.default_rng(seed), numbers)
    for _, (how, damage) in zip(range(count), damages):
        path.write_bytes(damage)
        start = time.perf_counter()
        try:
            outcome = compare(whole, arrays(), data, damage, numbers)
            assert outcome, f'read wrongly: {how}'
        except InputError as e:
            assert '\n' not in str(e) and str(path) in str(e), how
            outcome = 'one line'
        slowest = max(slowest, time.perf_counter() - start)
        outcomes[outcome] += 1
    return outcomes, slowest
