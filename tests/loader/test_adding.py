"""Loader: adding data, errors of the contract, joins and gene subsets."""

from __future__ import annotations

import copy
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import ClassSampler, DatasetCollection, Loader, MappedCollection, SequentialSampler
from tests.cells import as_array, full_cells, write

from .loaders import small_loader, with_sorted_labels

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def bare(n_obs=5, n_var=3, dtype="float32", *, sparse=True):
    values = np.ones((n_obs, n_var), dtype)
    return sp.csr_matrix(values) if sparse else values


# -- what does not fit is refused, and nothing is added


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"to": "numpy"}, ValueError, "to must be one of None, 'torch', 'jax', got 'numpy'"),
        ({"join": "left"}, ValueError, "join must be one of None, 'inner', 'outer', got 'left'"),
        (
            {"layers": "counts"},
            TypeError,
            r"layers must be a list of names, got the string 'counts': pass \['counts'\]",
        ),
        ({"obsm": [1]}, TypeError, r"obsm must be a list of names, got 1 \(int\) among them"),
        ({"obs_columns": ["a", "a"]}, ValueError, "obs_columns must name each only once, got 'a'"),
        ({"var_names": {"g1", "g2"}}, TypeError, "var_names must be a list of names, got a set: pass a list"),
        ({"var_names": []}, ValueError, "var_names must name at least one variable"),
        ({"prefetch": -1}, ValueError, "prefetch must be >= 0, got -1"),
        ({"prefetch": 1.5}, TypeError, "prefetch must be an integer"),
        ({"num_threads": 0}, ValueError, "num_threads must be >= 1, got 0"),
        ({"transform": 3}, TypeError, r"transform must be a function of a batch, or None, got 3 \(int\)"),
        ({"dense": 1}, TypeError, "dense must be True or False, got 1"),
        ({"return_index": "yes"}, TypeError, "return_index must be True or False"),
        ({"dtype": "U5"}, ValueError, "dtype must be a number type"),
        ({"dtype": "float99"}, TypeError, "float99"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"batch_sampler": 7}, TypeError, "batch_sampler must be an annbatch.abc.Sampler, got int"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        Loader(**kwargs)


