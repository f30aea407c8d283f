"""The layers on NumPy alone, for training on any CPU: see :mod:`trainer.engines.arrays`."""

from trainer.engines import arrays, autograd, reference

_layers = autograd.Layers(arrays)

conv_bn = _layers.conv_bn
subsample_and_pad = _layers.subsample_and_pad
max_pooling = _layers.max_pooling
average_pooling = _layers.average_pooling
excite = _layers.excite
global_average_pooling = _layers.global_average_pooling
linear = _layers.linear
unavailable = reference.unavailable
precisions = reference.precisions
