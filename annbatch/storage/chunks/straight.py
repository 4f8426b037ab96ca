"""Items of a one-dimensional array, read by the compiled engine where its chunk table lies.

zarr-python hands every read to its event loop, which takes a millisecond whatever is read: of thousands of small stores, that is
most of what opening them costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.cpus import available_cpus
from annbatch.storage.dtypes import type_code
from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import PIECE, TASK, EngineJob, Placing, Plan
from annbatch.storage.pages import own_pages

if TYPE_CHECKING:
    from .tables import ChunkTable

__all__ = ["read_straight"]

# Chunks that are planned at a time: a plan takes 80 bytes for each.
_CHUNKS_AT_ONCE = 1 << 14
# A thread is worth starting for so many chunks.
_CHUNKS_PER_THREAD = 8


def read_straight(table: ChunkTable, dtype: np.dtype, start: int, stop: int) -> np.ndarray | None:
    """Read the items start <= item < stop of a one-dimensional array of local files.

    Returns
    -------
    The items, or None where something is wrong with one of their chunks: zarr-python shall say what.

    Raises
    ------
    CorruptDataError
        The index of a shard is damaged.
    """
    (rows,) = table.chunk_shape
    values = own_pages(stop - start, dtype)
    placing = Placing(type_code(dtype), type_code(dtype), dtype.itemsize, dtype.itemsize)
    end = -(-stop // rows)
    for first in range(start // rows, end if stop > start else 0, _CHUNKS_AT_ONCE):
        chunks = np.arange(first, min(first + _CHUNKS_AT_ONCE, end))
        plan = _plan(chunks, rows, start, stop, values)
        if table.prepare is not None:
            table.prepare(chunks)
        num_threads = 1 + len(chunks) // _CHUNKS_PER_THREAD
        if num_threads > 1:
            num_threads = min(num_threads, available_cpus())
        failure = _engine.run([EngineJob(table, plan, placing)], num_threads)
        if failure is not None:
            if failure.kind == "memory":
                raise MemoryError
            return None
    return values


def _plan(chunks: np.ndarray, rows: int, start: int, stop: int, values: np.ndarray) -> Plan:
    low, high = np.maximum(start - chunks * rows, 0), np.minimum(stop - chunks * rows, rows)
    numbers = np.arange(len(chunks))
    tasks, pieces = np.empty(len(chunks), TASK), np.empty(len(chunks), PIECE)
    for name, column in (
        ("chunk", chunks), ("first_piece", numbers), ("stop_piece", numbers + 1), ("low", low), ("high", high),
    ):  # fmt: skip
        tasks[name] = column
    address = values.ctypes.data + (chunks * rows + low - start) * values.itemsize
    for name, column in (("source", low), ("address", address), ("n", high - low), ("column", -1), ("row", -1)):
        pieces[name] = column
    return Plan(tasks, pieces)
