"""From a load request to finished batches: one read per matrix, each row straight to its place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch import storage
from annbatch._shared.requests import check_bounds, requested_rows

from .datasets import Key, Table, TableMatrix, X
from .sealing import own_copy, own_slice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from annbatch.types import LoadRequest

    from .exports import Makers
    from .scaling import Scaling

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
    scaling
        What is done to values.
    make
        Make what the user gets.
    var
        Annotations of the variables that every batch gets a copy of, sealed; None: batches have none.
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
        scaling: Scaling,
        make: Makers,
        var: pd.DataFrame | None,
    ) -> None:
        self._table = table
        self._dense = dense
        self._dtype = dtype
        self._return_index = return_index
        self._num_threads = num_threads
        self._scaling = scaling
        self._make = make
        self._small = make.small
        self._pool = pool
        self.cancel = storage.Cancel()
        self._var = var

    def batches(self, request: LoadRequest, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Read a load request and yield its batches, without the first `skip` ones, whose rows are not read."""
        rows, edges = self._places(request, skip)
        if len(edges) == 1:
            return
        located = list(self._table.locate(rows))
        totals = np.zeros(len(rows), dtype=np.float32) if self._scaling.library_size else None
        blocks = self._blocks(located, edges, totals)
        # Taken once for all batches: what pandas does costs the same for one batch as for all.
        obs = None if self._table.obs is None else self._table.obs.take(rows)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            # Taken out of the lists, so that nothing here keeps a batch alive that the caller has dropped.
            own_rows = rows[start:stop]
            batch: dict[str, Any] = {
                "X": self._export(blocks[X].pop()) if X in blocks else None,
                "obs": None if obs is None else own_slice(obs, start, stop),
                "var": None if self._var is None else own_copy(self._var),
                "index": self._small(own_rows.copy()) if self._return_index else None,
            }
            for key in [key for key in blocks if key != X]:
                batch.setdefault(key.kind, {})[key.name] = self._export(blocks[key].pop())
            if self._table.labels is not None:
                codes = self._table.labels.take(own_rows)
                batch["labels"] = {name: self._small(values) for name, values in codes.items()}
            if self._table.covariates is not None:
                batch["covariates"] = self._small(self._table.covariates.take(own_rows))
            if totals is not None:
                batch["library_size"] = self._small(totals[start:stop].copy())
            yield batch

    def _blocks(
        self, located: list[tuple[int, np.ndarray, np.ndarray]], edges: np.ndarray, totals: np.ndarray | None
    ) -> dict[Key, list[Any]]:
        """Read all matrices; per matrix its batches, the last one first."""
        matrices = self._table.matrices
        if len(matrices) == 1 or not self._table.is_far:
            return {key: self._read(matrix, located, edges, totals)[::-1] for key, matrix in matrices.items()}
        # Bytes of all of them on their way at the same time.
        with ThreadPoolExecutor(len(matrices), thread_name_prefix="annbatch-matrix") as threads:
            futures = {
                key: threads.submit(self._read, matrix, located, edges, totals) for key, matrix in matrices.items()
            }
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
        self,
        matrix: TableMatrix,
        located: list[tuple[int, np.ndarray, np.ndarray]],
        edges: np.ndarray,
        totals: np.ndarray | None,
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
        scaling, shape = self._scaling, matrix.sources[0].shape
        as_csr = matrix.is_sparse and not self._dense
        n_var = self._table.n_var if matrix.has_genes else int(shape[1])
        read: Callable[..., list[Any]] = storage.read_csr if as_csr else storage.read_dense
        return list(
            read(
                parts,
                edges,
                n_var=n_var if as_csr or len(shape) == 2 else None,
                dtype=scaling.handed_out(matrix, self._dtype),
                num_threads=self._num_threads,
                pool=self._pool,
                cancel=self.cancel,
                scale=scaling.scale_of(matrix.key),
                totals=totals if scaling.keys and matrix.key == scaling.keys[0] else None,
            )
        )

    def _export(self, block: Any) -> Any:
        return self._make.dense(block) if isinstance(block, np.ndarray) else self._make.sparse(block)
