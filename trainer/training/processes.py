"""Training with several processes: ``mpiexec -n 4 python main.py ...``.

``-b`` is the whole batch. Each process computes its share
(:class:`trainer.datasets.loading.Share`); the gradients are averaged over the processes,
between GPUs by ChainerMN with NCCL, between CPUs by :mod:`trainer.training.exchange`, and
all processes make the same update. With a given ``train_batch_divide`` the weights are
those that one process computes, up to rounding, if the chunks can be divided evenly among
the processes; otherwise the number of chunks is increased.

In each process, batch normalisation's running statistics are updated by its own chunks. They
are averaged over the processes before they are used, for evaluation and in files, so that with
one chunk per process each update is

    statistics = decay x statistics + (1 - decay) x mean over the processes of the chunk's

no matter when the mean is taken, as it commutes with the updates. A single process that
computes the same chunks one after the other forgets faster, by decay at each chunk. A process
that has no image of a small batch keeps its statistics. Without mpiexec, MPI is not imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np
from chainer.backends import cuda

from trainer import cli, devices
from trainer.datasets import loading
from trainer.errors import InputError
from trainer.training import launch
from trainer.training.exchange import Exchange

if TYPE_CHECKING:
    import chainer
    import chainermn
    import numpy.typing as npt
    from mpi4py import MPI

    from trainer.datasets.loading import Plan
    from trainer.metrics import Tally
    from trainer.networks.base import Network
    from trainer.types import R, T

#: Seconds that a failing process waits for the others to fail as well.
PATIENCE = 5.0


@contextlib.contextmanager
def joined() -> Generator[Alone]:
    """Yield the processes that mpiexec started, or :data:`ALONE`.

    An exception that leaves the block in one process ends all of them: it is printed by that
    process, with its number, and the exit status is 2 if the user can fix the error, else 1.
    If all processes fail, the first raises its exception, the others ``SystemExit``.

    Raises:
        trainer.errors.InputError: There is no mpi4py, or it is of another MPI.
    """
    rank, size = launch.launched()
    if size < 2:
        yield ALONE
        return
    try:
        world = _world(size)
    except InputError:
        if rank:
            raise SystemExit(2) from None
        raise
    processes = Processes(world)
    try:
        yield processes
    except BaseException as e:
        processes._end(e)
        raise


def _mpi():
    from mpi4py import MPI

    return MPI


def _world(size):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                'ignore', RuntimeWarning
            )  # for the mpiexec of another MPI; see below
            MPI = _mpi()
    except (ImportError, RuntimeError) as e:  # a RuntimeError if the MPI library is missing
        raise InputError(
            f'mpiexec started {size} processes, but mpi4py cannot be imported ({e}); install it '
            'with "uv sync --inexact --extra mpi" or "pip install mpi4py mpich"'
        ) from e
    if MPI.COMM_WORLD.size != size:
        raise InputError(
            'mpiexec started {} processes, but mpi4py sees {}: it uses {}, and mpiexec is of '
            'another MPI; start them with the mpiexec of that one'.format(
                size, MPI.COMM_WORLD.size, MPI.Get_library_version().split('\n')[0].strip()
            )
        )
    return MPI.COMM_WORLD


class Alone:
    """A single process: the interface of :class:`Processes`, without MPI.

    Attributes:
        rank: Number of the process, from 0; the first prints, logs and saves.
        size: Number of processes.
        local_rank: Number of the process on this machine.
        local_size: Number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def together(self, function: Callable[[], R], undo: Callable[[], object] | None = None) -> R:
        """Call a function in every process. If it fails in one, all raise its error.

        Args:
            function: A function that does not wait for other processes.
            undo: Called if the function succeeded here, but failed in another process.

        Raises:
            trainer.errors.InputError, OSError, MemoryError: The error of the first process that
                failed.
        """
        return function()

    def first(self, function: Callable[[], R]) -> R:
        """Call a function in the first process; return its result, or raise its error, in all."""
        return function()

    def gpu(self, first: int) -> int:
        """Return the number of this process's GPU: consecutive numbers from ``first``.

        It is ``first`` in all processes if each sees different GPUs (``CUDA_VISIBLE_DEVICES``);
        a negative number is the CPU.
        """
        return first

    def device(self, first: int) -> chainer.backend.Device:
        """Return Chainer's device of this process; see :meth:`gpu`.

        Raises:
            trainer.errors.InputError: There is no such GPU, or no NCCL between several.
        """
        return devices.get(first)

    def in_turn(self, function: Callable[[], R]) -> R:
        """Like :meth:`together`, but one process per machine runs first; it may download files."""
        return function()

    def begin(
        self,
        device: chainer.backend.Device,
        *networks: Network,
        gradients: npt.DTypeLike | None = None,
    ) -> None:
        """Prepare to exchange gradients; give the networks the first process's weights.

        Args:
            device: Device of this process.
            networks: Networks on that device.
            gradients: dtype in which GPUs exchange gradients; ``None``: float32.
        """

    def chunks(self, divide: int) -> int:
        """Return how many chunks this process computes of a batch of ``divide`` chunks."""
        return divide

    def share(self, plan: Plan, chunks: int = 1) -> Plan:
        """Return this process's part of a plan (:mod:`trainer.datasets.loading`)."""
        return plan

    def collect(self, items: Iterable[T]) -> list[T]:
        """Return the concatenated lists of all processes."""
        return list(items)

    def sum(self, *values: float) -> list[float]:
        """Return the sums of numbers over the processes, as floats."""
        return [float(value) for value in values]

    def sum_tally(self, tally: Tally) -> None:
        """Sum a :class:`trainer.metrics.Tally` over the processes, in place."""

    def exchanging(self, network: Network) -> contextlib.AbstractContextManager[None]:
        """Average gradients early within a ``with`` block: the last backward pass of a batch."""
        return contextlib.nullcontext()

    def mean_gradients(self, network: Network) -> None:
        """Average the gradients over the processes; drop those of frozen parameters."""

    def mean_statistics(self, *networks: Network) -> None:
        """Average batch normalisation's running statistics over the processes."""


