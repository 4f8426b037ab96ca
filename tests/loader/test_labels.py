"""Labels and covariates: what a training step takes, as plain numbers."""

from __future__ import annotations

import pickle
import timeit

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import Loader, MappedCollection
from tests.cells import full_cells, write

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def with_obs(**columns):
    n_obs = len(next(iter(columns.values())))
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(n_obs)])
    return ad.AnnData(np.arange(n_obs * 2, dtype="float32").reshape(n_obs, 2), obs=obs)


def rows(loader, part):
    """What all batches hold of a part, in the order of the data."""
    batches = list(loader)
    order = np.argsort(np.concatenate([batch["index"] for batch in batches]))
    return np.concatenate([part(batch) for batch in batches])[order]


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_labels_are_places_in_the_sorted_labels_of_all_datasets(tmp_path, kind):
    parts = [full_cells(20, seed=i, labels=labels) for i, labels in enumerate((["T", "B"], ["A", "B"]))]
    for part in parts:
        part.obs["donor"] = ["d1", "d10"] * 10
    loader = small_loader(shuffle=True, labels=["label", "donor", "batch"], obs_columns=[])
    if kind == "memory":
        loader.add_adatas(parts)
    else:
        loader.add_paths([write(part, tmp_path / f"{i}.{kind}") for i, part in enumerate(parts)])
    assert {name: labels.tolist() for name, labels in loader.encoders.items()} == {
        "label": ["A", "B", "T"],
        "donor": ["d1", "d10"],
        "batch": [0, 1, 2],
    }
    for name, labels in loader.encoders.items():
        codes = rows(loader, lambda batch, name=name: batch["labels"][name])
        assert codes.dtype == np.int64
        assert labels[codes].tolist() == [value for part in parts for value in part.obs[name]]


def test_codes_are_those_of_mapped_collection_and_of_obs(tmp_path):
    parts = [full_cells(20, seed=i, labels=labels) for i, labels in enumerate((["T", "B"], ["A", "B"]))]
    paths = [write(part, tmp_path / f"{i}.h5ad") for i, part in enumerate(parts)]
    loader = small_loader(labels=["label"]).add_paths(paths)
    with MappedCollection(paths, obs_keys="label") as mapped:
        assert mapped.encoders["label"] == {label: code for code, label in enumerate(loader.encoders["label"])}
    codes = rows(loader, lambda batch: batch["labels"]["label"])
    assert codes.tolist() == rows(loader, lambda batch: batch["obs"]["label"].cat.codes).tolist()
    backwards = small_loader(labels=["label"]).add_paths(paths[::-1])
    assert backwards.encoders["label"].tolist() == loader.encoders["label"].tolist()


columns = st.lists(st.lists(st.none() | st.sampled_from("abcde"), min_size=1, max_size=6), min_size=1, max_size=8)


@given(columns=columns, one_by_one=st.booleans())
@settings(deadline=None, max_examples=50)
def test_labels_do_not_depend_on_how_data_was_added(columns, one_by_one):
    parts = [with_obs(x=pd.Categorical(column), y=[float(len(column))] * len(column)) for column in columns]
    loader = small_loader(labels=["x"], covariates=["y"], obs_columns=[])
    if one_by_one:
        for part in parts:
            loader.add_adata(part)
    else:
        loader.add_adatas(parts)
    expected = pd.Categorical([value for column in columns for value in column])
    assert loader.encoders["x"].tolist() == expected.categories.tolist()
    assert rows(loader, lambda batch: batch["labels"]["x"]).tolist() == expected.codes.tolist()
    assert rows(loader, lambda batch: batch["covariates"][:, 0]).tolist() == [
        float(len(column)) for column in columns for _ in column
    ]


