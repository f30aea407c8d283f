"""Networks ready for inference, one module for each engine.

A module here has ``predictor(network, precision, finish)``, which returns a
:class:`Predictor`, and ``ON_GPU``: ``True`` if it computes on a GPU, ``False`` on the CPU,
``None`` on the network's device.
"""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable, Sequence

from trainer import engines
from trainer.errors import InputError

if typing.TYPE_CHECKING:
    import numpy as np

    from trainer.inference.model import Model
    from trainer.networks.base import Network
    from trainer.types import Array, Path


class Predictor:
    """A network ready for inference.

    It maps preprocessed images, float32 (batch, 3, height, width), to scores before softmax,
    float32 (batch, classes); both are NumPy arrays.

    Attributes:
        finish: Converts the predictor's argument to images on the device; ``None``: the argument
            is images.
        network: The network.
        engine: The engine's name.
        description: The engine with its version, and the precision.
    """

    def __init__(
        self,
        network: Network,
        engine: str,
        description: str,
        finish: Callable[[Array], Array] | None = None,
    ) -> None:
        self.finish = finish
        self.network = network
        self.engine = engine
        self.description = description

    def __call__(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return the classifier's input: float32 (batch, channels, 1, 1)."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Take over weights that were changed in place since the predictor was made."""
        raise NotImplementedError


def available() -> list[str]:
    """Return the names of the engines that have a predictor: the modules here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _module(name):
    return importlib.import_module(f'{__name__}.{name}')


def installed(name: str) -> bool:
    """Return whether the packages of an engine are installed."""
    return _module(name).available()


def _on_cpu(network, precision):
    if precision == 'int8':
        return 'openvino'
    if precision != 'float32':
        return 'openvino' if installed('openvino') else 'reference'
    from trainer.inference import fastest

    names = [name for name in fastest.CANDIDATES if installed(name)]
    if not names:
        return 'reference'
    return fastest.engine(names, lambda name: predictor(network, name), network.image_size)


def check_precision(
    precision: str, calibration: Path | Sequence[np.ndarray] | None, engine: str | None = None
) -> None:
    """Check that calibration images are given exactly if the precision needs them.

    Args:
        precision: The requested precision.
        calibration: Images, or ``None``.
        engine: The engine's name, or ``None``.

    Raises:
        trainer.errors.InputError: They are missing or not needed, or the engine has no int8.
    """
    if precision != 'int8' and calibration is not None:
        raise InputError(f'`calibration`: precision {precision} needs none; it is for int8')
    if precision == 'int8' and engine not in (None, 'openvino'):
        raise InputError(f'precision int8: the engine {engine} has none; openvino has')
    if precision == 'int8' and calibration is None:
        raise InputError(
            'precision int8: `calibration` DIR says which images measure the ranges of numbers; '
            'some hundred of the kind that is to be recognised'
        )


def predictor(
    network: Model,
    engine: str | None = None,
    precision: str = 'float32',
    finish: Callable[[Array], Array] | None = None,
    calibration: Path | Sequence[np.ndarray] | None = None,
) -> Predictor:
    """Make a network ready for inference.

    Args:
        network: The network, on its device.
        engine: One of :func:`available`. ``None``: cuDNN on a GPU, on a CPU the faster of OpenVINO
            and ONNX Runtime (:mod:`trainer.inference.fastest`); the reference where they are not
            installed.
        precision: A precision of the engine.
        finish: Converts the predictor's argument to images on the device
            (:class:`trainer.training.data.DataPath`). ``None``: on a GPU, with a network for images
            of 224x224, :class:`trainer.transforms.gpu_images.ImageRows`, which takes images too.
        calibration: For precision 'int8', which the engine openvino has: images, as
            :func:`trainer.inference.quantization.quantized` takes them.

    Raises:
        trainer.errors.InputError: There is no such engine, it is not installed, computes on
            another device than the network's, or lacks the precision.
    """
    check_precision(precision, calibration, engine)
    on_gpu = not network.model_is_cpu_mode()
    if engine is None and on_gpu:
        engine, precision, _ = engines.choose(network.device.device.id, precision)
    elif engine is None:
        engine = _on_cpu(network, precision)
    if engine not in available():
        raise InputError(f'engine {engine}: for inference there are {", ".join(available())}')
    module = _module(engine)
    if module.ON_GPU not in (None, on_gpu):
        raise InputError(
            f'engine {engine}: it computes on '
            + ('a GPU, which -g chooses' if module.ON_GPU else 'the CPU, the network is on a GPU')
        )
    if finish is None and on_gpu:
        from trainer.transforms import gpu_images

        finish = gpu_images.of(network)
    if calibration is not None:
        return module.predictor(network, precision, finish, calibration)
    return module.predictor(network, precision, finish)
