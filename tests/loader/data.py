"""Small AnnData objects and stores for the loader's tests."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from annbatch import Loader

LABELS = ["B", "T", "NK"]


def make_adata(n_obs=50, n_var=7, *, seed=0, labels=LABELS, dense=False, dtype="float32", prefix="", genes=None):
    """Counts with layers, obsm (2-d and 3-d) and obs of several kinds."""
    rng = np.random.default_rng(seed)
    genes = [f"g{i}" for i in range(n_var)] if genes is None else list(genes)
    counts = rng.poisson(1.0, (n_obs, len(genes))).astype(dtype)
    # Rows without values at the start, in the middle and at the end.
    counts[[0, n_obs // 2, -1]] = 0
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(rng.choice(labels, n_obs), categories=labels),
            "n_counts": counts.sum(axis=1).astype("float64"),
            "batch": rng.integers(0, 3, n_obs),
        },
        index=[f"{prefix}cell{i}" for i in range(n_obs)],
    )
    adata = ad.AnnData(
        counts if dense else sp.csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame({"length": np.arange(len(genes))}, index=genes),
    )
    adata.layers["twice"] = counts * 2 if dense else sp.csr_matrix(counts * 2)
    adata.obsm["pca"] = rng.normal(size=(n_obs, 3)).astype("float32")
    adata.obsm["tiles"] = rng.integers(0, 255, (n_obs, 2, 4)).astype("uint8")
    return adata


def with_sorted_labels(obs):
    """The obs as a loader hands it out: the categories of every column sorted."""
    return obs.assign(label=obs["label"].cat.reorder_categories(sorted(obs["label"].cat.categories)))


def write(adata, path):
    """Write an AnnData to a .zarr or .h5ad path."""
    with ad.settings.override(auto_shard_zarr_v3=False):
        if path.suffix == ".zarr":
            ad.io.write_elem(zarr.open_group(path, mode="w"), "/", adata)
        else:
            adata.write_h5ad(path)
    return path


def opened(path):
    """The AnnData at a path, with its matrices left on disk."""
    group = zarr.open_group(path, mode="r") if path.suffix == ".zarr" else h5py.File(path)

    def lazy(element):
        return ad.io.sparse_dataset(element) if hasattr(element, "keys") else element

    return ad.AnnData(
        lazy(group["X"]),
        obs=ad.io.read_elem(group["obs"]),
        var=ad.io.read_elem(group["var"]),
        layers={key: lazy(group["layers"][key]) for key in group["layers"]},
        obsm={key: lazy(group["obsm"][key]) for key in group["obsm"]},
    )


def small_loader(**kwargs):
    """A loader whose load requests hold 12 rows in 2 batches."""
    arguments = {} if "batch_sampler" in kwargs else {"chunk_size": 4, "preload_nchunks": 3, "batch_size": 6}
    return Loader(**({"return_index": True} | arguments | kwargs))


def as_array(matrix):
    if sp.issparse(matrix):
        return matrix.toarray()
    if hasattr(matrix, "to_dense"):
        matrix = matrix.to_dense()
    return matrix.numpy() if hasattr(matrix, "numpy") else np.asarray(matrix)


def contents(batch):
    """A batch as plain data, to compare with another."""
    plain = {"X": as_array(batch["X"]).tolist()}
    plain["index"] = None if batch["index"] is None else np.asarray(batch["index"]).tolist()
    plain["obs"] = None if batch["obs"] is None else batch["obs"].reset_index().astype(object).to_dict("list")
    for part in ("layers", "obsm"):
        plain[part] = {key: as_array(value).tolist() for key, value in batch.get(part, {}).items()}
    return plain
