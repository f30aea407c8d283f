"""The public methods of networks: the original's helpers, files of weights, inference."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from trainer import devices, metrics
from trainer.errors import InputError
from trainer.inference import predictors
from trainer.transforms import geometry, table
from trainer.transforms.geometry import Geometry
from trainer.transforms.resize_crop import DataAugmentationNormalizeBigger
from trainer.weights import description, formats, npz, sources

if TYPE_CHECKING:
    import numpy.typing as npt

    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network as _Computing  # the other base class of each network
    from trainer.types import Path
else:
    _Computing = object


class Model(_Computing):
    """Mixin with the public methods of the networks.

    The classes in the top-level modules derive from it and from a
    :class:`trainer.networks.base.Network`, which computes.
    """

    def predictor(
        self,
        engine: str | None = None,
        precision: str = 'float32',
        calibration: Path | Sequence[np.ndarray] | None = None,
    ) -> Predictor:
        """Prepare the network for the fastest inference.

        Args:
            engine: 'reference' (plain Chainer, on the network's device), 'openvino' or
                'onnxruntime' (CPU), or 'cudnn' (GPU). ``None``: the faster of the two on a CPU, or
                'cudnn' on a GPU, if installed; else 'reference'.
            precision: 'float32'; with openvino also 'bfloat16', if the CPU has it, and 'int8';
                with cudnn also 'tf32' and 'mixed'.
            calibration: For 'int8': a folder of some hundred images like those to classify, or a
                sequence of preprocessed images, float32 (3, height, width).

        Returns:
            Maps float32 (batch, 3, height, width) to scores before softmax, float32 (batch,
            classes). Only 'reference' sees later weight updates; for the others call
            ``refresh()`` or prepare the network again.

        Raises:
            trainer.errors.InputError: There is no such engine, it is not installed, or it lacks
                the precision.
        """
        return predictors.predictor(self, engine, precision, calibration=calibration)

    @classmethod
    def accuracy(
        cls, y: chainer.Variable | np.ndarray, t: chainer.Variable | np.ndarray, xp: ModuleType = np
    ) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
        """Count correct and wrong answers.

        Args:
            y: Scores (batch, classes).
            t: Labels (batch,).

        Returns:
            Label -> correctly classified images, and (label, answer) -> wrongly classified images.
        """
        right, _, wrong = cls.accuracy_n(y, t, xp, 1)
        return right, wrong

    @staticmethod
    def accuracy_n(
        y: chainer.Variable | np.ndarray,
        t: chainer.Variable | np.ndarray,
        xp: ModuleType = np,
        n: int = 5,
    ) -> tuple[dict[int, int], dict[int, int], dict[tuple[int, int], int]]:
        """Like :meth:`accuracy`, but return three dicts; the second is label -> images whose label
        is among the ``n`` best classes."""
        y = chainer.backends.cuda.to_cpu(getattr(y, 'array', y))
        t = chainer.backends.cuda.to_cpu(getattr(t, 'array', t))
        best = metrics.top_k(y, n)
        right = collections.Counter(t[best[:, 0] == t].tolist())
        right_n = collections.Counter(t[(best == t[:, None]).any(axis=1)].tolist())
        mistaken = best[:, 0] != t
        wrong = collections.Counter(zip(t[mistaken].tolist(), best[mistaken, 0].tolist()))
        return right, right_n, wrong

    def set_geometry(self, **changes: Any) -> None:
        """Change the test geometry of images; npz and safetensors files store it.

        Args:
            changes: Attributes of :class:`trainer.transforms.geometry.Geometry`:
                ``img_size``, ``crop_pct``, ``interpolation``, ``mean``, ``std``; the others
                stay as they are. Without arguments: the geometry of the preprocessing.

        Raises:
            trainer.errors.InputError: A value cannot be used, or the network is not for
                ImageNet's images.
        """
        if not changes:
            description.set_geometry(self, None)
            return
        tested = table.of(self)
        held = tested if isinstance(tested, Geometry) else None
        if isinstance(tested, type) and issubclass(tested, DataAugmentationNormalizeBigger):
            held = geometry.of_class(tested)
        if held is None:
            raise InputError(
                f'`{next(iter(changes))}`: {npz.describe(self)} takes images of '
                f'{self.image_size} pixels as they are'
            )
        try:
            changed = dataclasses.replace(held, **changes)
        except ValueError as e:
            name, _, rest = str(e).partition(' ')
            raise InputError(f'`{name}` {rest}') from e
        description.set_geometry(self, changed)

    def load_model(self, path: Path) -> None:
        """Load weights from a file of any supported format.

        Args:
            path: The file: npz of this project or of the original program, in any layout of
                :meth:`save_model`, Torch7, PyTorch or safetensors. Branches become groups, and the
                original's convolution biases go into the running means, exactly.

        Raises:
            trainer.errors.InputError: The file is damaged or holds another network. The network
                is then unchanged.
        """
        path = sources.local(path)
        if formats.kind_of(path) == 'npz':
            npz.load_into(path, self)
            return
        loaded, _ = formats.read(path)
        npz.fill(self, npz.state(loaded), path, loaded.architecture())

    def save_model(self, path: Path, gpu: int | None = None, layout: str | None = None) -> bool:
        """Save the weights as npz, float32; the file appears whole or not at all.

        Args:
            path: The file to write, with any suffix.
            gpu: Ignored; the original moved the model to the CPU and back.
            layout: ``None``: this project's layout, form C of the paper's figure 3. 'form-b' or
                'form-a': with separate branches (:mod:`trainer.weights.forms`). 'original': the
                2017 program's layout (convolution biases are 0).

        Raises:
            trainer.errors.InputError: The 2017 program cannot hold this network.
        """
        npz.save(path, self, layout)
        return True

    def check_gpu(self, gpu: int) -> bool:
        """Move the network to the GPU ``gpu``, or to the CPU if that is negative.

        Returns:
            Whether it is on a GPU now.

        Raises:
            trainer.errors.InputError: There is no CuPy or no such GPU.
        """
        device = devices.get(gpu)
        device.use()
        self.to_device(device)
        return gpu >= 0

    def model_is_cpu_mode(self) -> bool:
        """Tell whether the parameters are on the CPU."""
        return self.xp is np

    def prepare_input(
        self,
        X: npt.ArrayLike,
        dtype: npt.DTypeLike = np.float32,
        volatile: bool = False,
        xp: ModuleType | None = None,
        gpu: int | None = None,
    ) -> chainer.Variable:
        """Make a variable on the network's device.

        Args:
            X: A batch, for example a list of (3, height, width) arrays.
            dtype: float32 for images, int32 for labels.
            volatile: For code of Chainer v1; ``True``: ``X`` needs no gradient.
            xp: numpy or cupy; by default the network's.
            gpu: Number of a GPU; by default the network's device.
        """
        if gpu is not None and gpu >= 0:
            device = devices.get(gpu)
        elif xp is not None:
            device = chainer.get_device('@numpy' if xp is np else '@cupy:0')
        else:
            device = self.device
        return chainer.Variable(device.send(np.asarray(X, dtype)), requires_grad=not volatile)
