"""The simulated device: memory, pools, streams, events and graphs.

Work runs when it is submitted (:func:`submit`), or is recorded where its stream is being
captured, as a closure over addresses: what it reads may be given to others before it runs.
Every block of memory remembers on which stream it was last written and read, and work that
has no event or synchronisation between itself and what it depends on raises :class:`Race`.
"""

import atexit
import bisect
import collections
import contextlib
import ctypes
import mmap
import os
import sys
import threading

import numpy as np

#: Bytes of memory that nobody has written: NaN in every float type.
POISON = 0xFF
#: Bytes behind each block, which nobody may write.
GUARD, GUARD_BYTES = 0xFD, 256


class CUDARuntimeError(RuntimeError):
    """An error that CUDA itself would return."""

    def __init__(self, name, message):
        super().__init__(f'{name}: {message}')


class SimulationError(Exception):
    """What a GPU would do silently: a race, or memory written where it must not be.

    It is no RuntimeError, as CUDA's errors are, so that nobody takes it for one and goes on.
    """


class Race(SimulationError):
    """Work of two streams meets in memory without an event or synchronisation between."""


class OutOfMemoryError(MemoryError):
    """There is no memory left."""


def _refuse_capture(what):
    if _local.capture is not None:
        _local.capture.invalid = True
        raise CUDARuntimeError(
            'cudaErrorStreamCaptureUnsupported',
            f'operation not permitted when stream is capturing ({what})',
        )


# Memory.


