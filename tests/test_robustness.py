"""A sample of benchmarks/robustness.py: damaged and hostile files, killed runs; and tests of the
monitor itself."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
from helpers import campaigns, harmful, kills, kinds, misbehaving, watched

from trainer.weights import npz

if not os.path.exists('/proc/self/clear_refs'):
    pytest.skip('needs Linux, whose /proc tells what a process uses', allow_module_level=True)


@pytest.fixture(scope='module')
def watch():
    found = watched.Watch()
    yield found
    found.end()


def test_damaged_files_of_each_kind(watch):
    installed = importlib.util.find_spec('safetensors') is not None
    names = [name for name in kinds.KINDS if installed or name != 'safetensors']
    rows = [campaigns.damage_files(watch, name, 4, 1) for name in names]
    whole = campaigns.total(rows)
    assert not whole.faults, whole.faults
    assert whole.counts.total() == 4 * len(names) and whole.counts['line'] > 50
    assert len(campaigns.table(rows).splitlines()) == len(rows) + 2


def test_files_made_to_harm(watch):
    """Some of each kind; the quick ones."""
    cases = {}
    for kind, name, make in harmful.cases()[::9]:
        if 'members' not in name and 'million' not in name and 'size' not in name:
            cases.setdefault(kind, []).append((name, make))
    rows = [campaigns.harm(watch, kind, chosen) for kind, chosen in cases.items()]
    whole = campaigns.total(rows)
    assert not whole.faults, whole.faults
    assert whole.counts['line'] > 30


@pytest.mark.parametrize('kind', ['npz', 'pth, zip'])
def test_directories_of_many_members(watch, kind, tmp_path):
    path = tmp_path / ('x.pth' if kind.startswith('pth') else 'x.npz')
    harmful.zip_directory(path, 400_000)
    outcome = watch.read(kind, path)
    assert not outcome.fault and 'its directory has more than 8,388,608 bytes' in outcome.text
    assert outcome.peak < 100e6


@pytest.mark.parametrize('kind', ['webp', 'avif'])
def test_images_that_would_be_read_whole(watch, kind, tmp_path):
    path = kinds.KINDS[kind].make(tmp_path)
    os.truncate(path, 16 << 30)
    outcome = watch.read(kind, path)
    assert not outcome.fault and '17,179,869,184 bytes, and no image of' in outcome.text


def test_zip_archives_are_read_as_before(tmp_path):
    arrays = {str(i): np.full(i % 7, i) for i in range(3000)}
    np.savez(tmp_path / 'x.npz', **arrays)
    found = npz.read_arrays(tmp_path / 'x.npz')
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


class _Calls:
    def __reduce__(self):
        return os.system, ('true',)


def test_the_watch_sees(tmp_path):
    """The monitor detects misbehaving readers."""
    watch = watched.Watch(more='helpers.misbehaving')
    path = tmp_path / 'x'
    path.write_bytes(pickle.dumps(_Calls()))
    for name in misbehaving.READERS:
        watch.hangs = 3 if name == 'hung' else watched.HANGS
        if name == 'silently different':
            watch.whole(name, path)
            path.write_bytes(b'other')
        assert watch.read(name, path).fault == name
        path.write_bytes(pickle.dumps(_Calls()))
    watch.end()


@pytest.mark.parametrize('how', ['moments', 'operations'])
def test_kills(how):
    found = kills.campaign('average', how, 4, 60)
    assert found.kills >= 1 and found.ends >= 1 and not found.differ, found


def test_kills_that_lose_something_are_found(tmp_path):
    campaign = kills.Campaign('alone', tmp_path, 'operations', 0)
    campaign._start(tmp_path / '0').join()
    models = tmp_path / '0' / 'model'
    (models / sorted(os.listdir(models))[0]).write_bytes(b'')
    campaign._compare(tmp_path / '0')
    assert campaign.found.differ
