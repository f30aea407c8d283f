"""The plan of a captured graph's memory."""

import numpy as np
import pytest

from trainer.engines.cudnn import arena


def peak(sizes, freed):
    """Return the most bytes in use at once, of the blocks that are freed."""
    return max(
        sum(s for j, (s, f) in enumerate(zip(sizes, freed)) if f is not None and j <= i < f)
        for i in range(len(sizes))
    )


def check(sizes, freed):
    offsets, whole = arena.plan(sizes, freed)
    for i, (offset, size, end) in enumerate(zip(offsets, sizes, freed)):
        if end is None:
            assert offset is None
            continue
        assert 0 <= offset <= whole - size
        for j in range(i + 1, end):  # allocated while i exists
            if offsets[j] is not None:
                assert offset + size <= offsets[j] or offsets[j] + sizes[j] <= offset
    return whole


@pytest.mark.parametrize('seed', range(5))
def test_blocks_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    sizes = (512 * rng.integers(1, 1000, 200)).tolist()
    freed = [
        None if rng.random() < 0.05 else min(200, i + int(rng.integers(1, 40))) for i in range(200)
    ]
    whole = check(sizes, freed)
    assert peak(sizes, freed) <= whole <= 1.3 * peak(sizes, freed)


def test_a_network_needs_its_peak():
    """Feature maps live until the backward pass returns to them; in between are workspaces."""
    maps = [512 * 2 ** (12 - i // 4) for i in range(16)]
    sizes, freed = [], []
    for size in maps:
        sizes += [size, 4096 * 7]
        freed += [None, len(sizes)]
    for i, size in reversed(list(enumerate(maps))):
        sizes += [size, 4096 * 9]
        freed += [len(sizes) + 1, len(sizes)]
        freed[2 * i] = len(sizes)
    freed = [min(f, len(sizes)) for f in freed]
    assert check(sizes, freed) <= 1.05 * peak(sizes, freed)


def test_nothing():
    assert arena.plan([], []) == ([], 0)


class Memory:
    """A stand-in for the memory that a pool returns."""

    device_id = 0

    def __init__(self, size):
        self.ptr, self.size = 1 << 20, size


@pytest.fixture
def blocks(monkeypatch):
    """Pointers as (address, owner)."""
    monkeypatch.setattr(
        arena,
        '_pointer',
        lambda memory, offset, size, on_free: (memory.ptr + offset, arena._Owner(memory, on_free)),
    )


def recorded():
    recording = arena.Recording(Memory)
    first = recording.allocate(1000)
    second = recording.allocate(2000)
    del first
    third = recording.allocate(900)  # noqa: F841  is left behind
    fourth = recording.allocate(1000)
    del second, fourth
    recording.end()
    assert recording.sizes == [1024, 2048, 1024, 1024]
    assert recording.freed == [2, 4, None, 4]
    return recording


def test_an_arena_allocates_as_recorded(blocks):
    made = arena.Arena(recorded(), Memory)
    first, second = made.allocate(1000), made.allocate(2000)
    assert {first[0], second[0]} == {(1 << 20) + 2048, 1 << 20}
    del first
    assert made.allocate(900) is None  # what is left behind comes from the pool
    assert made.allocate(1000)[0] == (1 << 20) + 2048
    assert made.allocate(1000) is None  # more than was recorded


def test_what_is_freed_late_is_not_overwritten(blocks):
    made = arena.Arena(recorded(), Memory)
    first = made.allocate(1000)
    made.allocate(2000), made.allocate(900)
    assert made.allocate(1000) is None
    del first


def test_another_order_is_left_to_the_pool(blocks):
    made = arena.Arena(recorded(), Memory)
    assert made.allocate(2000) is None
    assert made.allocate(1000) is None
