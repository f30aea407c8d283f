"""The library behind the scripts: networks, weights, data, training and reports.

Importing it first makes Chainer 7.8.1 importable (see :mod:`trainer.chainer_compat`).
"""

from trainer import chainer_compat

chainer_compat.install()
