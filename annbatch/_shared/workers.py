"""Which DataLoader worker this process is, if it is one."""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["Worker", "current_worker"]


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` worker processes of a torch DataLoader.

    Attributes
    ----------
    id
        Number of this worker, in [0, count).
    count
        Number of workers of the DataLoader.
    epoch_seed
        The same in all workers of one epoch, another in the next: workers are started afresh every epoch, with the same
        copy of the sampler, and would otherwise repeat the same order.
    """

    id: int
    count: int
    epoch_seed: int

    @property
    def place(self) -> tuple[int, int]:
        """(id, count): which part of a pass this worker does."""
        return self.id, self.count


def current_worker() -> Worker | None:
    """Return the worker that this process is, or None in a process that a DataLoader did not start."""
    # In a worker torch has been imported already; elsewhere there is no need to.
    torch_data = sys.modules.get("torch.utils.data")
    info = None if torch_data is None else torch_data.get_worker_info()
    if info is None:
        return None
    return Worker(id=info.id, count=info.num_workers, epoch_seed=info.seed - info.id)
