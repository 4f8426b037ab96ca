"""Totals of all rows, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.cpus import available_cpus
from annbatch.storage.dtypes import type_code
from annbatch.storage.engine import _rows
from annbatch.storage.engine._plan import RowScaling
from annbatch.storage.sources import DenseSource, SparseSource

from .jobs import Job, row_table
from .request import Part, read_dense
from .run import run
from .scale import check_real_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["row_totals"]

# Stored values of the rows that are read at a time.
_MAX_VALUES = 1 << 22


def row_totals(
    sources: Sequence[SparseSource | DenseSource],
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Return the total of each row of each source: the sum over all its stored values.

    Their median is what ``normalize_total="median"`` takes as ``target_sum``: ``float(np.median(np.concatenate(totals)))``, which,
    as in scanpy, counts rows without values as 0.

    Parameters
    ----------
    sources
        What :func:`open_matrix` returned.
    num_threads
        Threads to decode with; None: the CPUs this process may use.
    progress
        Called with the number of rows that were done since the last call, e.g. ``update`` of a tqdm bar.

    Returns
    -------
    One float32 array per source, with an entry per row.

    Raises
    ------
    CorruptDataError
        A store is damaged.
    TypeError
        A source holds complex values.
    ValueError
        A source has more than two dimensions.

    Notes
    -----
    Besides the totals, the memory taken is that of some million values (of one row, where rows are longer).

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import storage
    >>> storage.row_totals([storage.open_matrix(np.ones((2, 3), "uint8"))])
    [array([3., 3.], dtype=float32)]
    """
    n_threads = num_threads or available_cpus()
    found = []
    # One after the other: that is the order in which a disk gives most.
    for source in sources:
        check_real_matrix(source)
        totals = np.zeros(source.n_obs, np.float32)
        memory = np.empty(0, np.uint8)
        start = 0
        while start < source.n_obs:
            stop = _stop(source, start)
            if isinstance(source, SparseSource):
                memory = _sparse_totals(source, start, stop, totals[start:stop], memory, n_threads)
            else:
                part = Part(source, np.arange(start, stop), np.arange(stop - start))
                edges = np.array([0, stop - start])
                # Only kinds of numbers that the kernels do not know are converted.
                dtype = None if type_code(source.dtype) >= 0 else np.float64
                read_dense([part], edges, dtype=dtype, num_threads=n_threads, totals=totals[start:stop])
            if progress is not None:
                progress(stop - start)
            start = stop
        found.append(totals)
    return found


def _sparse_totals(
    source: SparseSource, start: int, stop: int, totals: np.ndarray, memory: np.ndarray, num_threads: int
) -> np.ndarray:
    """Add up the rows start <= row < stop without reading their column numbers; return the memory that was used for it."""
    dtype = source.dtype if type_code(source.dtype) >= 0 else np.dtype(np.float64)
    rows = np.arange(start, stop)
    first_value, n_values = source.row_pointers.extents(rows)
    n_bytes = int(n_values.sum()) * dtype.itemsize
    if n_bytes > len(memory):
        memory = np.empty(n_bytes, np.uint8)
    address = memory.ctypes.data + (first_value - first_value[0]) * dtype.itemsize
    table = row_table(address, n_values)
    chunk_size = source.data.chunk_shape[0]
    plan = _rows.plan_ranges(rows, first_value, n_values, address, dtype.itemsize, chunk_size, by_row=True)
    run([Job(source.data, plan, chunk_size, dtype, rows=table, scaling=RowScaling())], num_threads)
    with np.errstate(over="ignore"):  # infinite is what such a total is as float32
        totals[...] = table["total"]
    return memory


def _stop(source: SparseSource | DenseSource, start: int) -> int:
    """Return where the rows that are read together from row ``start`` on end."""
    if isinstance(source, SparseSource):
        stop = source.row_pointers.stop_within(start, _MAX_VALUES)
    else:
        stop = start + _MAX_VALUES // max(1, source.shape[1])
    return min(max(stop, start + 1), source.n_obs)
