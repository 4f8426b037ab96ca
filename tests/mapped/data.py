"""Small AnnData files for the tests of MappedCollection, in every format that it reads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("h5ad", "gzip", "zarr2", "zarr3")


def write(adata: ad.AnnData, folder: Path, name: str, fmt: str = "h5ad") -> Path:
    """Write to folder/name and return the path."""
    path = folder / f"{name}.{'zarr' if fmt.startswith('zarr') else 'h5ad'}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's notes on formats, and pandas' on an option that anndata asks for
        if path.suffix == ".zarr":
            # Written element by element: anndata's own writer takes the format from a global setting.
            group = zarr.open_group(path, mode="w", zarr_format=int(fmt[-1]))
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            # anndata 0.13 keeps X among the layers, under the key None.
            layers = {key: layer for key, layer in adata.layers.items() if key is not None}
            parts = {"obs": adata.obs, "var": adata.var, "layers": layers, "obsm": dict(adata.obsm)}
            if adata.X is not None:
                parts["X"] = adata.X
            if adata.raw is not None:
                parts["raw"] = adata.raw
            for key, part in parts.items():
                ad.io.write_elem(group, key, part)
        else:
            adata.write_h5ad(path, compression="gzip" if fmt == "gzip" else None, convert_strings_to_categoricals=False)
    return path


def cells(
    rng: np.random.Generator,
    n_obs: int,
    genes: list[str],
    *,
    sparse: bool = True,
    dtype: str = "float32",
    **obs: object,
) -> ad.AnnData:
    """Random counts with empty rows; keywords are obs columns."""
    X = rng.integers(0, 100, (n_obs, len(genes))) * (rng.random((n_obs, len(genes))) < 0.4)
    X[rng.random(n_obs) < 0.2] = 0
    return ad.AnnData(
        sp.csr_matrix(X.astype(dtype)) if sparse else X.astype(dtype),
        obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )


def dense(matrix: object) -> np.ndarray:
    """A matrix as an array."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
