"""Chainer imports it. What cuBLAS computes is in :mod:`cupy`."""