@pytest.mark.parametrize(
    "argument",
    [
        {"chunk_size": 512},
        {"preload_nchunks": 2},
        {"batch_size": 1},
        {"shuffle": False},
        {"drop_last": False},
        {"rng": np.random.default_rng(0)},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_arguments_of_the_sampler_exclude_batch_sampler(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} must not be given together with batch_sampler"):
        Loader(batch_sampler=SequentialSampler(4, 1, 4), **argument)


@pytest.mark.parametrize(
    "use", [len, iter, Loader.state_dict, lambda x: x.n_var, lambda x: x.dataset_type], ids=range(5)
)
def test_loader_without_data_says_so(use):
    with pytest.raises(ValueError, match="the loader has no data; add some with add_paths"):
        use(Loader())


@pytest.mark.parametrize("use", [len, iter])
def test_data_without_rows_says_so(use):
    loader = small_loader().add_datasets([np.ones((0, 3)), np.ones((0, 3))])
    assert (loader.n_obs, loader.n_var) == (0, 3)
    with pytest.raises(ValueError, match="the data must have at least one row, got 2 datasets without rows"):
        use(loader)


def test_loader_without_data_has_no_rows():
    assert Loader().n_obs == 0
    assert Loader().var is None
    assert Loader()._obs is None


def frame(n, prefix="r", **columns):
    return pd.DataFrame(columns, index=[f"{prefix}{i}" for i in range(n)])


def genes(*names):
    return pd.DataFrame(index=list(names))


ABC = genes(*"abc")


@pytest.mark.parametrize(
    ("good", "bad", "error", "message"),
    [
        (
            (bare(), frame(5), None),
            (bare(), None, None),
            ValueError,
            "either all datasets have obs or none has: .* dataset 2 has",
        ),
        (
            (bare(), None, None),
            (bare(), frame(5), None),
            ValueError,
            "the first was added without obs, dataset 2 has one",
        ),
        ((bare(), None, ABC), (bare(), None, None), ValueError, "either all datasets have var or none has"),
        ((bare(), None, None), (bare(sparse=False), None, None), ValueError, "sparse in all datasets or dense in all"),
        (
            (bare(), None, None),
            (bare(n_var=4), None, None),
            ValueError,
            r"number of variables .* got \(3,\), and \(4,\) in dataset 2",
        ),
        ((np.ones((5, 3, 2)), None, None), (np.ones((5, 3, 4)), None, None), ValueError, "same shape of a row"),
        ((bare(), None, ABC), (bare(), None, genes(*"acb")), ValueError, "in another order. Pass join='inner'"),
        ((bare(), None, ABC), (bare(), None, genes(*"abd")), ValueError, r"lacks 1 names of the first dataset \('c'\)"),
        (
            (bare(), None, ABC.assign(x=1)),
            (bare(), None, ABC.assign(x=2)),
            ValueError,
            r"same names .* other columns \(x\)",
        ),
        (
            (bare(), frame(5), None),
            (bare(), frame(4), None),
            ValueError,
            "obs must have 5 rows to fit X, got 4 for dataset 2",
        ),
        (
            (bare(), None, ABC),
            (bare(), None, genes(*"ab")),
            ValueError,
            "var must have 3 rows to fit X, got 2 for dataset 2",
        ),
        ((bare(), frame(5), None), (bare(), {"a": 1}, None), TypeError, "obs must be a pandas DataFrame, got dict"),
        (
            (bare(), frame(5), None),
            (bare(), pd.concat([frame(5, a=1), frame(5, a=2)], axis=1), None),
            ValueError,
            "obs must have unique column names",
        ),
        ((bare(), None, None), (bare().tocsc(), None, None), TypeError, "convert it first"),
        ((bare(), None, None), ([[1, 2, 3]], None, None), TypeError, "list"),
        ((bare(), None, None), (np.ones(3), None, None), ValueError, r"at least 2 dimensions, got shape \(3,\)"),
        ((bare(), None, None), (np.array([["a", "b", "c"]]), None, None), TypeError, "must hold numbers"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_added(good, bad, error, message):
    loader = small_loader().add_dataset(*good)
    with pytest.raises(error, match=message):
        loader.add_datasets(*zip(good, bad, strict=True))
    assert loader.n_obs == 5
    assert [batch["index"].tolist() for batch in loader] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("add", "error", "message"),
    [
        (lambda loader: loader.add_adata(bare()), TypeError, "dataset 0 must be an AnnData, got csr_matrix"),
        (lambda loader: loader.add_adata(ad.AnnData(obs=frame(3))), ValueError, "dataset 0 has no X"),
        (
            lambda loader: loader.add_datasets([bare()], obs=[]),
            ValueError,
            "obs must hold one frame per dataset, got 0 for 1",
        ),
        (
            lambda loader: loader.add_paths("a.h5ad"),
            TypeError,
            r"paths must be a list, got a single path \('a.h5ad'\): pass \[path\]",
        ),
        (lambda loader: loader.add_paths([123]), TypeError, r"paths must hold paths, URLs, .* got 123 \(int\)"),
        (lambda loader: loader.add_paths(None), TypeError, r"paths must be a list, got None \(NoneType\)"),
        (
            lambda loader: loader.add_adatas(full_cells()),
            TypeError,
            r"adatas must be a list, got a single adata \(AnnData\): pass \[adata\]",
        ),
        (
            lambda loader: loader.add_datasets(np.ones((2, 3, 4))),
            TypeError,
            r"datasets must be a list, got a single dataset \(ndarray\): pass \[dataset\]",
        ),
        (lambda loader: loader.add_paths(["not there.h5ad"]), FileNotFoundError, "not there.h5ad"),
    ],
    ids=range(9),
)
def test_other_bad_additions(add, error, message):
    with pytest.raises(error, match=message):
        add(small_loader())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": ["nope"]}, r"dataset 0 has no layers\['nope'\]; it has layers \['twice'\]"),
        ({"obsm": ["nope"]}, r"dataset 0 has no obsm\['nope'\]; it has obsm \['pca', 'tiles'\]"),
        ({"obs_columns": ["nope"]}, r"obs_columns must be columns of obs, got \['nope'\]"),
        ({"var_names": ["g1", "nope"]}, "var_names must be names of the data, got 1 unknown ones: 'nope'"),
    ],
)
def test_missing_parts_are_named(tmp_path, kwargs, message):
    with pytest.raises(KeyError, match=message):
        small_loader(**kwargs).add_adata(full_cells())
    with pytest.raises(KeyError, match="nope"):
        small_loader(**kwargs).add_paths([write(full_cells(), tmp_path / "a.h5ad")])


def test_names_of_another_kind_are_shown_what_there_is():
    with pytest.raises(
        KeyError, match="2 unknown ones: 'ENSG1', 'ENSG2'. All of them .* look like 'g0', 'g1', 'g2', ..."
    ):
        small_loader(var_names=["ENSG1", "ENSG2"]).add_adata(full_cells())
    with pytest.raises(KeyError) as caught:
        small_loader(var_names=["g1", "nope"]).add_adata(full_cells())
    assert "All of them" not in str(caught.value)


@pytest.mark.parametrize("suffix", [None, ".zarr", ".h5ad"])
def test_a_frame_in_obsm_is_refused_by_name(tmp_path, suffix):
    adata = full_cells()
    adata.obsm["frame"] = adata.obs[["n_counts"]]
    loader = small_loader(obsm=["frame"])
    with pytest.raises(
        TypeError, match=r"obsm\['frame'\] of .*(DataFrame|must be an encoded csr_matrix, got .*'dataframe')"
    ):
        loader.add_adata(adata) if suffix is None else loader.add_paths([write(adata, tmp_path / f"a{suffix}")])


def test_layers_of_a_bare_matrix_cannot_be_had():
    with pytest.raises(ValueError, match="dataset 0 is a bare matrix, but the loader was asked for layers"):
        small_loader(layers=["twice"]).add_dataset(bare())


def test_dask_is_refused_with_advice():
    da = pytest.importorskip("dask.array", reason="needs dask")
    with pytest.raises(TypeError, match="dask"):
        small_loader().add_dataset(da.ones((3, 2)))


def test_nothing_may_be_added_while_a_pass_is_open():
    loader = small_loader().add_adata(full_cells())
    batches = iter(loader)
    for add in (
        lambda: loader.add_adata(full_cells()),
        lambda: loader.add_dataset(bare()),
        lambda: loader.add_paths(["x.h5ad"]),
        lambda: loader.use_collection("x.zarr"),
    ):
        with pytest.raises(RuntimeError, match="data must not be added while a pass is open"):
            add()
        next(batches)
    assert loader.n_obs == 50
    batches.close()
    assert loader.add_adata(full_cells()).n_obs == 100
    for _ in loader:
        pass
    assert loader.add_adata(full_cells()).n_obs == 150


# -- joins


def aligned(parts, names):
    """The plain model: one dense array per data set, with a column of zeros for every name that it lacks."""
    return np.concatenate(
        [
            pd.DataFrame(as_array(p.X), columns=p.var_names).reindex(columns=names, fill_value=0).to_numpy()
            for p in parts
        ]
    )


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("dense", [True, False], ids=["to dense", "as is"])
@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"join": "inner"}, "bd"),
        ({"join": "outer"}, "abcdxy"),
        ({"join": "outer", "var_names": list("ydb")}, "ydb"),
        ({"join": "inner", "var_names": list("db")}, "db"),
    ],
    ids=str,
)
def test_datasets_are_aligned_by_name(sparse, dense, kwargs, names):
    parts = [full_cells(20, list(g), seed=i, dense=not sparse) for i, g in enumerate(("abcd", "dxb", "bydc"))]
    loader = small_loader(**kwargs, dense=dense, layers=["twice"], shuffle=True).add_adatas(parts)
    expected = aligned(parts, list(names))
    assert list(loader.var.index) == list(names)
    assert loader.n_var == len(names)
    for batch in loader:
        np.testing.assert_array_equal(as_array(batch["X"]), expected[batch["index"]])
        np.testing.assert_array_equal(as_array(batch["layers"]["twice"]), 2 * expected[batch["index"]])
        assert list(batch["var"].index) == list(names)


