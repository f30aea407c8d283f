"""Rank and number of processes as ``mpiexec`` started them; MPI is not imported."""

import contextlib
import io
import os
from collections.abc import Iterator

# Environment variables in which process managers tell a process its rank and their number.
_MANAGERS = (
    ('PMI_SIZE', 'PMI_RANK'),  # MPICH, Intel MPI, Slurm
    ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
    ('MV2_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_RANK'),
)

# The same for the processes on this machine.
_ON_MACHINE = (
    ('MPI_LOCALNRANKS', 'MPI_LOCALRANKID'),
    ('OMPI_COMM_WORLD_LOCAL_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    ('MV2_COMM_WORLD_LOCAL_SIZE', 'MV2_COMM_WORLD_LOCAL_RANK'),
)


def _told(managers):
    for size, rank in managers:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def launched() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) without mpiexec."""
    return _told(_MANAGERS)


def share_cores() -> None:
    """Bind this process to its share of the machine's cores, unless mpiexec has bound it.

    Call it before NumPy is imported: BLAS and OpenMP start a thread for each core that they see.
    """
    rank, size = _told(_ON_MACHINE)
    if size < 2 or not hasattr(os, 'sched_setaffinity'):
        return
    cores = sorted(os.sched_getaffinity(0))
    if size > len(cores) or len(cores) <= (os.cpu_count() or 1) // size:
        return
    begin, end = (i * len(cores) // size for i in (rank, rank + 1))
    os.sched_setaffinity(0, cores[begin:end])


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Silence all processes but the first while all print the same, such as errors in arguments."""
    if launched()[0]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    else:
        yield
