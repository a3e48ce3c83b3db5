"""Several processes that share one job, as `accelerate launch -m glotlift ...` starts them on GPUs.

On CPUs `accelerate launch` starts one process only, unless there is MPI and a `--mpirun_hostfile`; `torchrun
--nproc-per-node N -m glotlift ...` starts several without it.

Leaves: which process this is, and a way to wait for the others. All are expected to see the same folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """The processes of a job.

    Attributes:
        index: number of this one, 0 to count - 1; 0 prints and writes what is written once.
        count: how many there are.
        wait: returns when all have called it.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.index == 0


def processes() -> Processes:
    """Return the processes that a launcher started this one with; one where there is no launcher."""
    if _from_environment("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", otherwise=1) < 2:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # without a GPU it does not look for others by itself
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def prints() -> bool:
    """Return whether this is the process that prints; asks the environment only, so that nothing is imported."""
    return _from_environment("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", otherwise=0) == 0


def _from_environment(*names: str, otherwise: int) -> int:
    """Return the first of several variables, as torchrun, accelerate, Open MPI, MPICH and MVAPICH set them."""
    return next((int(os.environ[name]) for name in names if name in os.environ), otherwise)
