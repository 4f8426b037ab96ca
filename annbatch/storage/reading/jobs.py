"""What is to be done with one stored array in a request: which items go where, and what happens to them on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from annbatch.storage.dtypes import as_bytes, cast_exactly, lossy, type_code
from annbatch.storage.engine import _engine, _rows
from annbatch.storage.errors import CorruptDataError

from .fallback import run_fallback

if TYPE_CHECKING:
    import numpy as np

    from annbatch.storage.chunks.arrays import StoredArray

__all__ = ["DenseJob", "Job", "run", "run_dense"]


@dataclass(slots=True, eq=False)
class Job:
    """Pieces of one stored array and their destinations.

    Attributes
    ----------
    array
        Where the items come from.
    tasks, pieces
        As described in ``_rows.pyx``.
    chunk_size
        Items per chunk of the tasks.
    target
        Dtype at the destination.
    n_columns
        Not None: the items are column numbers, to be checked against this and renumbered by ``columns``.
    columns
        int64, new number of each old column, -1 to drop. For values (``n_columns`` is None) the columns of a dense
        row, for column numbers what they become. None: unchanged.
    """

    array: StoredArray
    tasks: np.ndarray
    pieces: np.ndarray
    chunk_size: int
    target: np.dtype
    n_columns: int | None = None
    columns: np.ndarray | None = None

    def place(self, task: np.ndarray, items: np.ndarray, offset: int) -> None:
        """Move the pieces of a task from items that were read, whose first one is number ``offset`` of the chunk."""
        pieces = self.pieces[task[1] : task[2]]
        if self.n_columns is not None:
            bad = _rows.place_indices(
                as_bytes(items),
                offset,
                pieces,
                type_code(items.dtype),
                self.target.itemsize == 8,
                self.n_columns,
                self.columns,
                items.dtype.itemsize,
            )
            if bad >= 0:
                raise self.bad_column(int(task[0]))
            return
        if self.columns is not None:
            _rows.place_columns(
                as_bytes(cast_exactly(items, self.target)), offset, pieces, self.target.itemsize, self.columns
            )
            return
        source, target = type_code(items.dtype), type_code(self.target)
        if min(source, target) < 0:
            items, source, target = cast_exactly(items, self.target), -1, -1
        if _rows.place_values(as_bytes(items), offset, pieces, source, target, items.dtype.itemsize) >= 0:
            raise self.lossy_cast()

    def for_engine(self) -> tuple[Any, ...] | None:
        """Return the job as the engine takes it, or None when the engine cannot do it."""
        table, source, target = self.array.table, type_code(self.array.dtype), type_code(self.target)
        if table is None or not self.engine_takes(self.array, self.target):
            return None
        if self.array.dtype == self.target:
            source = target = max(source, 0)  # equal codes copy, whatever the dtype
        if table.prepare is not None and len(self.tasks):
            table.prepare(self.tasks[:, 0])
        n_columns = -1 if self.n_columns is None else self.n_columns
        return table, self.tasks, self.pieces, source, target, self.target.itemsize, n_columns, self.columns

    @staticmethod
    def engine_takes(array: StoredArray, target: np.dtype) -> bool:
        """Say whether the engine can read values of an array as ``target``."""
        return array.is_direct and (array.dtype == target or min(type_code(array.dtype), type_code(target)) >= 0)

    def failure(self, chunk: int, kind: str, detail: Any) -> Exception:
        """Return the error for a task that failed in the engine."""
        if kind == "column":
            return self.bad_column(chunk)
        if kind == "lossy":
            return self.lossy_cast()
        if kind == "memory":
            return MemoryError()
        table = self.array.table
        assert table is not None
        path = table.path(table.file_of(chunk))
        if kind == "cannot_read":
            return OSError(detail, os.strerror(detail), str(path))
        if kind == "python" and not isinstance(detail, Exception):
            return RuntimeError(f"decoding was interrupted: {detail!r}")
        what = {
            "cut_short": "the file is cut short: it ends before the chunk does",
            "changed": "the file was changed, replaced or removed after it was opened",
            "damaged": "the chunk cannot be decoded",
            "checksum": "the checksum of the chunk does not match",
            "wrong_size": f"the chunk does not decode to {table.chunk_bytes} bytes",
            "python": f"the chunk cannot be decoded: {detail}",
        }[kind]
        return CorruptDataError(f"{self.array.location}, chunk {chunk} in {path}: {what}")

    def bad_column(self, chunk: int) -> CorruptDataError:
        """Return the error about a column number that the matrix does not have."""
        return CorruptDataError(
            f"{self.array.location}, chunk {chunk}: a column number is outside 0 <= column < {self.n_columns}"
        )

    def lossy_cast(self) -> ValueError:
        """Return the error about a cast that changes values."""
        return ValueError(f"{self.array.location}: {lossy(self.array.dtype, self.target)}")


@dataclass(slots=True, eq=False)
class DenseJob:
    """Rows of a CSR matrix that become dense rows. The engine must take both of its jobs.

    Attributes
    ----------
    values, columns
        How the values and the column numbers come into the memory of a stretch.
    stretches, extents
        As described in ``_rows.pyx``.
    address
        int64, where each dense row goes.
    row_bytes
        Bytes of a dense row.
    """

    values: Job
    columns: Job
    stretches: np.ndarray
    extents: np.ndarray
    address: np.ndarray
    row_bytes: int


def run(jobs: list[Job], num_threads: int) -> None:
    """Read and place everything: in the compiled engine, and what it cannot read through zarr-python and h5py."""
    direct = [(job, described) for job in jobs if (described := job.for_engine()) is not None]
    _check(_engine.run([described for _, described in direct], num_threads), direct)
    engine_jobs = {id(job) for job, _ in direct}
    run_fallback([job for job in jobs if id(job) not in engine_jobs], num_threads)


def run_dense(jobs: list[DenseJob], num_threads: int) -> None:
    """Read sparse rows and write them as dense ones, in the compiled engine."""
    described: list[tuple[Job, Any]] = []
    dense_jobs = []
    for job in jobs:
        pair = [job.values.for_engine(), job.columns.for_engine()]
        described += zip((job.values, job.columns), pair, strict=True)
        value_type = type_code(job.values.target)
        dense_jobs.append((*pair, job.stretches, job.extents, job.address, job.row_bytes, value_type))
    _check(_engine.run_dense(dense_jobs, num_threads), described)


def _check(failed: tuple[Any, int, str, Any] | None, described: list[tuple[Job, Any]]) -> None:
    """Raise the error for what the engine says of a job that it knows by its description."""
    if failed is not None:
        which, chunk, kind, detail = failed
        raise next(job for job, description in described if description is which).failure(chunk, kind, detail)
