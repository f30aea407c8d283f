"""Supplies what Chainer 7.8.1 lacks on current Python and NumPy, around its import.

Chainer's last release (January 2022) uses names that have been removed since, and some of
its functions fail with NumPy 2. :func:`install` supplies what is missing, and only that, when
Chainer is imported; Chainer itself stays as it was published.
``python -m trainer`` lists what was supplied on this machine and why. ``python -m
trainer.chainer_compat script.py ARG...`` runs any program for Chainer in the same way.
"""

import sys

#: What was supplied in this process once Chainer was imported: name -> reason.
supplied: dict[str, str] = {}


def install() -> dict[str, str]:
    """Arrange that importing Chainer supplies what it lacks; imports nothing itself.

    If Chainer is imported already, its functions are repaired now. Further calls do nothing.

    Returns:
        :data:`supplied`, which is filled when Chainer is imported.
    """
    if 'chainer' in sys.modules:
        _repair()
    elif not any(isinstance(finder, _Chainer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Chainer())
    return supplied


class _Chainer:
    """Finder and loader of Chainer: the installed one, with what it lacks supplied around it."""

    def find_spec(self, name, path=None, target=None):
        if name != 'chainer':
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Chainer))
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not self:  # another finder may call this one
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        from trainer.chainer_compat import modules

        module.__spec__.loader = module.__loader__ = self._loader
        # An earlier, failed import of Chainer leaves parts of it behind.
        for name in [name for name in sys.modules if name.startswith('chainer.')]:
            del sys.modules[name]
        _forkserver()
        _expected_warnings()
        _supply(modules.ITEMS)
        with modules.without_distutils():
            self._loader.exec_module(module)
        _repair()


def _repair():
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
        # With an older setuptools, Chainer's import of pkg_resources warns.
        'pkg_resources is deprecated',
        # Chainer accepts only the CuPy of its time (below 8).
        r'\s*-*\s*CuPy .* may not be compatible with this version of Chainer',
        # CuPy no longer has cuDNN; trainer.engines.cudnn uses it in another way.
        'cuDNN is not enabled',
        # Chainer looks for NCCL, which only runs on several GPUs need; these report its absence.
        r'\s*nccl library could not be loaded',
    ):
        warnings.filterwarnings('ignore', message, UserWarning)


def _forkserver():
    import multiprocessing

    # Python 3.14 starts workers from a fork server, which would import Chainer's iterators
    # before this package.
    if 'forkserver' in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(['__main__', 'trainer'])
