"""``python -m trainer``: print the versions in use, and what was supplied to Chainer."""

import sys

import chainer
import numpy

from trainer import chainer_compat

print(f'Python {sys.version.split()[0]}')
print(f'NumPy {numpy.__version__}')
print(f'Chainer {chainer.__version__}')
if chainer.backends.cuda.available:
    print(f'CuPy {chainer.backends.cuda.cupy.__version__}')
else:
    print('CuPy: not available')
for name, why in chainer_compat.supplied.items():
    print(f'supplied to Chainer: {name} ({why})')
if not chainer_compat.supplied:
    print('supplied to Chainer: nothing, nothing was missing')
