"""From a load request to finished batches: one read per matrix, each row straight to its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import storage
from ._datasets import Matrix, Table, X

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .types import LoadRequest

__all__ = ["BatchReader", "requested_rows"]


def requested_rows(requests: Any, n_obs: int) -> np.ndarray:
    """Global row numbers (int64) of a load request, in its order.

    Raises
    ------
    TypeError
        When the requests are neither slices nor an integer array.
    ValueError
        When a slice is open, has a step, or ends before it starts.
    IndexError
        When a row is not in [0, n_obs).
    """
    if isinstance(requests, np.ndarray) and requests.dtype != object:
        if requests.ndim != 1 or requests.dtype.kind not in "iu":
            msg = f"requests must be a 1-d integer array, got {requests.ndim}-d {requests.dtype}"
            raise TypeError(msg)
        rows = requests.astype(np.int64, copy=False)
        if len(rows):
            _check_bounds("requests", int(rows.min()), int(rows.max()), n_obs)
        return rows
    for request in requests:
        if not isinstance(request, slice):
            msg = f"requests must be slices or an integer array, got a {type(request).__name__}"
            raise TypeError(msg)
        if (
            request.step not in (None, 1)
            or request.start is None
            or request.stop is None
            or request.start > request.stop
        ):
            msg = f"requests must be slices with a start, a stop >= start and no step, got {request}"
            raise ValueError(msg)
    starts = np.fromiter((request.start for request in requests), dtype=np.int64, count=len(requests))
    stops = np.fromiter((request.stop for request in requests), dtype=np.int64, count=len(requests))
    if len(starts):
        _check_bounds("requests", int(starts.min()), int(stops.max()) - 1, n_obs)
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _check_bounds(what: str, lowest: int, highest: int, length: int) -> None:
    if lowest < 0 or highest >= length:
        msg = f"{what} must be in [0, {length}), got numbers from {lowest} to {highest}; look at the sampler"
        raise IndexError(msg)


class BatchReader:
    """Reads load requests of one pass.

    Parameters
    ----------
    table
        The data.
    dense
        Fill dense arrays also from sparse matrices.
    dtype
        Dtype of X and layers, or None for the data's own.
    return_index
        Whether batches carry global row numbers.
    num_threads
        Threads that read and decode, or None for all that this process may use.
    pool
        Where the buffers that batches are made of come from, and go to when the caller has dropped the batch.
    export_sparse, export_dense
        Make what the user gets out of a CSR block, and out of an array.
    """

    def __init__(
        self,
        table: Table,
        *,
        dense: bool,
        dtype: np.dtype[Any] | None,
        return_index: bool,
        num_threads: int | None,
        pool: storage.BufferPool,
        export_sparse: Callable[[storage.CSRBlock], Any],
        export_dense: Callable[[np.ndarray], Any],
    ) -> None:
        self._table = table
        self._dense = dense
        self._dtype = dtype
        self._return_index = return_index
        self._num_threads = num_threads
        self._export_sparse = export_sparse
        self._export_dense = export_dense
        self._pool = pool
        self._var = table.var

    def batches(self, request: LoadRequest, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Read a load request and yield its batches, without the first `skip` ones, whose rows are not read."""
        rows, edges = self._places(request, skip)
        if len(edges) == 1:
            return
        located = list(self._table.locate(rows))
        blocks = {key: self._read(matrix, located, edges)[::-1] for key, matrix in self._table.matrices.items()}
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            # Taken out of the lists, so that nothing here keeps a batch alive that the caller has dropped.
            own_rows = rows[start:stop]
            batch: dict[str, Any] = {
                "X": self._export(blocks[X].pop()),
                "obs": None if self._table.obs is None else self._table.obs.take(own_rows),
                "var": None if self._var is None else self._var.copy(deep=False),
                "index": own_rows.copy() if self._return_index else None,
            }
            for key in [key for key in blocks if key != X]:
                batch.setdefault(key.kind, {})[key.name] = self._export(blocks[key].pop())
            yield batch

    def _places(self, request: LoadRequest, skip: int) -> tuple[np.ndarray, np.ndarray]:
        """Global row of every destination, and the destinations at which batches begin and end."""
        splits: Sequence[np.ndarray] = request["splits"][skip:]
        edges = np.cumsum([0, *(len(split) for split in splits)], dtype=np.int64)
        if not len(splits):
            return np.empty(0, dtype=np.int64), edges
        positions = np.concatenate(splits)
        if len(positions) and positions.dtype.kind not in "iu":
            msg = f"splits must be integer arrays, got {positions.dtype}"
            raise TypeError(msg)
        rows = requested_rows(request["requests"], self._table.n_obs)
        if len(positions):
            _check_bounds("splits", int(positions.min()), int(positions.max()), len(rows))
        return rows[positions.astype(np.intp, copy=False)], edges

    def _read(self, matrix: Matrix, located: list[tuple[int, np.ndarray, np.ndarray]], edges: np.ndarray) -> list[Any]:
        genes = self._table.genes if matrix.has_genes and self._table.has_var else None
        parts = [
            storage.Part(
                source=matrix.sources[dataset],
                rows=rows,
                dest=dest,
                columns=None if genes is None else genes.columns(dataset),
            )
            for dataset, rows, dest in located
        ]
        dtype = matrix.dtype if self._dtype is None or not matrix.has_genes else self._dtype
        shape = matrix.sources[0].shape
        n_var = self._table.n_var if matrix.has_genes else int(shape[1])
        if matrix.is_sparse and not self._dense:
            return list(
                storage.read_csr(parts, edges, n_var=n_var, dtype=dtype, num_threads=self._num_threads, pool=self._pool)
            )
        width = n_var if len(shape) == 2 else None
        return list(
            storage.read_dense(parts, edges, n_var=width, dtype=dtype, num_threads=self._num_threads, pool=self._pool)
        )

    def _export(self, block: Any) -> Any:
        return self._export_dense(block) if isinstance(block, np.ndarray) else self._export_sparse(block)
