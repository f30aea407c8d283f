"""Makes Ctrl-C during a script's imports end in one line, as it does later (:func:`cli.run`).

The scripts import this module before all others.
"""

import os
import sys

_otherwise = sys.excepthook


def _hook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        print(f'\n{os.path.basename(sys.argv[0])}: interrupted', file=sys.stderr)
        raise SystemExit(130)  # the exit status of an interrupted Python
    else:
        _otherwise(kind, error, traceback)


sys.excepthook = _hook
