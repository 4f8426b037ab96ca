"""Each promise of MappedCollection's contract, on small files."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import MappedCollection
from annbatch.storage import CorruptDataError
from annbatch.storage.chunks.arrays import StoredArray
from tests.cells import as_array, cells, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mapped")


@pytest.fixture(scope="module")
def two(folder):
    """Two files that share genes b and c, the second without donors, one label missing."""
    rng = np.random.default_rng(0)
    one = cells(
        5,
        ["c", "a", "b"],
        seed=rng,
        obs={"cell_type": pd.Categorical(["T", "B", None, "T", "T"]), "donor": pd.Categorical(list("xyxyx"))},
    )
    one.layers["counts"] = (one.X * 2).astype("int64")
    one.raw = cells(5, ["p", "q", "r", "s"], seed=rng, dense=True)
    one.obsm["pca"] = rng.random((5, 2))
    one.obs["age"] = np.arange(5, dtype="float32")
    other = cells(
        3,
        ["b", "d", "c"],
        seed=rng,
        dense=True,
        dtype="int32",
        obs={"cell_type": pd.Categorical(["NK", "B", "unknown"])},
    )
    other.obsm["pca"] = rng.random((3, 2))
    other.obs["age"] = np.arange(3, dtype="int64")
    return [one, other], [write(one, folder / "one.h5ad"), write(other, folder / "other", "zarr3")]


# -- genes


def test_inner_join_keeps_the_order_of_the_first_file(two):
    adatas, paths = two
    with MappedCollection(paths) as m:
        assert m.var_joint.tolist() == ["c", "b"]
        assert (m.shape, m.n_obs, m.n_vars, len(m), m.join_vars) == ((8, 2), 8, 2, 8, "inner")
        assert m.original_shapes == [(5, 3), (3, 3)]
        assert [i.tolist() for i in m.var_indices] == [[0, 2], [2, 0]]
        np.testing.assert_array_equal(m[6]["X"], adatas[1][1, ["c", "b"]].X[0])


def test_outer_join_is_sorted_and_fills_with_zero(two):
    adatas, paths = two
    with MappedCollection(paths, join="outer") as m:
        assert m.var_joint.tolist() == ["a", "b", "c", "d"]
        assert m.join_vars == "outer"
        assert [i.tolist() for i in m.var_indices] == [[1, 2, 0, -1], [-1, 0, 2, 1]]
        expected = as_array(adatas[0][:, ["a", "b", "c"]].X)
        np.testing.assert_array_equal(m[0]["X"], [*expected[0], 0])


def test_without_join_each_row_is_as_in_its_file(two):
    adatas, paths = two
    with MappedCollection(paths, join=None) as m:
        assert m.var_joint is None
        assert m.join_vars is None
        assert m.shape == (8, None)
        assert m.var_indices == [None, None]
        for sample, row in zip(m.__getitems__([6, 1]), [adatas[1].X[1], as_array(adatas[0].X)[1]], strict=True):
            np.testing.assert_array_equal(sample["X"], row)


def test_equal_genes_are_not_reordered(folder):
    rng = np.random.default_rng(1)
    adatas = [cells(2, ["z", "a", "m"], seed=rng) for _ in range(2)]
    paths = [write(adata, folder / f"equal_{i}.h5ad") for i, adata in enumerate(adatas)]
    for join in ("inner", "outer", None):
        with MappedCollection(paths, join=join) as m:
            assert m.var_joint.tolist() == ["z", "a", "m"]
            assert (m.join_vars, m.shape) == (None, (4, 3))
            assert m.var_list[0] is m.var_list[1]
            np.testing.assert_array_equal(m[3]["X"], as_array(adatas[1].X)[1])


def test_equal_genes_in_different_encodings_are_equal(folder):
    """anndata 0.13 writes names as text with a mask, older ones as plain text or byte strings."""
    paths = [write(cells(2, ["z", "a"], seed=13), folder / f"encoding_{i}.h5ad") for i in range(3)]
    with h5py.File(paths[1], "a") as file, h5py.File(paths[2], "a") as third:
        del file["var/_index"], third["var/_index"]
        names = file["var"].create_group("_index")
        names.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        names.create_dataset("values", data=np.array(["z", "a"], dtype=object), dtype=h5py.string_dtype())
        names["mask"] = np.array([False, False])
        third["var/_index"] = np.array([b"z", b"a"])
    with MappedCollection(paths, join=None) as m:
        assert m.var_joint.tolist() == ["z", "a"]
        assert m.check_vars_non_aligned(["z", "a"]) == []
        assert m.join_vars is None


def test_no_shared_gene(folder):
    rng = np.random.default_rng(2)
    paths = [write(cells(2, [gene], seed=rng), folder / f"gene_{gene}.h5ad") for gene in "ab"]
    with pytest.raises(ValueError, match='no gene is in all 2 files; use join="outer"'):
        MappedCollection(paths)


def test_var_names_choose_and_order_the_genes(two):
    adatas, paths = two
    with MappedCollection(paths, join="outer", var_names=["d", "a"]) as m:
        assert m.var_joint.tolist() == ["d", "a"]
        np.testing.assert_array_equal(m[5]["X"], [adatas[1][0, "d"].X.item(), 0])
        np.testing.assert_array_equal(m[0]["X"], [0, as_array(adatas[0][0, "a"].X).item()])
    with MappedCollection(paths[:1], var_names=["b"]) as m:
        assert m.shape == (5, 1)


def test_var_names_that_cannot_be_had(two):
    _, paths = two
    with pytest.raises(KeyError, match="var_names must be names that all files share .*, got 1 unknown ones: 'a'"):
        MappedCollection(paths, var_names=["b", "a"])
    with pytest.raises(KeyError, match="var_names must be names of the data, got 1 unknown ones: 'nope'"):
        MappedCollection(paths, join="outer", var_names=["nope"])
    with pytest.raises(ValueError, match="var_names must name each only once, got 'b'"):
        MappedCollection(paths, var_names=["b", "b"])
    with pytest.raises(ValueError, match="var_names needs join"):
        MappedCollection(paths, join=None, var_names=["b"])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_gene_names_that_repeat(folder, two):
    repeated = cells(2, ["b", "b", "c"], seed=3)
    path = write(repeated, folder / "repeated.h5ad")
    with pytest.raises(ValueError, match=r"must be unique to be aligned, got 'b' more than once in .*repeated.h5ad"):
        MappedCollection([path, two[1][0]])
    with MappedCollection([path, path]) as m:
        np.testing.assert_array_equal(m[0]["X"], as_array(repeated.X)[0])


def test_checks_of_gene_order(two):
    _, paths = two
    with MappedCollection(paths) as m:
        assert not m.check_vars_sorted()
        assert m.check_vars_non_aligned(["b", "d", "c"]) == [0]
        assert m.check_vars_non_aligned(["x"]) == [0, 1]
    with MappedCollection(paths, join="outer", var_names=["a"]) as m:
        assert not m.check_vars_sorted(ascending=False)


# -- matrices


def test_raw_is_never_joined(two):
    adatas, paths = two
    with MappedCollection(paths, layers_keys=["X", "raw.X"]) as m:
        np.testing.assert_array_equal(m[1]["raw.X"], adatas[0].raw.X[1])
        assert list(m[1]) == ["X", "raw.X", "_store_idx"]


def test_a_key_that_a_file_lacks_is_left_out_of_its_samples(two):
    adatas, paths = two
    with MappedCollection(paths, layers_keys=["counts", "X"]) as m:
        samples = m.__getitems__([7, 0, 5, 1])
        assert [list(sample) for sample in samples] == [
            ["X", "_store_idx"],
            ["counts", "X", "_store_idx"],
            ["X", "_store_idx"],
            ["counts", "X", "_store_idx"],
        ]
        np.testing.assert_array_equal(samples[1]["counts"], as_array(adatas[0][0, ["c", "b"]].layers["counts"])[0])
        np.testing.assert_array_equal(samples[3]["counts"], as_array(adatas[0][1, ["c", "b"]].layers["counts"])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers_keys": ["nope", "X"]}, "layers_keys: no file has 'nope', .*; there is X, counts, raw.X"),
        ({"obsm_keys": ["umap", "pca"]}, "obsm_keys: no file has 'umap', .*; there is pca"),
        (
            {"obs_keys": ["tissue", "age"], "encode_labels": ["tissue"], "unknown_label": {"tissue": "?"}},
            "obs_keys: no file has 'tissue', .*; there is age, cell_type, donor",
        ),
    ],
)
def test_a_key_that_no_file_has_is_left_out_with_a_warning(two, arguments, message):
    with pytest.warns(UserWarning, match=message) as caught:
        m = MappedCollection(two[1], **arguments)
    assert caught[0].filename == __file__
    with m:
        kept = {name: keys[1] for name, keys in arguments.items() if name.endswith("_keys")}
        assert {name: getattr(m, name) for name in kept} == {name: [key] for name, key in kept.items()}
        names = {f"obsm_{key}" if name == "obsm_keys" else key for name, key in kept.items()}
        assert set(m[0]) == {"X", "_store_idx"} | names
        assert m.encoders == {}
        with pytest.raises(KeyError, match="no file has the obs column 'tissue'"):
            m.get_label_weights("tissue")


def test_a_filter_by_a_column_that_no_file_has_is_an_error(two):
    with pytest.raises(KeyError, match="obs_filter: no file has 'tissue'; there is age, cell_type, donor"):
        MappedCollection(two[1], obs_filter={"tissue": "lung"})


def test_a_filter_value_that_no_row_has_is_said(two):
    with pytest.warns(
        UserWarning, match=r"^obs_filter: no row has 'B cell' in 'cell_type', there is 'B', 'T', 'NK', 'unknown'"
    ):
        MappedCollection(two[1], obs_filter={"cell_type": ["T", "B cell"]})
    with pytest.raises(ValueError, match="passes it; no row has 'B cell' in 'cell_type', there is 'B'"):
        MappedCollection(two[1], obs_filter={"cell_type": "B cell"})


def test_the_dtype_is_the_same_in_every_batch(two):
    _, paths = two
    with MappedCollection(paths, layers_keys=["X", "counts"], obsm_keys="pca") as m:
        assert {sample["X"].dtype for sample in m.__getitems__(range(8))} == {np.dtype("float64")}
        assert m[7]["X"].dtype == np.float64  # float32 in one file, int32 in the other
        assert m[0]["counts"].dtype == np.int64
    with MappedCollection(paths, layers_keys=["X", "counts"], obsm_keys="pca", dtype="float32") as m:
        assert {m[0][key].dtype for key in ("X", "counts", "obsm_pca")} == {np.dtype("float32")}
    with MappedCollection(paths[1:]) as m:
        assert m[0]["X"].dtype == np.int32


def test_sparse_and_dense_obsm_of_more_dimensions(folder):
    rng = np.random.default_rng(4)
    adata = cells(4, ["a"], seed=rng)
    adata.obsm["image"] = rng.integers(0, 9, (4, 2, 3))
    adata.obsm["atac"] = sp.csr_matrix(rng.integers(0, 2, (4, 6)))
    path = write(adata, folder / "obsm.h5ad")
    with MappedCollection([path], obsm_keys=["image", "atac"]) as m:
        np.testing.assert_array_equal(m[2]["obsm_image"], adata.obsm["image"][2])
        np.testing.assert_array_equal(
            [s["obsm_atac"] for s in m.__getitems__([3, 0])], as_array(adata.obsm["atac"])[[3, 0]]
        )


def test_a_matrix_stored_by_columns(folder):
    adata = cells(3, ["a", "b"], seed=5)
    adata.X = sp.csc_matrix(adata.X)
    path = write(adata, folder / "csc.h5ad")
    with pytest.raises(ValueError, match=r"csc.h5ad, key 'X': .*CSR"):
        MappedCollection([path])


def test_a_file_without_X(folder):
    adata = cells(3, ["a", "b"], seed=6)
    adata.layers["counts"], adata.X = adata.X, None
    path = write(adata, folder / "no_x.h5ad")
    with MappedCollection([path], layers_keys="counts") as m:
        np.testing.assert_array_equal(m[1]["counts"], as_array(adata.layers["counts"])[1])
    with pytest.warns(UserWarning, match="no file has 'X', which samples go without; there is counts"):
        m = MappedCollection([path])
    with m:
        assert m[1] == {"_store_idx": 0}


def test_a_matrix_that_does_not_fit_its_table(folder):
    path = write(cells(3, ["a", "b"], seed=7, dense=True), folder / "short.h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = np.zeros((2, 2), "float32")
    with pytest.raises(ValueError, match=r"short.h5ad, key 'X': obs and var ask for 3 rows and 2 columns"):
        MappedCollection([path])


# -- labels


def test_codes_follow_the_sorted_merged_categories(two):
    _, paths = two
    with MappedCollection(paths, obs_keys=["cell_type", "donor"]) as m:
        assert m.encoders == {"cell_type": {"B": 0, "NK": 1, "T": 2, "unknown": 3}, "donor": {"x": 0, "y": 1}}
        assert [m[i]["cell_type"] for i in (0, 1, 3, 5, 6, 7)] == [2, 0, 2, 1, 0, 3]
        assert type(m[0]["cell_type"]) is int


def test_a_missing_label_stays_nan(two):
    _, paths = two
    for encode in (True, False):
        with MappedCollection(paths, obs_keys=["cell_type", "donor"], encode_labels=encode) as m:
            assert m[2]["cell_type"] is np.nan
            # The other file has no donors.
            assert m[7]["donor"] is np.nan
            assert m.__getitems__([2])[0]["cell_type"] is np.nan


def test_the_unknown_label_takes_no_code(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type", unknown_label="NK") as m:
        assert m.encoders["cell_type"] == {"B": 0, "T": 1, "unknown": 2, "NK": -1}
        assert [m[i]["cell_type"] for i in (0, 5, 7)] == [1, -1, 2]
    with MappedCollection(paths, obs_keys=["cell_type", "donor"], unknown_label={"donor": "y"}) as m:
        assert m.encoders["donor"] == {"x": 0, "y": -1}
        assert m.encoders["cell_type"]["B"] == 0
        assert [m[i]["donor"] for i in (0, 1)] == [0, -1]


@pytest.mark.parametrize("missing", [np.nan, pd.NA])
def test_the_missing_label_may_be_the_unknown_one(two, missing):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type", unknown_label=missing) as m:
        assert list(m.encoders["cell_type"].values()) == [0, 1, 2, 3, -1]
        assert m.encoders["cell_type"][np.nan] == -1
        assert [m[i]["cell_type"] for i in (0, 2)] == [2, -1]
        assert [sample["cell_type"] for sample in m.__getitems__([0, 2])] == [2, -1]
        numbers = m._columns["cell_type"].numbers(np.array([0, 2]))
        assert (numbers.tolist(), numbers.dtype) == ([2, -1], "int64")


def test_only_the_listed_keys_are_encoded(two):
    _, paths = two
    with MappedCollection(paths, obs_keys=["cell_type", "donor", "age"], encode_labels=["donor"]) as m:
        assert set(m.encoders) == {"donor"}
        assert m[1] | {"X": None} == {"X": None, "cell_type": "B", "donor": 1, "age": 1.0, "_store_idx": 0}
    with MappedCollection(paths, obs_keys="cell_type", encode_labels=[]) as m:
        assert m.encoders == {}
        assert m[7]["cell_type"] == "unknown"


def test_numbers_can_be_labels(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="age") as m:
        assert m.encoders["age"] == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
        assert [m[i]["age"] for i in range(8)] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_text_and_numbers_under_one_key(folder):
    rng = np.random.default_rng(8)
    paths = [
        write(cells(2, ["a"], seed=rng, obs={"batch": pd.Categorical(batch)}), folder / f"batch_{i}.h5ad")
        for i, batch in enumerate([["x", "y"], [1, 2]])
    ]
    with pytest.raises(TypeError, match=r"obs key 'batch' holds text in .*batch_0.h5ad but numbers in .*batch_1.h5ad"):
        MappedCollection(paths, obs_keys="batch")


def test_merged_labels_and_categories(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type") as m:
        labels = m.get_merged_labels("cell_type")
        assert [None if pd.isna(x) else x for x in labels] == ["T", "B", None, "T", "T", "NK", "B", "unknown"]
        assert m.get_merged_categories("cell_type") == {"B", "NK", "T", "unknown"}
        # Also of columns that the samples do not hold.
        assert m.get_merged_labels("donor")[:5].tolist() == list("xyxyx")
        assert m.get_merged_labels("age").tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        with pytest.raises(KeyError, match="no file has the obs column 'tissue'"):
            m.get_merged_labels("tissue")


def test_codes_do_not_depend_on_the_filter(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type", obs_filter={"cell_type": ["T", "unknown"]}) as m:
        assert m.encoders["cell_type"] == {"B": 0, "NK": 1, "T": 2, "unknown": 3}
        assert [m[i]["cell_type"] for i in range(len(m))] == [2, 2, 2, 3]
        assert m.get_merged_labels("cell_type").tolist() == ["T", "T", "T", "unknown"]


# -- weights


def test_a_weight_is_one_over_the_count(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type") as m:
        # T, B, missing, T, T, NK, B, unknown
        expected = np.array([1 / 3, 1 / 2, 1, 1 / 3, 1 / 3, 1, 1 / 2, 1])
        np.testing.assert_allclose(m.get_label_weights("cell_type"), expected)
        by_label = m.get_label_weights("cell_type", return_categories=True)
        missing = [label for label in by_label if pd.isna(label)]
        assert by_label.pop(missing[0]) == 1
        assert by_label == {"T": 1 / 3, "B": 1 / 2, "NK": 1, "unknown": 1}


def test_a_scaler_evens_out_less(two):
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type") as m:
        counts = np.array([3, 2, 1, 3, 3, 1, 2, 1])
        np.testing.assert_allclose(m.get_label_weights("cell_type", scaler=10), 10 / (counts + 10))


def test_weights_of_several_keys_and_of_files_without_the_column(two):
    """lamindb issue 2411: there were fewer weights than rows when a file lacked the column."""
    _, paths = two
    with MappedCollection(paths) as m:
        weights = m.get_label_weights(["cell_type", "donor"])
        # T__x, B__y, nan__x, T__y, T__x, then no donor: NK__nan, B__nan, unknown__nan
        np.testing.assert_allclose(weights, [1 / 2, 1, 1, 1, 1 / 2, 1, 1, 1])
        assert m.get_label_weights(["cell_type", "donor"], return_categories=True) == {
            "T__x": 1 / 2, "B__y": 1, "nan__x": 1, "T__y": 1, "NK__nan": 1, "B__nan": 1, "unknown__nan": 1,
        }  # fmt: skip
        np.testing.assert_allclose(
            m.get_label_weights("donor"), [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 3]
        )


def test_joined_labels_of_one_name_are_told_apart(tmp_path):
    obs = pd.DataFrame({"p": ["a__b", "a", "a"], "q": ["c", "b__c", "c"]}, index=list("xyz"))
    path = write(ad.AnnData(np.ones((3, 1), "float32"), obs=obs), tmp_path / "a.h5ad")
    with MappedCollection([path]) as m:
        assert m.get_label_weights(["p", "q"]).tolist() == [1, 1, 1]
        weights = m.get_label_weights(["p", "q"], return_categories=True)
        assert weights == {("a__b", "c"): 1, ("a", "b__c"): 1, "a__c": 1}
        with pytest.raises(TypeError, match=r"key must be the name of one obs column, got \['p'\] \(list\)"):
            m.get_merged_labels(["p"])


def test_weights_that_cannot_be_had(two):
    with MappedCollection(two[1]) as m:
        with pytest.raises(KeyError, match="tissue"):
            m.get_label_weights("tissue")
        with pytest.raises(ValueError, match="at least one column"):
            m.get_label_weights([])
        with pytest.raises(ValueError, match="scaler must be None or > 0, got 0"):
            m.get_label_weights("cell_type", scaler=0)


# -- rows


def test_indices_and_storage_idx(two):
    _, paths = two
    with MappedCollection(paths) as m:
        assert m.indices.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        assert m.storage_idx.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("bad", [8, -9])
def test_an_index_out_of_range(two, bad):
    with MappedCollection(two[1]) as m:
        with pytest.raises(IndexError, match=f"index {bad} is out of range for 8 rows"):
            m[bad]
        with pytest.raises(IndexError, match=f"index {bad} is out of range for 8 rows"):
            m.__getitems__([0, bad])


def test_a_number_beyond_int64_is_no_row(two):
    """It must not wrap around to a row from the end."""
    with MappedCollection(two[1]) as m:
        for bad in (2**64 - 1, np.uint64(2**64 - 1), 10**30, -(10**30)):
            with pytest.raises(IndexError, match=f"index {bad} is out of range for 8 rows"):
                m[bad]
        with pytest.raises(IndexError, match="index 18446744073709551615 is out of range"):
            m.__getitems__(np.array([0, 2**64 - 1], dtype="uint64"))


@pytest.mark.parametrize("bad", [1.0, "1", slice(0, 2), [1], True, np.True_])
def test_an_index_that_is_no_integer(two, bad):
    with MappedCollection(two[1]) as m, pytest.raises(TypeError, match="index must be an integer"):
        m[bad]


@pytest.mark.parametrize("bad", [[0.5], [[0, 1]], ["a"], [True]])
def test_indices_that_are_no_integers(two, bad):
    with MappedCollection(two[1]) as m, pytest.raises(TypeError, match="indices must be a list of integers"):
        m.__getitems__(bad)


def test_numpy_integers_are_integers(two):
    with MappedCollection(two[1]) as m:
        assert m[np.int8(-1)]["_store_idx"] == 1
        assert [s["_store_idx"] for s in m.__getitems__(np.array([7, 0], dtype="uint8"))] == [1, 0]
        assert m.__getitems__([]) == []


def test_iteration_ends(two):
    with MappedCollection(two[1]) as m:
        assert len(list(m)) == 8


def test_a_batch_is_its_own(two):
    """Changing a sample in place changes no other sample and no later batch."""
    with MappedCollection(two[1], join="outer") as m:
        expected = m[0]["X"].copy()
        first = m.__getitems__([0, 0, 1])
        first[0]["X"][:] = -1
        np.testing.assert_array_equal(first[1]["X"], expected)
        np.testing.assert_array_equal(m.__getitems__([0])[0]["X"], expected)


def test_samples_of_labels_alone(two):
    with MappedCollection(two[1], layers_keys=[], obs_keys=["donor", "age"]) as m:
        assert m[1] == {"donor": 1, "age": 1, "_store_idx": 0}
        assert repr(m) == "<MappedCollection 2 files; 8 x 2; obs: donor, age>"


def test_samples_are_rows_of_one_block(two):
    with MappedCollection(two[1], layers_keys=["X"]) as m:
        samples = m.__getitems__([7, 0, 3])
        assert samples[0]["X"].base is not None
        assert len({id(sample["X"].base) for sample in samples}) == 1


def test_a_subclass_that_changes_samples_sees_each(two):
    """torch would ask __getitems__, and the subclass would be passed over."""

    class Log(MappedCollection):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {"X": np.log1p(sample["X"])}

    with MappedCollection(two[1]) as m, Log(two[1]) as log:
        np.testing.assert_array_equal(log.__getitems__([3])[0]["X"], np.log1p(m[3]["X"]))


# -- life


def test_reading_after_close(two):
    m = MappedCollection(two[1], obs_keys="cell_type")
    m[0]
    assert not m.closed
    m.close()
    m.close()
    assert m.closed
    with pytest.raises(RuntimeError, match="this MappedCollection is closed"):
        m[0]
    with pytest.raises(RuntimeError, match="this MappedCollection is closed"):
        m.__getitems__([0])
    assert len(m.get_label_weights("cell_type")) == 8


@pytest.mark.parametrize("read_before", [False, True])
def test_pickling(two, read_before):
    with MappedCollection(two[1], layers_keys=["X", "raw.X"], obs_keys="cell_type", join="outer") as m:
        if read_before:
            m[0]
        with pickle.loads(pickle.dumps(m)) as copy:
            assert copy.encoders == m.encoders
            for a, b in zip(m.__getitems__([7, 2, 0]), copy.__getitems__([7, 2, 0]), strict=True):
                assert list(a) == list(b)
                np.testing.assert_array_equal(a["X"], b["X"])


def test_samples_pickle_as_plain_dicts(two):
    with MappedCollection(two[1]) as m:
        sample = pickle.loads(pickle.dumps(m.__getitems__([1])))[0]
        assert type(sample) is dict


def test_the_files_can_be_replaced_after_close(folder):
    path = write(cells(3, ["a"], seed=9, dense=True), folder / "replaced.h5ad")
    with MappedCollection([path]) as m:
        m.__getitems__([0, 1])
    with h5py.File(path, "a") as file:
        file["X"][0] = 7


def test_repr_names_what_is_read(two):
    with MappedCollection(two[1], layers_keys=["X", "counts"], obs_keys="donor", obsm_keys="pca") as m:
        assert repr(m) == "<MappedCollection 2 files; 8 x 2; layers: X, counts; obs: donor; obsm: pca>"
    assert repr(m).endswith("closed>")


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"join": "left"}, ValueError, "join must be one of 'inner', 'outer', None, got 'left'"),
        ({"encode_labels": ["donor"]}, ValueError, "encode_labels must be True, False or a list of obs_keys"),
        (
            {"obs_keys": "donor", "unknown_label": {"cell_type": "x"}},
            ValueError,
            "unknown_label: the keys must be encoded",
        ),
        ({"obs_keys": [1]}, TypeError, "obs_keys must be a name or a list of names, got 1 \\(int\\) among them"),
        ({"obs_filter": "T"}, TypeError, "obs_filter must be a dict"),
        ({"obs_filter": {"cell_type": "nope"}}, ValueError, "no row of the 2 files passes it"),
        ({"num_threads": 0}, ValueError, "num_threads must be >= 1, got 0"),
        ({"obs_keys": ["donor", "donor"]}, ValueError, r"got \['donor'\] more than once"),
        ({"num_threads": 1.5}, TypeError, "num_threads must be an integer, got 1.5"),
        ({"dtype": "nope"}, TypeError, "nope"),
        ({"dtype": "U4"}, ValueError, "dtype must be a number type, got <U4"),
        ({"dtype": "datetime64[s]"}, ValueError, "dtype must be a number type"),
        ({"var_names": "bc"}, TypeError, "var_names must be a list of names, got the string 'bc'"),
        ({"obs_keys": {"cell_type": ["B", "T"]}}, TypeError, "obs_keys must be a name or a list of names, got a dict"),
        ({"var_names": 5}, TypeError, "var_names must be a list of names, got 5"),
        ({"obs_keys": 5}, TypeError, "obs_keys must be a name or a list of names, got 5 \\(int\\)"),
        ({"obs_filter": {"cell_type": [["T"]]}}, TypeError, r"obs_filter\['cell_type'\] must be a value or a list"),
        ({"obs_keys": "donor", "unknown_label": ["x"]}, TypeError, r"unknown_label must be a label, .* got \['x'\]"),
    ],
)
def test_bad_arguments(two, arguments, error, message):
    with pytest.raises(error, match=message):
        MappedCollection(two[1], **arguments)


@pytest.mark.parametrize("kind", [list, tuple, set, iter, np.array, pd.Series, pd.Index, pd.Categorical])
def test_the_values_of_a_filter_may_come_in_any_container(two, kind):
    with MappedCollection(two[1], obs_filter={"cell_type": kind(["T", "NK"])}) as m:
        assert m.original_shapes == [(3, 3), (1, 3)]


def test_the_working_directory_may_change(folder, monkeypatch):
    path = write(cells(2, ["a"], seed=3, obs={"donor": ["x", "y"]}), folder / "relative.h5ad")
    monkeypatch.chdir(folder)
    m = MappedCollection([path.name])
    monkeypatch.chdir("/")
    with m:
        assert m[0]["X"].shape == (1,)
        assert m.get_merged_labels("donor").tolist() == ["x", "y"]
        assert m.path_list == [Path(path.name)]


def test_bad_paths(tmp_path, two):
    with pytest.raises(TypeError, match="path_list must be a list, got None"):
        MappedCollection(None)
    with pytest.raises(TypeError, match=r"path_list must be a list, got a single path .*: pass \[path\]"):
        MappedCollection(str(two[1][0]))
    with pytest.raises(TypeError, match=r"path_list must hold paths, URLs, .* got 123 \(int\)"):
        MappedCollection([123])
    with pytest.raises(ValueError, match="at least one path"):
        MappedCollection([])
    with pytest.raises(FileNotFoundError, match=r"nope\.h5ad does not exist"):
        MappedCollection([*two[1], tmp_path / "nope.h5ad"])
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a.txt is neither an .h5ad file nor a .zarr folder"):
        MappedCollection([tmp_path / "a.txt"])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(ValueError, match=r"other.h5 is no AnnData file: it has no obs"):
        MappedCollection([tmp_path / "other.h5"])


def test_paths_may_be_text(two):
    with MappedCollection([str(path) for path in two[1]]) as m:
        assert len(m) == 8
        assert m.path_list == [Path(path) for path in two[1]]


def test_the_tables_are_closed_after_opening(folder):
    """Hundreds of files must not need hundreds of open handles before a row is read."""
    path = write(cells(3, ["a"], seed=10), folder / "closed.h5ad")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    m = MappedCollection([path] * 20, obs_keys=[])
    after = len(list(Path("/proc/self/fd").iterdir())) if before else 0
    assert after <= before
    assert len(m) == 60
    m.close()


def test_opening_keeps_no_object_per_row_and_reads_no_matrix(folder, monkeypatch):
    n_rows = 20_000
    rng = np.random.default_rng(11)
    obs = {
        "text": rng.choice(["x", "y"], n_rows).astype(object),
        "category": pd.Categorical(rng.choice(["u", "v"], n_rows)),
    }
    adata = ad.AnnData(
        sp.csr_matrix((n_rows, 3), dtype="float32"), obs=pd.DataFrame(obs, index=np.arange(n_rows).astype(str))
    )
    path = write(adata, folder / "many_rows.h5ad")
    monkeypatch.setattr(StoredArray, "read", None)
    MappedCollection([path])  # imports are not what is counted here
    gc.collect()
    tracemalloc.start()
    m = MappedCollection([path] * 5, obs_keys=["text", "category"])
    size, _ = tracemalloc.get_traced_memory()
    n_objects = sum(trace.count for trace in tracemalloc.take_snapshot().statistics("filename"))
    tracemalloc.stop()
    assert len(m) == 5 * n_rows
    assert size < 6 * len(m)  # two codes of one byte, and change
    assert n_objects < len(m) / 20


# -- old files


def test_a_file_of_the_first_generation(tmp_path, two):
    """Compound obs and var, categories in uns, raw.X beside X, h5sparse attributes."""
    adatas, paths = two
    X = sp.csr_matrix(np.arange(8, dtype="float32").reshape(4, 2))
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        codes = np.array([0, 1, 1, 0], dtype="i1")
        file["obs"] = np.array(
            list(zip([b"c0", b"c1", b"c2", b"c3"], codes, strict=True)), dtype=[("index", "S2"), ("cell_type", "i1")]
        )
        file["var"] = np.array([(b"c",), (b"b",)], dtype=[("index", "S1")])
        file["uns/cell_type_categories"] = np.array([b"T", b"DC"])
        for key in ("X", "raw.X"):
            group = file.create_group(key)
            group.attrs.update({"h5sparse_format": b"csr", "h5sparse_shape": np.array([4, 2])})
            group["data"], group["indices"], group["indptr"] = X.data, X.indices, X.indptr
    with MappedCollection([tmp_path / "old.h5ad", *paths], ["X", "raw.X"], "cell_type", unknown_label="unknown") as m:
        assert m.var_joint.tolist() == ["c", "b"]
        assert m.encoders["cell_type"] == {"B": 0, "DC": 1, "NK": 2, "T": 3, "unknown": -1}
        samples = m.__getitems__([3, 2, 4])
        np.testing.assert_array_equal([sample["X"] for sample in samples[:2]], X.toarray()[[3, 2]])
        np.testing.assert_array_equal(samples[0]["raw.X"], X.toarray()[3])
        assert [sample["cell_type"] for sample in samples] == [3, 1, 3]
        np.testing.assert_array_equal(samples[2]["X"], as_array(adatas[0][0, ["c", "b"]].X)[0])


def test_a_file_without_rows(folder, two):
    empty = cells(0, ["b", "c"], seed=12, obs={"cell_type": pd.Categorical([], ["B"])})
    path = write(empty, folder / "empty.h5ad")
    with MappedCollection([path], obs_keys="cell_type") as m:
        assert (len(m), m.shape) == (0, (0, 2))
        assert m.get_label_weights("cell_type").shape == (0,)
        assert m.encoders == {"cell_type": {"B": 0}}
        with pytest.raises(IndexError, match="out of range for 0 rows"):
            m[0]
    with MappedCollection([path, *two[1]], obs_keys="cell_type") as m:
        assert len(m) == 8
        assert m[0]["_store_idx"] == 1


def test_a_pair_as_filter_works_with_a_deprecation_warning(two):
    _, paths = two
    with pytest.warns(DeprecationWarning, match=r"obs_filter=\('cell_type', \.\.\.\) is deprecated") as caught:
        pair = MappedCollection(paths, obs_filter=("cell_type", "B"))
    assert caught[0].filename == __file__
    with MappedCollection(paths, obs_filter={"cell_type": "B"}) as same, pair:
        assert pair.indices.tolist() == same.indices.tolist()


# -- scale


@pytest.mark.parametrize("join", ["inner", "outer", None])
@pytest.mark.parametrize("target_sum", [1e4, "median", None])
def test_values_are_scaled_over_all_stored_genes(two, join, target_sum):
    adatas, paths = two
    with MappedCollection(paths, join=join) as plain:
        raw = [plain[i]["X"] for i in range(8)]
    totals = np.concatenate([as_array(adata.X).sum(axis=1) for adata in adatas]).astype(float)
    target = (np.median(totals) or 1) if target_sum == "median" else target_sum
    with MappedCollection(paths, join=join, normalize_total=target_sum, log1p=True, library_size=True) as m:
        samples = m.__getitems__([3, 0, 7, 5, 3])
        for row, sample in zip([3, 0, 7, 5, 3], samples, strict=True):
            factor = 1 if target is None or totals[row] == 0 else target / totals[row]
            assert sample["X"].dtype == np.float32
            np.testing.assert_allclose(sample["X"], np.log1p(raw[row] * factor), rtol=1e-6)
            assert sample["library_size"] == totals[row]
            assert m[row]["library_size"].dtype == np.float32


def test_layers_are_scaled_instead_of_X(two):
    adatas, paths = two
    m = MappedCollection(
        paths, layers_keys=["counts", "X"], normalize_layers=["counts"], normalize_total=10, library_size=True
    )
    with m:
        totals = as_array(adatas[0].layers["counts"]).sum(axis=1)
        for row, sample in enumerate(m.__getitems__(range(8))):
            assert ("library_size" in sample) == ("counts" in sample) == (row < 5)
            if row < 5:
                counts = as_array(adatas[0].layers["counts"])[row, [0, 2]]
                np.testing.assert_allclose(sample["counts"], counts * (10 / (totals[row] or 10)), rtol=1e-6)
                assert sample["library_size"] == totals[row]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"normalize_total": "mean"}, ValueError, "normalize_total must be a finite number > 0"),
        ({"normalize_total": -1}, ValueError, "normalize_total must be a finite number > 0"),
        ({"log1p": "yes"}, TypeError, "log1p must be True or False"),
        ({"log1p": True, "dtype": "int32"}, ValueError, "dtype must be float32 or float64 where values are normalised"),
        ({"normalize_layers": ["X"]}, ValueError, "normalize_layers needs normalize_total, log1p or library_size"),
        ({"log1p": True, "layers_keys": "raw.X"}, ValueError, "normalize_layers must be among layers_keys"),
    ],
)
def test_bad_arguments_about_scale(two, arguments, error, message):
    with pytest.raises(error, match=message):
        MappedCollection(two[1], **arguments)


# -- without torch


def test_batches_of_numpy_arrays(two):
    _, paths = two
    with MappedCollection(paths, obs_keys=["cell_type", "donor"], obsm_keys="pca", encode_labels=["cell_type"]) as m:
        rows = [5, 0, 7]
        samples = m.__getitems__(rows)
        batch = m.collate_numpy(samples)
        assert batch["X"].base is samples[0]["X"].base or np.shares_memory(batch["X"], samples[0]["X"])
        assert {key: type(values) for key, values in batch.items()} == {
            key: list if key == "donor" else np.ndarray for key in samples[0]
        }
        for again in (m.read_batch(rows), m.collate_numpy([dict(sample) for sample in samples])):
            for key, values in batch.items():
                np.testing.assert_array_equal(again[key], values)
        with pytest.raises(ValueError, match="samples must hold at least one sample"):
            m.collate_numpy([])


def test_grain_reads_a_batch_at_once(two):
    grain = pytest.importorskip("grain")
    _, paths = two
    with MappedCollection(paths, obs_keys="cell_type", unknown_label="unknown") as m:
        expected = m.read_batch([3, 1, 6])
        batches = grain.MapDataset.source([3, 1, 6]).batch(3).map(m.read_batch)
        np.testing.assert_array_equal(batches[0]["X"], expected["X"])
        one_by_one = grain.MapDataset.source(m).batch(8, batch_fn=m.collate_numpy)
        np.testing.assert_array_equal(one_by_one[0]["X"], m.read_batch(range(8))["X"])
        samples = grain.MapDataset.source(m)._getitems([3, 1, 6])  # what grain does once it reads batches at once
        np.testing.assert_array_equal(m.collate_numpy(samples)["X"], expected["X"])
        shuffled = grain.MapDataset.range(len(m)).shuffle(seed=0).batch(4).map(m.read_batch)
        assert sorted(np.concatenate([batch["_store_idx"] for batch in shuffled]).tolist()) == [0] * 5 + [1] * 3


def test_a_damaged_list_of_members_names_the_file(tmp_path):
    path = write(cells(3), tmp_path / "a.h5ad")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"HEAP", b"LOST", 1))  # the names of what is in the root
    with pytest.raises(CorruptDataError, match="a.h5ad"):
        MappedCollection([path])
