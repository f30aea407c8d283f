"""Kinds of files whose readers misbehave, for tests of the monitor."""

import os
import pickle
import time

import numpy as np

from helpers.kinds import KINDS, Kind


def _unpickles(path):
    with open(path, 'rb') as f:
        return pickle.load(f)


def _uses_memory(path):
    return {'x': np.ones(1100 << 20, np.uint8)}


def _prints(path):
    print('x', flush=True)
    return {}


def _has_no_name(path):
    raise OSError(2, 'No such file')


#: Misbehaviour -> reader.
READERS = {
    'executed': _unpickles,
    'memory': _uses_memory,
    'traceback': lambda path: {}['x'],
    'noise': _prints,
    'hung': lambda path: time.sleep(600),
    'ended': lambda path: os.abort(),
    'silently different': lambda path: {'x': os.path.getsize(path)},
    'no name': _has_no_name,
}


def register():
    """Add them to the kinds of the monitor."""
    for name, read in READERS.items():
        KINDS[name] = Kind(None, read, has_checksum=True)
