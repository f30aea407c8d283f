"""How ``mpiexec`` started this process; nothing of MPI is imported."""

import contextlib
import io
import os

# How process managers tell a process how many there are, and which it is.
_MANAGERS = (
    ('PMI_SIZE', 'PMI_RANK'),  # MPICH, Intel MPI, Slurm
    ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
    ('MV2_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_RANK'),
)


def launched():
    """Return this process's rank and the number of processes: (0, 1) without mpiexec."""
    for size, rank in _MANAGERS:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


@contextlib.contextmanager
def first_speaks():
    """Let only the first process print, where all say the same: arguments, and what is wrong."""
    if launched()[0]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    else:
        yield
