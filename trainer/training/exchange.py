"""Averages the gradients of several processes on CPUs during the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer.settings import settings

if TYPE_CHECKING:
    from mpi4py import MPI

    from trainer.networks.base import Network
    from trainer.types import Array


def _updated(network):
    """Return name -> parameter for all parameters that are not frozen, sorted by name."""
    return {
        name: param
        for name, param in sorted(network.namedparams())
        if param.update_rule is not None and param.update_rule.enabled
    }


class Exchange:
    """Averages gradients over the processes by MPI, each as soon as it is complete.

    The first update averages all gradients at its end and records in which order the first
    process computed them. From then on each is sent in this order, while the gradients of earlier
    layers are still being computed. Gradients that no layer reports (plain Chainer's, and those of
    parameters that several layers share) are sent at the end.

    Args:
        world: The processes. The same parameters are updated in all of them.
    """

    def __init__(self, world: MPI.Comm) -> None:
        self._world = world
        self._order: list[str] | None = None
        self._complete: dict[str, Array] = {}
        self._repeated: set[str] = set()
        self._requests: list[MPI.Request] = []

    @contextlib.contextmanager
    def during(self, network: Network) -> Iterator[None]:
        """Send gradients during the backward pass of the batch's last chunk."""
        names = {param.node: name for name, param in _updated(network).items()}

        def complete(node: chainer.variable.VariableNode, gradient: Array) -> None:
            name = names.get(node)
            if name is None or self._order is not None and name in self._repeated:
                return
            if name in self._complete:
                if self._order is not None:
                    raise RuntimeError(f'the gradient of {name} was sent before it was complete')
                self._repeated.add(name)
            self._complete[name] = np.ascontiguousarray(gradient)
            self._send()

        with settings.using(complete=complete):
            yield

    def finish(self, network: Network) -> None:
        """Wait until all gradients are averaged. All parameters that are updated have one."""
        params = _updated(network)
        early = [name for name in self._complete if name not in self._repeated]
        for name, param in params.items():
            if name not in self._complete or name in self._repeated:
                self._complete[name] = np.ascontiguousarray(param.grad)
        if self._order is None:
            # A process without an image of the first batch has seen no gradient.
            self._order, self._repeated = self._world.bcast((early, self._repeated))
            self._order += [name for name in params if name not in self._order]
        self._send()
        for name, request in zip(self._order, self._requests):
            request.Wait()
            self._complete[name] /= self._world.size
            params[name].grad = self._complete[name]
        self._complete, self._requests = {}, []

    def _send(self):
        """Send the complete gradients whose turn it is."""
        from mpi4py import MPI

        if self._requests:
            self._requests[-1].Test()  # MPI makes progress, on all, only when it is called
        order = self._order or ()
        while len(self._requests) < len(order):
            gradient = self._complete.get(order[len(self._requests)])
            if gradient is None:
                return
            self._requests.append(self._world.Iallreduce(MPI.IN_PLACE, gradient))
