"""Reading through zarr-python and h5py: what the compiled engine cannot describe. Slower, never wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from .jobs import Job

__all__ = ["run_fallback"]

# Neighbouring chunks are asked for in one call up to this many bytes.
_MAX_READ = 1 << 25


def run_fallback(jobs: list[Job], num_threads: int) -> None:
    """Read and place everything in ``jobs``; several calls at a time where the store can use them."""
    for job in jobs:
        reads = list(_reads(job))
        n_threads = min(job.array.n_concurrent or num_threads, len(reads))
        if n_threads <= 1:
            for tasks in reads:
                _read_and_place(job, tasks)
            continue
        with ThreadPoolExecutor(n_threads, thread_name_prefix="annbatch-fallback") as threads:
            futures = [threads.submit(_read_and_place, job, tasks) for tasks in reads]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()


def _reads(job: Job) -> Iterator[np.ndarray]:
    """Yield stretches of the task table that are read by one call each."""
    chunks = job.tasks[:, 0]
    chunk_bytes = max(1, job.chunk_size * job.array.dtype.itemsize)
    longest = max(1, _MAX_READ // chunk_bytes)
    first = 0
    for i in range(1, len(chunks) + 1):
        if i == len(chunks) or chunks[i] != chunks[i - 1] + 1 or i - first == longest:
            yield job.tasks[first:i]
            first = i


def _read_and_place(job: Job, tasks: np.ndarray) -> None:
    row_size = prod(job.array.shape[1:])
    # Only whole rows can be asked for; a row of a one-dimensional array is one item.
    low = int(tasks[0, 0] * job.chunk_size + tasks[0, 3]) // row_size
    high = -(-int(tasks[-1, 0] * job.chunk_size + tasks[-1, 4]) // row_size)
    items = job.array.read(low, high).reshape(-1)
    for task in tasks:
        job.place(task, items, low * row_size - int(task[0]) * job.chunk_size)
