"""The cells and stores that tests work on, written here alone.

What comes first, where it goes second: ``cells(n_obs, genes)``, ``write(adata, path)``, ``write_h5(arrays, path, attrs)``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# The ways that people store AnnData: uncompressed and gzip-compressed HDF5, zarr v2 and v3.
FORMATS = ("h5ad", "gzip", "zarr2", "zarr3")
TYPES = ("B", "NK", "T")
LABELS = ("B", "T", "NK")


# What is in them


def random_counts(rng: np.random.Generator, n_obs: int, n_var: int, density: float = 0.4) -> np.ndarray:
    """Whole numbers below 100; some rows are empty, in every second draw those at both ends, too."""
    kept = rng.random((n_obs, n_var)) < density
    kept[rng.random(n_obs) < 0.3] = False
    if n_obs and rng.random() < 0.5:
        kept[[0, -1]] = False
    return np.where(kept, rng.integers(1, 100, (n_obs, n_var)), 0)


def random_csr(
    n_obs: int,
    n_var: int,
    density: float = 0.3,
    *,
    seed: int | np.random.Generator = 0,
    dtype: Any = "float32",
    index_dtype: Any = "int32",
) -> sp.csr_matrix:
    """Return random counts as a CSR matrix."""
    matrix = sp.csr_matrix(random_counts(np.random.default_rng(seed), n_obs, n_var, density).astype(dtype))
    matrix.indices, matrix.indptr = matrix.indices.astype(index_dtype), matrix.indptr.astype(index_dtype)
    return matrix


def cells(
    n_obs: int,
    genes: Sequence[str] | int = 12,
    *,
    seed: int | np.random.Generator = 0,
    prefix: str = "cell",
    types: Sequence[str] = TYPES,
    dtype: Any = "float32",
    dense: bool = False,
    obs: Mapping[str, Any] | None = None,
) -> ad.AnnData:
    """Counts with ``obs``; where none is given, with a label, a number and a text column. Cells are named by ``prefix``."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(genes)] if isinstance(genes, int) else list(genes)
    counts = random_counts(rng, n_obs, len(names)).astype(dtype)
    if obs is None:
        obs = {
            "cell_type": pd.Categorical(rng.choice(list(types), n_obs), categories=sorted(types)),
            "score": rng.normal(size=n_obs),
            "note": np.array([f"{prefix} number {i}" for i in range(n_obs)], dtype=object),
        }
    return ad.AnnData(
        counts if dense else sp.csr_matrix(counts),
        obs=pd.DataFrame(dict(obs), index=[f"{prefix}_{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=pd.Index(names, dtype=pd.Index(["text"]).dtype)),
    )


def full_cells(
    n_obs: int = 50,
    genes: Sequence[str] | int = 7,
    *,
    seed: int | np.random.Generator = 0,
    prefix: str = "",
    labels: Sequence[str] = LABELS,
    dtype: Any = "float32",
    dense: bool = False,
) -> ad.AnnData:
    """Cells that have everything that a batch can carry: a layer, obsm of two and three axes, obs of several kinds."""
    rng = np.random.default_rng(seed)
    adata = cells(n_obs, genes, seed=rng, prefix=f"{prefix}cell", dtype=dtype, dense=dense, obs={})
    adata.obs["label"] = pd.Categorical(rng.choice(list(labels), n_obs), categories=list(labels))
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel().astype("float64")
    adata.obs["batch"] = rng.integers(0, 3, n_obs)
    adata.var["length"] = np.arange(adata.n_vars)
    adata.layers["twice"] = (adata.X * 2).astype(dtype)
    adata.obsm["pca"] = rng.normal(size=(n_obs, 3)).astype("float32")
    adata.obsm["tiles"] = rng.integers(0, 255, (n_obs, 2, 4)).astype("uint8")
    return adata


# How they are written


def write(adata: ad.AnnData, path: Path, fmt: str | None = None) -> Path:
    """Write an AnnData and return its path.

    Without ``fmt``, one of FORMATS, the suffix of the path decides: .h5ad or .zarr. With it, the suffix is added.
    """
    if fmt is None:
        fmt = "zarr3" if path.suffix == ".zarr" else "h5ad"
    else:
        path = path.with_name(f"{path.name}.{'zarr' if fmt.startswith('zarr') else 'h5ad'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's notes on formats, and pandas' on an option that anndata asks for
        if fmt.startswith("zarr"):
            _write_zarr_group(adata, zarr.open_group(path, mode="w", zarr_format=int(fmt[-1])))
        else:
            adata.write_h5ad(path, compression="gzip" if fmt == "gzip" else None, convert_strings_to_categoricals=False)
    return path


def _write_zarr_group(adata: ad.AnnData, group: zarr.Group) -> None:
    """Write element by element: anndata's own writer takes the zarr format from a global setting."""
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    # anndata 0.13 keeps X among the layers, under the key None.
    layers = {key: layer for key, layer in adata.layers.items() if key is not None}
    parts = {"obs": adata.obs, "var": adata.var, "layers": layers, "obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    parts |= {key: dict(getattr(adata, key)) for key in ("varm", "obsp", "varp")}
    if adata.X is not None:
        parts["X"] = adata.X
    if adata.raw is not None:
        parts["raw"] = adata.raw
    with ad.settings.override(auto_shard_zarr_v3=False):
        for key, part in parts.items():
            ad.io.write_elem(group, key, part)


def csr_parts(matrix: sp.csr_matrix) -> dict[str, np.ndarray]:
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}


def csr_attrs(matrix: sp.csr_matrix) -> dict[str, Any]:
    return {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}


def write_h5(arrays: dict[str, np.ndarray], path: Path, attrs: dict, **options: Any) -> Path:
    """Write arrays as datasets of the group X; ``options`` go to h5py for all but indptr."""
    with h5py.File(path, "w") as f:
        group = f.create_group("X")
        group.attrs.update(attrs)
        for name, array in arrays.items():
            usable = {} if name == "indptr" or not array.size else options
            group.create_dataset(name, data=array, **usable)
    return path


def write_zarr(arrays: dict[str, np.ndarray], path: Path, attrs: dict, zarr_format: int = 3, **options: Any) -> Path:
    """Write arrays into the group X of a zarr store."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format).create_group("X")
    group.attrs.update(attrs)
    for name, array in arrays.items():
        usable = {} if name == "indptr" else options
        stored = group.create_array(name, shape=array.shape, dtype=array.dtype, **usable)
        if array.size:
            stored[...] = array
    return path


# How they are read back, through anndata alone


def open_store(path: Path) -> h5py.File | zarr.Group:
    """Open a store; the caller's test ends before the handle matters."""
    return zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")


@dataclass
class Opened:
    """A matrix in a store, as open_matrix takes it."""

    elem: object
    path: Path | None = None
    handle: object = None

    def close(self) -> None:
        if isinstance(self.handle, h5py.File):
            self.handle.close()


def open_csr(path: Path) -> Opened:
    """Open the CSR matrix X of a store the way anndata hands it out."""
    handle = open_store(path)
    return Opened(ad.io.sparse_dataset(handle["X"]), path, handle)


def open_cells(path: Path) -> ad.AnnData:
    """The AnnData at a path, with its matrices left on disk."""
    group = open_store(path)

    def lazy(element: Any) -> Any:
        return ad.io.sparse_dataset(element) if hasattr(element, "keys") else element

    return ad.AnnData(
        lazy(group["X"]),
        obs=ad.io.read_elem(group["obs"]),
        var=ad.io.read_elem(group["var"]),
        layers={key: lazy(group["layers"][key]) for key in group["layers"]},
        obsm={key: lazy(group["obsm"][key]) for key in group["obsm"]},
    )


def read_all(collection: Any) -> ad.AnnData:
    """All datasets of a collection in memory, one after the other."""
    parts = [ad.io.read_elem(group) for group in collection]
    for part in parts:
        part.obs = part.obs.astype({c: object for c in part.obs if isinstance(part.obs[c].dtype, pd.CategoricalDtype)})
    return parts[0] if len(parts) == 1 else ad.concat(parts, join="outer")


def as_array(matrix: Any) -> np.ndarray:
    """A matrix of any library as a NumPy array."""
    if sp.issparse(matrix):
        return matrix.toarray()
    if hasattr(matrix, "to_dense"):
        matrix = matrix.to_dense()
    return matrix.numpy() if hasattr(matrix, "numpy") else np.asarray(matrix)


def files_below(root: Path) -> dict[str, bytes]:
    """Every file below a folder, with what is in it."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