def test_var_names_without_join():
    parts = [full_cells(20, seed=i) for i in range(2)]
    loader = small_loader(var_names=["g5", "g0", "g3"], shuffle=True).add_adatas(parts)
    expected = aligned(parts, ["g5", "g0", "g3"])
    assert loader.var["length"].tolist() == [5, 0, 3]
    for batch in loader:
        np.testing.assert_array_equal(as_array(batch["X"]), expected[batch["index"]])
        # Column numbers ascend in a row, which torch and scipy like.
        assert batch["X"].has_canonical_format


names_of_datasets = st.lists(
    st.permutations("abcdef").flatmap(lambda p: st.integers(1, 6).map(lambda n: p[:n])), min_size=1, max_size=4
)


@given(gene_lists=names_of_datasets, join=st.sampled_from(["inner", "outer"]), dense=st.booleans())
@settings(deadline=None, max_examples=60)
def test_join_equals_anndata_concat(gene_lists, join, dense):
    parts = [full_cells(6, g, seed=i, prefix=f"{i}_") for i, g in enumerate(gene_lists)]
    both = ad.concat(parts, join=join)
    loader = small_loader(join=join, dense=dense, prefetch=0)
    if both.n_vars == 0:
        with pytest.raises(ValueError, match="shares none with the other datasets"):
            loader.add_adatas(parts)
        return
    loader.add_adatas(parts)
    expected = both[:, loader.var.index].X.toarray()
    assert sorted(loader.var.index) == sorted(both.var_names)
    np.testing.assert_array_equal(np.concatenate([as_array(batch["X"]) for batch in loader]), expected)