class _Arena:
    """All memory of the device, one mapping that is never given back."""

    def __init__(self):
        size = 1 << 37
        while True:
            try:
                # MAP_NORESERVE
                self.map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
                break
            except OSError:
                size //= 2
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.base = self.bytes.ctypes.data
        self.end = 0
        self.blocks, self.starts = [], []  # in the order of their addresses
        self.free = []  # returned by free_all_blocks: as after cudaFree

    def block(self, rounded):
        """As cudaMalloc."""
        for i, block in enumerate(self.free):
            if block.rounded == rounded:
                return self.free.pop(i)
        if self.end + rounded + GUARD_BYTES > len(self.bytes):
            raise OutOfMemoryError(f'Out of memory allocating {rounded} bytes')
        block = Block(self.base + self.end, rounded)
        self.end += -(-(rounded + GUARD_BYTES) // 512) * 512
        self.blocks.append(block)
        self.starts.append(block.ptr)
        return block

    def find(self, ptr, size=1, captured=False):
        """Return the block that holds [ptr, ptr + size); of one that was freed after work on it was
        captured, all is there."""
        i = bisect.bisect_right(self.starts, ptr) - 1
        if i >= 0:
            block = self.blocks[i]
            there = block.rounded if captured and not block.used else block.size
            if ptr + size <= block.ptr + there:
                return block
        raise CUDARuntimeError(
            'cudaErrorIllegalAddress',
            f'an illegal memory access was encountered ({size} bytes at {ptr:#x})',
        )


class Block:
    """A piece of memory: its whole size is a multiple of 512, the guard behind it aside."""

    __slots__ = ('ptr', 'rounded', 'size', 'used', 'written', 'read', 'stream')

    def __init__(self, ptr, rounded):
        self.ptr, self.rounded, self.size, self.used = ptr, rounded, rounded, False
        self.written, self.read = None, {}

    def give(self, size):
        """Take it into use: poisoned, with a guard behind the bytes asked for."""
        begin = self.ptr - arena.base
        if _local.capture is None:
            arena.bytes[begin : begin + size] = POISON
        else:  # what was recorded before may use these bytes too, up to the last
            size = self.rounded
        self.size, self.used = size, True
        arena.bytes[begin + size : begin + self.rounded + GUARD_BYTES] = GUARD

    def check(self):
        begin = self.ptr - arena.base
        if (arena.bytes[begin + self.size : begin + self.rounded + GUARD_BYTES] != GUARD).any():
            arena.bytes[begin + self.size : begin + self.rounded + GUARD_BYTES] = GUARD
            _errors.append(f'memory was written behind the end of a block of {self.size} bytes')


arena = _Arena()
_errors = []  # found where nothing could be raised


def check_memory():
    """Raise if anything was written behind the end of a block."""
    for block in arena.blocks:
        if block.used:
            block.check()
    _raise_errors()


def _raise_errors():
    if _errors:
        message = '; '.join(sorted(set(_errors)))
        _errors.clear()
        raise SimulationError(message)


@atexit.register
def _report():
    with contextlib.suppress(Exception):
        for block in arena.blocks:
            if block.used:
                block.check()
    if _errors:
        print('SimulationError at exit: ' + '; '.join(_errors), file=sys.stderr, flush=True)
        os._exit(70)


class PooledMemory:
    """Owns a block, which goes back to its pool with the last reference."""

    def __init__(self, pool, block):
        self._pool, self._block = pool, block
        self.ptr, self.size, self.device_id = block.ptr, block.size, 0
        self.device = Device(0)

    def __del__(self, is_finalizing=sys.is_finalizing):
        if is_finalizing():
            return
        self._block.check()
        self._block.used = False
        # A deque's append needs no lock: this may run in the middle of malloc.
        self._pool._returned.append(self._block)


class UnownedMemory:
    """Memory that belongs to another object, which lives as long as this does."""

    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self.device_id, self._owner = ptr, size, max(device_id, 0), owner
        self.device = Device(0)


class MemoryPointer:
    """Part of a memory: ``ptr`` is its address."""

    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset
        self.device_id, self.device = 0, mem.device

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def copy_from_host_async(self, mem, size, stream=None):
        stream = stream or get_current_stream()
        if stream.is_capturing():
            raise RuntimeError('the current stream is capturing, so H2D transfers are disallowed')
        runtime_memcpy(self.ptr, _address(mem), size, 1, stream)

    def copy_to_host_async(self, mem, size, stream=None):
        stream = stream or get_current_stream()
        if stream.is_capturing():
            raise RuntimeError('the current stream is capturing, so D2H transfers are disallowed')
        runtime_memcpy(_address(mem), self.ptr, size, 2, stream)

    def memset_async(self, value, size, stream=None):
        target = view(self.ptr, (size,), np.uint8)
        submit(lambda: target.fill(value), (), (self.ptr,), stream)


def _address(pointer):
    return pointer if isinstance(pointer, int) else pointer.value


def view(ptr, shape, dtype, strides=None):
    """Return a NumPy array on the device's memory, which it does not own."""
    return np.ndarray(shape, dtype, arena.map, ptr - arena.base, strides)


class MemoryPool:
    """Keeps freed blocks, for each stream, as CuPy's does: the next one of that size gets them."""

    def __init__(self, allocator=None):
        self._free = collections.defaultdict(list)
        self._used = self._total = 0
        self._returned = collections.deque()
        self._lock = threading.RLock()

    def _collect(self):
        while self._returned:
            block = self._returned.popleft()
            self._used -= block.rounded
            self._free[block.stream].append(block)

    def malloc(self, size):
        _context()
        _raise_errors()
        rounded = -(-max(int(size), 1) // 512) * 512
        with self._lock:
            self._collect()
            stream = get_current_stream().ptr
            # Best fit; CuPy would split a large one, and merge the parts later.
            fitting = [b for b in self._free[stream] if rounded <= b.rounded <= 2 * rounded]
            if fitting:
                block = min(fitting, key=lambda b: b.rounded)
                self._free[stream].remove(block)
            else:
                block = arena.block(rounded)
                self._total += block.rounded
            block.stream = stream
            self._used += block.rounded
            block.give(int(size))
        return MemoryPointer(PooledMemory(self, block), 0)

    def used_bytes(self):
        self._collect()
        return self._used

    def total_bytes(self):
        return self._total

    def free_all_blocks(self, stream=None):
        _refuse_capture('cudaFree')
        with self._lock:
            self._collect()
            synchronize()  # as cudaFree does
            for free in [self._free[stream.ptr]] if stream else list(self._free.values()):
                self._total -= sum(b.rounded for b in free)
                arena.free += free
                free.clear()


class _Local(threading.local):
    stream = allocator = capture = None


_local = _Local()
default_pool = MemoryPool()


def alloc(size):
    """Allocate by the current allocator."""
    return (_local.allocator or default_pool.malloc)(size)


def _plain(size):
    return MemoryPool().malloc(size)


@contextlib.contextmanager
def using_allocator(allocator=None):
    """Allocate by ``allocator`` in this thread for a while."""
    before, _local.allocator = _local.allocator, allocator or _plain
    try:
        yield
    finally:
        _local.allocator = before


# Host memory that the device can reach.


_pinned = {}


def is_pinned(ptr, size=1):
    """Whether [ptr, ptr + size) is page-locked."""
    return any(p <= ptr and ptr + size <= p + n for p, n in list(_pinned.items()))


def alloc_pinned_memory(size):
    """Return page-locked memory: a buffer with its address, ``ptr``."""
    length = max(int(size), 1)

    class PinnedMemoryPointer(ctypes.Array):
        _type_, _length_ = ctypes.c_char, length

        def size(self):
            return size

        def __del__(self):
            # Freeing waits for the copies from and to it: its address may be used again.
            _finish(lambda stream, clock, host: self.ptr <= host < self.ptr + length)
            _pinned.pop(self.ptr, None)

    buffer = PinnedMemoryPointer()
    buffer.ptr = ctypes.addressof(buffer)
    _pinned[buffer.ptr] = len(buffer)
    return buffer


class PinnedMemoryPool:
    """Page-locked memory, which the simulation does not pool."""

    def malloc(self, size):
        return alloc_pinned_memory(size)

    def free_all_blocks(self):
        pass

    def n_free_blocks(self):
        return 0


# Streams. A clock is the number of pieces of work of a stream that have been submitted;
# 'seen' says, stream by stream, which of them are known to be done before what comes next.


def _merge(into, other):
    for stream, clock in other.items():
        if into.get(stream, 0) < clock:
            into[stream] = clock


_host_seen = {}
_streams = {}
_transfers = []  # from and to page-locked memory, which nobody has waited for yet


def _wait(seen):
    """The host learns what is done."""
    _merge(_host_seen, seen)
    _finish(lambda stream, clock, host: _host_seen.get(stream, 0) >= clock)


def _finish(done):
    """Finish the copies of which ``done(stream, clock, host address)`` is true."""
    finished = [copy for copy in _transfers if done(*copy[:3])]
    _transfers[:] = [copy for copy in _transfers if copy not in finished]
    for *_, finish in finished:
        finish()


_pid = None


def _context():
    global _pid
    if _pid is None:
        _pid = os.getpid()
    elif _pid != os.getpid():
        raise CUDARuntimeError(
            'cudaErrorInitializationError', 'initialization error (CUDA does not survive a fork)'
        )


class _Capture:
    def __init__(self, stream):
        self.origin, self.streams = stream, {stream.ptr: stream}
        self.work, self.reads, self.writes = [], set(), set()
        self.invalid = False


class Stream:
    """A CUDA stream."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        assert not ptds, 'the simulation has no per-thread default streams'
        self.ptr = 0 if null else 0x5000 + 16 * len(_streams)
        self.is_non_blocking, self.device_id = non_blocking, -1 if null else 0
        self._clock, self._seen, self._capture, self._before = 0, {}, None, []
        if self.ptr in _streams:  # Stream(null=True)
            self.__dict__ = _streams[0].__dict__
        else:
            _streams[self.ptr] = self

    def __eq__(self, other):
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        self._before.append(_local.stream)
        _local.stream = self
        return self

    def __exit__(self, *args):
        _local.stream = self._before.pop()

    def use(self):
        _local.stream = self
        return self

    @property
    def done(self):
        _refuse_capture('cudaStreamQuery')
        self._wait()
        return True

    def synchronize(self):
        _refuse_capture('cudaStreamSynchronize')
        self._wait()
        _raise_errors()

    def _wait(self):
        self._follow()
        _wait({**self._seen, self.ptr: self._clock})

    def _follow(self):
        """Take in what this stream waits for without being told."""
        _merge(self._seen, _host_seen)
        if not self.is_non_blocking:
            for other in list(_streams.values()):
                if not other.is_non_blocking and 0 in (self.ptr, other.ptr):
                    _merge(self._seen, other._seen)
                    _merge(self._seen, {other.ptr: other._clock})

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if event._capture is not None and event._capture is not self._capture:
            capture = event._capture
            if self._capture is not None or capture.origin._capture is not capture:
                raise CUDARuntimeError(
                    'cudaErrorStreamCaptureIsolation',
                    'dependency created on uncaptured work in another stream',
                )
            self._capture = capture
            capture.streams[self.ptr] = self
        elif event._capture is None and self._capture is not None and event._seen is not None:
            self._capture.invalid = True
            raise CUDARuntimeError(
                'cudaErrorStreamCaptureIsolation',
                'dependency created on uncaptured work in another stream',
            )
        if event._seen is not None:
            _merge(self._seen, event._seen)

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError('cannot capture on the default (legacy) stream')
        if self._capture is not None:
            raise CUDARuntimeError('cudaErrorIllegalState', 'the stream is capturing already')
        self._follow()
        self._capture = _local.capture = _Capture(self)

    def end_capture(self):
        capture = self._capture
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError(
                'cudaErrorStreamCaptureUnmatched', 'the capture was not initiated in this stream'
            )
        _local.capture = None
        unjoined = [
            s
            for s in capture.streams.values()
            if s is not self and self._seen.get(s.ptr, 0) < s._clock
        ]
        for stream in capture.streams.values():
            stream._capture = None
        if capture.invalid:
            raise CUDARuntimeError(
                'cudaErrorStreamCaptureInvalidated',
                'operation failed due to a previous error during capture',
            )
        if unjoined:
            raise CUDARuntimeError(
                'cudaErrorStreamCaptureUnjoined', 'capturing stream has unjoined work'
            )
        return Graph(capture)

    def is_capturing(self):
        return self._capture is not None


class Event:
    """A CUDA event. Times are of the host's clock: the simulation says nothing of speed."""

    _count = 0

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        Event._count += 1
        self.ptr = 0x7000 + Event._count
        self._timing, self._seen, self._capture, self._number = not disable_timing, None, None, 0

    def record(self, stream=None):
        stream = stream or get_current_stream()
        if stream._capture is None:
            stream._follow()
        self._seen = dict(stream._seen)
        _merge(self._seen, {stream.ptr: stream._clock})
        self._capture = stream._capture
        Event._count += 1
        self._number = Event._count

    def _refuse(self, what):
        _refuse_capture(what)
        if self._capture is not None:
            raise CUDARuntimeError(
                'cudaErrorCapturedEvent',
                'operation not permitted on an event last recorded in a capturing stream',
            )

    @property
    def done(self):
        self._refuse('cudaEventQuery')
        _wait(self._seen or {})
        return True

    def synchronize(self):
        self._refuse('cudaEventSynchronize')
        _wait(self._seen or {})
        _raise_errors()


def get_elapsed_time(start_event, end_event):
    """Return milliseconds between two events: here, the number of calls between them."""
    for event in (start_event, end_event):
        event._refuse('cudaEventElapsedTime')
        if event._seen is None or not event._timing:
            raise CUDARuntimeError('cudaErrorInvalidResourceHandle', 'invalid resource handle')
    return float(end_event._number - start_event._number)


def get_current_stream(device_id=-1):
    return _local.stream or Stream.null


Stream.null = Stream(null=True)


class Graph:
    """Captured work. It owns none of the memory that it works on."""

    def __init__(self, capture):
        self._work, self._reads, self._writes = capture.work, capture.reads, capture.writes

    def launch(self, stream=None):
        stream = stream or get_current_stream()

        def replay():
            for work in self._work:
                work(stream) if isinstance(work, _Transfer) else work()

        submit(replay, self._reads, self._writes, stream, captured=True)


def submit(work, reads, writes, stream=None, captured=False):
    """Run or record a piece of work.

    Args:
        work (callable): Called without arguments; it may hold addresses, but owns no memory.
        reads, writes (iterables of int): Addresses in the blocks that it reads and writes.
        stream (Stream): ``None`` is the current one.
        captured (bool): Whether it is a graph, which may work on freed memory.
    """
    _context()
    _raise_errors()
    stream = stream or get_current_stream()
    stream._clock += 1
    capture = stream._capture
    if capture is not None:
        capture.work.append(work)
        capture.reads.update(reads)
        capture.writes.update(writes)
        return
    if _local.capture is not None or (
        stream.ptr == 0 and any(s._capture for s in list(_streams.values()))
    ):
        for other in list(_streams.values()):
            if other._capture:
                other._capture.invalid = True
        raise CUDARuntimeError(
            'cudaErrorStreamCaptureImplicit',
            'operation would make the legacy '
            'stream depend on a capturing blocking stream, or is work on '
            'another stream than the one that this thread captures',
        )
    stream._follow()

    def depend(on, kind):
        for other, clock in on:
            if other != stream.ptr and stream._seen.get(other, 0) < clock:
                raise Race(
                    f'stream {stream.ptr:#x} {kind} what stream {other:#x} uses, with no event or '
                    'synchronisation between'
                )

    written = [arena.find(p, captured=captured) for p in writes]
    read = [arena.find(p, captured=captured) for p in reads]
    for block in read + written:
        depend([block.written] if block.written else (), 'reads or writes')
    for block in written:
        depend(block.read.items(), 'writes')
    for block in read:
        block.read[stream.ptr] = stream._clock
    for block in written:
        block.written, block.read = (stream.ptr, stream._clock), {}
    work(stream) if isinstance(work, _Transfer) else work()


def runtime_memcpy(dst, src, size, kind, stream):
    """Copy bytes: kind 1 from the host, 2 to the host, 3 on the device."""
    if size == 0:
        return
    host = {1: src, 2: dst}.get(kind)
    if host is not None and stream.is_capturing() and not is_pinned(host, size):
        stream._capture.invalid = True
        raise CUDARuntimeError(
            'cudaErrorStreamCaptureUnsupported',
            'operation not permitted when stream is capturing (copy of pageable host memory)',
        )
    reads = (src,) if kind in (2, 3) else ()
    writes = (dst,) if kind in (1, 3) else ()
    for ptr in reads + writes:
        arena.find(ptr, size)
    submit(_Transfer(dst, src, size, kind), reads, writes, stream)
    if kind == 2 and not is_pinned(dst, size):
        stream.synchronize()  # so CUDA does


class _Transfer:
    """A copy. Page-locked memory is read and written at a time of the device's own: what
    comes to the host is there when it has waited, and what leaves must not change before."""

    def __init__(self, dst, src, size, kind):
        self.dst, self.src, self.size, self.kind = dst, src, size, kind

    def __call__(self, stream):
        sent = ctypes.string_at(self.src, self.size)
        host = {1: self.src, 2: self.dst}.get(self.kind)
        if host is None or not is_pinned(host, self.size):
            ctypes.memmove(self.dst, sent, self.size)
        elif self.kind == 1:
            ctypes.memmove(self.dst, sent, self.size)
            _transfers.append((stream.ptr, stream._clock, host, lambda: self._unchanged(sent)))
        else:
            ctypes.memset(self.dst, POISON, self.size)
            _transfers.append((stream.ptr, stream._clock, host, lambda: self._arrive(sent)))

    def _arrive(self, sent):
        if is_pinned(self.dst, self.size):
            ctypes.memmove(self.dst, sent, self.size)

    def _unchanged(self, sent):
        if is_pinned(self.src, self.size) and ctypes.string_at(self.src, self.size) != sent:
            _errors.append('page-locked memory was changed before it was known to be copied')


def synchronize():
    """Wait for everything."""
    _refuse_capture('cudaDeviceSynchronize')
    _wait({stream.ptr: stream._clock for stream in list(_streams.values())})
    check_memory()


class Device:
    """The one device there is."""

    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)

    def __int__(self):
        return self.id

    def __enter__(self):
        self.use()
        return self

    def __exit__(self, *args):
        pass

    def use(self):
        if self.id != 0:
            raise CUDARuntimeError('cudaErrorInvalidDevice', 'invalid device ordinal')

    def synchronize(self):
        synchronize()

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f'<CUDA Device {self.id}>'

    compute_capability = '90'
    pci_bus_id = '0000:00:00.0'

    @property
    def attributes(self):
        return {
            'MultiProcessorCount': 4,
            'WarpSize': 32,
            'MaxThreadsPerBlock': 1024,
            'MaxSharedMemoryPerBlock': 49152,
            'MaxThreadsPerMultiProcessor': 2048,
        }
