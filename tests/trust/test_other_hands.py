"""What a collection stores works in other people's hands: which calls of scipy and scanpy take it as it is."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import DatasetCollection, write_sharded
from tests.cells import cells


def calls():
    sc = pytest.importorskip("scanpy")

    def sort(X):
        X.has_sorted_indices = False
        X.sort_indices()

    def sum_twice(X):
        X.has_canonical_format = False
        X.sum_duplicates()

    return {
        "eliminate_zeros": lambda X: X.eliminate_zeros(),
        "sort_indices": sort,
        "sum_duplicates": sum_twice,
        "calculate_qc_metrics": lambda X: sc.pp.calculate_qc_metrics(ad.AnnData(X), percent_top=(5,)),
        "downsample_counts": lambda X: sc.pp.downsample_counts(ad.AnnData(X), counts_per_cell=5),
        "pca": lambda X: sc.pp.pca(ad.AnnData(X), n_comps=3),
        "product": lambda X: X @ np.ones(X.shape[1]),
        "columns": lambda X: X[:, [1, 2]],
    }


NEED_A_CAST = {"eliminate_zeros", "sort_indices", "sum_duplicates", "calculate_qc_metrics", "downsample_counts", "pca"}


def failing(read):
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call in calls().items():
            try:
                call(read())
            except (ValueError, TypeError):
                found.add(name)
    return found


def test_uint16_columns_need_a_cast(tmp_path):
    """What docs/collections.md says: these calls, and this cast."""
    DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(60, 20)], progress=False)

    def read():
        X = ad.read_zarr(tmp_path / "c.zarr/dataset_0").X
        X.data = X.data.astype(np.float32)
        return X

    def cast():
        X = read()
        X.indices = X.indices.astype(X.indptr.dtype)
        return X

    assert failing(read) == NEED_A_CAST
    assert failing(cast) == set()


@pytest.mark.parametrize("how", ["compact=False", "h5ad", "write_sharded"])
def test_nothing_else_needs_one(how, tmp_path):
    adata = cells(60, 20)
    if how == "write_sharded":
        write_sharded(zarr.open_group(tmp_path / "c.zarr", mode="w"), adata)
        path = tmp_path / "c.zarr"
    elif how == "h5ad":
        DatasetCollection(tmp_path / "c", is_collection_h5ad=True).add_adatas([adata], compact=False, progress=False)
        path = tmp_path / "c/dataset_0.h5ad"
    else:
        DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], compact=False, progress=False)
        path = tmp_path / "c.zarr/dataset_0"
    read = ad.read_h5ad if path.suffix == ".h5ad" else ad.read_zarr
    assert failing(lambda: read(path).X) == set()
