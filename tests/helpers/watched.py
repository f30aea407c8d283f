"""Reads files in a process whose time, memory and actions are monitored.

:class:`Watch` starts this file as a script, which reads one file after the other by the
readers of :mod:`helpers.kinds`.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

if __name__ == '__main__':
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[n]) for n in (2, 1)]

#: Bars: seconds of CPU, bytes beside what the process had, characters of a line.
SECONDS, BYTES, CHARACTERS = 10, 10**9, 500
#: Seconds after which a process counts as hanging, even on a busy machine.
HANGS = 60
#: Limit of the address space, in bytes: more than a process may use, far less than there is.
ADDRESSES = 4 * 10**9
#: The longest prefix of messages, from a script's name.
PROG = 'ilsvrc_converter.py: error: '

#: Python's audit events (sys.addaudithook) when contents of a file are executed.
DEEDS = {
    'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.startfile',
    'subprocess.Popen', 'pickle.find_class', 'socket.connect', 'os.remove', 'shutil.rmtree',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a file.

    Attributes:
        kind: 'equal', 'other values', 'line', or the fault.
        text: The line, or details of the fault.
        cpu, wall: Seconds. peak: Bytes.
    """

    kind: str
    text: str
    cpu: float = 0.0
    wall: float = 0.0
    peak: int = 0

    @property
    def fault(self) -> str:
        """The missed bar, or an empty string."""
        if self.kind not in ('equal', 'other values', 'line'):
            return self.kind
        if self.cpu > SECONDS:
            return 'slow'
        if self.peak > BYTES or 'MemoryError' in self.text or 'not enough memory' in self.text:
            return 'memory'
        return ''


class Watch:
    """A process that reads files; it is restarted if a file ended it.

    Args:
        hangs: Seconds after which it is killed. more: A module whose
            ``register()`` adds to :data:`helpers.kinds.KINDS`.
    """

    def __init__(self, hangs: float = HANGS, more: str = ''):
        self._more = [more] if more else []
        self.hangs, self._process, self._whole = hangs, None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def _start(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1'),
        )
        answers = self._process.stdout
        if not (select.select([answers], [], [], 300)[0] and answers.readline()):
            raise RuntimeError('the process that reads files does not start')
        self._know()

    def end(self):
        """End the process; the next read starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, what, limit):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(what).encode() + b'\n')
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self.end()
            return Outcome('hung', f'{limit} s')
        answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            self.end()
            return Outcome('ended', signal.Signals(-status).name if status < 0 else str(status))
        return Outcome(**json.loads(answer))

    def whole(self, kind: str, path) -> None:
        """Store the content of a kind's valid file, with which damaged ones are compared."""
        self._whole = kind, pathlib.Path(path), pathlib.Path(path).read_bytes()
        if self._process is None:
            self._start()
        else:
            self._know()

    def _know(self):
        if self._whole is None:
            return
        kind, path, data = self._whole
        damaged = path.read_bytes() if path.exists() else data
        path.write_bytes(data)
        outcome = self._ask({'kind': kind, 'path': os.fspath(path), 'whole': True}, 300)
        path.write_bytes(damaged)
        assert outcome.kind == 'equal', (kind, outcome)

    def read(self, kind: str, path) -> Outcome:
        """Read a file as one of a kind."""
        if self._process is None:
            self._start()
        asked = {'kind': kind, 'path': os.fspath(path), 'whole': False, 'changed': None}
        if self._whole is not None and self._whole[1] == path:
            asked['changed'] = _changed(self._whole[2], path.read_bytes())
        return self._ask(asked, self.hangs)


def _changed(data, damaged):
    if len(data) != len(damaged):
        return None
    return sum(a != b for a, b in zip(data, damaged))


# ---- in the process


class _Deeds(list):
    """Actions since it was cleared, except those of files that are being written."""

    def __init__(self):
        super().__init__()
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if event in DEEDS:
            self.append(f'{event} {arguments!r:.80}')


def _peak():
    with open('/proc/self/status') as f:
        return int(next(line for line in f if line.startswith('VmHWM')).split()[1]) * 1024


def _bounded(read, path):
    """Return (seconds of CPU, wall-clock seconds, bytes, content, exception)."""
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # the peak is now what there is
    before, cpu, wall = _peak(), time.process_time(), time.monotonic()
    came = error = None
    try:
        came = read(path)
    except BaseException as e:
        error = e
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return cpu, wall, _peak() - before, came, error


def _line(error, path):
    """Return (kind, text) of an exception."""
    from trainer import cli
    from trainer.errors import InputError

    if isinstance(error, InputError) and len(error.args) > 1:
        return 'several lines', str(error)[:500]
    line = cli.reason(error)
    if line is None:
        return 'traceback', f'{type(error).__name__}: {str(error)[:300]}'
    if not line.isprintable() or len(PROG + line) > CHARACTERS:
        return 'not printable', ascii(line)[:300]
    # Or the flag that stands in a record, damaged.
    there = path, *map(str, pathlib.Path(path).parents[:2]), '--'
    if not any(part in line for part in there):
        return 'no name', line
    return 'line', line


def _judge(kind, whole, came, changed):
    if kind.same(whole, came):
        return 'equal', ''
    if kind.has_checksum:
        return 'silently different', ''
    return ('other values', '') if kind.may_differ(whole, came, changed) else ('read wrongly', '')


def _answer(asked, wholes, deeds, noise):
    from helpers import kinds

    kind, path = kinds.KINDS[asked['kind']], asked['path']
    deeds.clear()
    noise.truncate(0)
    noise.seek(0)
    cpu, wall, peak, came, error = _bounded(kind.read, path)
    done = list(deeds)
    sys.stdout.flush()
    noise.seek(0)
    if asked['whole'] and error is None:
        wholes.clear()
        wholes[asked['kind']] = came
    said = noise.read()
    if done:
        what = 'executed', '; '.join(done)[:300]
    elif said:
        what = 'noise', ascii(said.decode(errors='replace')[:300])
    elif error is not None:
        what = _line(error, path)
    elif asked['kind'] in wholes:
        what = _judge(kind, wholes[asked['kind']], came, asked.get('changed'))
    else:
        what = 'other values', ''
    return dict(kind=what[0], text=what[1], cpu=cpu, wall=wall, peak=peak)


def main():
    """Answer on the original standard output; anything else printed there counts as noise."""
    import resource

    answers = os.fdopen(os.dup(1), 'w')
    with tempfile.TemporaryFile() as noise:
        from helpers import kinds

        kinds.warm_up()
        for module in sys.argv[1:]:
            importlib.import_module(module).register()
        os.dup2(noise.fileno(), 1)
        os.dup2(noise.fileno(), 2)
        with open('/proc/self/statm') as f:
            held = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        deeds, wholes = _Deeds(), {}
        print('ready', file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), wholes, deeds, noise)), file=answers)
            answers.flush()


if __name__ == '__main__':
    main()
