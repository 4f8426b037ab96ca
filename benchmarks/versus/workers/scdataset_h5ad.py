"""Rows per second out of scDataset straight from h5ad files, as CSR batches with one obs column.

Set up for speed within what scDataset documents: its ``fetch_callback`` hook reads the sorted rows of a fetch from the backed
matrices, which is faster than AnnCollection, and keeps them sparse (the transform that the package ships makes them dense).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scdataset import BlockShuffling, scDataset
from stopwatch import parameters, rows_per_second

if TYPE_CHECKING:
    from collections.abc import Iterator


class Rows:
    """Rows of the matrix with their labels, as scDataset wants them: with a length, and indexable by an array."""

    def __init__(self, X: sp.csr_matrix, cell_type: np.ndarray) -> None:
        self.X = X
        self.cell_type = cell_type

    def __len__(self) -> int:
        return self.X.shape[0]

    def __getitem__(self, rows: np.ndarray) -> Rows:
        return Rows(self.X[rows], self.cell_type[rows])


class Files:
    """Several h5ad files as one collection."""

    def __init__(self, paths: list[str], column: str = "cell_type") -> None:
        backed = [ad.read_h5ad(path, backed="r") for path in paths]
        self.matrices = [adata.X for adata in backed]
        self.cell_type = np.concatenate([np.asarray(adata.obs[column]) for adata in backed])
        self.starts = np.cumsum([0, *(adata.n_obs for adata in backed)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Any) -> Rows:
        rows = np.asarray(rows)
        cuts = np.searchsorted(rows, self.starts)  # scDataset sorts the rows of a fetch
        parts = [
            matrix[rows[start:stop] - offset]
            for matrix, offset, start, stop in zip(self.matrices, self.starts, cuts[:-1], cuts[1:], strict=False)
            if stop > start
        ]
        return Rows(sp.vstack(parts, format="csr"), self.cell_type[rows])


def main() -> None:
    given = parameters()
    dataset = scDataset(
        Files(given["paths"]),
        BlockShuffling(block_size=given["block_size"]),
        batch_size=given["batch_size"],
        fetch_factor=given["fetch_factor"],
        fetch_callback=lambda files, rows: files[rows],
        seed=0,
    )

    def one_pass() -> Iterator[int]:
        for batch in dataset:
            yield len(batch)

    rows_per_second(one_pass, rows_per_request=given["batch_size"] * given["fetch_factor"], seconds=given["seconds"])


if __name__ == "__main__":
    main()
