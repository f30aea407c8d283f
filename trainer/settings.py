"""Settings that reach the layers without an argument, as Chainer calls their functions.

Two are public, and part of Chainer's configuration:

``chainer.config.engine``
    Name of the engine (:mod:`trainer.engines`) that computes the layers; 'reference' by default.
``chainer.config.precision``
    Precision in which it computes, for engines that have several; 'float32' by default.

The others are internal, and attributes of :data:`settings`. As with Chainer's configuration, each
thread has its own values and starts with the defaults.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import chainer

if TYPE_CHECKING:
    from trainer.types import Array

chainer.global_config.engine = 'reference'
chainer.global_config.precision = 'float32'


class Settings(threading.local):
    """The internal settings.

    Attributes:
        folded: Cache of (convolution, batch normalisation) -> weights and biases with batch
            normalisation folded in. ``None``: they are folded at each call. Set by predictors,
            read by :mod:`trainer.engines.autograd`.
        half_weights: Convolution -> (its weights, a float16 copy), valid until the weights
            change. ``None``: they are copied at each call. Their gradients may stay float16,
            which :class:`trainer.engines.cudnn.parameters.GpuUpdate` accepts. Set by
            :mod:`trainer.training.captured_step`, read by :mod:`trainer.engines.cudnn.provider`.
        parts: Number of parts of a batch, as :func:`numpy.array_split` makes them, whose statistics
            batch normalisation takes one after another: chunks that are computed together. Set by
            :mod:`trainer.training.captured_step`, read by :mod:`trainer.engines.cudnn.provider`.
        plans: Number of plans of a cuDNN graph to time. 1 takes the cached choice or the first
            plan that runs: timing does not pay off for rare shapes, and is impossible during graph
            capture. Set by :func:`trainer.engines.cudnn.timing.untimed`, read by it and by
            :mod:`trainer.engines.cudnn.graphs`.
        fallback: Whether the cuDNN engine computes by CuPy, with a warning, where cuDNN has no
            plan, instead of raising ``NoPlan``. Set by :mod:`trainer.engines.cudnn` while it
            is tested, read by its provider.
        threads: Threads of the NumPy engine and of the update on a CPU; ``None``: one per core. Set
            by :mod:`trainer.training.loop`, read by :mod:`trainer.engines.chunks`.
        complete: Called by the engines' layers with the node of each parameter whose gradient they
            have computed, and the gradient, during a backward pass; ``None``: not called. Set by
            :mod:`trainer.training.exchange`, read by :mod:`trainer.engines.autograd`.
        weight_limit: Networks with more weights are refused before they are built, so that a file
            cannot ask for more than it holds; ``None``: no limit. Set by
            :mod:`trainer.weights.description`, read by :mod:`trainer.networks.layers`.
    """

    folded: dict[tuple[chainer.Link, chainer.Link], tuple[Array, Array]] | None = None
    half_weights: dict[chainer.Link, tuple[Array, Array]] | None = None
    parts: int = 1
    plans: int = 6
    fallback: bool = True
    threads: int | None = None
    complete: Callable[[chainer.variable.VariableNode, Array], None] | None = None
    weight_limit: int | None = None

    @contextlib.contextmanager
    def using(self, **values: Any) -> Iterator[None]:
        """Change settings for this thread until the end of a ``with`` block.

        Raises:
            AttributeError: There is no setting of a name.
        """
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)


settings = Settings()
