"""The remaining time next to pytest's percentage, from the last run's times of the remaining tests
and the speed of this run."""

import time

import pytest

KEY = 'seconds/of_tests'


class TimeLeft:
    """A plugin of pytest that stores the times of tests in pytest's cache."""

    def __init__(self, config):
        self._cache = getattr(config, 'cache', None)
        self._known = self._cache.get(KEY, {}) if self._cache else {}
        self._seconds, self._expected, self._done = {}, {}, set()

    def pytest_collection_finish(self, session):
        self._collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        # Each of several processes collects them all.
        self._collected(ids)

    def _collected(self, names):
        usual = sum(self._known.values()) / max(len(self._known), 1)
        self._expected = {name: self._known.get(name, usual) for name in names}
        self._begun = time.monotonic()

    def pytest_report_collectionfinish(self):
        known = sum(name in self._known for name in self._expected)
        if known > len(self._expected) / 2:
            return f'about {clock(sum(self._expected.values()))} as the last time'
        return None

    def pytest_runtest_logreport(self, report):
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0) + report.duration
        if report.when == 'teardown':
            self._done.add(name)

    def left(self):
        """Return the remaining seconds; ``None`` if no times are known."""
        if not self._done or not self._known:
            return None
        done = sum(self._expected.get(name, 0) for name in self._done)
        ahead = sum(self._expected.values()) - done
        # At the start, the speed of this run is not reliable.
        speed = (time.monotonic() - self._begun + 20) / (done + 20)
        return max(0, ahead) * speed

    def pytest_sessionfinish(self):
        if self._cache:
            self._cache.set(KEY, self._known | {n: round(s, 2) for n, s in self._seconds.items()})


def clock(seconds):
    """Return minutes and seconds."""
    return f'{round(seconds) // 60}:{round(seconds) % 60:02d} minutes'


def register(config):
    """Show the time left in pytest's lines of progress."""
    if hasattr(config, 'workerinput'):  # one of several processes: the first one shows it
        return
    plugin = TimeLeft(config)
    config.pluginmanager.register(plugin, 'time-left')
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    usual = getattr(reporter, '_get_progress_information_message', None)
    if usual is None:  # pytest's own affair, and another pytest's may be called otherwise
        return

    def message():
        said, left = usual(), plugin.left()
        return said if left is None or not said.endswith(']') else f'{said[:-1]}, {clock(left)}]'

    reporter._get_progress_information_message = message