def test_joined_var_keeps_the_columns_that_agree():
    first, second = genes(*"abc"), genes(*"cbd")
    first["symbol"], second["symbol"] = ["A", "B", "C"], ["C", "B", "D"]
    first["n_cells"], second["n_cells"] = [1, 2, 3], [3, 9, 4]
    first["only_here"] = 1
    loader = small_loader(join="outer").add_datasets([bare(), bare()], var=[first, second])
    assert loader.var.to_dict("list") == {"symbol": ["A", "B", "C", "D"]}
    loader = small_loader(join="inner").add_datasets([bare(), bare()], var=[first, second])
    assert loader.var.to_dict("list") == {"symbol": ["B", "C"]}


def test_outer_join_learns_wanted_names_from_any_dataset():
    loader = small_loader(join="outer", var_names=["x", "a"]).add_adata(full_cells(50, "abc"))
    with pytest.raises(KeyError, match="got 1 unknown ones: 'x'"):
        iter(loader)
    loader.add_adata(full_cells(50, "xb"))
    assert {batch["X"].shape[1] for batch in loader} == {2}


@pytest.mark.parametrize("kwargs", [{"join": "outer"}, {"var_names": ["a"]}], ids=str)
def test_joins_need_unique_names_a_var_and_two_dimensions(kwargs):
    with pytest.raises(ValueError, match="var names must be unique to be aligned, got 'a' more than once in dataset 0"):
        small_loader(**kwargs).add_dataset(bare(), var=genes("a", "a", "b"))
    with pytest.raises(ValueError, match="join and var_names need var, but dataset 0 has none"):
        small_loader(**kwargs).add_dataset(bare())
    with pytest.raises(ValueError, match="need an X with 2 dimensions"):
        small_loader(**kwargs).add_dataset(np.ones((5, 3, 2)), var=ABC)


def test_var_read_from_different_formats_is_identical(tmp_path):
    adata = full_cells()
    adata.var["name"] = [f"name {i}" for i in range(7)]
    adata.var["kind"] = pd.Categorical(["x", "y"] * 3 + ["x"])
    paths = [write(adata, tmp_path / name) for name in ("a.h5ad", "b.zarr")]
    assert small_loader().add_adata(adata).add_paths(paths).n_obs == 150


# -- collections


def make_collection(path, adatas):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for number, adata in adatas.items():
        with ad.settings.override(auto_shard_zarr_v3=False):
            ad.io.write_elem(group, f"dataset_{number}", adata)
    group.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    return group


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    adatas = {number: full_cells(5 + number, seed=number, prefix=f"{number}_") for number in (0, 1, 2, 10)}
    path = tmp_path_factory.mktemp("collection") / "c.zarr"
    return path, make_collection(path, adatas), ad.concat(adatas.values(), merge="same")


