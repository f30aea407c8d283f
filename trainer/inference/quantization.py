"""Quantisation to 8-bit integers, for OpenVINO: nncf measures the range of activations on
calibration images, and rounds weights and activations to 256 steps.

Needs the packages nncf, openvino and onnx (extra ``int8``). Quantised networks are cached, so that
the same network and images are calibrated only once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer import download, extras, files
from trainer.datasets import folder
from trainer.errors import InputError
from trainer.inference import prediction
from trainer.transforms import decoding
from trainer.weights import description, npz, onnx

if TYPE_CHECKING:
    import openvino

    from trainer.networks.base import Network
    from trainer.types import Path

#: Most calibration images (nncf's default); of more, evenly spaced ones are taken.
IMAGES = 300

#: Fewest input channels per group of a convolution: narrower groups are merged, with zeros between
#: them. oneDNN's 8-bit kernels take as long for 4 channels as for 32; merging makes ResNeXt-50
#: 32x4d 1.1 times as fast.
GROUP_WIDTH = 32

# Increased whenever quantised networks change.
_VERSION = 1


def quantized(network: Network, calibration: Path | Sequence[np.ndarray]) -> openvino.Model:
    """Quantise a network, or load it from the cache.

    Args:
        network: The network.
        calibration: A folder (str or os.PathLike) with images in it or its subfolders, of which
            :data:`IMAGES` evenly spaced ones are taken and preprocessed as for prediction; or a
            sequence of preprocessed images, float32 (3, height, width), which are all used.

    Returns:
        openvino.Model: With input ``x`` and outputs ``scores`` and ``features``, as
        :func:`trainer.weights.onnx.build` makes them.

    Raises:
        trainer.errors.InputError: There are no images, one cannot be read, or a package is
            missing.
    """
    openvino = extras.need('openvino', 'precision int8', 'int8')
    extras.need('onnx', 'precision int8', 'int8')
    nncf = extras.need('nncf', 'precision int8', 'int8')
    images = _images(network, calibration)
    digest = _digest(network, images, (openvino.__version__, nncf.__version__))
    path = os.path.join(download.folder('int8'), digest + '.xml')
    core = openvino.Core()
    if os.path.isfile(path):
        with contextlib.suppress(RuntimeError):  # it is damaged
            return core.read_model(path)
    graph = onnx.build(network, features=True, group_width=GROUP_WIDTH)
    model = core.read_model(graph.SerializeToString())
    nncf.set_log_level(40)  # errors
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        model = nncf.quantize(
            model,
            nncf.Dataset(range(len(images)), lambda i: {'x': images[i][None]}),
            subset_size=len(images),
        )
    _keep(openvino, model, path)
    return model


class _Images:
    """Images in files, preprocessed on access; the digest is of the files."""

    def __init__(self, network, paths):
        self._load = prediction.ImageLoader(
            prediction.preprocessing([network]), paths, upright=True
        )
        self.digests = map(_digest_of, paths)

    def __len__(self):
        return len(self._load.sources)

    def __getitem__(self, i):
        x = np.empty(self._load.shape, np.float32)
        try:
            self._load(i, x)
        except InputError as e:
            raise InputError(
                f'`calibration`: {self._load.sources[i]}: {e}; move it out of the folder'
            ) from None
        return x


class _Arrays:
    """Preprocessed images; the digest is of their values."""

    def __init__(self, given):
        self._images = [np.ascontiguousarray(x, np.float32) for x in given]
        for x in self._images:
            if x.ndim != 3 or x.shape[0] != 3:
                raise InputError(
                    f'calibration: an image of shape {x.shape}; preprocessed ones, float32 '
                    '(3, height, width), are wanted'
                )
        self.digests = (hashlib.sha256(x.data).digest() for x in self._images)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, i):
        return self._images[i]


def _digest_of(path):
    try:
        return download.digest_of(path, 'sha256').encode()
    except OSError as e:
        raise InputError(f'`calibration`: {path}: cannot be read ({e.strerror})') from e


def check(calibration: Path) -> list[str]:
    """Return the files in a folder that are used for calibration.

    Raises:
        trainer.errors.InputError: It is not a folder, or there are no images in it.
    """
    path = os.fspath(calibration)
    if not os.path.isdir(path):
        raise InputError(f'`calibration` {path}: not a folder; one with images is wanted')
    paths = folder.images_below(path)
    if not paths:
        raise InputError(
            '`calibration` {}: no images in it or below it; they are known by their suffixes, '
            '{}'.format(path, ', '.join(decoding.SUFFIXES))
        )
    number = min(IMAGES, len(paths))
    return [paths[i * len(paths) // number] for i in range(number)]


def _images(network, calibration):
    if isinstance(calibration, (str, os.PathLike)):
        return _Images(network, check(calibration))
    images = _Arrays(calibration)
    if not len(images):
        raise InputError('calibration: no images')
    return images


def _digest(network, images, versions):
    """Return a hexadecimal digest of everything that determines a quantised network."""
    digest = hashlib.sha256()
    described = description.of(network) | {'preprocessing': str(network.preprocessing)}
    digest.update(json.dumps([_VERSION, GROUP_WIDTH, versions, described]).encode())
    for name, array in sorted(npz.state(network).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    for one in images.digests:
        digest.update(one)
    return digest.hexdigest()


def _keep(openvino, model, path):
    """Write a model to the cache: ``.bin``, then ``.xml``, each whole."""
    stem, _ = os.path.splitext(path)
    with tempfile.TemporaryDirectory() as made:
        openvino.save_model(model, os.path.join(made, 'model.xml'), compress_to_fp16=False)
        for suffix in ('.bin', '.xml'):
            with open(os.path.join(made, 'model' + suffix), 'rb') as f:
                content = f.read()
            with files.replacing(stem + suffix) as unfinished, open(unfinished, 'wb') as f:
                f.write(content)
