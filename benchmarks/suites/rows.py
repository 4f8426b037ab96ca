"""One load request through storage: planning, decoding, gathering, making dense, each for rows that lie well or badly.

Rows come as "one range" (as well as they can lie), "chunks" of 32 (the usual way) or "single rows" (as badly as they can).
"""

from __future__ import annotations

import anndata as ad
import numpy as np

from annbatch import storage
from annbatch.storage.engine import _rows
from annbatch.storage.engine._plan import SPAN, ArrayCut
from annbatch.storage.row_pointers import RowPointers

from .counts import thinned_cells
from .files import N_CELLS, write_collection, write_h5ad
from .sizes import levels, size

N_ROWS = size(8_192, 256)
BATCH_SIZE = N_ROWS // 2
N_CHOSEN_GENES = 2_000
ORDERS = levels(["chunks", "one range", "single rows"])


def rows_in(order: str, n_obs: int) -> np.ndarray:
    """N_ROWS row numbers, in the order in which a sampler would ask for them."""
    rng = np.random.default_rng(0)
    if order == "one range":
        return np.arange(N_ROWS, dtype=np.int64)
    chunk_size = 32 if order == "chunks" else 1
    chunks = rng.permutation(n_obs // chunk_size)[: N_ROWS // chunk_size]
    return (chunks[:, None] * chunk_size + np.arange(chunk_size)).ravel().astype(np.int64)


def shuffled_places() -> tuple[np.ndarray, np.ndarray]:
    """Destination of each row and the edges of the batches."""
    dest = np.random.default_rng(1).permutation(N_ROWS).astype(np.int64)
    return dest, np.arange(0, N_ROWS + 1, BATCH_SIZE, dtype=np.int64)


class Plan:
    """From row numbers to tasks and pieces, which is before the first byte is read. Rows of 1,342 values, chunks of 16 rows."""

    param_names = ("order",)
    params = (ORDERS,)

    def setup(self, order: str) -> None:
        n_obs, n_values = 4 * N_ROWS, 1_342
        self.n_obs, self.chunk_size = n_obs, 16 * n_values
        lengths = np.random.default_rng(2).poisson(n_values, n_obs)
        self.pointers = RowPointers.of_lengths(lengths.astype(np.uint16))
        self.rows = rows_in(order, n_obs)
        self.sorted_rows = np.sort(self.rows)
        self.extents = self.pointers.extents(self.sorted_rows)
        self.address = shuffled_places()[0] * (4 * n_values)
        self.spans = np.array([(0, 0, 0, n_values)], SPAN)

    def time_ascending(self, order: str) -> None:
        _rows.ascending(self.rows, self.n_obs)

    def time_extents(self, order: str) -> None:
        self.pointers.extents(self.rows)

    def time_sparse(self, order: str) -> None:
        _rows.plan_ranges(self.sorted_rows, *self.extents, self.address, 4, self.chunk_size)

    def time_sparse_to_dense(self, order: str) -> None:
        cut = ArrayCut(itemsize=4, chunk_size=self.chunk_size, anywhere=False)
        _rows.plan_stretches(self.sorted_rows, *self.extents, 1 << 15, 0, cut, cut)

    def time_dense(self, order: str) -> None:
        _rows.plan_rows(self.sorted_rows, self.address, 4, 16, 1_342, self.spans, mapped=False)


class Gather:
    """Rows of a matrix in memory: no file and no codec, just the copies."""

    param_names = ("order", "dtype")
    params = (ORDERS, ["float32", "uint16"])

    def setup(self, order: str, dtype: str) -> None:
        matrix = thinned_cells(N_CELLS, 0).X.astype(dtype)
        self.source = storage.open_matrix(matrix)
        self.n_var = matrix.shape[1]
        self.dest, self.edges = shuffled_places()
        self.rows = rows_in(order, matrix.shape[0])
        chosen = np.random.default_rng(0).permutation(self.n_var)[:N_CHOSEN_GENES]
        self.columns = np.full(self.n_var, -1, dtype=np.int64)
        self.columns[chosen] = np.arange(N_CHOSEN_GENES)
        self.pool = storage.BufferPool()
        self.time_sparse(order, dtype)  # fills the pool: its first touch is not what a pass pays for each batch

    def part(self, columns: np.ndarray | None = None) -> storage.Part:
        return storage.Part(source=self.source, rows=self.rows, dest=self.dest, columns=columns)

    def time_sparse(self, order: str, dtype: str) -> None:
        storage.read_csr([self.part()], self.edges, n_var=self.n_var, pool=self.pool)

    def time_sparse_scaled(self, order: str, dtype: str) -> None:
        scale = storage.Scale(target_sum=1e4, log1p=True)
        storage.read_csr([self.part()], self.edges, n_var=self.n_var, pool=self.pool, scale=scale)

    def time_sparse_chosen_genes(self, order: str, dtype: str) -> None:
        storage.read_csr([self.part(self.columns)], self.edges, n_var=N_CHOSEN_GENES, pool=self.pool)

    def time_dense(self, order: str, dtype: str) -> None:
        storage.read_dense([self.part()], self.edges, n_var=self.n_var, dtype="float32", pool=self.pool)

    def time_dense_chosen_genes(self, order: str, dtype: str) -> None:
        part = self.part(self.columns)
        storage.read_dense([part], self.edges, n_var=N_CHOSEN_GENES, dtype="float32", pool=self.pool)


class Decode:
    """Rows of a stored matrix: planning, reading, decoding and the copies."""

    param_names = ("order", "store", "threads")
    params = (ORDERS, ["collection", "h5ad", "gzip h5ad"], levels([2, 1]))

    def setup_cache(self) -> dict[str, str]:
        plain = write_h5ad()
        return {"collection": write_collection(plain), "h5ad": plain[0], "gzip h5ad": write_h5ad("gzip")[0]}

    def setup(self, paths: dict[str, str], order: str, store: str, threads: int) -> None:
        group = storage.open_group(paths[store])
        if store == "collection":
            group = group["dataset_0"]
        self.source = storage.open_matrix(ad.io.sparse_dataset(group["X"]))
        n_obs, n_var = self.source.shape
        self.dest, self.edges = shuffled_places()
        self.part = storage.Part(source=self.source, rows=rows_in(order, n_obs), dest=self.dest, columns=None)
        self.n_var = n_var
        self.pool = storage.BufferPool()
        self.time_request(paths, order, store, threads)

    def time_request(self, paths: dict[str, str], order: str, store: str, threads: int) -> None:
        storage.read_csr([self.part], self.edges, n_var=self.n_var, num_threads=threads, pool=self.pool)

    def teardown(self, paths: dict[str, str], order: str, store: str, threads: int) -> None:
        self.source.close()
