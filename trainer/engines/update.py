"""The fused update of all parameters: the parts of an optimizer's update, and its CPU version."""

import chainer
import numpy as np

from trainer.engines import chunks
from trainer.optimizers import ClipGradient, HeadRate, TorchSGD, WeightDecays


class NoFusedUpdate(Exception):
    """The optimizer or one of its hooks has no fused update."""


#: Kinds of updates; the numbers are those of parameters.cu.
CHAINER, TORCH, NESTEROV = range(3)


def _kind(optimizer: chainer.Optimizer) -> tuple[int, str]:
    """Return the kind of the update and the name of its state."""
    if type(optimizer) is chainer.optimizers.MomentumSGD:
        return CHAINER, 'v'
    if type(optimizer) is TorchSGD:
        return NESTEROV if optimizer.nesterov else TORCH, 'buffer'
    raise NoFusedUpdate(type(optimizer).__name__)


class Update:
    """The parts of an optimizer's update.

    Args:
        optimizer: MomentumSGD or TorchSGD, set up, with hooks in this order: norm of the gradients,
            weight decay, the classifier's learning rate.

    Attributes:
        kind: :data:`CHAINER`, :data:`TORCH` or :data:`NESTEROV`.
        state: The name of its state in an update rule.
        clip: Largest norm of the gradients, or ``None``.
        decay: Weight decay, or ``None``.
        head: The classifier's learning rate, or ``None``.
        params: The parameters that are not frozen, in float32.

    Raises:
        NoFusedUpdate: The optimizer or a hook is of another kind.
    """

    def __init__(self, optimizer: chainer.Optimizer) -> None:
        self.kind, self.state = _kind(optimizer)
        self.optimizer = optimizer
        hooks = list(optimizer._hookable._pre_update_hooks.values())
        if optimizer._hookable._post_update_hooks:
            raise NoFusedUpdate('hooks after the update')

        def first(*kinds):
            return hooks.pop(0) if hooks and isinstance(hooks[0], kinds) else None

        self.clip: ClipGradient | None = first(ClipGradient)
        self.decay: chainer.optimizer_hooks.WeightDecay | WeightDecays | None = first(
            chainer.optimizer_hooks.WeightDecay, WeightDecays
        )
        self.head: HeadRate | None = first(HeadRate)
        if hooks:
            raise NoFusedUpdate(f'hook {type(hooks[0]).__name__}')
        self.params: list[chainer.Parameter] = [
            p for p in optimizer.target.params() if p.update_rule.enabled
        ]
        for param in self.params:
            rule = param.update_rule
            if param.dtype != np.float32 or not param.array.flags.c_contiguous:
                raise NoFusedUpdate('parameters other than float32')
            hookable = rule._hookable
            if hookable._pre_update_hooks or hookable._post_update_hooks:
                raise NoFusedUpdate("an update rule's hooks")
            rule._init_states(param)
        # Keys are update rules, one per parameter, as parameters cannot be hashed.
        self._group = {}
        if isinstance(self.decay, WeightDecays):
            self._group = {
                param.update_rule: i for i, (_, of) in enumerate(self.decay.groups) for param in of
            }
        self._factor = {}
        if self.head is not None:
            self._factor = {param.update_rule: self.head.factor for param in self.head.params}

    def decays(self) -> list[float]:
        """Return the rates of weight decay, a list of one or more."""
        if isinstance(self.decay, WeightDecays):
            return [rate for rate, _ in self.decay.groups]
        return [0.0 if self.decay is None else self.decay.rate]

    def group(self, param: chainer.Parameter) -> int:
        """Return the index in :meth:`decays` for a parameter."""
        return self._group.get(param.update_rule, 0)

    def factor(self, param: chainer.Parameter) -> float:
        """Return the factor of a parameter's gradient, for the classifier's learning rate."""
        return self._factor.get(param.update_rule, 1)


def _update(update, param, grad, state, clip, decay, factor):
    """Update values of a parameter by the same operations in the same order as Chainer."""
    optimizer, room = update.optimizer, np.empty_like(param)
    if clip < 1:
        grad *= grad.dtype.type(clip)
    if decay:
        np.multiply(param, decay, out=room)
        grad += room
    if factor != 1:
        grad *= factor
    state *= optimizer.momentum
    if update.kind == CHAINER:
        np.multiply(grad, optimizer.lr, out=room)
        state -= room
        param += state
        return
    state += grad
    step = state
    if update.kind == NESTEROV:
        step = np.multiply(state, optimizer.momentum, out=room)
        step += grad
    param -= np.multiply(step, optimizer.lr, out=room)


def apply(optimizer: chainer.Optimizer) -> None:
    """Update the parameters on a CPU, as ``optimizer.update()`` does, bit for bit.

    All operations are applied to one piece at a time, while it is in the CPU's cache. If
    :class:`Update` does not support the optimizer, ``optimizer.update()`` is called.
    """
    try:
        if optimizer._loss_scale is not None:
            raise NoFusedUpdate('a loss scale')
        update = Update(optimizer)
    except NoFusedUpdate:
        optimizer.update()
        return
    optimizer.reallocate_cleared_grads()
    optimizer.t += 1
    clip = 1.0 if update.clip is None else update.clip.factor(update.params)
    decays = update.decays()
    parts = []
    for param in update.params:
        param.update_rule.t += 1
        if not param.grad.flags.c_contiguous:
            param.grad = np.ascontiguousarray(param.grad)
        arrays = param.array, param.grad, param.update_rule.state[update.state]
        own = decays[update.group(param)], update.factor(param)
        parts.append(([a.reshape(-1) for a in arrays], own))

    def compute(part):
        arrays, own = part
        _update(update, *arrays, clip, *own)

    chunks.run(
        compute,
        [
            ([a[piece] for a in arrays], own)
            for arrays, own in parts
            for piece in chunks.pieces(len(arrays[0]))
        ],
    )
