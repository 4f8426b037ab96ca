"""Totals of all rows, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.sources import DenseSource, SparseSource

from .request import Part, read_csr, read_dense

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
    found = []
    for source in sources:
        totals = np.zeros(source.n_obs, np.float32)
        start = 0
        while start < source.n_obs:
            stop = _stop(source, start)
            part = Part(source, np.arange(start, stop), np.arange(stop - start))
            edges = np.array([0, stop - start])
            if source.is_sparse:
                read_csr([part], edges, n_var=source.shape[1], num_threads=num_threads, totals=totals[start:stop])
            else:
                read_dense([part], edges, num_threads=num_threads, totals=totals[start:stop])
            if progress is not None:
                progress(stop - start)
            start = stop
        found.append(totals)
    return found


def _stop(source: SparseSource | DenseSource, start: int) -> int:
    """Return where the rows that are read together from row ``start`` on end."""
    if isinstance(source, SparseSource):
        stop = source.row_pointers.stop_within(start, _MAX_VALUES)
    else:
        stop = start + _MAX_VALUES // max(1, source.shape[1])
    return min(max(stop, start + 1), source.n_obs)