#: The only process.
ALONE = Alone()


class Processes(Alone):
    """The processes that mpiexec started.

    Args:
        world: MPI communicator of all processes.
    """

    def __init__(self, world: MPI.Comm) -> None:
        self.rank, self.size = world.rank, world.size
        self._world = world
        self._failed = world.Dup()  # for failing processes, as others may be waiting on world
        machine = world.Split_type(_mpi().COMM_TYPE_SHARED)
        self.local_rank, self.local_size = machine.rank, machine.size
        # Slurm, for example, may show each process only its own GPU.
        shown = machine.allgather(os.environ.get('CUDA_VISIBLE_DEVICES'))
        self._shown_its_own = len(set(shown)) == machine.size
        self._communicator: chainermn.CommunicatorBase | None = None  # of GPUs
        self._exchange: Exchange | None = None  # of CPUs

    def together(self, function: Callable[[], R], undo: Callable[[], object] | None = None) -> R:
        error: BaseException | None = None
        try:
            result = function()
        except (InputError, OSError, MemoryError) as e:
            error = e
        errors = [e for e in self._world.allgather(error) if e is not None]
        if errors:
            if error is None and undo is not None:
                undo()
            raise errors[0]
        return result

    def first(self, function: Callable[[], R]) -> R:
        return self._world.bcast(self.together(lambda: function() if self.rank == 0 else None))

    def gpu(self, first: int) -> int:
        return first if first < 0 or self._shown_its_own else first + self.local_rank

    def device(self, first: int) -> chainer.backend.Device:
        if first < 0:
            return devices.get(first)
        try:
            device = devices.get(self.gpu(first))
        except InputError as e:
            if self.gpu(first) == first:
                raise
            raise InputError(
                f'{e} (with -g {first}, the {self.local_size} processes of {socket.gethostname()} '
                'take as many GPUs)'
            ) from None
        from chainermn import nccl

        if not nccl._available:
            raise InputError(
                f'-g {first}: several processes need NCCL, which CuPy cannot find; install '
                'it with "uv sync --inexact --extra nccl13" or "pip install nvidia-nccl-cu13"'
            )
        return device

    def in_turn(self, function: Callable[[], R]) -> R:
        results = self.together(lambda: [] if self.local_rank else [function()])
        return self.together(lambda: results[0] if results else function())

    def begin(
        self,
        device: chainer.backend.Device,
        *networks: Network,
        gradients: npt.DTypeLike | None = None,
    ) -> None:
        if device.xp is np:
            self._exchange = Exchange(self._world.Dup())
        else:
            import chainermn

            self._communicator = chainermn.create_communicator(
                'pure_nccl', self._world, allreduce_grad_dtype=gradients or np.float32
            )
        # ChainerMN's bcast_data leaves out the statistics, and rounds in mixed mode.
        for network in networks:
            for link, name in _arrays(network, persistent=False) + _arrays(network):
                array = _get(link, name)
                host = np.ascontiguousarray(cuda.to_cpu(array))
                self._world.Bcast(host)
                if self.rank:
                    array[...] = device.send(host)

    def chunks(self, divide: int) -> int:
        return -(-divide // self.size)

    def share(self, plan: Plan, chunks: int = 1) -> Plan:
        return loading.Share(plan, self.rank, self.size, chunks)

    def collect(self, items: Iterable[T]) -> list[T]:
        return sum(self._world.allgather(list(items)), [])

    def sum(self, *values: float) -> list[float]:
        return self._sum(np.array(values, np.float64)).tolist()

    def _sum(self, array):
        total = np.empty_like(array)
        self._world.Allreduce(array, total)
        return total

    def sum_tally(self, tally: Tally) -> None:
        (tally.loss_sum,) = self.sum(tally.loss_sum)
        tally.confusion = self._sum(tally.confusion)
        tally.top5 = self._sum(tally.top5)

    def exchanging(self, network: Network) -> contextlib.AbstractContextManager[None]:
        return self._exchange.during(network) if self._exchange else contextlib.nullcontext()

    def mean_gradients(self, network: Network) -> None:
        for param in network.params():
            if param.update_rule is None or not param.update_rule.enabled:
                param.cleargrad()
            elif param.grad is None:  # this process has no image of the batch
                param.grad = param.device.xp.zeros_like(param.array)
        if self._exchange is not None:
            self._exchange.finish(network)
            return
        assert self._communicator is not None  # begin() was called
        self._communicator.multi_node_mean_grad(network)

    def mean_statistics(self, *networks: Network) -> None:
        found = [_get(link, name) for network in networks for link, name in _arrays(network)]
        if not found:
            return
        # In float64, so that the mean of equal numbers is exact.
        mean = (
            self._sum(
                np.concatenate([cuda.to_cpu(array).ravel().astype(np.float64) for array in found])
            )
            / self.size
        )
        ends = np.cumsum([array.size for array in found])[:-1]
        for array, part in zip(found, np.split(mean, ends)):
            part = part.astype(array.dtype).reshape(array.shape)
            array[...] = part if isinstance(array, np.ndarray) else cuda.to_gpu(part)

    def _end(self, error):
        """Return in the first process if all have failed; otherwise end the processes."""
        line = None if isinstance(error, SystemExit) else cli.reason(error)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1 if line is None else 2
        sys.stdout.flush()
        if status != 130 and self._all_failed():
            if self.rank:
                raise SystemExit(status) from None
            return
        where = f'process {self.rank + 1} of {self.size}, on {socket.gethostname()}'
        if status == 1:
            traceback.print_exception(error)
            line = 'ended by the error above'
        if status != 130:
            print(
                f'{cli.prog()}: error: {line} ({where}; the others are ended as well)',
                file=sys.stderr,
                flush=True,
            )
            time.sleep(1)  # MPICH's mpiexec drops output that it has not yet forwarded when it ends
        self._world.Abort(status)
        os._exit(status)  # MPICH's Abort may return

    def _all_failed(self):
        meeting = self._failed.Ibarrier()
        # Higher ranks wait longer, so that only one of two failing processes prints.
        deadline = time.monotonic() + PATIENCE * (1 + self.rank / 10)
        while not meeting.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _arrays(network, persistent=True):
    """Return (link, name) of a network's running statistics, or of its parameters."""
    return [
        (link, name)
        for link in network.links()
        for name in sorted(link._persistent if persistent else link._params)
        if not persistent or np.ndim(getattr(link, name))
    ]


def _get(link, name):
    value = getattr(link, name)
    return getattr(value, 'array', value)
