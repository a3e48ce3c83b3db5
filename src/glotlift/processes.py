"""Several processes that share one job, as `accelerate launch -m glotlift ...` starts them on GPUs.

On a CPU `accelerate launch` starts one process only, unless there is MPI; `torchrun --nproc-per-node N -m glotlift ...`
starts several.

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
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # without a GPU it does not look for others by itself
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)
