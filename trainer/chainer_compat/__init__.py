"""What Chainer 7.8.1 misses on current Python and NumPy, supplied around its import.

Chainer's last release (January 2022) asks for names that have gone since, and some of
its functions stop at what NumPy 2 refuses. :func:`install` has those that are missing,
and only those, supplied when Chainer is imported; Chainer itself stays as it was published.
``python -m trainer`` lists what was supplied on this machine and why. ``python -m
trainer.chainer_compat script.py ARG...`` runs any program for Chainer in the same way.
"""

import sys

#: What was supplied in this process, since Chainer was imported: name -> why.
supplied: dict[str, str] = {}


def install() -> dict[str, str]:
    """Have Chainer's import supply what it misses; nothing is imported before that.

    Where Chainer is imported already, its functions are mended now. Calling it again does
    nothing.

    Returns:
        :data:`supplied`, which fills when Chainer is imported.
    """
    if 'chainer' in sys.modules:
        _mend()
    elif not any(isinstance(finder, _Chainer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Chainer())
    return supplied


class _Chainer:
    """Finder and loader of Chainer: the one that is installed, what it misses around it."""

    def find_spec(self, name, path=None, target=None):
        if name != 'chainer':
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Chainer))
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not self:  # one of the others may ask us
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        from trainer.chainer_compat import modules

        module.__spec__.loader = module.__loader__ = self._loader
        # Whoever tried to import Chainer before has left parts of it behind.
        for name in [name for name in sys.modules if name.startswith('chainer.')]:
            del sys.modules[name]
        _forkserver()
        _expected_warnings()
        _supply(modules.ITEMS)
        with modules.without_distutils():
            self._loader.exec_module(module)
        _mend()


def _mend():
    from trainer.chainer_compat import functions, libraries  # which import Chainer

    _supply(functions.ITEMS + libraries.ITEMS)


def _supply(items):
    for item in items:
        if item.name not in supplied and item.missing():
            item.supply()
            supplied[item.name] = item.why


def _expected_warnings():
    import warnings

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
    import multiprocessing

    # Python 3.14 starts workers from a fork server, which imports Chainer's
    # iterators before anything of ours unless it is told to start here.
    if 'forkserver' in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(['__main__', 'trainer'])