def test_fixed_labels_keep_their_codes():
    adata = with_obs(x=["b", "a", None, "c"])
    loader = small_loader(labels={"x": ["c", "b", "a", "z"]}).add_adata(adata)
    assert loader.encoders["x"].tolist() == ["c", "b", "a", "z"]
    assert rows(loader, lambda batch: batch["labels"]["x"]).tolist() == [1, 2, -1, 0]
    with pytest.raises(
        ValueError, match=r"labels\['x'\] must list all labels, got 1 others in dataset 0: 'c'; pass unknown="
    ):
        small_loader(labels={"x": ["a", "b"]}).add_adata(adata)
    loader = small_loader(labels={"x": ["a", "b"]}, unknown="-1").add_adata(adata)
    assert rows(loader, lambda batch: batch["labels"]["x"]).tolist() == [1, 0, -1, -1]
    numbers = small_loader(labels={"x": [2, 1]}).add_adata(with_obs(x=[1, 2, 1]))
    assert rows(numbers, lambda batch: batch["labels"]["x"]).tolist() == [1, 0, 1]
    assert small_loader(labels={"x": None}).add_adata(adata).encoders["x"].tolist() == ["a", "b", "c"]
    # As MappedCollection.encoders has them: the codes say what the order says.
    assert small_loader(labels={"x": {"c": 0, "a": 1, "b": 2}}).encoders["x"].tolist() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"labels": "x"}, TypeError, "labels must be a list of names, got the string 'x'"),
        ({"labels": {"x": "ab"}}, TypeError, r"labels\['x'\] must be a list of labels, or None"),
        (
            {"labels": {"x": {"a", "b"}}},
            TypeError,
            r"labels\['x'\] must be a list of labels in the order of their codes.* a set",
        ),
        ({"labels": {"x": {"a": 1, "b": 0}}}, TypeError, "in the order of their codes, got .* a dict"),
        ({"labels": {"x": ["a", "a"]}}, ValueError, r"labels\['x'\] must list each label once, got 'a' more than once"),
        ({"labels": {"x": ["a", 1]}}, TypeError, "must be all text, all numbers or all booleans"),
        ({"labels": {"x": ["a", None]}}, ValueError, "a missing one has the code -1"),
        ({"labels": ["x"], "unknown": -1}, ValueError, "unknown must be one of 'error', '-1', got -1"),
        ({"covariates": ["x", "x"]}, ValueError, "covariates must name each only once"),
        ({"x": False}, ValueError, "x=False reads no X, so layers or obsm must name something"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        Loader(**kwargs)


def test_kinds_that_meet_are_refused_where_data_is_added():
    loader = small_loader(labels=["x"]).add_adata(with_obs(x=["a", "b"]))
    with pytest.raises(TypeError, match=r"'x' holds text in what was added before but numbers in dataset 1"):
        loader.add_adata(with_obs(x=[1, 2]))
    assert loader.n_obs == 2
    with pytest.raises(TypeError, match=r"labels\['x'\] lists text, but dataset 0 holds numbers"):
        small_loader(labels={"x": ["1"]}).add_adata(with_obs(x=[1, 2]))


@pytest.mark.parametrize("part", ["labels", "covariates"])
def test_a_column_that_a_dataset_lacks(part):
    first, second = with_obs(x=[1.0, 2.0]), with_obs(y=[3.0])
    with pytest.raises(KeyError, match=rf"{part} must be columns of obs, got \['x'\], which dataset 1 lacks"):
        small_loader(**{part: ["x"]}).add_adatas([first, second])
    loader = small_loader(**{part: ["x"]}, join="outer").add_adatas([first, second])
    if part == "labels":
        assert rows(loader, lambda batch: batch["labels"]["x"]).tolist() == [0, 1, -1]
    else:
        np.testing.assert_array_equal(rows(loader, lambda batch: batch["covariates"][:, 0]), [1, 2, np.nan])
    with pytest.raises(ValueError, match="labels and covariates are columns of obs, but dataset 0 has no obs"):
        small_loader(**{part: ["x"]}).add_dataset(np.ones((2, 2)))


def test_covariates_are_float32_columns(tmp_path):
    adata = with_obs(
        a=np.array([1, 2, 3], "int16"),
        b=pd.array([True, None, False], dtype="boolean"),
        c=[0.5, np.nan, 2.0],
        d=pd.array([7, None, 9], dtype="Int64"),
    )
    expected = np.array([[1, 1, 0.5, 7], [2, np.nan, np.nan, np.nan], [3, 0, 2, 9]], "float32")
    names = ["a", "b", "c", "d"]
    for loader in (
        small_loader(covariates=names).add_adata(adata),
        small_loader(covariates=names).add_paths([write(adata, tmp_path / "a.h5ad")]),
    ):
        found = rows(loader, lambda batch: batch["covariates"])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("values", [["1", "2"], pd.Categorical([1, 2]), [1j, 2j]])
def test_a_covariate_that_is_no_number_is_refused(values):
    with pytest.raises(TypeError, match="covariates must be columns of numbers, got 'x', which dataset 0 holds as"):
        small_loader(covariates=["x"]).add_adata(with_obs(x=values))


def test_a_covariate_that_float32_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"covariates must fit into float32, got 1e\+200 in 'x' of dataset 0"):
        small_loader(covariates=["x"]).add_adata(with_obs(x=[1.0, 1e200]))


