"""What Chainer 7.8.1 misses on current Python and NumPy, supplied around its import.

Chainer's last release (January 2022) asks for names that have gone since, and some of
its functions stop at what NumPy 2 refuses. :func:`install` supplies those that are
missing, and only those; Chainer itself stays as it was published. ``python -m trainer``
lists what was supplied on this machine and why. ``python -m trainer.chainer_compat
script.py ARG...`` runs any program for Chainer in the same way.
"""

import multiprocessing
import sys
import warnings

from trainer.chainer_compat import modules

#: What :func:`install` supplied in this process: name -> why.
supplied = {}


def install():
    """Import Chainer with what it misses supplied. Calling it again does nothing.

    Returns:
        dict: name -> reason of everything supplied in this process; empty
        where nothing is missing.
    """
    _forkserver()
    _expected_warnings()
    if 'chainer' not in sys.modules:
        # Whoever tried to import Chainer before has left parts of it behind.
        for name in [name for name in sys.modules if name.startswith('chainer.')]:
            del sys.modules[name]
        _supply(modules.ITEMS)
    from trainer.chainer_compat import functions, libraries  # which import Chainer

    _supply(functions.ITEMS + libraries.ITEMS)
    return supplied


def _supply(items):
    for item in items:
        if item.name not in supplied and item.missing():
            item.supply()
            supplied[item.name] = item.why


def _expected_warnings():
    for message in (
        # Where setuptools is older, Chainer's import of pkg_resources warns.
        'pkg_resources is deprecated',
        # Chainer's range ends at the CuPy of its own day (below 8).
        r'\s*-*\s*CuPy .* may not be compatible with this version of Chainer',
        # CuPy has no cuDNN any more; trainer.engines.cudnn reaches it another way.
        'cuDNN is not enabled',
        # Chainer asks CuPy for NCCL, which only several GPUs need: a run on them reports it.
        r'\s*nccl library could not be loaded',
    ):
        warnings.filterwarnings('ignore', message, UserWarning)


def _forkserver():
    # Python 3.14 starts workers from a fork server, which imports Chainer's
    # iterators before anything of ours unless it is told to start here.
    if 'forkserver' in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(['__main__', 'trainer'])
