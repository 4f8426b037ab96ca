"""Doing jobs: in the compiled engine, and what it cannot read through zarr-python and h5py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from annbatch.storage.dtypes import type_code
from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import EngineDenseJob

from .fallback import run_fallback

if TYPE_CHECKING:
    from annbatch.storage.engine._plan import EngineJob, Failure

    from .jobs import DenseJob, Job

__all__ = ["run", "run_dense"]


def run(jobs: list[Job], num_threads: int) -> None:
    """Read and place everything."""
    direct: list[Job] = []
    described: list[EngineJob] = []
    others: list[Job] = []
    for job in jobs:
        description = job.for_engine()
        if description is None:
            others.append(job)
        else:
            direct.append(job)
            described.append(description)
    _check(_engine.run(described, num_threads), direct)
    run_fallback(others, num_threads)


def run_dense(jobs: list[DenseJob], num_threads: int) -> None:
    """Read sparse rows and write them as dense ones, in the compiled engine."""
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
        value_type = type_code(job.values.target)
        stretches, extents = job.plan.stretches, job.plan.extents
        dense.append(EngineDenseJob(first, first + 1, stretches, extents, job.address, job.row_bytes, value_type))
    _check(_engine.run_dense(described, dense, num_threads), arrays)


def _check(failure: Failure | None, jobs: list[Job]) -> None:
    """Raise the error for what the engine says of one of the jobs."""
    if failure is not None:
        raise jobs[failure.job].failure(failure.chunk, failure.kind, failure.detail)
