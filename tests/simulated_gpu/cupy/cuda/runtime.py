"""The simulated CUDA runtime."""

from cupy import _device
from cupy._device import CUDARuntimeError  # noqa: F401

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = range(4)
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)
hostAllocDefault = 0
is_hip = False


def getDeviceCount():
    return 1


def getDeviceProperties(device):
    return {
        'name': b'Simulated GPU',
        'major': 9,
        'minor': 0,
        'multiProcessorCount': 4,
        'totalGlobalMem': len(_device.arena.bytes),
        'warpSize': 32,
        'maxThreadsPerBlock': 1024,
        'sharedMemPerBlock': 49152,
        'maxThreadsPerMultiProcessor': 2048,
        'l2CacheSize': 1 << 20,
    }


def _stream(ptr):
    return _device._streams[ptr]


def memcpyAsync(dst, src, size, kind, stream):
    _device.runtime_memcpy(dst, src, size, kind, _stream(stream))
