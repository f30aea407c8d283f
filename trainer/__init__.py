"""The library behind the scripts: networks, weights, data, training and reports.

Importing it makes Chainer 7.8.1 importable (see :mod:`trainer.chainer_compat`). It imports
neither Chainer nor NumPy, which take seconds: flags are checked first.
"""

from trainer import chainer_compat

chainer_compat.install()
