"""The time left that pytest shows while the tests run."""

import pathlib
import types

from helpers import time_left


class Cache(dict):
    def set(self, key, value):
        self[key] = value


def test_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_left.time, 'monotonic', lambda: now[0])
    cache = Cache({time_left.KEY: {'a': 100.0, 'b': 100.0, 'c': 400.0}})
    plugin = time_left.TimeLeft(types.SimpleNamespace(cache=cache))
    items = [types.SimpleNamespace(nodeid=name) for name in 'abcd']
    plugin.pytest_collection_finish(types.SimpleNamespace(items=items))
    # d is new, and is taken to be as long as tests are on average: 200 s.
    assert plugin.pytest_report_collectionfinish() == 'about 13:20 minutes as the last time'
    assert plugin.left() is None

    def run(name, seconds):
        for when, took in (('setup', 0.0), ('call', seconds), ('teardown', 0.0)):
            plugin.pytest_runtest_logreport(
                types.SimpleNamespace(nodeid=name, when=when, duration=took)
            )
        now[0] += seconds

    run('a', 100)
    assert plugin.left() == 700
    run('b', 320)  # the machine has become busy: half as fast
    assert plugin.left() == 600 * 440 / 220
    plugin.pytest_sessionfinish()
    assert cache[time_left.KEY] == {'a': 100.0, 'b': 320.0, 'c': 400.0}


def test_every_slow_test_is_there():
    here = pathlib.Path(__file__).parent
    for line in (here / 'slow.txt').read_text().split():
        file, *_, name = line.split('::')
        assert f'def {name}(' in (here.parent / file).read_text(), line


def test_nothing_is_said_of_what_is_not_known():
    plugin = time_left.TimeLeft(types.SimpleNamespace(cache=Cache()))
    plugin.pytest_collection_finish(types.SimpleNamespace(items=[]))
    assert plugin.pytest_report_collectionfinish() is None and plugin.left() is None
