"""What users call on a network beside computing with it: the original's helpers, files of
weights, inference."""

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
from trainer.weights import description, formats, npz, published

if TYPE_CHECKING:
    import numpy.typing as npt

    from trainer.inference.predictors import Predictor
    from trainer.networks.base import Network as _Computing  # which each class derives from
    from trainer.types import Path
else:
    _Computing = object


class Model(_Computing):
    """The methods that :class:`resnext.ResNext` and its like have from here.

    The classes at the top derive from it and from a
    :class:`trainer.networks.base.Network`, which computes.
    """

    def predictor(
        self,
        engine: str | None = None,
        precision: str = 'float32',
        calibration: Path | Sequence[np.ndarray] | None = None,
    ) -> Predictor:
        """Make the network ready for inference alone, as fast as it goes.

        Args:
            engine: 'reference' (plain Chainer, where the network is), 'openvino' or 'onnxruntime'
                (CPU), or 'cudnn' (GPU). ``None``: the faster of the two on a CPU and 'cudnn' on a
                GPU where they are installed, else 'reference'.
            precision: 'float32'; openvino: 'bfloat16' as well, where the CPU has it, and 'int8';
                cudnn: 'tf32' and 'mixed' as well.
            calibration: For 'int8': a folder of images of the kind that is to be recognised,
                some hundred; or a sequence of preprocessed ones, float32 (3, height, width).

        Returns:
            Called with float32 (batch, 3, height, width), it returns float32 (batch, classes),
            before softmax. Only 'reference' sees later weight updates; for the others call its
            ``refresh()`` or make it anew.

        Raises:
            trainer.errors.InputError: There is no such engine, it is not installed, or has
                not the precision.
        """
        return predictors.predictor(self, engine, precision, calibration=calibration)

    @classmethod
    def accuracy(
        cls, y: chainer.Variable | np.ndarray, t: chainer.Variable | np.ndarray, xp: ModuleType = np
    ) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
        """Count what was recognised and what was mistaken.

        Args:
            y: Scores (batch, classes).
            t: Labels (batch,).

        Returns:
            Label -> images recognised, and (label, answer) -> images mistaken.
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
        """As :meth:`accuracy`, with label -> images whose label is among the ``n`` best
        as the second of three."""
        y = chainer.backends.cuda.to_cpu(getattr(y, 'array', y))
        t = chainer.backends.cuda.to_cpu(getattr(t, 'array', t))
        best = metrics.top_k(y, n)
        right = collections.Counter(t[best[:, 0] == t].tolist())
        right_n = collections.Counter(t[(best == t[:, None]).any(axis=1)].tolist())
        mistaken = best[:, 0] != t
        wrong = collections.Counter(zip(t[mistaken].tolist(), best[mistaken, 0].tolist()))
        return right, right_n, wrong

    def set_geometry(self, **changes: Any) -> None:
        """Change how images are made for testing; npz and safetensors files keep it.

        Args:
            changes: Attributes of :class:`trainer.transforms.geometry.Geometry`:
                ``img_size``, ``crop_pct``, ``interpolation``, ``mean``, ``std``; the others
                stay as they are. None: as the preprocessing of training has it.

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
        """Load weights from a file of any format that is read.

        Args:
            path: The file: npz of this project or of the original program, in any layout of
                :meth:`save_model`, Torch7, PyTorch or safetensors. Branches become groups, and the
                original's convolution biases go into the running means, exactly.

        Raises:
            trainer.errors.InputError: The file is damaged or holds another network;
                the network is then as it was.
        """
        path = published.local(path)
        if formats.kind_of(path) == 'npz':
            npz.load_into(path, self)
            return
        loaded, _ = formats.read(path)
        npz.fill(self, npz.state(loaded), path, loaded.architecture())

    def save_model(self, path: Path, gpu: int | None = None, layout: str | None = None) -> bool:
        """Save the weights as npz, float32; the file appears whole or not at all.

        Args:
            path: The file, any name.
            gpu: Ignored; the original moved the model to and fro.
            layout: ``None``: this project's, form C of the paper's figure 3. 'form-b' or 'form-a':
                with its branches apart (:mod:`trainer.weights.forms`). 'original': what the 2017
                program reads (convolution biases are 0).

        Raises:
            trainer.errors.InputError: The 2017 program cannot hold this network.
        """
        npz.save(path, self, layout)
        return True

    def check_gpu(self, gpu: int) -> bool:
        """Move the network to the GPU ``gpu``, or to the CPU where it is below 0.

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
            dtype: Its type: float32 for images, int32 for labels.
            volatile: Accepted for the sake of code of Chainer v1; ``True`` means that no gradient
                of ``X`` itself is wanted.
            xp: numpy or cupy, where not the network's own.
            gpu: A GPU, where not the network's own.
        """
        if gpu is not None and gpu >= 0:
            device = devices.get(gpu)
        elif xp is not None:
            device = chainer.get_device('@numpy' if xp is np else '@cupy:0')
        else:
            device = self.device
        return chainer.Variable(device.send(np.asarray(X, dtype)), requires_grad=not volatile)
