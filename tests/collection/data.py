"""Small AnnData files for the tests of collections, and the plain way to make a collection of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

if TYPE_CHECKING:
    from pathlib import Path


def cells(
    n_obs: int,
    genes: list[str] | int = 12,
    *,
    seed: int = 0,
    prefix: str = "cell",
    types: tuple[str, ...] = ("B", "NK", "T"),
    dtype: Any = np.float32,
    dense: bool = False,
) -> ad.AnnData:
    """Counts (whole numbers) with a label, a number, and a text column."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(genes)] if isinstance(genes, int) else genes
    X = rng.poisson(0.7, (n_obs, len(names))).astype(dtype)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(types, n_obs), categories=sorted(types)),
            "score": rng.normal(size=n_obs),
            "note": np.array([f"{prefix} number {i}" for i in range(n_obs)], dtype=object),
        },
        index=[f"{prefix}_{i}" for i in range(n_obs)],
    )
    return ad.AnnData(X if dense else sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=names))


def write(folder: Path, name: str, adata: ad.AnnData) -> Path:
    """Write as .h5ad or .zarr, by the name."""
    path = folder / name
    if path.suffix == ".zarr":
        with ad.settings.override(auto_shard_zarr_v3=False):
            ad.io.write_elem(zarr.open_group(path, mode="w", zarr_format=3), "/", adata)
    else:
        adata.write_h5ad(path)
    return path


def read_all(collection: Any) -> ad.AnnData:
    """All datasets in memory, one after the other, through anndata alone."""
    parts = [ad.io.read_elem(group) for group in collection]
    for part in parts:
        part.obs = part.obs.astype({c: object for c in part.obs if isinstance(part.obs[c].dtype, pd.CategoricalDtype)})
    return parts[0] if len(parts) == 1 else ad.concat(parts, join="outer")


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