@pytest.mark.parametrize("form", ["path", "str", "group", "iterable"])
@pytest.mark.parametrize("load", [None, "read", "lazy"])
def test_collection_is_read_in_the_order_of_its_numbers(collection, form, load):
    path, group, expected = collection
    given = {
        "path": path,
        "str": str(path),
        "group": group,
        "iterable": [group[f"dataset_{i}"] for i in (0, 1, 2, 10)],
    }[form]
    load_adata = {
        None: None,
        "read": ad.io.read_elem,
        "lazy": lambda group: ad.AnnData(
            ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"]), var=expected.var
        ),
    }[load]
    loader = small_loader(shuffle=True).use_collection(given, load_adata=load_adata)
    assert loader.n_obs == expected.n_obs
    for batch in loader:
        np.testing.assert_array_equal(batch["X"].toarray(), expected.X[batch["index"]].toarray())
        pd.testing.assert_frame_equal(batch["obs"], with_sorted_labels(expected.obs).iloc[batch["index"]])


def test_only_one_collection(collection):
    loader = small_loader().use_collection(collection[0])
    with pytest.raises(RuntimeError, match="use_collection was called before"):
        loader.use_collection(collection[0])
    assert loader.add_adata(collection[2]).n_obs == 2 * collection[2].n_obs


def test_a_collection_that_could_not_be_used_may_be_replaced(collection):
    loader = small_loader(var_names=["nope"])
    with pytest.raises(KeyError, match="nope"):
        loader.use_collection(collection[0])
    with pytest.raises(KeyError, match="nope"):
        loader.use_collection(collection[0])


def test_what_is_no_collection_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use add_paths for a single AnnData"):
        small_loader().use_collection(write(full_cells(), tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match="collection must hold at least one dataset"):
        small_loader().use_collection(make_collection(tmp_path / "b.zarr", {}))


# -- copies


def test_a_collection_in_the_wrong_place_is_called_one(tmp_path):
    path = str(tmp_path / "c.zarr")
    paths = []
    for number in range(2):
        cells = ad.AnnData(np.ones((6, 3), "float32"))
        cells.obs_names = [f"{number}_{row}" for row in range(6)]
        paths.append(str(write(cells, tmp_path / f"{number}.h5ad")))
    DatasetCollection(path).add_adatas(paths, progress=False)
    loader = Loader(batch_size=2)
    with pytest.raises(
        ValueError, match=r"c\.zarr must be an AnnData .*: it is a collection, pass it to use_collection"
    ):
        loader.add_paths([path])
    with pytest.raises(
        TypeError, match=r"collection must be one DatasetCollection, .*, got list with '.*c\.zarr' \(str\)"
    ):
        loader.use_collection([path])
    with pytest.raises(ValueError, match=r"c\.zarr is no AnnData .*It is a collection: pass the paths of its datasets"):
        MappedCollection([path])
    loader.use_collection(path)
    assert loader.n_obs == len(MappedCollection([f"{path}/dataset_0"])) == 12


def test_copy_shares_data_but_not_the_sampler_that_replaces_its_own():
    loader = small_loader(shuffle=True).add_adata(adata := full_cells())
    other = copy.copy(loader)
    other._batch_sampler = SequentialSampler(10, 1, 10, mask=slice(40, 50))
    assert [batch["index"].tolist() for batch in other] == [list(range(40, 50))]
    assert len(list(loader)) == 9
    other.add_adata(adata)
    assert (loader.n_obs, other.n_obs) == (50, 100)


def test_copy_of_a_loader_in_mid_pass():
    loader = small_loader().add_adata(full_cells())
    batches = iter(loader)
    next(batches)
    other = copy.copy(loader).add_adata(full_cells())
    assert other.n_obs == 100
    assert len(list(batches)) == 8


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))], ids=["deepcopy", "pickle"]
)
def test_copies_yield_the_same(tmp_path, how):
    from .loaders import contents

    paths = [write(full_cells(), tmp_path / name) for name in ("a.h5ad", "b.zarr")]
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_adata(full_cells()).add_paths(paths)
    other = how(loader)
    assert [contents(batch) for batch in other] == [contents(batch) for batch in loader]


def test_repr_and_length_follow_the_sampler():
    classes = full_cells().obs["label"].array
    sampler = ClassSampler(1, 12, 6, classes=classes, num_samples=100)
    loader = Loader(batch_sampler=sampler).add_adata(full_cells())
    assert loader.batch_sampler is sampler
    assert len(loader) == len(list(loader)) == 17
    assert "ClassSampler" in repr(loader)
