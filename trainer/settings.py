"""Settings that reach the layers without an argument: Chainer calls their functions, not we.

Two are users', and stand in Chainer's configuration:

``chainer.config.engine``
    Name of the engine (:mod:`trainer.engines`) that computes the layers; 'reference' by default.
``chainer.config.precision``
    Precision in which it computes, for engines that have several; 'float32' by default.

The others are internal, and attributes of :data:`settings`. Each thread has its own values and
begins with the defaults, as it does with Chainer's configuration.
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
        folded: (convolution, batch normalisation) -> weights and biases of both in one; what is
            missing is added. ``None``: folded at each call. Set by predictors, read by
            :mod:`trainer.engines.autograd`.
        half_weights: Convolution -> (its weights, a float16 copy), valid until the weights
            change. ``None``: copied at each call. Gradients of such weights may stay float16,
            which :class:`trainer.engines.cudnn.parameters.GpuUpdate` accepts. Set by
            :mod:`trainer.training.captured_step`, read by :mod:`trainer.engines.cudnn.provider`.
        plans: How many plans of a cuDNN graph are timed. 1 takes the cached choice, or the first
            plan that runs: timing does not pay for rare shapes, and is impossible during graph
            capture. Set by :func:`trainer.engines.cudnn.timing.untimed`, read by it and by
            :mod:`trainer.engines.cudnn.graphs`.
        fallback: Whether the cuDNN engine computes by CuPy, with a warning, where cuDNN has no
            plan, instead of raising ``NoPlan``. Set by :mod:`trainer.engines.cudnn`, when
            it is tried out, read by its provider.
        threads: Threads of NumPy's engine and of the update on a CPU; ``None``: one per core. Set
            by :mod:`trainer.training.loop`, read by :mod:`trainer.engines.chunks`.
        complete: Called by the engines' layers with the node of each parameter whose gradient they
            have computed, and the gradient, during a backward pass; ``None``: nothing is. Set by
            :mod:`trainer.training.exchange`, read by :mod:`trainer.engines.autograd`.
        weight_limit: A network of more weights is refused before it is built, so that a file
            cannot ask for more than it holds; ``None``: any number. Set by
            :mod:`trainer.weights.description`, read by :mod:`trainer.networks.layers`.
    """

    folded: dict[tuple[chainer.Link, chainer.Link], tuple[Array, Array]] | None = None
    half_weights: dict[chainer.Link, tuple[Array, Array]] | None = None
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
