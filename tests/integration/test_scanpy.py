"""scanpy is the judge of scale: what batches hold is what scanpy makes of the whole matrix, on real counts."""

from __future__ import annotations

import importlib
import warnings
from importlib.resources import files

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import DatasetCollection, Loader, MappedCollection
from tests.cells import as_array, write

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


@pytest.fixture(scope="module")
def scanpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scanpy and numba say of their own dependencies
        try:
            return importlib.import_module("scanpy")
        except ImportError:
            pytest.skip("needs scanpy, the judge: pip install scanpy")


@pytest.fixture(scope="module")
def real():
    with files("annbatch").joinpath("data/real_counts.npz").open("rb") as file:
        stored = dict(np.load(file))
    parts = (stored["data"].astype("float32"), stored["indices"].astype("int32"), stored["indptr"])
    genes = pd.DataFrame(index=stored["genes"].astype(str))
    counts = sp.csr_matrix(parts, shape=tuple(stored["shape"]))
    names = pd.DataFrame(index=[f"cell{i}" for i in range(counts.shape[0])])
    return ad.AnnData(counts, obs=names, var=genes)


@pytest.fixture(scope="module")
def judged(scanpy, real):
    """By target: the values as scanpy makes them."""

    def scaled(target_sum, *, log1p):
        adata = real.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if target_sum is not None:
                scanpy.pp.normalize_total(adata, target_sum=None if target_sum == "median" else target_sum)
            if log1p:
                scanpy.pp.log1p(adata)
        return as_array(adata.X)

    return {case: scaled(case[0], log1p=case[1]) for case in ((1e4, True), ("median", False), (None, True))}


@pytest.fixture(scope="module")
def places(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scanpy")
    write(real, folder / "real.h5ad")
    collection = DatasetCollection(folder / "real.zarr")
    collection.add_adatas([folder / "real.h5ad"], shuffle=False, progress=False)
    return {"h5ad": folder / "real.h5ad", "collection": folder / "real.zarr"}


@pytest.mark.parametrize("place", ["h5ad", "collection"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("n_genes", [None, 2000])
@pytest.mark.parametrize("case", [(1e4, True), ("median", False), (None, True)], ids=str)
def test_batches_hold_what_scanpy_makes(real, judged, places, place, dense, n_genes, case):
    rng = np.random.default_rng(0)
    genes = None if n_genes is None else rng.choice(real.var_names, n_genes, replace=False)
    loader = Loader(
        batch_size=64,
        chunk_size=8,
        preload_nchunks=32,
        shuffle=True,
        rng=rng,
        return_index=True,
        dense=dense,
        var_names=genes,
        normalize_total=case[0],
        log1p=case[1],
        library_size=True,
    )
    loader = loader.add_paths([places[place]]) if place == "h5ad" else loader.use_collection(places[place])
    expected = judged[case] if genes is None else judged[case][:, real.var_names.get_indexer(genes)]
    totals = as_array(real.X).sum(axis=1)
    rows = []
    for batch in loader:
        rows.append(batch["index"])
        assert sp.issparse(batch["X"]) is not dense
        assert batch["X"].dtype == np.float32
        np.testing.assert_allclose(as_array(batch["X"]), expected[batch["index"]], rtol=1e-6)
        np.testing.assert_allclose(batch["library_size"], totals[batch["index"]])
    assert sorted(np.concatenate(rows).tolist()) == list(range(real.n_obs))


def test_mapped_collection_holds_what_scanpy_makes(real, judged, places):
    with MappedCollection([places["h5ad"]], normalize_total=1e4, log1p=True) as m:
        np.testing.assert_allclose(m.read_batch(range(50))["X"], judged[1e4, True][:50], rtol=1e-6)
