"""Campaigns of damage: many files of each kind, read in a monitored process, and the outcomes."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import tempfile
import threading
import time
import zlib

import damage
import numpy as np
import tqdm

from helpers import kinds, watched


@dataclasses.dataclass
class Row:
    """Outcomes of the files of a kind: counts, faults, maxima of time and memory."""

    name: str
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: list = dataclasses.field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0
    peak: int = 0

    def add(self, outcome, how):
        self.counts[outcome.kind] += 1
        self.cpu, self.wall = max(self.cpu, outcome.cpu), max(self.wall, outcome.wall)
        self.peak = max(self.peak, outcome.peak)
        if outcome.fault:
            self.faults.append(f'{self.name}, {how}: {outcome.fault}: {outcome.text}')


def damage_files(watch, name: str, count: int, seed: int, tell=lambda: None) -> Row:
    """Read damaged files of a kind (of :data:`helpers.kinds.KINDS`).

    Args:
        watch: The monitored reader. name: The kind. count: Number of files. seed: Of the damages.
        tell: Called after each file.
    """
    row, kind = Row(name), kinds.KINDS[name]
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(kind.make(folder))
        watch.whole(name, path)
        data = path.read_bytes()
        avoid = damage.small_t7()[1] if name == 't7' else ()
        for _, (how, damaged) in zip(range(count), damage.damaged(data, rng, avoid)):
            path.write_bytes(damaged)
            row.add(watch.read(name, path), how)
            tell()
    return row


def harm(watch, kind: str, cases, tell=lambda: None) -> Row:
    """Read hostile files of a kind; cases: (name, make: (folder) -> path)."""
    row = Row(kind)
    for name, make in cases:
        with tempfile.TemporaryDirectory() as folder:
            row.add(watch.read(kind, make(folder)), name)
        tell()
    return row


def side_by_side(calls, total: int, workers: int, what: str) -> list:
    """Call functions of (watch, tell) in threads, each with its own watch; show progress."""
    local, lock, watches = threading.local(), threading.Lock(), []
    with tqdm.tqdm(total=total, desc=what, unit='file', ncols=79) as bar:

        def tell():
            with lock:
                bar.update()

        def begin():
            local.watch = watched.Watch()
            watches.append(local.watch)

        with concurrent.futures.ThreadPoolExecutor(workers, initializer=begin) as pool:
            rows = list(pool.map(lambda call: call(local.watch, tell), calls))
    for watch in watches:
        watch.end()
    return rows


def table(rows: list[Row]) -> str:
    """Return a table as lines: outcomes, time and memory of each kind."""
    head = '{:<18s} {:>6s} {:>6s} {:>6s} {:>6s} {:>6s} {:>7s} {:>7s} {:>6s}'
    lines = [head.format('', 'files', 'line', 'equal', 'other', 'fault', 'CPU s', 'time s', 'MB')]
    for row in [*rows, total(rows)]:
        lines.append(
            head.format(
                row.name[:18],
                *(
                    f'{n:,}'
                    for n in (
                        row.counts.total(),
                        row.counts['line'],
                        row.counts['equal'],
                        row.counts['other values'],
                        len(row.faults),
                    )
                ),
                f'{row.cpu:.2f}',
                f'{row.wall:.2f}',
                f'{row.peak / 1e6:.0f}',
            )
        )
    return '\n'.join(lines)


def total(rows: list[Row]) -> Row:
    """Return all rows in one."""
    both = Row('together')
    for row in rows:
        both.counts += row.counts
        both.faults += row.faults
        both.cpu, both.wall = max(both.cpu, row.cpu), max(both.wall, row.wall)
        both.peak = max(both.peak, row.peak)
    return both


def machine() -> str:
    """Return a line on when and where this runs."""
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0
    return f'{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores, load {load:.0f}'