def test_no_obs_columns_means_no_pandas_in_a_batch():
    adata = full_cells()
    loader = small_loader(labels=["label"], covariates=["n_counts"], obs_columns=[]).add_adata(adata)
    batch = next(iter(loader))
    assert batch["obs"] is None
    assert batch["var"] is None
    flat = [value for part in batch.values() for value in (part.values() if isinstance(part, dict) else [part])]
    assert not any(isinstance(value, pd.DataFrame | pd.Series | pd.Index) for value in flat)
    assert loader.var.equals(adata.var)
    assert loader.obs(["label"])["label"].tolist() == adata.obs["label"].tolist()


@pytest.mark.parametrize("to", ["torch", "jax"])
def test_index_labels_and_covariates_are_of_the_kind_that_to_names(to):
    library = pytest.importorskip(to)
    kind = library.Tensor if to == "torch" else library.Array
    loader = small_loader(to=to, labels=["label"], covariates=["n_counts"], dtype="float32").add_adata(full_cells())
    batch = next(iter(loader))
    for value in (batch["index"], batch["labels"]["label"], batch["covariates"]):
        assert isinstance(value, kind)
    assert str(batch["covariates"].dtype).endswith("float32")
    wide = "int64" if to == "torch" else "int32"
    assert str(batch["index"].dtype).endswith(wide)
    assert str(batch["labels"]["label"].dtype).endswith(wide)


def test_jax_does_not_cut_row_numbers(monkeypatch):
    pytest.importorskip("jax")
    from annbatch.loader.exports import makers

    small = makers("jax", gpu=False, sparse=set(), dense=set()).small
    with pytest.raises(ValueError, match="would cut the row number 2147483648 to 32 bits"):
        small(np.array([2**31]))


@pytest.mark.parametrize("nse", [None, 200])
def test_a_jitted_step_compiles_once_where_batches_are_padded(nse):
    jax = pytest.importorskip("jax")
    adata = full_cells(64, 7)
    loader = Loader(batch_size=8, chunk_size=8, preload_nchunks=8, to="jax", nse=nse, return_index=True).add_adata(
        adata
    )
    compiled = []

    @jax.jit
    def step(X, weights):
        compiled.append(X.nse)
        return X @ weights

    weights = np.arange(7, dtype="float32")
    for batch in loader:
        expected = adata.X[np.asarray(batch["index"])] @ weights
        np.testing.assert_allclose(step(batch["X"], weights), expected, rtol=1e-6)
        np.testing.assert_array_equal(batch["X"].todense(), adata.X[np.asarray(batch["index"])].toarray())
    assert (len(compiled) == 1) is (nse is not None)


