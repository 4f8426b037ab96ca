"""AnnData files of any size, thinned from the real counts that the package bundles.

Every cell is one of the real cells in which each molecule was kept with a probability of the cell's own, drawn from
Beta(8, 3). That keeps what matters to a loader: how many genes a cell has, how small most counts are, how well they compress.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

N_TYPES = 40
N_DONORS = 25


def thinned_matrix(n_cells: int, rng: np.random.Generator) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return (counts float32 with int32 indices, gene names)."""
    with files("annbatch").joinpath("data", "real_counts.npz").open("rb") as file, np.load(file) as bundle:
        genes = bundle["genes"].astype(str)
        arrays = (bundle["data"].astype(np.int64), bundle["indices"].astype(np.int32), bundle["indptr"])
        cells = sp.csr_matrix(arrays, shape=tuple(bundle["shape"]))[rng.integers(0, len(bundle["indptr"]) - 1, n_cells)]
    kept = np.repeat(rng.beta(8, 3, n_cells), np.diff(cells.indptr))
    values = rng.binomial(cells.data, kept).astype(np.float32)
    counts = sp.csr_matrix((values, cells.indices, cells.indptr), shape=cells.shape)
    counts.eliminate_zeros()
    return counts, genes


def thinned_cells(n_cells: int, seed: int) -> ad.AnnData:
    """AnnData with raw counts in X, and obs columns cell_type, donor (categorical) and n_counts."""
    rng = np.random.default_rng(seed)
    counts, genes = thinned_matrix(n_cells, rng)
    cell_type = rng.choice(N_TYPES, n_cells, p=rng.dirichlet(np.ones(N_TYPES)))
    donor = rng.integers(0, N_DONORS, n_cells)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, [f"type_{i:02d}" for i in range(N_TYPES)]),
            "donor": pd.Categorical.from_codes(donor, [f"donor_{i}" for i in range(N_DONORS)]),
            "n_counts": np.asarray(counts.sum(axis=1)).ravel(),
        },
        index=[f"cell_{seed}_{i}" for i in range(n_cells)],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .h5ad file to write")
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compression", choices=["gzip", "lzf"])
    options = parser.parse_args()
    unfinished = options.out.with_name(f".unfinished_{options.out.name}")
    thinned_cells(options.cells, options.seed).write_h5ad(unfinished, compression=options.compression)
    unfinished.replace(options.out)


if __name__ == "__main__":
    main()
