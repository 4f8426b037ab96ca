"""DatasetCollection: each promise of its documentation."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import DatasetCollection, write_sharded
from annbatch.storage.manifest import digest
from tests.cells import as_array, cells, files_below, read_all, write

QUIET = {"progress": False}


@pytest.fixture
def two(tmp_path):
    adatas = [cells(70, seed=1, prefix="a"), cells(50, seed=2, prefix="b")]
    return adatas, [write(adata, tmp_path / f"{name}.h5ad") for name, adata in zip("ab", adatas, strict=True)]


def check_rows(collection, adatas, *, layers=()):
    """Every input row is in the collection once, with its values; returns obs names in collection order."""
    found = read_all(collection)
    whole = ad.concat(adatas, join="outer", fill_value=0)
    assert sorted(found.obs_names) == sorted(whole.obs_names)
    expected = whole[found.obs_names, found.var_names]
    np.testing.assert_array_equal(as_array(found.X), as_array(expected.X))
    for name in layers:
        np.testing.assert_array_equal(as_array(found.layers[name]), as_array(expected.layers[name]))
    for column in set(whole.obs) & set(found.obs):
        left, right = found.obs[column], expected.obs[column]
        assert (left.isna() == right.isna()).all()
        present = left.notna().to_numpy()
        assert list(left[present].astype(object)) == list(right[present].astype(object)), column
    return list(found.obs_names)


class TestBuild:
    def test_rows_and_obs_survive(self, tmp_path, two):
        adatas, paths = two
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, rng=np.random.default_rng(0), **QUIET)
        names = check_rows(collection, adatas)
        assert names != [*adatas[0].obs_names, *adatas[1].obs_names]
        assert len(collection) == 1
        assert not collection.is_empty
        obs = collection.obs()
        assert list(obs["src_path"].cat.categories) == [str(p) for p in paths]
        assert (obs["src_path"].astype(str).str[-6] == obs.index.str[0]).all()
        assert isinstance(obs["cell_type"].dtype, pd.CategoricalDtype)

    def test_layout_is_the_shared_one(self, tmp_path, two):
        DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], dataset_size=60, **QUIET)
        root = zarr.open_group(tmp_path / "c.zarr", mode="r")
        listed = {name: root[name].attrs["annbatch-manifest"]["digest"] for name in ("dataset_0", "dataset_1")}
        marker = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
        copies = json.loads((tmp_path / "c.zarr" / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
        noted = digest(json.dumps([*listed]).encode() + json.dumps(copies)[1:-1].encode())
        assert dict(root.attrs) == {**marker, "annbatch-datasets": listed, "annbatch-copies": noted}
        assert sorted(root.group_keys()) == ["dataset_0", "dataset_1"]
        assert root.metadata.zarr_format == 3
        assert root["dataset_0/X/indices"].dtype == np.uint16
        assert not (tmp_path / "c.zarr" / ".annbatch").exists()

    @pytest.mark.parametrize("size", [37, 60, 119, 1000])
    def test_datasets_hold_at_most_dataset_size(self, tmp_path, two, size):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], dataset_size=size, **QUIET)
        sizes = [g["obs/_index"].shape[0] for g in collection]
        assert sum(sizes) == 120
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        check_rows(collection, two[0])

    def test_same_seed_same_rows_whatever_the_memory(self, tmp_path, two):
        orders = []
        for i, options in enumerate(({}, {"max_memory": "100MB"}, {"n_obs_per_chunk": 7, "shard_size": 30})):
            place = DatasetCollection(tmp_path / f"{i}.zarr")
            place.add_adatas(two[1], rng=np.random.default_rng(5), groupby="cell_type", **options, **QUIET)
            orders.append(check_rows(place, two[0]))
        assert orders[0] == orders[1] == orders[2]

    def test_no_shuffle_keeps_the_order(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], shuffle=False, dataset_size=50, **QUIET)
        assert check_rows(collection, two[0]) == [*two[0][0].obs_names, *two[0][1].obs_names]

    def test_groupby_sorts_each_dataset_and_is_stable(self, tmp_path, two):
        place = DatasetCollection(tmp_path / "c.zarr")
        place.add_adatas(two[1], groupby=["cell_type", "score"], dataset_size=40, shuffle=False, **QUIET)
        check_rows(place, two[0])
        for group in place:
            obs = ad.io.read_elem(group["obs"])
            pd.testing.assert_frame_equal(obs, obs.sort_values(["cell_type", "score"], kind="stable"))
        stable = DatasetCollection(tmp_path / "s.zarr").add_adatas(two[1], groupby="cell_type", shuffle=False, **QUIET)
        expected = ad.concat(two[0]).obs.astype({"cell_type": str}).sort_values("cell_type", kind="stable").index
        assert list(stable.obs().index) == list(expected)

    def test_groupby_puts_missing_labels_last(self, tmp_path):
        adata = cells(40)
        adata.obs.loc[adata.obs_names[::4], "cell_type"] = np.nan
        path = write(adata, tmp_path / "a.h5ad")
        column = (
            DatasetCollection(tmp_path / "c.zarr").add_adatas([path], groupby="cell_type", **QUIET).obs()["cell_type"]
        )
        assert column.isna().to_numpy()[-10:].all()
        assert column.notna().to_numpy()[:-10].all()

    @pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
    @pytest.mark.parametrize("is_dense", [False, True])
    def test_formats(self, tmp_path, name, is_dense):
        adata = cells(30, dense=is_dense)
        path = write(adata, tmp_path / name)
        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas([str(path)], **QUIET), [adata])

    def test_open_groups_and_adatas(self, tmp_path):
        adatas = [cells(20, seed=i, prefix=f"p{i}") for i in range(3)]
        h5, zr = write(adatas[0], tmp_path / "a.h5ad"), write(adatas[1], tmp_path / "b.zarr")
        with h5py.File(h5, "r") as file:
            inputs = [file, zarr.open_group(zr, mode="r"), adatas[2]]
            check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas(inputs, **QUIET), adatas)

    def test_load_adata(self, tmp_path, two):
        def load(path):
            adata = ad.read_h5ad(path)
            adata.obs = adata.obs[["cell_type"]]
            return adata

        obs = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], load_adata=load, **QUIET).obs()
        assert list(obs.columns) == ["cell_type", "src_path"]

    def test_load_adata_with_dask(self, tmp_path, two):
        pytest.importorskip("dask", reason="dask is optional")

        def load(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lazy = ad.experimental.read_lazy(path)
                return ad.AnnData(X=lazy.X, obs=lazy.obs.to_memory(), var=lazy.var.to_memory())

        pytest.importorskip("xarray", reason="anndata needs xarray to read lazily")
        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], load_adata=load, **QUIET), two[0])

    def test_load_adata_with_dask_chunks(self, tmp_path, two):
        da = pytest.importorskip("dask.array", reason="dask is optional")

        def load(path):
            adata = ad.read_h5ad(path)
            adata.X = da.from_array(adata.X.toarray(), chunks=(16, -1)).map_blocks(sp.csr_matrix)
            return adata

        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], load_adata=load, **QUIET), two[0])

    def test_zero_row_files_and_rows_without_values(self, tmp_path):
        first, empty, last = cells(10, prefix="a"), cells(5, prefix="b")[:0].copy(), cells(8, prefix="c")
        first.X = sp.csr_matrix(first.X.toarray() * (np.arange(10) >= 3)[:, None])
        paths = [write(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate((first, empty, last))]
        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, **QUIET), [first, last])

    def test_all_rows_without_values(self, tmp_path):
        adata = cells(9)
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
        path = write(adata, tmp_path / "a.h5ad")
        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas([path], **QUIET), [adata])

    def test_wide_matrices_get_int32_indices(self, tmp_path):
        adata = ad.AnnData(sp.random(20, 70_000, 0.001, format="csr", dtype="f4", random_state=0))
        adata.obs_names = [f"c{i}" for i in range(20)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)
        assert next(iter(collection))["X/indices"].dtype == np.int32
        check_rows(collection, [adata])

    def test_progress_bars(self, tmp_path, two, capsys):
        DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1])
        assert "Writing datasets" in capsys.readouterr().err
        DatasetCollection(tmp_path / "d.zarr").add_adatas(two[1], **QUIET)
        assert capsys.readouterr().err == ""


class TestShuffle:
    def test_every_row_may_land_anywhere(self, tmp_path):
        """Source block against destination block; (20 - 1)**2 = 361 degrees of freedom, P(chi-square > 505) < 1e-6."""
        n = 20_000
        adata = ad.AnnData(np.arange(n, dtype=np.float32)[:, None], obs=pd.DataFrame(index=np.arange(n).astype(str)))
        place = DatasetCollection(tmp_path / "c.zarr")
        place.add_adatas([adata], rng=np.random.default_rng(2026), dataset_size=n // 2, **QUIET)
        order = np.concatenate([np.asarray(group["X"][:]).ravel() for group in place]).astype(int)
        assert len(np.unique(order)) == n
        counts = np.zeros((20, 20))
        np.add.at(counts, (order // 1000, np.arange(n) // 1000), 1)
        assert ((counts - 50) ** 2 / 50).sum() < 505
        # Neighbours that stay neighbours: about Poisson(1), P(>= 11) < 1e-7.
        assert int((np.diff(order) == 1).sum()) < 11

    def test_rng_none_differs_and_seed_repeats(self, tmp_path, two):
        def order(name, rng):
            return list(DatasetCollection(tmp_path / name).add_adatas(two[1], rng=rng, **QUIET).obs().index)

        assert order("a.zarr", None) != order("b.zarr", None)
        assert order("c.zarr", np.random.default_rng(0)) == order("d.zarr", np.random.default_rng(0))
        rng = np.random.default_rng(0)
        assert order("e.zarr", rng) != order("f.zarr", rng)


class TestCompact:
    @pytest.mark.parametrize(
        ("values", "stored"),
        [
            ([0, 1, 255], "uint8"),
            ([0, 1, 256], "uint16"),
            ([0, 1, 65536], "uint32"),
            ([-1, 1, 100], "int8"),
            ([-1, 1, 200], "int16"),
            ([-40000, 3], "int32"),
            ([0.5, 1, 2], "float32"),
            ([np.nan, 1, 2], "float32"),
            ([np.inf, 1, 2], "float32"),
            ([-0.0, 1, 2], "float32"),
            ([1e30, 1, 2], "float32"),
            ([], "uint8"),
        ],
    )
    @pytest.mark.parametrize("is_dense", [False, True])
    def test_smallest_type_that_is_exact(self, tmp_path, values, stored, is_dense):
        matrix = np.zeros((4, 5), np.float32)
        matrix.ravel()[1 : 1 + len(values)] = values
        sparse = sp.csr_matrix(
            (np.array(values, np.float32), np.arange(len(values)), [0, len(values), len(values)]), (2, 5)
        )
        adata = ad.AnnData(matrix if is_dense else sparse)
        group = next(iter(DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], shuffle=False, **QUIET)))
        elem = group["X"]
        array = elem if is_dense else elem["data"]
        assert array.dtype == stored
        back = np.asarray(array[:]).astype(np.float32)
        given = matrix if is_dense else sparse.data
        assert back.tobytes() == given.tobytes()
        assert elem.attrs.get("annbatch-source-dtype") == ("<f4" if stored != "float32" else None)

    @pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "int32", "float16", "bool"])
    def test_other_source_types(self, tmp_path, dtype):
        matrix = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
        group = next(
            iter(DatasetCollection(tmp_path / "c.zarr").add_adatas([ad.AnnData(matrix)], shuffle=False, **QUIET))
        )
        assert group["X"].dtype == ("bool" if dtype == "bool" else "uint8")
        np.testing.assert_array_equal(group["X"][:], matrix)
        if dtype != "bool":
            assert np.dtype(group["X"].attrs["annbatch-source-dtype"]) == dtype

    def test_large_whole_numbers(self, tmp_path):
        matrix = np.array([[2**53, -(2**53)], [0, 2.0**62]])
        group = next(
            iter(DatasetCollection(tmp_path / "c.zarr").add_adatas([ad.AnnData(matrix)], shuffle=False, **QUIET))
        )
        assert group["X"].dtype == np.int64
        np.testing.assert_array_equal(group["X"][:].astype(float), matrix)

    def test_files_that_differ(self, tmp_path):
        whole, fractions = cells(20, prefix="a"), cells(20, prefix="b", seed=1)
        fractions.X = fractions.X * np.float32(0.5)
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([whole, fractions], **QUIET)
        assert next(iter(collection))["X/data"].dtype == np.float32
        check_rows(collection, [whole, fractions])

    def test_mixed_dtypes_are_promoted(self, tmp_path):
        adatas = [cells(20, prefix="a", dtype=np.int32), cells(20, prefix="b", dtype=np.float32)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        group = next(iter(collection))
        assert group["X/data"].dtype == np.uint8
        assert group["X"].attrs["annbatch-source-dtype"] == "<f8"
        check_rows(collection, adatas)

    def test_off(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], compact=False, **QUIET)
        group = next(iter(collection))
        assert group["X/data"].dtype == np.float32
        assert "annbatch-source-dtype" not in group["X"].attrs
        check_rows(collection, two[0])

    def test_loader_gives_the_source_dtype_back(self, tmp_path, two):
        from annbatch import Loader

        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], **QUIET)
        loader = Loader(chunk_size=8, preload_nchunks=4, batch_size=16, preload_to_gpu=False).use_collection(collection)
        batches = list(loader)
        assert {b["X"].dtype for b in batches} == {np.dtype(np.float32)}
        stacked = sp.vstack([b["X"] for b in batches])
        expected = ad.concat(two[0])[pd.concat([b["obs"] for b in batches]).index]
        assert (stacked != expected.X).nnz == 0


class TestVar:
    def test_outer_join_and_zero_fill(self, tmp_path):
        adatas = [cells(20, ["x", "y", "z"], prefix="a"), cells(20, ["z", "w", "x"], prefix="b", seed=3)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        assert set(read_all(collection).var_names) == {"w", "x", "y", "z"}
        check_rows(collection, adatas)
        for group in collection:
            assert ad.io.read_elem(group["X"]).has_sorted_indices

    def test_outer_join_of_dense(self, tmp_path):
        adatas = [cells(20, ["x", "y"], prefix="a", dense=True), cells(20, ["z", "x"], prefix="b", seed=3, dense=True)]
        check_rows(DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET), adatas)

    def test_sparse_and_dense_become_sparse(self, tmp_path):
        adatas = [cells(20, prefix="a", dense=True), cells(20, prefix="b", seed=3)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        assert "indptr" in next(iter(collection))["X"]
        check_rows(collection, adatas)

    def test_var_subset_keeps_the_order_of_the_files(self, tmp_path, two):
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], var_subset=["g5", "g2", "g11"], **QUIET)
        assert list(read_all(place).var_names) == ["g2", "g5", "g11"]
        check_rows(place, two[0])

    def test_var_subset_unknown_gene(self, tmp_path, two):
        with pytest.raises(KeyError, match="var_subset: 1 of 2 genes are in none of the inputs, e.g. .'nope'"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], var_subset=["g1", "nope"], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    def test_merge(self, tmp_path):
        adatas = [cells(10, prefix="a"), cells(10, prefix="b", seed=1)]
        for i, adata in enumerate(adatas):
            adata.var["same"] = np.arange(12)
            adata.var["differs"] = np.arange(12) + i
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, merge="same", **QUIET)
        assert list(read_all(place).var.columns) == ["same"]
        alone = DatasetCollection(tmp_path / "d.zarr").add_adatas(adatas[:1], **QUIET)
        assert list(read_all(alone).var.columns) == ["same", "differs"]

    def test_duplicate_names(self, tmp_path):
        adata = cells(10)
        adata.var_names = ["g"] * 2 + [f"g{i}" for i in range(10)]
        with pytest.raises(ValueError, match="var names of input_0 must be unique"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)


class TestElements:
    def test_layers_obsm_raw(self, tmp_path):
        adatas = []
        for i in range(2):
            adata = cells(25, seed=i, prefix=f"p{i}")
            adata.raw = cells(25, 15, seed=10 + i, prefix=f"p{i}")
            adata.layers["scaled"] = adata.X * np.float32(0.3)
            adata.layers["dense"] = adata.X.toarray()
            adata.obsm["X_pca"] = np.random.default_rng(i).normal(size=(25, 4))
            adata.obsm["sparse"] = sp.random(25, 7, 0.5, format="csr", random_state=i)
            adata.obsm["cube"] = np.random.default_rng(i).normal(size=(25, 2, 3))
            adatas.append(adata)
        paths = [write(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate(adatas)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, dataset_size=20, **QUIET)
        check_rows(collection, adatas, layers=["scaled", "dense"])
        by_name = {name: (adata, i) for adata in adatas for i, name in enumerate(adata.obs_names)}
        for group in collection:
            found = ad.io.read_elem(group)
            assert list(found.raw.var_names) == [f"g{i}" for i in range(15)]
            for row, name in enumerate(found.obs_names):
                adata, i = by_name[name]
                np.testing.assert_array_equal(as_array(found.raw.X[row]), as_array(adata.raw.X[i]))
                for key in ("X_pca", "cube", "sparse"):
                    np.testing.assert_array_equal(as_array(found.obsm[key][row]), as_array(adata.obsm[key][i]))

    def test_what_some_inputs_lack_is_left_out_with_a_warning(self, tmp_path):
        adatas = [cells(10, prefix="a"), cells(10, prefix="b", seed=1)]
        adatas[0].layers["only"] = adatas[0].X.copy()
        adatas[0].obsm["pca"], adatas[1].obsm["pca"] = np.ones((10, 3)), np.ones((10, 4))
        with pytest.warns(UserWarning, match=r"layers/only \(missing in input_1\); obsm/pca \(has different shapes"):
            collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        check_rows(collection, adatas)

    def test_missing_X(self, tmp_path):
        second = cells(10, prefix="b")
        second.X = None
        with pytest.raises(ValueError, match="X is in input_0, but not in input_1"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10), second], **QUIET)


class TestObs:
    def test_categories_are_united(self, tmp_path):
        adatas = [cells(30, prefix="a", types=("B", "T")), cells(30, prefix="b", types=("NK", "T"), seed=4)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        check_rows(collection, adatas)
        assert list(collection.obs()["cell_type"].cat.categories) == ["B", "NK", "T"]

    def test_text_meets_categorical(self, tmp_path):
        adatas = [cells(30, prefix="a", types=("B", "T")), cells(30, prefix="b", types=("NK", "T"), seed=4)]
        adatas[1].obs["cell_type"] = adatas[1].obs["cell_type"].astype(object)
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, **QUIET)
        check_rows(collection, adatas)
        assert list(collection.obs()["cell_type"].cat.categories) == ["B", "NK", "T"]

    def test_every_kind_of_column(self, tmp_path):
        adata = cells(12)
        adata.obs["nullable_int"] = pd.array([1, None, 3] * 4, dtype="Int16")
        adata.obs["nullable_bool"] = pd.array([True, None, False] * 4, dtype="boolean")
        adata.obs["bool"] = [True, False] * 6
        adata.obs["int"] = np.arange(12, dtype=np.int8)
        adata.obs["ordered"] = pd.Categorical(["lo", "hi"] * 6, categories=["lo", "hi"], ordered=True)
        adata.obs["number_categories"] = pd.Categorical([3, 1, 2] * 4)
        adata.obs["text"] = [f"é{i}" for i in range(12)]
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], shuffle=False, **QUIET)
        obs = collection.obs()
        for name in adata.obs:
            if name in ("note", "text"):
                assert list(obs[name]) == list(adata.obs[name])
            elif isinstance(adata.obs[name].dtype, pd.CategoricalDtype):
                pd.testing.assert_series_equal(
                    obs[name].astype(object), adata.obs[name].astype(object), check_index_type=False, check_dtype=False
                )
                assert obs[name].cat.ordered == adata.obs[name].cat.ordered
                assert list(obs[name].cat.categories) == list(adata.obs[name].cat.categories)
            else:
                pd.testing.assert_series_equal(obs[name], adata.obs[name], check_index_type=False)

    def test_missing_columns_become_missing_values(self, tmp_path):
        adatas = [cells(10, prefix="a"), cells(10, prefix="b", seed=1)]
        adatas[0].obs["int"] = np.arange(10)
        adatas[0].obs["bool"] = True
        del adatas[1].obs["note"], adatas[1].obs["cell_type"]
        obs = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, shuffle=False, **QUIET).obs()
        assert obs["int"].dtype == "Int64"
        assert obs["bool"].dtype == "boolean"
        assert list(obs["int"][:10]) == list(range(10))
        for name in ("int", "bool", "note", "cell_type"):
            assert obs[name].isna().to_numpy()[10:].all()
            assert obs[name].notna().to_numpy()[:10].all()

    def test_clash(self, tmp_path):
        second = cells(10, prefix="b")
        second.obs["score"] = ["text"] * 10
        with pytest.raises(TypeError, match=r"obs\['score'\] clashes: float64 in input_0, text in input_1"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10), second], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    def test_type_that_no_file_holds(self, tmp_path):
        adata = cells(3)
        adata.obs["when"] = pd.to_datetime(["2020-01-01"] * 3)
        with pytest.raises(TypeError, match=r"obs\['when'\] of input_0 has dtype datetime64"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)

    def test_columns(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], dataset_size=50, **QUIET)
        assert list(collection.obs(["score", "cell_type"]).columns) == ["score", "cell_type"]
        assert collection.obs([]).shape == (120, 0)
        with pytest.raises(KeyError, match="obs has no column 'nope'"):
            collection.obs(["nope"])

    def test_obs_of_an_empty_collection(self, tmp_path):
        assert DatasetCollection(tmp_path / "c.zarr").obs().empty


class TestAdding:
    def test_adding_never_touches_what_is_there(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1][:1], **QUIET)
        before = files_below(tmp_path / "c.zarr")
        del before["zarr.json"]  # lists all datasets, in one write that replaces it
        collection.add_adatas(two[1][1:], **QUIET)
        after = files_below(tmp_path / "c.zarr")
        assert {name: after[name] for name in before} == before
        assert len(collection) == 2
        check_rows(collection, two[0])

    def test_consolidated_metadata(self, tmp_path, two):
        place = tmp_path / "c.zarr"
        DatasetCollection(place).add_adatas(two[1][:1], **QUIET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: not part of the Zarr v3 specification yet
            zarr.consolidate_metadata(place)
        group = zarr.open_group(place)
        DatasetCollection(group).add_adatas(two[1][1:], **QUIET)
        check_rows(DatasetCollection(place), two[0])
        assert sorted(zarr.open_group(place, mode="r").group_keys()) == ["dataset_0", "dataset_1"]

    def test_varm_of_a_collection_that_is_added_to(self, tmp_path):
        inputs = [cells(10, prefix="a"), cells(10, prefix="b", seed=1)]
        for adata in inputs:
            adata.varm["loadings"] = np.arange(24.0).reshape(12, 2)
            adata.varm["table"] = pd.DataFrame({"rank": np.arange(12)}, index=adata.var_names)
        collection = DatasetCollection(tmp_path / "c.zarr")
        for adata in inputs:
            collection.add_adatas([adata], **QUIET)
        check_rows(collection, inputs)
        for group in collection:
            varm = ad.io.read_elem(group["varm"])
            np.testing.assert_array_equal(varm["loadings"], inputs[0].varm["loadings"])
            pd.testing.assert_frame_equal(varm["table"], inputs[0].varm["table"])

    def test_genes_the_collection_lacks(self, tmp_path):
        first, more = cells(10, prefix="a"), cells(10, 15, prefix="b", seed=1)
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([first], **QUIET)
        with pytest.raises(ValueError, match="3 genes of the inputs are not in var of the collection.*extra_genes"):
            collection.add_adatas([more], **QUIET)
        with pytest.warns(UserWarning, match="3 genes of the inputs .* they are left out"):
            collection.add_adatas([more], extra_genes="ignore", **QUIET)
        check_rows(collection, [first, more[:, :12]])
        collection.add_adatas([cells(10, 5, prefix="c")], **QUIET)
        assert {ad.io.read_elem(g["var"]).shape[0] for g in collection} == {12}

    def test_var_subset_while_adding(self, tmp_path):
        first, more = cells(10, prefix="a"), cells(10, 15, prefix="b", seed=1)
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([first], **QUIET)
        collection.add_adatas([more], var_subset=[f"g{i}" for i in range(12)], **QUIET)
        check_rows(collection, [first, more[:, :12]])

    def test_clash_with_the_collection(self, tmp_path):
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10)], **QUIET)
        before = files_below(tmp_path / "c.zarr")
        second = cells(10, prefix="b")
        second.obs["score"] = ["text"] * 10
        with pytest.raises(TypeError, match=r"obs\['score'\] clashes"):
            collection.add_adatas([second], **QUIET)
        assert files_below(tmp_path / "c.zarr") == before

    def test_layers_of_the_collection_are_needed(self, tmp_path):
        first = cells(10)
        first.layers["l"] = first.X.copy()
        collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([first], **QUIET)
        with pytest.raises(ValueError, match="layers/l is in .*dataset_0, but not in input_0"):
            collection.add_adatas([cells(10)], **QUIET)

    def test_united_categories_over_datasets(self, tmp_path):
        collection = DatasetCollection(tmp_path / "c.zarr")
        collection.add_adatas([cells(20, types=("B", "T"), prefix="a")], **QUIET)
        collection.add_adatas([cells(20, types=("NK", "T"), prefix="b")], **QUIET)
        assert list(collection.obs()["cell_type"].cat.categories) == ["B", "NK", "T"]


class TestPlaces:
    def test_in_memory_store(self, two):
        group = zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=3, path="deep/inside")
        collection = DatasetCollection(group)
        assert collection.is_empty
        collection.add_adatas(two[1], dataset_size=60, **QUIET)
        check_rows(DatasetCollection(group), two[0])
        collection.add_adatas(two[1], if_exists="add", **QUIET)
        assert len(collection) == 3

    def test_a_store_that_takes_no_chunks_of_arrays_that_it_does_not_know(self, two):
        """icechunk is one."""

        class KnowsItsArrays(zarr.storage.WrapperStore):
            async def set(self, key, value):
                above = key.split("/c/")[0]
                if key.endswith("/zarr.json"):
                    above = key.removesuffix("/zarr.json").rpartition("/")[0]
                if key != "zarr.json" and not await self._store.exists(f"{above}/zarr.json".lstrip("/")):
                    raise KeyError(key)
                await super().set(key, value)

        group = zarr.open_group(KnowsItsArrays(zarr.storage.MemoryStore()), mode="w", zarr_format=3)
        collection = DatasetCollection(group)
        collection.add_adatas(two[1], dataset_size=60, **QUIET)
        check_rows(DatasetCollection(group), two[0])
        write_sharded(group.create_group("single"), cells(10))
        assert ad.io.read_elem(group["single"]).shape == (10, 12)

    def test_group_inside_a_store(self, tmp_path, two):
        group = zarr.open_group(tmp_path / "s.zarr", mode="w").create_group("part")
        DatasetCollection(group).add_adatas(two[1], **QUIET)
        check_rows(DatasetCollection(tmp_path / "s.zarr" / "part"), two[0])

    def test_h5ad_collection(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c", is_collection_h5ad=True)
        collection.add_adatas(two[1], dataset_size=60, groupby="cell_type", **QUIET)
        collection.add_adatas([cells(5, prefix="x")], **QUIET)
        assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [f"dataset_{i}.h5ad" for i in range(3)]
        whole = ad.concat([ad.read_h5ad(tmp_path / "c" / f"dataset_{i}.h5ad") for i in range(2)])
        expected = ad.concat(two[0])[whole.obs_names]
        assert (whole.X != expected.X).nnz == 0
        assert DatasetCollection(tmp_path / "c", is_collection_h5ad=True).obs().shape[0] == 125

    @pytest.mark.parametrize("make", ["file", "folder", "zarr", "array", "v2"])
    def test_what_is_no_collection_is_refused_and_left_alone(self, tmp_path, make):
        place = tmp_path / "c.zarr"
        if make == "file":
            place.write_text("mine")
        elif make == "folder":
            place.mkdir()
            (place / "thesis.txt").write_text("mine")
        elif make == "zarr":
            zarr.open_group(place, mode="w", zarr_format=3).create_group("mine")
        elif make == "v2":
            zarr.open_group(place, mode="w", zarr_format=2)
        else:
            zarr.create_array(place, data=np.arange(3))
        before = files_below(tmp_path)
        with pytest.raises(ValueError, match="choose another place"):
            DatasetCollection(place)
        assert files_below(tmp_path) == before

    def test_modes(self, tmp_path, two):
        place = tmp_path / "c.zarr"
        for mode in ("r", "r+"):
            with pytest.raises(FileNotFoundError, match="does not exist"):
                DatasetCollection(place, mode=mode)
        DatasetCollection(place).add_adatas(two[1], **QUIET)
        with pytest.raises(RuntimeError, match='opened with mode="r"'):
            DatasetCollection(place, mode="r").add_adatas(two[1], **QUIET)
        assert next(iter(DatasetCollection(place, mode="r"))).read_only
        with pytest.raises(ValueError, match='mode must be "a", "r" or "r.", got .w.'):
            DatasetCollection(place, mode="w")

    def test_repr(self, tmp_path, two):
        collection = DatasetCollection(tmp_path / "c.zarr")
        assert repr(collection).endswith("c.zarr: 0 datasets>")
        assert repr(collection.add_adatas(two[1], **QUIET)).endswith("c.zarr: 1 dataset>")


BAD = [
    ({"groupby": "nope"}, KeyError, "groupby: obs of .* has no column 'nope'"),
    ({"groupby": 3}, TypeError, "groupby|iterable"),
    ({"n_obs_per_chunk": 0}, ValueError, "n_obs_per_chunk must be >= 1, got 0"),
    ({"n_obs_per_chunk": 1.5}, TypeError, "n_obs_per_chunk must be an integer"),
    ({"shard_size": "big"}, ValueError, 'shard_size must be a size such as "2GB"'),
    ({"dataset_size": 0}, ValueError, "dataset_size must be >= 1, got 0"),
    ({"dataset_size": True}, TypeError, "dataset_size must be an integer"),
    ({"max_memory": "1MB"}, ValueError, "max_memory must be at least 64MB for 120 rows, got 1MB"),
    ({"merge": "all"}, ValueError, "merge must be one of"),
    ({"extra_genes": "drop"}, ValueError, "extra_genes must be one of"),
    ({"rng": 0}, TypeError, "rng must be a numpy.random.Generator"),
    ({"executor": 3}, TypeError, "executor must have the interface"),
    ({"var_subset": []}, ValueError, "var_subset must name at least one gene"),
    ({"shuffle_chunk_size": 0}, ValueError, "shuffle_chunk_size must be >= 1, got 0"),
]


class TestBadArguments:
    @pytest.mark.parametrize(
        ("options", "error", "text"), BAD, ids=[next(iter(b[0])) + str(i) for i, b in enumerate(BAD)]
    )
    def test_clear_error_before_any_work(self, tmp_path, two, options, error, text):
        with pytest.raises(error, match=text):
            DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], **options, **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    def test_missing_file(self, tmp_path, two):
        with pytest.raises(FileNotFoundError, match="nope.h5ad' does not exist"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([*two[1], "nope.h5ad"], **QUIET)

    def test_no_inputs_and_no_rows(self, tmp_path):
        with pytest.raises(ValueError, match="at least one input, got none"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([], **QUIET)
        with pytest.raises(ValueError, match="no rows in any of the 1 inputs"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(3)[:0].copy()], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    def test_one_path_instead_of_a_list(self, tmp_path, two):
        with pytest.raises(TypeError, match="must be several inputs"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas(str(two[1][0]), **QUIET)

    def test_not_anndata(self, tmp_path):
        path = tmp_path / "x.h5ad"
        with h5py.File(path, "w") as file:
            file["numbers"] = [1, 2]
        with pytest.raises(ValueError, match="is no AnnData file"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([path], **QUIET)

    def test_load_adata_that_returns_something_else(self, tmp_path, two):
        with pytest.raises(TypeError, match="load_adata must return an AnnData, got str"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas(two[1], load_adata=str, **QUIET)

    def test_csc(self, tmp_path):
        adata = cells(10)
        adata.X = adata.X.tocsc()
        path = write(adata, tmp_path / "a.h5ad")
        with pytest.raises(TypeError, match="(?i)csc"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([path], **QUIET)


class TestWriteSharded:
    def test_round_trip(self, tmp_path):
        adata = cells(50)
        adata.raw = cells(50, 15, seed=7)
        adata.layers["half"] = adata.X * np.float32(0.5)
        adata.obsm["pca"] = np.random.default_rng(0).normal(size=(50, 3))
        adata.obsm["frame"] = pd.DataFrame({"a": np.arange(50)}, index=adata.obs_names)
        adata.varm["loadings"] = np.ones((12, 2))
        adata.obsp["near"] = sp.eye(50, format="csr")
        adata.varp["genes"] = np.eye(12)
        adata.uns["note"] = {"text": "kept", "numbers": np.arange(3)}
        group = zarr.open_group(tmp_path / "w.zarr", mode="w")
        write_sharded(group, adata, n_obs_per_chunk=8, shard_size=16)
        found = ad.io.read_elem(zarr.open_group(tmp_path / "w.zarr", mode="r"))
        assert found.X.dtype == np.float32
        assert (found.X != adata.X).nnz == 0
        assert (found.layers["half"] != adata.layers["half"]).nnz == 0
        assert (found.obsp["near"] != adata.obsp["near"]).nnz == 0
        np.testing.assert_array_equal(found.obsm["pca"], adata.obsm["pca"])
        np.testing.assert_array_equal(found.varm["loadings"], adata.varm["loadings"])
        np.testing.assert_array_equal(found.varp["genes"], adata.varp["genes"])
        assert list(found.obsm["frame"]["a"]) == list(range(50))
        assert found.uns["note"]["text"] == "kept"
        assert (found.raw.X != adata.raw.X).nnz == 0
        assert list(found.obs_names) == list(adata.obs_names)
        assert list(found.obs.columns) == list(adata.obs.columns)
        assert zarr.open_group(tmp_path / "w.zarr")["obsm/pca"].chunks == (8, 3)
        assert zarr.open_group(tmp_path / "w.zarr")["obsm/pca"].shards == (16, 3)

    def test_key_and_memory_store(self):
        group = zarr.open_group(zarr.storage.MemoryStore(), mode="w")
        write_sharded(group, cells(10), key="part")
        assert ad.io.read_elem(group["part"]).shape == (10, 12)

    def test_no_rows(self, tmp_path):
        write_sharded(zarr.open_group(tmp_path / "w.zarr", mode="w"), cells(3)[:0].copy())
        assert ad.io.read_elem(zarr.open_group(tmp_path / "w.zarr")).shape == (0, 12)

    def test_refuses_to_overwrite(self, tmp_path):
        group = zarr.open_group(tmp_path / "w.zarr", mode="w")
        write_sharded(group, cells(10), key="part")
        before = files_below(tmp_path)
        for key in (None, "part"):
            with pytest.raises(ValueError, match="already holds"):
                write_sharded(group, cells(5), key=key)
        assert files_below(tmp_path) == before

    def test_bad_group(self, tmp_path):
        with pytest.raises(TypeError, match="group must be a zarr.Group, got str"):
            write_sharded(str(tmp_path), cells(3))
        with pytest.raises(ValueError, match="Zarr format 2"):
            write_sharded(zarr.open_group(tmp_path / "v2.zarr", mode="w", zarr_format=2), cells(3))


class TestCodecs:
    @pytest.mark.parametrize(
        "name", ["default", "zstd", "gzip", "none", "blosc-zstd", "bitshuffle", "crc", "numcodecs"]
    )
    def test_zarr_python_reads_what_we_wrote(self, tmp_path, two, name):
        from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: numcodecs codecs are not in the Zarr v3 specification
            from zarr.codecs.numcodecs import LZ4

            codecs = {
                "default": None,
                "zstd": [ZstdCodec(level=3, checksum=True)],
                "gzip": [GzipCodec(level=4)],
                "none": [],
                "blosc-zstd": [BloscCodec(cname="zstd", clevel=3)],
                "bitshuffle": [BloscCodec(cname="lz4", shuffle="bitshuffle")],
                "crc": [ZstdCodec(), Crc32cCodec()],
                "numcodecs": [LZ4()],
            }[name]
            place = DatasetCollection(tmp_path / "c.zarr")
            place.add_adatas(two[1], zarr_compressor=codecs, n_obs_per_chunk=9, shard_size=40, **QUIET)
            check_rows(place, two[0])
        meta = json.loads((tmp_path / "c.zarr/dataset_0/X/data/zarr.json").read_text())
        assert meta["codecs"][0]["name"] == "sharding_indexed"
        assert meta["chunk_grid"]["configuration"]["chunk_shape"][0] < meta["shape"][0]