def test_padding_to_fewer_values_than_there_are_is_an_error():
    pytest.importorskip("jax")
    with pytest.raises(
        ValueError, match="nse must be at least the stored values of every batch, got 1, and a batch of"
    ):
        list(Loader(batch_size=8, to="jax", nse=1).add_adata(full_cells()))
    for wrong in ({"to": "torch"}, {}, {"to": "jax", "dense": True}):
        with pytest.raises(ValueError, match='nse pads sparse batches of to="jax", got to='):
            Loader(nse=5, **wrong)


def test_labels_survive_pickling_and_are_small():
    loader = small_loader(labels=["label"]).add_adata(full_cells())
    again = pickle.loads(pickle.dumps(loader))
    assert [batch["labels"]["label"].tolist() for batch in again] == [
        batch["labels"]["label"].tolist() for batch in loader
    ]
    assert loader._table.labels.codes("label").itemsize == 1


def test_labels_and_covariates_of_a_batch_of_128_cost_little():
    n_obs = 20_000
    rng = np.random.default_rng(0)
    adata = with_obs(a=rng.choice(list("abc"), n_obs), b=rng.integers(0, 500, n_obs), c=rng.random(n_obs))
    loader = Loader(labels=["a", "b"], covariates=["c"], obs_columns=[]).add_adata(adata)
    table, chosen = loader._table, rng.integers(0, n_obs, 128)

    def take():
        return table.labels.take(chosen), table.covariates.take(chosen)

    # The least of many: other processes only add. The contract says 30 us; it takes about 8.
    assert min(timeit.repeat(take, number=50, repeat=40)) / 50 < 30e-6


# -- obs of all rows


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr", "bare"])
def test_obs_of_all_rows(tmp_path, kind):
    parts = [full_cells(20, seed=i, prefix=f"{i}_") for i in range(2)]
    loader = small_loader(obs_columns=["label"])
    if kind == "memory":
        loader.add_adatas(parts)
    elif kind == "bare":
        loader.add_datasets([part.X for part in parts], [part.obs for part in parts])
    else:
        loader.add_paths([write(part, tmp_path / f"{i}.{kind}") for i, part in enumerate(parts)])
    both = pd.concat([part.obs for part in parts])
    obs = loader.obs()
    assert list(obs) == ["label"]
    assert obs["label"].tolist() == both["label"].tolist()
    assert obs.index.tolist() == both.index.tolist()
    other = loader.obs(["batch", "label"])
    assert list(other) == ["batch", "label"]
    assert other["batch"].tolist() == both["batch"].tolist()
    assert other["label"].dtype == obs["label"].dtype
    with pytest.raises(KeyError, match=r"columns must be columns of obs, got \['nope'\], which no dataset has"):
        loader.obs(["nope"])
    obs.iloc[:, 0] = obs["label"].iloc[0]
    assert loader.obs()["label"].tolist() == both["label"].tolist()
    assert list(small_loader(obs_columns=[]).add_adatas(parts).obs()) == list(both)


def test_obs_where_there_is_none():
    with pytest.raises(ValueError, match="the data has no obs"):
        Loader().add_dataset(np.ones((2, 2))).obs()
    with pytest.raises(ValueError, match="the loader has no data"):
        Loader().obs()


# -- layers without X, and raw


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", None])
def test_layers_without_x(tmp_path, suffix, monkeypatch):
    adata = full_cells()
    loader = small_loader(x=False, layers=["twice"])
    if suffix is None:
        loader.add_adata(adata)
    else:
        loader.add_paths([write(adata, tmp_path / f"a{suffix}")])
    assert (loader.n_obs, loader.n_var) == adata.shape
    assert [str(key) for key in loader._table.matrices] == ["layers['twice']"]
    for batch in loader:
        assert batch["X"] is None
        np.testing.assert_array_equal(
            batch["layers"]["twice"].toarray(), adata.layers["twice"][batch["index"]].toarray()
        )


