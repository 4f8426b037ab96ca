"""What is to be done with one stored array in a request: which items go where, and what happens to them on the way."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.dtypes import cast_exactly, flat_bytes, lossy, type_code
from annbatch.storage.engine import _rows
from annbatch.storage.engine._plan import ROW, EngineDenseJob, EngineJob, Placing
from annbatch.storage.errors import CorruptDataError

if TYPE_CHECKING:
    from annbatch.storage.chunks.arrays import StoredArray
    from annbatch.storage.engine._plan import Plan, RowScaling, StretchPlan

__all__ = ["DenseJob", "Job", "row_table"]


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
    rows
        Table of ROW that the pieces name: rows of values that are added up and scaled as soon as they are placed. None:
        neither.
    scaling
        What is done to these rows.
    """

    array: StoredArray
    plan: Plan
    chunk_size: int
    target: np.dtype
    n_columns: int | None = None
    columns: np.ndarray | None = None
    rows: np.ndarray | None = None
    scaling: RowScaling | None = None

    def place(self, task: np.ndarray, items: np.ndarray, offset: int) -> None:
        """Move the pieces of a task from items that were read, whose first one is number ``offset`` of the chunk."""
        pieces = self.plan.pieces[task["first_piece"] : task["stop_piece"]]
        if self.n_columns is None and min(type_code(items.dtype), type_code(self.target)) < 0:
            items = cast_exactly(items, self.target)
        if _rows.place(flat_bytes(items), offset, pieces, self._placing(items.dtype)) >= 0:
            raise self.lossy_cast() if self.n_columns is None else self.bad_column(int(task["chunk"]))

    def for_engine(self) -> EngineJob | None:
        """Return the job as the engine takes it, or None when the engine cannot do it."""
        table = self.array.table
        if table is None or not self.engine_takes(self.array, self.target):
            return None
        if table.prepare is not None and len(self.plan.tasks):
            table.prepare(self.plan.tasks["chunk"])
        return EngineJob(table, self.plan, self._placing(self.array.dtype))

    def _placing(self, source: np.dtype) -> Placing:
        """Return what happens to items of a dtype."""
        return Placing(
            type_code(source),
            type_code(self.target),
            source.itemsize,
            self.target.itemsize,
            -1 if self.n_columns is None else self.n_columns,
            self.columns,
            self.rows,
            self.scaling,
        )

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
        if kind == "cannot_read" and detail == errno.EISDIR:
            return CorruptDataError(f"{self.array.location}, chunk {chunk} in {path}: this is not a regular file")
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
    totals
        float64, one per row, to be filled. None: rows are neither added up nor scaled.
    scaling
        What is done to the rows before their repeated columns add up.
    """

    values: Job
    columns: Job
    plan: StretchPlan
    address: np.ndarray
    row_bytes: int
    totals: np.ndarray | None = None
    scaling: RowScaling | None = None

    def for_engine(self, number: int, stretches: np.ndarray | None = None) -> EngineDenseJob:
        """Describe it to the engine: job `number` brings values, the next one column numbers; None: all its stretches."""
        return EngineDenseJob(
            number,
            number + 1,
            self.plan.stretches if stretches is None else stretches,
            self.plan.extents,
            self.address,
            self.row_bytes,
            type_code(self.values.target),
            self.totals,
            self.scaling,
        )


def row_table(address: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return rows that are to be added up, of which nothing was placed."""
    table = np.zeros(len(address), ROW)
    table["address"], table["n_values"], table["n_missing"] = address, lengths, lengths
    return table
