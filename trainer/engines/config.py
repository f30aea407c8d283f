"""Chainer's configuration of the engines: which computes, and in which precision."""

import chainer

chainer.global_config.engine = 'reference'

# How an engine computes that has several precisions.
chainer.global_config.precision = 'float32'
