"""What crosses into compiled code: rows of tables as NumPy dtypes, and jobs.

The dtypes are the structs of _plan.h, field by field; what the fields mean is said there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "EXTENT", "FETCHED", "PIECE", "ROW", "SPAN", "STAMP", "STRETCH", "TASK", "ArrayCut", "EngineDenseJob", "EngineJob", "Failure",
    "Placing", "Plan", "RowScaling", "StretchPlan",
]  # fmt: skip


def _row(*fields: str) -> np.dtype:
    return np.dtype([(field, np.int64) for field in fields])


PIECE = _row("source", "address", "n", "column", "row")
ROW = np.dtype([("address", np.int64), ("n_values", np.int64), ("n_missing", np.int64), ("total", np.float64)])
TASK = _row("chunk", "first_piece", "stop_piece", "low", "high")
STRETCH = _row(
    "first_row",
    "stop_row",
    "first_value_task",
    "stop_value_task",
    "first_column_task",
    "stop_column_task",
    "n_values",
)
EXTENT = _row("first_value", "n_values")
SPAN = _row("cell", "source", "target", "n")
STAMP = _row("size", "time_ns", "inode")
FETCHED = _row("address", "n_bytes")


class Plan(NamedTuple):
    """Which items of one array go where: tables of TASK and PIECE. Every chunk has one task; tasks are in chunk order."""

    tasks: np.ndarray
    pieces: np.ndarray


class StretchPlan(NamedTuple):
    """CSR rows cut into stretches: tables of STRETCH and EXTENT (one per row), and what brings values and column numbers."""

    stretches: np.ndarray
    extents: np.ndarray
    values: Plan
    columns: Plan


class ArrayCut(NamedTuple):
    """How an array may be cut into stretches.

    Attributes
    ----------
    itemsize
        Bytes of an item at its destination.
    chunk_size
        Items per chunk.
    anywhere
        True when a part of a chunk costs no more than that part, so that a stretch may end anywhere.
    """

    itemsize: int
    chunk_size: int
    anywhere: bool


class RowScaling(NamedTuple):
    """What is done to the values of a row, which is added up in any case.

    Attributes
    ----------
    target_sum
        What they shall add up to; 0: they are not normalised.
    log1p
        Whether log(1 + v) of each is taken.
    """

    target_sum: float = 0.0
    log1p: bool = False


class Placing(NamedTuple):
    """What happens to the items of an array on their way.

    Attributes
    ----------
    source_type, target_type
        Dtype codes; equal ones copy, whatever the dtype.
    source_size, target_size
        Bytes of an item in the chunk and at its destination.
    n_columns
        -1 for values; for column numbers what they are checked against. They become int32 or int64.
    columns
        int64, new number of each old column, -1 to drop. None: they stay.
    rows
        Table of ROW that the pieces name, to be added up and scaled. None: neither.
    scaling
        What is done to these rows; not None where ``rows`` is not.
    """

    source_type: int
    target_type: int
    source_size: int
    target_size: int
    n_columns: int = -1
    columns: np.ndarray | None = None
    rows: np.ndarray | None = None
    scaling: RowScaling | None = None


class EngineJob(NamedTuple):
    """Pieces of one stored array, for the engine.

    Attributes
    ----------
    table
        Where the chunks are: a ``ChunkTable`` of storage/chunks/tables.py.
    plan
        Which items go where.
    placing
        What happens to them on their way.
    fetched
        A row of FETCHED per task: where its bytes are in memory. None: they are read from the files of the table.
    """

    table: Any
    plan: Plan
    placing: Placing
    fetched: np.ndarray | None = None


class EngineDenseJob(NamedTuple):
    """Rows of a CSR matrix that become dense, for the engine.

    Attributes
    ----------
    values, columns
        Numbers of the jobs that bring values and column numbers to the memory of a stretch.
    stretches, extents
        Of a :class:`StretchPlan`.
    address
        int64, where each dense row goes.
    row_bytes
        Bytes of a dense row.
    value_type
        Dtype code of a dense value.
    totals
        float64, one per row, to be filled. None: rows are neither added up nor scaled.
    scaling
        What is done to the rows; not None where ``totals`` is not.
    """

    values: int
    columns: int
    stretches: np.ndarray
    extents: np.ndarray
    address: np.ndarray
    row_bytes: int
    value_type: int
    totals: np.ndarray | None
    scaling: RowScaling | None


class Failure(NamedTuple):
    """The first task that failed: the number of its job, its chunk, a name of ``_engine.FAILURES``, and more about it."""

    job: int
    chunk: int
    kind: str
    detail: Any
