"""The original's initial weights (``nutszebra_initialization.py``, ``orthonorm``)."""

import numpy as np


def orthonormal_relu(shape, rng):
    """Draw the weights of a convolution or of a fully connected layer.

    Each output filter is a matrix of (input channels, filter height x width):
    Gaussian numbers, orthonormalised (arXiv 1312.6120), then scaled to the
    variance 2 / fan-in that keeps ReLU networks alive (arXiv 1502.01852).

    Args:
        shape (tuple of int): (out, in, height, width) or (out, in).
        rng (numpy.random.Generator): Source of the Gaussian numbers.

    Returns:
        numpy.ndarray: float32 of ``shape``.
    """
    out, channels = shape[:2]
    area = int(np.prod(shape[2:], dtype=int))
    gaussian = rng.standard_normal((out, channels, area))
    if area == 1:
        q = gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True)
    else:
        u, _, v = np.linalg.svd(gaussian, full_matrices=False)
        q = u if u.shape == gaussian.shape else v
    # A filter of one weight has no variance to scale by.
    std = q.std(axis=(1, 2), keepdims=True)
    q = q / np.where(std == 0, 1, std) * np.sqrt(2.0 / (channels * area))
    return q.reshape(shape).astype(np.float32)
