"""Doing jobs: in the compiled engine, and what it cannot read through zarr-python and h5py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from annbatch.storage.engine import _engine
from annbatch.storage.far.reading import is_far, run_far, run_far_dense

from .fallback import run_fallback

if TYPE_CHECKING:
    from annbatch.storage.engine._plan import EngineDenseJob, EngineJob, Failure
    from annbatch.storage.far.fetch import Cancel

    from .jobs import DenseJob, Job

__all__ = ["run", "run_dense"]


def run(jobs: list[Job], num_threads: int, cancel: Cancel | None = None) -> None:
    """Read and place everything. `cancel` ends the waiting for far stores."""
    direct: list[Job] = []
    far: list[Job] = []
    described: list[EngineJob] = []
    others: list[Job] = []
    for job in jobs:
        if is_far(job) and job.engine_takes(job.array, job.target):
            far.append(job)
            continue
        description = job.for_engine()
        if description is None:
            others.append(job)
        else:
            direct.append(job)
            described.append(description)
    _check(_engine.run(described, num_threads), direct)
    run_far(far, num_threads, cancel)
    run_fallback(others, num_threads)


def run_dense(jobs: list[DenseJob], num_threads: int, cancel: Cancel | None = None) -> None:
    """Read sparse rows and write them as dense ones, in the compiled engine."""
    far = [job for job in jobs if is_far(job.values) or is_far(job.columns)]
    if far:
        jobs = [job for job in jobs if job not in far]
        run_far_dense(far, num_threads, cancel)
    arrays: list[Job] = []
    described: list[EngineJob] = []
    dense: list[EngineDenseJob] = []
    for job in jobs:
        first = len(arrays)
        for array in (job.values, job.columns):
            description = array.for_engine()
            assert description is not None
            arrays.append(array)
            described.append(description)
        dense.append(job.for_engine(first))
    _check(_engine.run_dense(described, dense, num_threads), arrays)


def _check(failure: Failure | None, jobs: list[Job]) -> None:
    """Raise the error for what the engine says of one of the jobs."""
    if failure is not None:
        raise jobs[failure.job].failure(failure.chunk, failure.kind, failure.detail)
