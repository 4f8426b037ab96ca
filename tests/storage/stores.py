"""Random matrices and every kind of store they can lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
import zarr

if TYPE_CHECKING:
    from pathlib import Path


def random_csr(rng, n_obs, n_var, density=0.3, dtype="float32", index_dtype="int32"):
    """A CSR matrix with empty rows, also at both ends, and small whole numbers."""
    kept = rng.random((n_obs, n_var)) < density
    kept[rng.random(n_obs) < 0.3] = False
    if n_obs and rng.random() < 0.5:
        kept[0] = kept[-1] = False
    matrix = sp.csr_matrix(np.where(kept, rng.integers(1, 100, (n_obs, n_var)), 0).astype(dtype))
    matrix.indices, matrix.indptr = matrix.indices.astype(index_dtype), matrix.indptr.astype(index_dtype)
    return matrix


def write_h5(path: Path, arrays: dict[str, np.ndarray], attrs: dict, **options):
    """Write arrays as datasets of the group X; ``options`` go to h5py for all but indptr."""
    with h5py.File(path, "w") as f:
        group = f.create_group("X")
        group.attrs.update(attrs)
        for name, array in arrays.items():
            usable = {} if name == "indptr" or not array.size else options
            group.create_dataset(name, data=array, **usable)
    return path


def write_zarr(path: Path, arrays: dict[str, np.ndarray], attrs: dict, zarr_format=3, **options):
    """Write arrays into the group X of a zarr store."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format).create_group("X")
    group.attrs.update(attrs)
    for name, array in arrays.items():
        usable = {} if name == "indptr" else options
        stored = group.create_array(name, shape=array.shape, dtype=array.dtype, **usable)
        if array.size:
            stored[...] = array
    return path


def csr_parts(matrix):
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}


def csr_attrs(matrix):
    return {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}


def read_only(path: Path):
    """Open a store; the caller's test ends before the handle matters."""
    return h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r")


@dataclass
class Opened:
    """A matrix in a store, as open_matrix takes it."""

    elem: object
    path: Path | None = None
    handle: object = None

    def close(self):
        if isinstance(self.handle, h5py.File):
            self.handle.close()


def as_dataset(path: Path) -> Opened:
    """Open the CSR matrix X of a store the way anndata hands it out."""
    handle = read_only(path)
    return Opened(ad.io.sparse_dataset(handle["X"]), path, handle)
