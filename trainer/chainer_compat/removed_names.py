"""Names that NumPy has removed since 1.20, for programs that still use them.

They exist only under ``python -m trainer.chainer_compat``: new programs should get NumPy's
AttributeError.
"""

import math
import os
import sys

import numpy

#: Name -> expression that replaces it.
NAMES = {
    # Removed in 1.23 and 1.24.
    'alen': 'len',
    'asscalar': 'numpy.ndarray.item',
    'bool': 'bool',
    'bool8': 'numpy.bool_',
    'complex': 'complex',
    'float': 'float',
    'int': 'int',
    'int0': 'numpy.intp',
    'long': 'int',
    'object': 'object',
    'object0': 'numpy.object_',
    'rank': 'numpy.ndim',
    'str': 'str',
    'uint0': 'numpy.uintp',
    'unicode': 'str',
    # Removed in 1.25 to 2.0.
    'AxisError': 'numpy.exceptions.AxisError',
    'ComplexWarning': 'numpy.exceptions.ComplexWarning',
    'Inf': 'numpy.inf',
    'Infinity': 'numpy.inf',
    'NINF': '-numpy.inf',
    'NZERO': '-0.0',
    'NaN': 'numpy.nan',
    'PINF': 'numpy.inf',
    'PZERO': '0.0',
    'RankWarning': 'numpy.exceptions.RankWarning',
    'TooHardError': 'numpy.exceptions.TooHardError',
    'VisibleDeprecationWarning': 'numpy.exceptions.VisibleDeprecationWarning',
    'alltrue': 'numpy.all',
    'asfarray': 'lambda a, dtype=float: numpy.asarray(a, dtype)',
    'cfloat': 'numpy.complex128',
    'complex_': 'numpy.complex128',
    'cumproduct': 'numpy.cumprod',
    'float_': 'numpy.float64',
    'infty': 'numpy.inf',
    'issubclass_': 'issubclass',
    'longcomplex': 'numpy.clongdouble',
    'longfloat': 'numpy.longdouble',
    'mat': 'numpy.asmatrix',
    'math': 'math',
    'msort': 'lambda a: numpy.sort(a, axis=0)',
    'product': 'numpy.prod',
    'round_': 'numpy.round',
    'singlecomplex': 'numpy.complex64',
    'sometrue': 'numpy.any',
    'string_': 'numpy.bytes_',
    'unicode_': 'numpy.str_',
    # Removed after 2.0, or to be removed.
    'fix': 'numpy.trunc',
    'in1d': 'lambda a, b, **options: numpy.isin(numpy.ravel(a), b, **options)',
    'row_stack': 'numpy.vstack',
    'trapz': 'numpy.trapezoid',
}

# Reported names are kept in the environment, so that child processes do not repeat them.
_REPORTED = 'CHAINER_COMPAT_REPORTED'


def install() -> None:
    """Give NumPy the :data:`NAMES`, and report each on stderr at its first use."""
    answer = numpy.__getattr__

    def __getattr__(name):
        if name not in NAMES:
            return answer(name)
        reported = os.environ.get(_REPORTED, '').split()
        if name not in reported:
            os.environ[_REPORTED] = ' '.join([*reported, name])
            asked = sys._getframe(1)
            print(
                f'{asked.f_code.co_filename}:{asked.f_lineno}: '
                f'NumPy has no numpy.{name} any more; {NAMES[name]} stands for it',
                file=sys.__stderr__,
            )
        return eval(NAMES[name], {'math': math, 'numpy': numpy})

    vars(numpy)['__getattr__'] = __getattr__
