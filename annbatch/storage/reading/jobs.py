"""What is to be done with one stored array in a request: which items go where, and what happens to them on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from annbatch.storage.dtypes import as_bytes, cast_exactly, lossy, type_code
from annbatch.storage.engine import _rows
from annbatch.storage.engine._plan import EngineJob
from annbatch.storage.errors import CorruptDataError

if TYPE_CHECKING:
    import numpy as np

    from annbatch.storage.chunks.arrays import StoredArray
    from annbatch.storage.engine._plan import Plan, StretchPlan

__all__ = ["DenseJob", "Job"]


@dataclass(slots=True, eq=False)
class Job:
    """Pieces of one stored array and their destinations.

    Attributes
    ----------
    array
        Where the items come from.
    plan
        Which items go where.
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
    plan: Plan
    chunk_size: int
    target: np.dtype
    n_columns: int | None = None
    columns: np.ndarray | None = None

    def place(self, task: np.ndarray, items: np.ndarray, offset: int) -> None:
        """Move the pieces of a task from items that were read, whose first one is number ``offset`` of the chunk."""
        pieces = self.plan.pieces[task["first_piece"] : task["stop_piece"]]
        source, target = type_code(items.dtype), type_code(self.target)
        if self.n_columns is None and min(source, target) < 0:
            items, source, target = cast_exactly(items, self.target), -1, -1
        n_columns = -1 if self.n_columns is None else self.n_columns
        sizes = items.dtype.itemsize, self.target.itemsize
        if _rows.place(as_bytes(items), offset, pieces, source, target, *sizes, n_columns, self.columns) >= 0:
            raise self.lossy_cast() if self.n_columns is None else self.bad_column(int(task["chunk"]))

    def for_engine(self) -> EngineJob | None:
        """Return the job as the engine takes it, or None when the engine cannot do it."""
        table, source, target = self.array.table, type_code(self.array.dtype), type_code(self.target)
        if table is None or not self.engine_takes(self.array, self.target):
            return None
        if self.array.dtype == self.target:
            source = target = max(source, 0)  # equal codes copy, whatever the dtype
        if table.prepare is not None and len(self.plan.tasks):
            table.prepare(self.plan.tasks["chunk"])
        n_columns = -1 if self.n_columns is None else self.n_columns
        return EngineJob(table, self.plan, source, target, self.target.itemsize, n_columns, self.columns)

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
        path = table.name_of(chunk)
        if kind == "cannot_read":
            return OSError(detail, os.strerror(detail), path)
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
    plan
        Which rows make a stretch.
    address
        int64, where each dense row goes.
    row_bytes
        Bytes of a dense row.
    """

    values: Job
    columns: Job
    plan: StretchPlan
    address: np.ndarray
    row_bytes: int
