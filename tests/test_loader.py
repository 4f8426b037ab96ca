"""Loader: what a batch holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Loader, RandomSampler, SequentialSampler

from tests.loader_data import as_array, contents, make_adata, stored

KINDS = ["memory", "zarr", "h5"]


def small_loader(**kwargs):
    arguments = {"chunk_size": 4, "preload_nchunks": 3, "batch_size": 6, "return_index": True}
    return Loader(**(arguments | kwargs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_row_comes_once_with_its_values_and_annotations(tmp_path, kind, dense, shuffle, prefetch):
    parts = [make_adata(n, seed=n, dense=dense, prefix=f"{n}_") for n in (50, 1, 23)]
    loader = small_loader(
        shuffle=shuffle,
        prefetch=prefetch,
        layers=["twice"],
        obsm=["pca", "tiles"],
        rng=np.random.default_rng(0),
    ).add_adatas([stored(part, kind, tmp_path) for part in parts])

    values = np.concatenate([as_array(part.X) for part in parts])
    obs = pd.concat([part.obs for part in parts])
    batches = list(loader)

    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index) == list(range(74))
    assert (index.tolist() == list(range(74))) is not shuffle
    assert len(batches) == len(loader)
    for batch in batches:
        rows = batch["index"]
        assert isinstance(batch["X"], np.ndarray if dense else sp.csr_matrix)
        assert batch["X"].dtype == np.float32
        np.testing.assert_array_equal(as_array(batch["X"]), values[rows])
        np.testing.assert_array_equal(as_array(batch["layers"]["twice"]), values[rows] * 2)
        for key in ("pca", "tiles"):
            expected = np.concatenate([part.obsm[key] for part in parts])
            assert batch["obsm"][key].dtype == expected.dtype
            np.testing.assert_array_equal(batch["obsm"][key], expected[rows])
        pd.testing.assert_frame_equal(batch["obs"], obs.iloc[rows])
        pd.testing.assert_frame_equal(batch["var"], parts[0].var)


def test_batch_has_the_documented_keys_only():
    batch = next(iter(Loader().add_dataset(np.ones((2, 3)))))
    assert batch.keys() == {"X", "obs", "var", "index"}
    assert batch["obs"] is None
    assert batch["var"] is None
    assert batch["index"] is None
    assert batch["X"].shape == (1, 3)


@pytest.mark.parametrize("settings", [{"prefetch": 0}, {"prefetch": 3}, {"num_threads": 1}, {"num_threads": 4}])
def test_results_do_not_depend_on_prefetch_and_threads(settings, tmp_path):
    adata = stored(make_adata(200), "zarr", tmp_path)

    def batches(**kwargs):
        loader = small_loader(shuffle=True, rng=np.random.default_rng(3), layers=["twice"], **kwargs).add_adata(adata)
        return [contents(batch) for _ in range(2) for batch in loader]

    assert batches(**settings) == batches()


def test_passes_are_shuffled_differently():
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_adata(make_adata())
    first, second = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    assert first != second


def test_sparse_rows_as_dense_arrays():
    adata = make_adata()
    loader = small_loader(dense=True, layers=["twice"]).add_adata(adata)
    for batch in loader:
        assert isinstance(batch["X"], np.ndarray)
        np.testing.assert_array_equal(batch["X"], adata.X[batch["index"]].toarray())
        np.testing.assert_array_equal(batch["layers"]["twice"], adata.layers["twice"][batch["index"]].toarray())


@pytest.mark.parametrize(("shuffle", "kind"), [(True, RandomSampler), (False, SequentialSampler)])
def test_default_samplers(shuffle, kind):
    loader = Loader(shuffle=shuffle)
    assert type(loader.batch_sampler) is kind
    assert loader.batch_sampler.batch_size == 1


def test_attributes():
    adata = make_adata(50, 7)
    loader = small_loader().add_adata(adata)
    assert (loader.n_obs, loader.n_var, len(loader)) == (50, 7, 9)
    pd.testing.assert_frame_equal(loader.var, adata.var)
    assert loader.dataset_type is sp.csr_matrix
    assert "50 x 7" in repr(loader)
