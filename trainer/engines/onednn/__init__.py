"""The oneDNN engine: the layers through oneDNN's C API, on NumPy arrays.

See :mod:`trainer.engines.onednn.provider` for its precisions. Needs the package
onednn-cpu-gomp (extra ``cpu``), or a system's libdnnl.so.3.
"""

from trainer.engines import autograd
from trainer.engines.onednn import provider

PRECISIONS = provider.PRECISIONS

_layers = autograd.Layers(provider)

conv_bn = _layers.conv_bn
subsample_and_pad = _layers.subsample_and_pad
max_pooling = _layers.max_pooling
global_average_pooling = _layers.global_average_pooling
linear = _layers.linear
