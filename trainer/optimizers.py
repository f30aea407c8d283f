"""SGD with momentum, as in Torch and as in Chainer, and optimizer hooks."""

import math

import chainer
import numpy as np
from chainer import optimizer
from chainer.backends import cuda


class _Rule(optimizer.UpdateRule):
    is_elementwise = True

    def __init__(self, parent_hyperparam, nesterov):
        super().__init__(parent_hyperparam)
        self.nesterov = nesterov

    def init_state(self, param):
        with chainer.using_device(param.device):
            self.state['buffer'] = param.device.xp.zeros_like(param.array)

    def update_core_cpu(self, param):
        if param.grad is None:
            return
        buffer, momentum = self.state['buffer'], self.hyperparam.momentum
        buffer *= momentum
        buffer += param.grad
        step = param.grad + momentum * buffer if self.nesterov else buffer
        param.array -= self.hyperparam.lr * step

    def update_core_gpu(self, param):
        if param.grad is None:
            return
        step = 'grad + momentum * buffer' if self.nesterov else 'buffer'
        cuda.elementwise(
            'T grad, T lr, T momentum',
            'T param, T buffer',
            f'buffer = momentum * buffer + grad; param -= lr * ({step});',
            'torch_nesterov' if self.nesterov else 'torch_momentum',
        )(
            param.grad,
            self.hyperparam.lr,
            self.hyperparam.momentum,
            param.array,
            self.state['buffer'],
        )


class TorchSGD(optimizer.GradientMethod):
    """SGD with momentum as ``optim.sgd`` of Torch7 and ``torch.optim.SGD`` compute it.

    buffer = momentum x buffer + gradient; then lr x buffer is subtracted from the parameter
    or, with Nesterov's momentum, lr x (gradient + momentum x buffer). There is no dampening.

    Chainer's ``MomentumSGD`` multiplies by the learning rate inside the buffer, so that a new
    rate takes effect gradually. Its ``NesterovAG`` is a different update: it multiplies the new
    buffer by momentum^2, where the formula it follows (arXiv 1212.0901) has the old buffer.

    Args:
        lr: Learning rate.
        momentum: Momentum.
        nesterov: Whether the momentum is Nesterov's.
    """

    lr: optimizer.HyperparameterProxy = optimizer.HyperparameterProxy('lr')
    momentum: optimizer.HyperparameterProxy = optimizer.HyperparameterProxy('momentum')

    def __init__(self, lr: float, momentum: float = 0.9, nesterov: bool = False) -> None:
        super().__init__()
        self.hyperparam.lr = lr
        self.hyperparam.momentum = momentum
        self.nesterov = nesterov

    def create_update_rule(self) -> optimizer.UpdateRule:
        return _Rule(self.hyperparam, self.nesterov)


class ClipGradient:
    """An optimizer hook that scales gradients down to a norm.

    The norm is over the gradients of all trained parameters, as
    ``torch.nn.utils.clip_grad_norm_`` computes it. Add the hook before the weight decay.

    Args:
        threshold: The largest norm.
    """

    name: str = 'ClipGradient'
    call_for_each_param: bool = False
    timing: str = 'pre'

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def factor(self, params: list[chainer.Parameter], scale: float | None = None) -> float:
        """Return the factor, a float, to multiply the gradients by.

        Args:
            params: The trained parameters.
            scale: The loss scale that the gradients include.
        """
        squares = sum(float(_squares(p.grad)) for p in params if p.grad is not None)
        return min(1.0, self.threshold / (math.sqrt(squares) / (scale or 1) + 1e-6))

    def __call__(self, optimizer: chainer.Optimizer) -> None:
        params = [p for p in optimizer.target.params() if p.update_rule.enabled]
        factor = self.factor(params, optimizer._loss_scale)
        for param in params:
            if param.grad is not None and factor < 1:
                param.grad *= param.dtype.type(factor)


def _squares(array):
    """Return the sum of the squares of an array, in double precision."""
    flat = array.reshape(-1).astype(np.float64)
    return (flat * flat).sum()


class WeightDecays:
    """An optimizer hook that gives each group of parameters its own weight decay.

    Args:
        groups: Pairs (rate, list of chainer.Parameter) that cover all parameters.
    """

    name: str = 'WeightDecays'
    call_for_each_param: bool = False
    timing: str = 'pre'

    def __init__(self, groups: list[tuple[float, list[chainer.Parameter]]]) -> None:
        self.groups = groups

    def __call__(self, optimizer: chainer.Optimizer) -> None:
        for rate, params in self.groups:
            for param in params:
                if rate and param.grad is not None and param.update_rule.enabled:
                    param.grad += param.dtype.type(rate) * param.array


class HeadRate:
    """An optimizer hook that multiplies the learning rate of the classifier.

    It multiplies the gradients, weight decay included. As every optimizer here is linear in
    them, this equals multiplying the learning rate, whatever the schedule. Add the hook after
    the weight decay.

    Args:
        params: Parameters of the classifier.
        factor: Factor of the learning rate.
    """

    name: str = 'HeadRate'
    call_for_each_param: bool = False
    timing: str = 'pre'

    def __init__(self, params: list[chainer.Parameter], factor: float) -> None:
        self.params = params
        self.factor = factor

    def __call__(self, optimizer: chainer.Optimizer) -> None:
        for param in self.params:
            if param.grad is not None:
                param.grad *= self.factor


#: Name in recipes -> function that makes the optimizer from (lr, momentum).
OPTIMIZERS = {
    'momentum': chainer.optimizers.MomentumSGD,
    'torch-momentum': TorchSGD,
    'torch-nesterov': lambda lr, momentum: TorchSGD(lr, momentum, nesterov=True),
}
