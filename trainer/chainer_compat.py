"""What Chainer 7.8.1 misses on current Python and NumPy, supplied before its import.

Chainer's last release (January 2022) asks for three names that have gone since.
:func:`install` puts in those that are missing, and only those; Chainer itself
stays as it was published. ``python -m trainer`` lists what was supplied on this
machine and why.
"""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import multiprocessing
import re
import sys
import types
import warnings

#: What :func:`install` supplied in this process: name -> why.
supplied = {}


def install():
    """Supply what is missing. Calling it again does nothing.

    Returns:
        dict: name -> reason of everything supplied in this process; empty
        where nothing is missing.
    """
    if 'chainer' not in sys.modules:
        # Whoever tried to import Chainer before has left parts of it behind.
        for name in [name for name in sys.modules if name.startswith('chainer.')]:
            del sys.modules[name]
        _numpy_sctypes()
        _numpy_distutils()
        _pkg_resources()
    _forkserver()
    # Where setuptools is older, Chainer's import of pkg_resources warns.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
    # CuPy has no cuDNN any more; trainer.engines.cudnn reaches it another way.
    warnings.filterwarnings('ignore', 'cuDNN is not enabled', UserWarning)
    # Chainer asks CuPy for NCCL, which only several GPUs need; their run says so where it fails.
    warnings.filterwarnings('ignore', r'\s*nccl library could not be loaded', UserWarning)
    # MultiprocessIterator still says Thread.setDaemon(True).
    warnings.filterwarnings('ignore', r'setDaemon\(\) is deprecated', DeprecationWarning)
    return supplied


def _numpy_sctypes():
    import numpy

    if hasattr(numpy, 'sctypes'):
        return
    numpy.sctypes = {
        'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
        'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
        'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
        'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
        'others': [bool, object, bytes, str, numpy.void],
    }
    supplied['numpy.sctypes'] = (
        'gone since NumPy 2.0; chainer.functions.as_strided reads it at import'
    )


def _numpy_distutils():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it warns that it will go
            importlib.import_module('numpy.distutils.system_info')
        return
    except ImportError:
        pass
    import numpy

    system_info = _stand_in('numpy.distutils.system_info')
    system_info.get_info = lambda name, notfound_action=0: {}
    distutils = _stand_in('numpy.distutils')
    distutils.system_info = system_info
    distutils.__path__ = []
    numpy.distutils = distutils
    supplied['numpy.distutils.system_info'] = (
        'gone with distutils since Python 3.12; Chainer asks it, on macOS, which BLAS NumPy uses'
    )


def _pkg_resources():
    if importlib.util.find_spec('pkg_resources') is not None:
        return

    class ResolutionError(Exception):
        pass

    class DistributionNotFound(ResolutionError):
        pass

    class VersionConflict(ResolutionError):
        pass

    def get_distribution(requirement):
        name = re.match(r'[\w.-]+', requirement).group()
        try:
            return importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise DistributionNotFound(requirement) from None

    # The version is not compared: Chainer's ranges end at the packages of its
    # own day (CuPy below 8), and would only warn about the ones it runs with.
    def require(*requirements):
        return [get_distribution(r) for r in requirements]

    class WorkingSet:
        def require(self, *requirements):
            return require(*requirements)

    module = _stand_in('pkg_resources')
    for item in (
        ResolutionError,
        DistributionNotFound,
        VersionConflict,
        get_distribution,
        require,
        WorkingSet,
    ):
        setattr(module, item.__name__, item)
    supplied['pkg_resources'] = (
        'gone since setuptools 81; Chainer asks it which optional packages are installed'
    )


def _stand_in(name):
    module = types.ModuleType(name, 'Stand-in for Chainer 7.8.1.')
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    return module


def _forkserver():
    # Python 3.14 starts workers from a fork server, which imports Chainer's
    # iterators before anything of ours unless it is told to start here.
    if 'forkserver' in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(['__main__', 'trainer'])
