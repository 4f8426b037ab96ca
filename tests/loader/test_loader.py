"""Loader: what a batch holds."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Loader, RandomSampler, SequentialSampler
from annbatch.abc import Sampler
from tests.cells import as_array, full_cells, open_cells, write

from .loaders import contents, small_loader, with_sorted_labels

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


@pytest.fixture(scope="module", params=["sparse", "dense"])
def parts(request):
    """Three data sets, one of them with a single row without values."""
    return [full_cells(n, seed=n, dense=request.param == "dense", prefix=f"{n}_") for n in (50, 1, 23)]


@pytest.fixture(scope="module", params=["memory", "zarr", "h5ad"])
def added(request, parts, tmp_path_factory):
    """The same as it is added to a loader."""
    if request.param == "memory":
        return parts
    folder = tmp_path_factory.mktemp("stores")
    return [open_cells(write(part, folder / f"{i}.{request.param}")) for i, part in enumerate(parts)]


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_row_comes_once_with_its_values_and_annotations(parts, added, shuffle, prefetch):
    loader = small_loader(
        shuffle=shuffle,
        prefetch=prefetch,
        layers=["twice"],
        obsm=["pca", "tiles"],
        rng=np.random.default_rng(0) if shuffle else None,
    ).add_adatas(added)

    values = np.concatenate([as_array(part.X) for part in parts])
    obs = with_sorted_labels(pd.concat([part.obs for part in parts]))
    batches = list(loader)

    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index) == list(range(74))
    assert (index.tolist() == list(range(74))) is not shuffle
    assert len(batches) == len(loader)
    for batch in batches:
        rows = batch["index"]
        assert rows.dtype == np.int64
        assert type(batch["X"]) is (sp.csr_matrix if sp.issparse(parts[0].X) else np.ndarray)
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
    assert list(batch) == ["X", "obs", "var", "index"]
    assert batch["obs"] is None
    assert batch["var"] is None
    assert batch["index"] is None
    assert batch["X"].shape == (2, 3)


@pytest.mark.parametrize(
    "settings", [{"prefetch": 0}, {"prefetch": 3}, {"num_threads": 1}, {"num_threads": 4}], ids=str
)
def test_results_do_not_depend_on_prefetch_and_threads(settings, added):
    def batches(**kwargs):
        loader = small_loader(shuffle=True, rng=np.random.default_rng(3), layers=["twice"], **kwargs).add_adatas(added)
        return [contents(batch) for _ in range(2) for batch in loader]

    assert batches(**settings) == batches()


def test_passes_are_shuffled_differently():
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_adata(full_cells())
    first, second = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("shuffle", [False, True])
def test_dense_output_of_sparse_rows(shuffle):
    adata = full_cells()
    loader = small_loader(dense=True, layers=["twice"], shuffle=shuffle).add_adata(adata)
    for batch in loader:
        assert type(batch["X"]) is np.ndarray
        np.testing.assert_array_equal(batch["X"], adata.X[batch["index"]].toarray())
        np.testing.assert_array_equal(batch["layers"]["twice"], adata.layers["twice"][batch["index"]].toarray())


@pytest.mark.parametrize("holder", [sp.csr_matrix, sp.csr_array], ids=["matrix", "array"])
def test_bare_matrices(holder):
    counts = np.arange(20, dtype="int64").reshape(10, 2)
    for batch in small_loader().add_dataset(holder(counts)):
        assert type(batch["X"]) is sp.csr_matrix
        np.testing.assert_array_equal(batch["X"].toarray(), counts[batch["index"]])


def test_dense_arrays_of_more_than_two_dimensions(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 4, 5, 3)).astype("uint8")
    stored = zarr.create_array(tmp_path / "images.zarr", data=images, chunks=(7, 4, 5, 3))
    loader = small_loader(shuffle=True).add_datasets([images, stored])
    assert loader.n_var == 4
    for batch in loader:
        np.testing.assert_array_equal(batch["X"], images[batch["index"] % 30])


def test_batches_hold_only_the_obs_columns_that_were_asked_for():
    loader = small_loader(obs_columns=["batch", "label"]).add_adata(full_cells())
    assert list(next(iter(loader))["obs"].columns) == ["batch", "label"]
    assert [list(obs.columns) for obs in loader._obs] == [["batch", "label"]]


def test_transform_makes_what_is_handed_out():
    loader = small_loader(transform=lambda batch: batch["X"].sum()).add_adata(adata := full_cells())
    assert sum(loader) == adata.X.sum()


@pytest.mark.parametrize("prefetch", [0, 1])
def test_error_in_transform_comes_at_its_batch(prefetch):
    def fail_at_third(batch):
        if 12 in batch["index"]:
            msg = "third batch"
            raise LookupError(msg)
        return batch["index"].tolist()

    batches = iter(small_loader(transform=fail_at_third, prefetch=prefetch).add_adata(full_cells()))
    assert [next(batches)[0] for _ in range(2)] == [0, 6]
    with pytest.raises(LookupError, match="third batch") as caught:
        next(batches)
    assert "fail_at_third" in [entry.name for entry in caught.traceback]
    assert list(batches) == []


@pytest.mark.parametrize(("shuffle", "kind"), [(True, RandomSampler), (False, SequentialSampler)])
def test_default_samplers(shuffle, kind):
    loader = Loader(shuffle=shuffle)
    assert type(loader.batch_sampler) is kind
    assert loader.batch_sampler.batch_size == 128


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000, 16_383, 16_385, 40_000])
def test_any_batch_size_works_with_the_default_sampler(batch_size, shuffle):
    # 100 and 1,000 do not divide 512 * 32, and were refused.
    loader = Loader(batch_size=batch_size, shuffle=shuffle, return_index=True).add_dataset(
        np.ones((33_000, 1), "uint8")
    )
    lengths, rows = [], []
    for batch in loader if batch_size > 7 else []:
        lengths.append(len(batch["index"]))
        rows.append(batch["index"])
    if rows:
        assert set(lengths[:-1]) <= {batch_size}
        assert len(lengths) == len(loader)
        assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(33_000))
    assert len(loader) == -(-33_000 // batch_size)
    assert loader.batch_sampler.chunk_size == 512
    assert loader.batch_sampler.preload_nchunks == 32


def test_attributes():
    adata = full_cells(50, 7)
    loader = small_loader().add_adata(adata)
    assert (loader.n_obs, loader.n_var, len(loader)) == (50, 7, 9)
    pd.testing.assert_frame_equal(loader.var, adata.var)
    assert loader.dataset_type is type(adata.X)
    assert "50 x 7" in repr(loader)
    assert "no data" in repr(Loader())


class Given(Sampler):
    """Hands out the load requests that it was given."""

    batch_size = 1
    shuffle = False

    def __init__(self, *requests):
        self.requests = requests

    def n_batches(self, n_obs):
        return sum(len(request["splits"]) for request in self.requests)

    def _sample(self, n_obs):
        yield from self.requests


def test_splits_count_within_the_requests_in_the_order_given():
    request = {"requests": [slice(30, 34), slice(2, 5)], "splits": [np.array([4, 0]), np.array([6, 6, 1])]}
    rows = {"requests": np.array([49, 0, 7]), "splits": [np.array([2, 0], dtype=np.uint8)]}
    loader = small_loader(batch_sampler=Given(request, rows)).add_adata(adata := full_cells())
    batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[2, 30], [4, 4, 31], [7, 49]]
    for batch in batches:
        np.testing.assert_array_equal(batch["X"].toarray(), adata.X[batch["index"]].toarray())


def test_rows_in_no_split_are_not_read(monkeypatch):
    from annbatch import storage

    read, read_csr = [], storage.read_csr
    monkeypatch.setattr(
        storage, "read_csr", lambda parts, *args, **kwargs: read.extend(parts) or read_csr(parts, *args, **kwargs)
    )
    request = {"requests": [slice(0, 50)], "splits": [np.array([3, 1])]}
    list(small_loader(batch_sampler=Given(request)).add_adata(full_cells()))
    assert [part.rows.tolist() for part in read] == [[3, 1]]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"requests": [slice(48, 51)], "splits": [np.array([0])]}, IndexError, "requests must be in"),
        ({"requests": np.array([-1]), "splits": [np.array([0])]}, IndexError, "requests must be in"),
        ({"requests": [slice(0, 9)], "splits": [np.array([9])]}, IndexError, "splits must be in"),
        ({"requests": [slice(0, 9)], "splits": [np.array([-1])]}, IndexError, "splits must be in"),
        ({"requests": [slice(0, 9, 2)], "splits": [np.array([0])]}, ValueError, "no step"),
        ({"requests": [slice(None, 9)], "splits": [np.array([0])]}, ValueError, "with a start"),
        ({"requests": [slice(5, 4)], "splits": [np.array([0])]}, ValueError, "a stop >= start"),
        ({"requests": [3], "splits": [np.array([0])]}, TypeError, "must be slices"),
        ({"requests": np.array([0.5]), "splits": [np.array([0])]}, TypeError, "integer array"),
        ({"requests": [slice(0, 9)], "splits": [np.array([0.0])]}, TypeError, "splits must be integer"),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_sampler_that_asks_for_nonsense_is_an_error(request_, error, message, prefetch):
    loader = small_loader(batch_sampler=Given(request_), prefetch=prefetch).add_adata(full_cells())
    with pytest.raises(error, match=message):
        list(loader)


def test_pass_without_rows():
    assert list(small_loader(batch_sampler=Given()).add_adata(full_cells())) == []


def test_values_have_the_dtype_of_the_store_or_the_given_one():
    counts = sp.csr_matrix(np.arange(12).reshape(6, 2).astype("uint16"))
    for dtype in ("float32", "int64", "uint8", "float64"):
        batch = next(iter(small_loader(dtype=dtype).add_dataset(counts)))
        assert batch["X"].dtype == dtype
        np.testing.assert_array_equal(batch["X"].toarray(), counts.toarray())
    assert next(iter(small_loader().add_dataset(counts)))["X"].dtype == "uint16"


@pytest.mark.parametrize("dense", [False, True])
def test_dtype_applies_to_x_and_layers_but_not_to_obsm(dense):
    batch = next(
        iter(small_loader(dtype="float64", layers=["twice"], obsm=["pca"], dense=dense).add_adata(full_cells()))
    )
    assert (batch["X"].dtype, batch["layers"]["twice"].dtype, batch["obsm"]["pca"].dtype) == (
        "float64",
        "float64",
        "float32",
    )


@pytest.mark.parametrize("dense", [False, True])
def test_lossy_dtype_is_an_error(dense):
    loader = small_loader(dtype="uint8", dense=dense).add_dataset(sp.csr_matrix(np.full((3, 2), 300)))
    with pytest.raises(ValueError, match="uint8"):
        list(loader)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**24 + 1), ("float64", 1e39)])
def test_what_float32_cannot_hold_is_an_error(dense, dtype, value):
    loader = small_loader(dtype="float32", dense=dense).add_dataset(sp.csr_matrix(np.full((3, 2), value, dtype)))
    with pytest.raises(ValueError, match="dtype=float32 cannot hold all values, which are stored as " + dtype):
        list(loader)


@pytest.mark.parametrize("dense", [False, True])
def test_floats_are_rounded_to_the_nearest_float32(dense):
    values = sp.csr_matrix(np.array([[2**24 + 1, 0.1], [2**24 + 3, 1e-50]]))
    (batch,) = small_loader(batch_size=2, dtype="float32", dense=dense).add_dataset(values)
    np.testing.assert_array_equal(as_array(batch["X"]), as_array(values).astype("float32"))


def test_mixed_dtypes_are_promoted_with_a_warning():
    first, second = (sp.csr_matrix(np.full((6, 2), value, dtype)) for value, dtype in ((1, "int8"), (2.5, "float32")))
    with pytest.warns(UserWarning, match="int8, and float32 in dataset 1; batches will have float32") as caught:
        loader = small_loader().add_datasets([first, second])
    assert caught[0].filename == __file__
    batches = list(loader)
    assert [batch["X"].dtype for batch in batches] == ["float32", "float32"]
    assert [batch["X"].sum() for batch in batches] == [12, 30]


def test_recorded_source_dtype_is_handed_out(tmp_path):
    adata = full_cells(dtype="uint8")
    group = zarr.open_group(write(adata, tmp_path / "a.zarr"))
    group["X"].attrs["annbatch-source-dtype"] = "float32"
    group["layers/twice"].attrs["annbatch-source-dtype"] = "float64"
    for loader in (
        small_loader(layers=["twice"]).add_paths([tmp_path / "a.zarr"]),
        small_loader(layers=["twice"]).add_adata(open_cells(tmp_path / "a.zarr")),
    ):
        batch = next(iter(loader))
        assert (batch["X"].dtype, batch["layers"]["twice"].dtype) == ("float32", "float64")
        np.testing.assert_array_equal(batch["X"].toarray(), adata.X[:6].toarray())
    for wrong in ("many", "U5", "object"):
        group["X"].attrs["annbatch-source-dtype"] = wrong
        with pytest.raises(ValueError, match=rf"a\.zarr.*must name a number type, got '{wrong}'"):
            small_loader().add_paths([tmp_path / "a.zarr"])


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_paths_are_read_as_they_lie_there(tmp_path, suffix, dense):
    parts = [full_cells(n, seed=n, dense=dense, prefix=f"{n}_") for n in (20, 31)]
    paths = [write(part, tmp_path / f"{part.n_obs}{suffix}") for part in parts]
    settings = {"layers": ["twice"], "obsm": ["tiles"], "shuffle": True}
    from_paths, from_memory = (small_loader(**settings, rng=np.random.default_rng(0)) for _ in range(2))
    from_paths.add_paths(paths)
    from_memory.add_adatas(parts)
    assert [contents(b) for b in from_paths] == [contents(b) for b in from_memory]
    pd.testing.assert_frame_equal(from_paths.var, parts[0].var)
    assert from_paths.dataset_type is not zarr.Group


def test_backed_adata(tmp_path):
    adata = full_cells()
    backed = ad.read_h5ad(write(adata, tmp_path / "a.h5ad"), backed="r")
    with_memory, with_file = (list(small_loader().add_adata(each)) for each in (adata, backed))
    assert [contents(b) for b in with_file] == [contents(b) for b in with_memory]
    backed.file.close()


def test_loader_does_not_depend_on_frames_that_the_caller_changes_later():
    adata = full_cells()
    loader = small_loader().add_adata(adata)
    adata.obs["new"] = 1
    adata.var["new"] = 1
    batch = next(iter(loader))
    assert "new" not in batch["obs"]
    assert "new" not in batch["var"]


@pytest.mark.parametrize("kwargs", [{}, {"dense": True}, {"to": "torch"}], ids=str)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_is_the_callers(kwargs, prefetch):
    if "to" in kwargs:
        pytest.importorskip("torch")
    adata = full_cells(100)
    loader = small_loader(layers=["twice"], obsm=["pca"], prefetch=prefetch, **kwargs).add_adata(adata)
    expected = [contents(batch) for batch in loader]
    for number, batch in enumerate(loader):
        assert contents(batch) == expected[number]
        x = batch["X"]
        if isinstance(x, np.ndarray):
            x[:] = -1
        elif sp.issparse(x):
            x.data[:], x.indices[:] = -1, 0
        else:
            x.values()[:] = -1
        batch["obsm"]["pca"][:] = -1
        batch["index"][:] = -1
        batch["obs"].loc[:, "n_counts"] = -1
        batch["obs"]["label"] = "B"
        del batch["obs"]["batch"]
        batch["var"]["length"] = -1
    assert [contents(batch) for batch in loader] == expected
    pd.testing.assert_frame_equal(loader.var, adata.var)


@pytest.mark.parametrize("dense", [False, True])
def test_holding_on_to_batches_is_safe(dense):
    # Batches of 512 x 200 values are big enough to be made of pooled buffers.
    counts = np.random.default_rng(0).poisson(2.0, (4096, 200)).astype("float32")
    loader = Loader(
        chunk_size=64, preload_nchunks=16, batch_size=512, shuffle=True, dense=dense, return_index=True
    ).add_dataset(sp.csr_matrix(counts))
    for batch in list(loader) + list(loader):
        np.testing.assert_array_equal(as_array(batch["X"]), counts[batch["index"]])


def test_no_warning_reaches_users_who_turn_warnings_into_errors(tmp_path):
    path = write(full_cells(), tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(small_loader().add_paths([path]))) == 9
