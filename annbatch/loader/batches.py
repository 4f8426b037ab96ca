"""From a load request to finished batches: one read per matrix, each row straight to its place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch import storage
from annbatch._shared.requests import check_bounds, requested_rows

from .datasets import Key, Table, TableMatrix, X
from .device import OnDevice, Reading, Remainder
from .sealing import own_copy, own_slice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import pandas as pd

    from annbatch.types import LoadRequest

    from .exports import Makers
    from .scaling import BatchScaling
    from .views import View

__all__ = ["BatchReader"]


class BatchReader:
    """Reads load requests of one pass.

    Parameters
    ----------
    table
        The data.
    view
        Its rows that requests are about.
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
        view: View,
        *,
        dense: bool,
        dtype: np.dtype[Any] | None,
        return_index: bool,
        num_threads: int,
        pool: storage.BufferPool,
        scaling: BatchScaling,
        make: Makers | OnDevice,
        var: pd.DataFrame | None,
    ) -> None:
        self._table = table
        self._view = view
        self._dense = dense
        self._dtype = dtype
        self._return_index = return_index
        self._num_threads = num_threads
        self._scaling = scaling
        self._host = None if isinstance(make, OnDevice) else make
        self._device = make if isinstance(make, OnDevice) else None
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
        readings = {key: self._reading(matrix) for key, matrix in self._table.matrices.items()}
        totals = {
            key: np.zeros(len(rows), dtype=np.float32) for key in readings if self._needs_totals(key, readings[key])
        }
        blocks = self._blocks(located, edges, readings, totals)

        def part(key: Key, start: int, stop: int) -> Any:
            # Taken out of the lists, so that nothing here keeps a batch alive that the caller has dropped.
            of_rows = None if key not in totals else totals[key][start:stop]
            return self._export(blocks[key].pop(), readings[key], of_rows)

        # Taken once for all batches: what pandas does costs the same for one batch as for all.
        obs = None if self._table.obs is None else self._table.obs.take(rows)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            own_rows = rows[start:stop]
            batch: dict[str, Any] = {
                "X": part(X, start, stop) if X in blocks else None,
                "obs": None if obs is None else own_slice(obs, start, stop),
                "var": None if self._var is None else own_copy(self._var),
                "index": self._small(own_rows.copy()) if self._return_index else None,
            }
            for key in [key for key in blocks if key != X]:
                batch.setdefault(key.kind, {})[key.name] = part(key, start, stop)
            if self._table.labels is not None:
                codes = self._table.labels.take(own_rows)
                batch["labels"] = {name: self._small(values) for name, values in codes.items()}
            if self._table.covariates is not None:
                batch["covariates"] = self._small(self._table.covariates.take(own_rows))
            if self._scaling.library_size:
                batch["library_size"] = self._small(totals[self._scaling.keys[0]][start:stop].copy())
            yield batch if self._device is None else self._device.finish(batch)

    def _blocks(
        self,
        located: list[tuple[int, np.ndarray, np.ndarray]],
        edges: np.ndarray,
        readings: dict[Key, Reading],
        totals: dict[Key, np.ndarray],
    ) -> dict[Key, list[Any]]:
        """Read all matrices; per matrix its batches, the last one first."""

        def read(key: Key) -> list[Any]:
            return self._read(self._table.matrices[key], located, edges, readings[key], totals.get(key))[::-1]

        if len(readings) == 1 or not self._table.is_far:
            return {key: read(key) for key in readings}
        # Bytes of all of them on their way at the same time.
        with ThreadPoolExecutor(len(readings), thread_name_prefix="annbatch-matrix") as threads:
            return dict(zip(readings, threads.map(read, readings), strict=True))

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
        rows = requested_rows(request["requests"], self._view.n_obs)
        if len(positions):
            check_bounds("splits", int(positions.min()), int(positions.max()), len(rows))
        return self._view.take(rows[positions.astype(np.intp, copy=False)]), edges

    def _read(
        self,
        matrix: TableMatrix,
        located: list[tuple[int, np.ndarray, np.ndarray]],
        edges: np.ndarray,
        reading: Reading,
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
        shape = matrix.sources[0].shape
        n_var = self._table.n_var if matrix.has_genes else int(shape[1])
        read: Callable[..., list[Any]] = storage.read_csr if reading.as_csr else storage.read_dense
        return list(
            read(
                parts,
                edges,
                n_var=n_var if reading.as_csr or len(shape) == 2 else None,
                dtype=reading.dtype,
                num_threads=self._num_threads,
                pool=self._pool,
                cancel=self.cancel,
                scale=reading.scale,
                totals=totals,
            )
        )

    def _reading(self, matrix: TableMatrix) -> Reading:
        dtype, scale = self._scaling.handed_out(matrix, self._dtype), self._scaling.scale_of(matrix.key)
        if self._device is None:
            return Reading(matrix.is_sparse and not self._dense, dtype, scale)
        return self._device.reading(
            [source.dtype for source in matrix.sources],
            is_sparse=matrix.is_sparse,
            dense=self._dense,
            wanted=Remainder(dtype, scale),
        )

    def _needs_totals(self, key: Key, reading: Reading) -> bool:
        handed_out = self._scaling.library_size and key == self._scaling.keys[0]
        return handed_out or (reading.remainder is not None and reading.remainder.needs_totals)

    def _export(self, block: Any, reading: Reading, totals: np.ndarray | None) -> Any:
        if self._device is not None:
            assert reading.remainder is not None
            return self._device.matrix(block, reading.remainder, totals)
        assert self._host is not None
        return self._host.dense(block) if isinstance(block, np.ndarray) else self._host.sparse(block)

    # -- in the thread that reads ahead, and in the one that consumes

    @property
    def is_on_device(self) -> bool:
        """Whether batches are made on a device, by one thread."""
        return self._device is not None

    def working(self) -> AbstractContextManager[None]:
        """Put what is done on a device meanwhile where the loader's own work there is."""
        return nullcontext() if self._device is None else self._device.working()

    def handed_over(self, batch: Any) -> Any:
        """Wrap what is handed out, where the consumer must be ordered after it."""
        return batch if self._device is None else self._device.handed_over(batch)
