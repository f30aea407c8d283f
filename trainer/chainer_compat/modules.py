"""Modules and names that Chainer 7.8.1 looks up while it is imported."""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator

import numpy
from packaging.requirements import Requirement

from trainer.chainer_compat.items import Items

ITEMS = Items()


@ITEMS.add(
    'numpy.sctypes',
    'gone since NumPy 2.0; chainer.functions.as_strided reads it at import',
    missing=lambda: not hasattr(numpy, 'sctypes'),
)
def _numpy_sctypes():
    numpy.sctypes = {
        'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
        'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
        'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
        'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
        'others': [bool, object, bytes, str, numpy.void],
    }


def _no_system_info():
    if sys.platform != 'darwin':
        return sys.version_info >= (3, 12)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # warns that it will be removed
            importlib.import_module('numpy.distutils.system_info')
    except ImportError:
        return True
    return False


@ITEMS.add(
    'numpy.distutils.system_info',
    'gone with distutils since Python 3.12; Chainer asks it, on macOS, which BLAS NumPy uses',
    missing=_no_system_info,
)
def _numpy_distutils():
    _stand_in_distutils()


def _stand_in_distutils():
    system_info = _stand_in('numpy.distutils.system_info')
    system_info.get_info = lambda name, notfound_action=0: {}
    distutils = _stand_in('numpy.distutils')
    distutils.system_info = system_info
    distutils.__path__ = []
    numpy.distutils = distutils


@contextlib.contextmanager
def without_distutils() -> Iterator[None]:
    """Keep Chainer's import from importing numpy.distutils, which takes 0.3 s and is needed only
    on macOS."""
    if sys.platform == 'darwin' or 'numpy.distutils' in sys.modules:
        yield
        return
    _stand_in_distutils()
    try:
        yield
    finally:
        del numpy.distutils
        for name in ('numpy.distutils', 'numpy.distutils.system_info'):
            del sys.modules[name]


@ITEMS.add(
    'pkg_resources',
    'gone since setuptools 81; Chainer asks it which optional packages are installed',
    missing=lambda: importlib.util.find_spec('pkg_resources') is None,
)
def _pkg_resources():
    class ResolutionError(Exception):
        pass

    class DistributionNotFound(ResolutionError):
        pass

    class VersionConflict(ResolutionError):
        pass

    def get_distribution(requirement):
        name = Requirement(requirement).name
        try:
            return importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise DistributionNotFound(requirement) from None

    def require(*requirements):
        found = [get_distribution(requirement) for requirement in requirements]
        for distribution, requirement in zip(found, requirements, strict=True):
            if not Requirement(requirement).specifier.contains(
                distribution.version, prereleases=True
            ):
                raise VersionConflict(distribution.version, requirement)
        return found

    class WorkingSet:
        def require(self, *requirements):
            return require(*requirements)

    module = _stand_in('pkg_resources')
    for value in (
        ResolutionError,
        DistributionNotFound,
        VersionConflict,
        get_distribution,
        require,
        WorkingSet,
    ):
        setattr(module, value.__name__, value)


def _stand_in(name):
    module = types.ModuleType(name, 'Stand-in for Chainer 7.8.1.')
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    return module
