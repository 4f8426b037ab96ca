"""Reading through zarr-python and h5py: what the compiled engine cannot describe. Slower, never wrong."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING

from annbatch.storage.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from .jobs import Job

__all__ = ["run_fallback"]

# Bytes of all calls that run at a time on one array, unless single chunks are larger.
_MAX_READ = 1 << 25


def run_fallback(jobs: list[Job], num_threads: int) -> None:
    """Read and place everything in ``jobs``: all arrays together, each with as many calls at a time as its store can use."""
    calls: dict[int, list[tuple[Job, np.ndarray]]] = {}
    for job in jobs:
        n_concurrent = job.array.n_concurrent or num_threads
        calls.setdefault(n_concurrent, []).extend((job, tasks) for tasks in _calls(job, n_concurrent))
    one_by_one = calls.pop(1, [])
    futures: list[Future[None]] = []
    with ExitStack() as stack:
        for n_concurrent, of_stores in calls.items():
            n_threads = max(1, min(n_concurrent, len(of_stores)))
            threads = stack.enter_context(ThreadPoolExecutor(n_threads, thread_name_prefix="annbatch-fallback"))
            futures += [threads.submit(_read_and_place, *call) for call in of_stores]
        # After a failure nothing more is started; leaving the stack waits for what runs.
        stack.callback(lambda: [future.cancel() for future in futures])
        for call in one_by_one:
            _read_and_place(*call)
        for future in futures:
            future.result()


def _calls(job: Job, n_concurrent: int) -> Iterator[np.ndarray]:
    """Yield the tasks that are read by one call each: neighbouring chunks, but work for all calls."""
    chunks = job.plan.tasks["chunk"]
    chunk_bytes = max(1, job.chunk_size * job.array.dtype.itemsize)
    # zarr-python reads the chunks of a shard one after the other.
    shared_out = -(-len(chunks) // n_concurrent)
    longest = max(1, min(_MAX_READ // n_concurrent // chunk_bytes, shared_out))
    first = 0
    for i in range(1, len(chunks) + 1):
        if i == len(chunks) or chunks[i] != chunks[i - 1] + 1 or i - first == longest:
            yield job.plan.tasks[first:i]
            first = i


def _read_and_place(job: Job, tasks: np.ndarray) -> None:
    row_size = prod(job.array.shape[1:])
    # Only whole rows can be asked for; a row of a one-dimensional array is one item.
    low = int(tasks[0]["chunk"] * job.chunk_size + tasks[0]["low"]) // row_size
    high = -(-int(tasks[-1]["chunk"] * job.chunk_size + tasks[-1]["high"]) // row_size)
    try:
        items = job.array.read(low, high).reshape(-1)
    except CorruptDataError as error:
        if len(tasks) == 1:
            msg = f"{error} (in chunk {tasks[0]['chunk']})"
            raise CorruptDataError(msg) from error
        # One by one, to find the chunk to name.
        for number in range(len(tasks)):
            _read_and_place(job, tasks[number : number + 1])
        return
    for task in tasks:
        job.place(task, items, low * row_size - int(task["chunk"]) * job.chunk_size)
