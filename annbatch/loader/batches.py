"""From a load request to finished batches: one read per matrix, each row straight to its place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch import storage
from annbatch._shared.requests import check_bounds, requested_rows

from .datasets import Key, Table, TableMatrix, X
from .sealing import own_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from annbatch.types import LoadRequest

__all__ = ["BatchReader"]


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
        Threads that read and decode.
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
        num_threads: int,
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
        self.cancel = storage.Cancel()
        self._var = table.var

    def batches(self, request: LoadRequest, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Read a load request and yield its batches, without the first `skip` ones, whose rows are not read."""
        rows, edges = self._places(request, skip)
        if len(edges) == 1:
            return
        located = list(self._table.locate(rows))
        blocks = self._blocks(located, edges)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            # Taken out of the lists, so that nothing here keeps a batch alive that the caller has dropped.
            own_rows = rows[start:stop]
            batch: dict[str, Any] = {
                "X": self._export(blocks[X].pop()),
                "obs": None if self._table.obs is None else self._table.obs.take(own_rows),
                "var": None if self._var is None else own_copy(self._var),
                "index": own_rows.copy() if self._return_index else None,
            }
            for key in [key for key in blocks if key != X]:
                batch.setdefault(key.kind, {})[key.name] = self._export(blocks[key].pop())
            yield batch

    def _blocks(self, located: list[tuple[int, np.ndarray, np.ndarray]], edges: np.ndarray) -> dict[Key, list[Any]]:
        """Read all matrices; per matrix its batches, the last one first."""
        matrices = self._table.matrices
        if len(matrices) == 1 or not self._table.is_far:
            return {key: self._read(matrix, located, edges)[::-1] for key, matrix in matrices.items()}
        # Bytes of all of them on their way at the same time.
        with ThreadPoolExecutor(len(matrices), thread_name_prefix="annbatch-matrix") as threads:
            futures = {key: threads.submit(self._read, matrix, located, edges) for key, matrix in matrices.items()}
            return {key: future.result()[::-1] for key, future in futures.items()}

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
            check_bounds("splits", int(positions.min()), int(positions.max()), len(rows))
        return rows[positions.astype(np.intp, copy=False)], edges

    def _read(
        self, matrix: TableMatrix, located: list[tuple[int, np.ndarray, np.ndarray]], edges: np.ndarray
    ) -> list[Any]:
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
                storage.read_csr(
                    parts,
                    edges,
                    n_var=n_var,
                    dtype=dtype,
                    num_threads=self._num_threads,
                    pool=self._pool,
                    cancel=self.cancel,
                )
            )
        width = n_var if len(shape) == 2 else None
        return list(
            storage.read_dense(
                parts,
                edges,
                n_var=width,
                dtype=dtype,
                num_threads=self._num_threads,
                pool=self._pool,
                cancel=self.cancel,
            )
        )

    def _export(self, block: Any) -> Any:
        return self._export_dense(block) if isinstance(block, np.ndarray) else self._export_sparse(block)
