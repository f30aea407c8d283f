"""``python -m trainer``: the versions in use, and what was supplied to Chainer."""
import sys

import numpy

from trainer import chainer_compat
import chainer

print('Python {}'.format(sys.version.split()[0]))
print('NumPy {}'.format(numpy.__version__))
print('Chainer {}'.format(chainer.__version__))
if chainer.backends.cuda.available:
    print('CuPy {}'.format(chainer.backends.cuda.cupy.__version__))
else:
    print('CuPy: not available')
for name, why in chainer_compat.supplied.items():
    print('supplied to Chainer: {} ({})'.format(name, why))
if not chainer_compat.supplied:
    print('supplied to Chainer: nothing, nothing was missing')
