"""Ctrl-C while a script is still being imported ends in one line, as later (:func:`cli.run`).

The scripts import this module before all others.
"""

import os
import sys

_otherwise = sys.excepthook


def _hook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        print(f'\n{os.path.basename(sys.argv[0])}: interrupted', file=sys.stderr)
        raise SystemExit(130)  # Python ends with this status
    else:
        _otherwise(kind, error, traceback)


sys.excepthook = _hook