def test_obsm_without_x_and_data_without_x():
    adata = full_cells()
    loader = small_loader(x=False, obsm=["pca"]).add_adata(adata)
    assert loader.n_var == adata.n_vars
    np.testing.assert_array_equal(rows(loader, lambda batch: batch["obsm"]["pca"]), adata.obsm["pca"])
    bare = ad.AnnData(obs=adata.obs, obsm={"pca": adata.obsm["pca"]})
    assert small_loader(x=False, obsm=["pca"]).add_adata(bare).n_obs == adata.n_obs
    with pytest.raises(ValueError, match="dataset 0 has no X; pass x=False"):
        small_loader().add_adata(bare)
    with pytest.raises(ValueError, match="is a bare matrix, but the loader was asked for layers or obsm|no X"):
        small_loader(x=False, layers=["twice"]).add_dataset(np.ones((2, 2)))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", None])
@pytest.mark.parametrize("x", [True, False])
def test_raw(tmp_path, suffix, x):
    parts = []
    for i in range(2):
        full = full_cells(30, 9, seed=i)
        part = full[:, [f"g{j}" for j in range(4 + i)]].copy()
        part.raw = full
        parts.append(part)
    loader = small_loader(x=x, layers=["raw.X"], join="inner", shuffle=True)
    if suffix is None:
        loader.add_adatas(parts)
    else:
        loader.add_paths([write(part, tmp_path / f"{i}{suffix}") for i, part in enumerate(parts)])
    expected = sp.vstack([part.raw.X for part in parts]).toarray()
    found = rows(loader, lambda batch: batch["layers"]["raw.X"].toarray())
    np.testing.assert_array_equal(found, expected)
    assert loader.n_var == 4


def test_raw_of_other_genes_and_no_raw():
    parts = [full_cells(5, genes) for genes in (list("abc"), list("cab"))]
    for part in parts:
        part.raw = part.copy()
    with pytest.raises(ValueError, match=r"raw.X is not aligned by name, .* dataset 1 has others"):
        small_loader(layers=["raw.X"], join="inner").add_adatas(parts)
    with pytest.raises(KeyError, match=r"dataset 0 has no raw.X"):
        small_loader(layers=["raw.X"]).add_adata(full_cells())


# -- transform


def test_a_transform_that_returns_nothing_is_an_error_that_says_so():
    loader = small_loader(transform=lambda batch: None).add_adata(full_cells())
    with pytest.raises(TypeError, match="transform must return what is to be handed out, got None"):
        next(iter(loader))


def test_obs_of_one_batch_is_none_of_the_next():
    # Slices of one frame: no two batches share a row, so each may be written to.
    loader = small_loader().add_adata(full_cells())
    first, second = list(loader)[:2]
    before = second["obs"].copy()
    first["obs"].iloc[:, 1] = -1.0
    first["obs"]["new"] = 1
    pd.testing.assert_frame_equal(second["obs"], before)


# -- in a view


def test_labels_covariates_and_scale_of_a_view_are_those_of_its_rows():
    adata = full_cells(60)
    adata.obs["note"] = np.arange(60) * 0.5
    settings = {"labels": ["label"], "covariates": ["note"], "obs_columns": [], "library_size": True}
    whole = small_loader(normalize_total="median", **settings).add_adata(adata)
    chosen = np.random.default_rng(0).permutation(60)[:25]
    view = whole.subset(chosen)
    assert view.encoders["label"].tolist() == whole.encoders["label"].tolist()
    everything = {
        part: rows(whole, take)
        for part, take in {
            "labels": lambda batch: batch["labels"]["label"],
            "covariates": lambda batch: batch["covariates"],
            "library_size": lambda batch: batch["library_size"],
            "X": lambda batch: batch["X"].toarray(),
        }.items()
    }
    for batch in view:
        assert set(batch["index"].tolist()) <= set(chosen.tolist())
        for part, expected in everything.items():
            found = batch["labels"]["label"] if part == "labels" else batch[part]
            found = found.toarray() if part == "X" else found
            np.testing.assert_array_equal(found, expected[batch["index"]])
    train = whole.split({"train": 0.5, "test": 0.5}, by="label", rng=np.random.default_rng(0))["train"]
    assert {code for batch in train for code in batch["labels"]["label"].tolist()} < set(range(3))
