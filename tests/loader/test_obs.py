"""Annotations of rows over several data sets: one meaning per label."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import suppress

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import DatasetCollection, Loader
from annbatch.loader.obs_table import ObsTable, stacked_obs
from annbatch.storage import manifest, shared_arrays
from annbatch.storage.columns import CompactFrame
from tests.cells import full_cells, write
from tests.reference.obs_frames import concat_frames

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def test_categories_are_united_and_sorted(tmp_path):
    parts = [
        full_cells(20, seed=i, labels=labels, prefix=f"{i}_")
        for i, labels in enumerate((["T", "B"], ["A", "B"], ["T"]))
    ]
    paths = [write(part, tmp_path / f"{i}.h5ad") for i, part in enumerate(parts)]
    for loader in (small_loader(shuffle=True).add_adatas(parts), small_loader(shuffle=True).add_paths(paths)):
        expected = np.concatenate([part.obs["label"].astype(str) for part in parts])
        for batch in loader:
            label = batch["obs"]["label"]
            assert label.cat.categories.tolist() == ["A", "B", "T"]
            assert label.tolist() == expected[batch["index"]].tolist()
        assert [obs["label"].cat.categories.tolist() for obs in loader._obs] == [["A", "B", "T"]] * 3
        assert [len(obs) for obs in loader._obs] == [20, 20, 20]
        assert pd.concat(loader._obs)["label"].tolist() == expected.tolist()


def concat_obs(frames):
    return stacked_obs([CompactFrame.of_frame(frame) for frame in frames]).frame()


def categorical(values, categories=None, *, ordered=False):
    return pd.DataFrame({"label": pd.Categorical(values, categories=categories, ordered=ordered)})


@pytest.mark.parametrize(
    ("frames", "categories", "ordered"),
    [
        (
            [categorical(["a"], ["a", "b"], ordered=True), categorical(["b"], ["a", "b"], ordered=True)],
            ["a", "b"],
            True,
        ),
        (
            [categorical(["a"], ["a", "b"], ordered=True), categorical(["b"], ["b", "a"], ordered=True)],
            ["a", "b"],
            False,
        ),
        ([categorical(["a"], ["b", "a"], ordered=True)] * 2, ["b", "a"], True),
        ([categorical(["a"], ["b", "a"])] * 2, ["a", "b"], False),
        ([categorical(["a"], ["a"], ordered=True), categorical(["a"], ["a"])], ["a"], False),
        ([categorical(["a"], ["b", "a"]), categorical(["c"], ["a", "c"])], ["a", "b", "c"], False),
        ([categorical([1, 2]), categorical([3, 1])], [1, 2, 3], False),
        ([categorical(["a", 1], ["a", 1])], ["a", 1], False),
        ([categorical([2.5]), categorical([1])], [1.0, 2.5], False),
        ([categorical([True]), categorical([False])], [False, True], False),
        ([categorical(["a"]), pd.DataFrame({"label": ["c", "a", "b"]})], ["a", "b", "c"], False),
        ([pd.DataFrame({"label": ["c", None]}), categorical(["a"])], ["a", "c"], False),
        ([categorical(["a", None]), pd.DataFrame({"other": [1]})], ["a"], False),
        ([categorical([], ["x"]), categorical(["a"])], ["a", "x"], False),
    ],
)
def test_categorical_columns_stay_categorical(frames, categories, ordered):
    table = concat_obs(frames)
    assert table["label"].cat.categories.tolist() == categories
    assert table["label"].cat.ordered is ordered
    values = [value for frame in frames for value in frame.get("label", pd.Series([None] * len(frame))).tolist()]
    assert [None if pd.isna(v) else v for v in table["label"]] == [None if pd.isna(v) else v for v in values]


@pytest.mark.parametrize("other", [[1], [True], [1.5]])
def test_labels_of_several_kinds_are_no_categories(other):
    table = concat_obs([categorical(["a"]), categorical(other)])
    assert table["label"].dtype == object
    assert table["label"].tolist() == ["a", *other]


def test_more_categories_than_the_narrow_codes_hold():
    names = [f"c{i}" for i in range(300)]
    table = concat_obs([categorical(names[:100]), categorical(names[50:300])])
    assert table["label"].tolist() == names[:100] + names[50:300]


def test_columns_that_a_data_set_lacks_are_missing_there():
    first = pd.DataFrame({"n": [1, 2], "flag": [True, False], "name": ["x", "y"]})
    table = concat_obs(
        [first, pd.DataFrame({"n": [3], "extra": [0.5]}), pd.DataFrame({"n": pd.Series([], dtype="int8")})]
    )
    assert table["n"].tolist() == [1, 2, 3]
    assert table["n"].dtype == "int64"
    assert table["flag"].isna().tolist() == [False, False, True]
    assert table["extra"].isna().tolist() == [True, True, False]
    assert table["name"].tolist()[:2] == ["x", "y"]


def test_the_callers_frames_are_not_changed():
    first, second = full_cells(labels=["a"]), full_cells(labels=["b"])
    loader = small_loader().add_adatas([first, second])
    list(loader)
    assert first.obs["label"].cat.categories.tolist() == ["a"]
    assert second.obs["label"].cat.categories.tolist() == ["b"]


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "string", "datetime64[ns]", "float16", "object"])
def test_other_kinds_of_columns(dtype):
    values = {"datetime64[ns]": ["2020-01-01", "2021-01-01"], "boolean": [True, None], "string": ["a", None]}.get(
        dtype, [1, 0]
    )
    obs = pd.DataFrame({"x": pd.array(values, dtype=dtype)}, index=["a", "b"])
    loader = small_loader(shuffle=True).add_datasets([np.ones((2, 1))] * 2, obs=[obs, obs])
    expected = pd.concat([obs, obs])
    for batch in loader:
        pd.testing.assert_frame_equal(batch["obs"], expected.iloc[batch["index"]])


blocks = st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=12)


@given(values=blocks, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_table_added_to_in_any_steps_is_the_same_table(values, seed):
    frames = [
        pd.DataFrame(
            {"label": pd.Categorical(block), "n": np.arange(len(block), dtype=["int64", "float64"][len(block) == 5])},
            index=[f"{number}_{i}" for i in range(len(block))],
        )
        for number, block in enumerate(values)
    ]
    compact = [CompactFrame.of_frame(frame) for frame in frames]
    at_once, one_by_one = ObsTable().added(compact), ObsTable()
    for frame in compact:
        one_by_one = one_by_one.added([frame])
    assert len(one_by_one.pieces) <= 1 + np.log2(1 + sum(one_by_one.lengths))
    expected = concat_frames(frames)
    rows = np.random.default_rng(seed).integers(0, len(expected), 20) if len(expected) else np.empty(0, np.int64)
    for table in (at_once, one_by_one):
        pd.testing.assert_frame_equal(table.take(rows), expected.take(rows))
        assert [len(frame) for frame in table.datasets()] == [len(frame) for frame in frames]


def test_adding_one_at_a_time_copies_each_row_few_times():
    table, copied = ObsTable(), 0
    for number in range(256):
        before = {id(piece) for piece in table.pieces}
        table = table.added([CompactFrame.of_frame(pd.DataFrame({"x": [number]}, index=[f"c{number}"]))])
        copied += sum(piece.n_rows for piece in table.pieces if id(piece) not in before)
    assert table.take(np.arange(256))["x"].tolist() == list(range(256))
    assert copied <= 256 * 10


def overwrite(frame):
    """Change a frame in place in every way that pandas lets through."""
    for column in frame.columns:
        values = frame[column].array if isinstance(frame[column].dtype, pd.CategoricalDtype) else frame[column].values
        with suppress(ValueError):  # read-only
            values[:] = values[-1]
    frame.iloc[0, 0] = frame.iloc[-1, 0]
    frame.index.name = frame.columns.name = "changed"
    for names in (frame.index, frame["label"].cat.categories, frame.columns):
        with suppress(ValueError):
            names.values[:] = names.values[-1]
    frame["new"] = 1


@pytest.mark.parametrize("n_datasets", [1, 2])
@pytest.mark.parametrize("join", [None, "outer"])
def test_changing_a_batch_in_place_changes_no_later_one(n_datasets, join):
    names = [f"g{i}" for i in range(6)]
    var = pd.DataFrame({"n": np.arange(6), "text": names, "label": pd.Categorical(list("abcabc"))}, index=names)
    obs = pd.DataFrame({"n": np.arange(8), "text": list("abcdefgh"), "label": pd.Categorical(list("xyzxyzxy"))})
    obs.index = pd.Index([f"c{i}" for i in range(8)])

    def loader():
        data = [np.arange(48.0).reshape(8, 6)] * n_datasets
        return small_loader(join=join).add_datasets(data, [obs.copy()] * n_datasets, [var.copy()] * n_datasets)

    untouched, changed = loader(), loader()
    for _ in range(2):
        for expected, batch in zip(untouched, changed, strict=True):
            for part in ("obs", "var"):
                pd.testing.assert_frame_equal(batch[part], expected[part])
                overwrite(batch[part])
            batch["X"][:] = -1
            overwrite(changed.var)
    pd.testing.assert_frame_equal(changed.var, untouched.var)


def test_renaming_genes_in_place_changes_no_later_batch_where_names_have_dtype_string():
    names = pd.Index(["a", "b"], dtype="string")
    batches = iter(small_loader(batch_size=1).add_dataset(np.ones((3, 2)), var=pd.DataFrame(index=names)))
    with suppress(ValueError):  # where pandas refuses it
        next(batches)["var"].index.values[0] = "z"
    assert all(batch["var"].index.tolist() == ["a", "b"] for batch in batches)


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_without_the_names_of_cells_rows_are_named_by_their_numbers(tmp_path, kind, monkeypatch):
    parts = [full_cells(20, seed=seed, prefix=f"{seed}_") for seed in range(2)]

    def loader(**options):
        made = small_loader(shuffle=True, rng=np.random.default_rng(1), **options)
        if kind == "memory":
            return made.add_adatas(parts)
        paths = [tmp_path / f"{seed}.{kind}" for seed in range(2)]
        return made.add_paths(
            [path if path.exists() else write(part, path) for path, part in zip(paths, parts, strict=True)]
        )

    named = loader()
    monkeypatch.setattr("annbatch.storage.frames.FrameReader._compact_names", None)  # would be an error
    unnamed = loader(obs_index=False)
    for batch, expected in zip(unnamed, named, strict=True):
        assert batch["obs"].index.tolist() == batch["index"].tolist()
        pd.testing.assert_frame_equal(batch["obs"].reset_index(drop=True), expected["obs"].reset_index(drop=True))
    pd.testing.assert_frame_equal(unnamed.obs(), named.obs().reset_index(drop=True), check_names=False)
    chosen = unnamed.subset([30, 2])
    assert chosen.obs().index.tolist() == [30, 2]
    assert chosen.obs(["label"]).index.tolist() == [30, 2]
    bare = loader(obs_columns=[], obs_index=False)
    assert bare.obs(["label"]).index.tolist() == list(range(40))
    assert unnamed.state_dict()["data"] == named.state_dict()["data"]


def test_obs_index_is_a_bool():
    with pytest.raises(TypeError, match="obs_index must be"):
        small_loader(obs_index="names")


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """15,000 rows, whose names take 23 bytes, with a number, two columns of few texts and one of many; a collection of them."""
    folder, n = tmp_path_factory.mktemp("many"), 15_000
    obs = pd.DataFrame(
        {
            "number": np.arange(n) / 2,
            "label": pd.Categorical([f"type {i % 9}" for i in range(n)]),
            "few": [f"donor {i % 99}" for i in range(n)],
            "many": [f"read_{i:06d}" for i in range(n)],
        },
        index=[f"cell_{i:018d}" for i in range(n)],
    )
    adata = ad.AnnData(np.ones((n, 1), np.float32), obs=obs)
    write(adata, folder / "a.h5ad")
    collection = DatasetCollection(folder / "c.zarr")
    collection.add_adatas([folder / "a.h5ad"], shuffle=False, dataset_size=n // 2, progress=False)
    # What is imported, or kept for ever, shall not count.
    Loader().use_collection(folder / "c.zarr").obs()
    collection.obs()
    return folder, obs


def bytes_of(make):
    """What a call leaves in memory, and the most that it took."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return made, held, most


def test_what_a_loader_holds_of_obs_is_codes_numbers_and_the_bytes_of_text(many_rows, monkeypatch):
    folder, obs = many_rows
    # Of files that are some seconds old, documents are kept, whoever asks, and arrays are mapped: not in the middle of this.
    for module in (manifest, shared_arrays):
        monkeypatch.setattr(module, "_SETTLED_NS", 10**18)
    _, without, _ = bytes_of(lambda: Loader(obs_columns=[]).use_collection(folder / "c.zarr"))
    _, names_not, _ = bytes_of(lambda: Loader(obs_index=False).use_collection(folder / "c.zarr"))
    _, with_all, _ = bytes_of(lambda: Loader().use_collection(folder / "c.zarr"))
    # number 8, label 1, few 1, many 11 bytes of text and 1.2 for where each begins
    assert (names_not - without) / len(obs) < 8 + 1 + 1 + 11 * 1.2 + 10
    assert (with_all - names_not) / len(obs) < 23 * 1.2


def test_reading_all_of_obs_takes_less_than_twice_the_result(many_rows):
    folder, obs = many_rows
    loader = Loader().use_collection(folder / "c.zarr")
    for make in (
        loader.obs,
        Loader(obs_columns=[]).use_collection(folder / "c.zarr").obs,
        DatasetCollection(folder / "c.zarr").obs,
    ):
        found, held, most = bytes_of(make)
        pd.testing.assert_frame_equal(found.drop(columns="src_path", errors="ignore"), obs, check_names=False)
        assert most < 2 * held
        assert found.memory_usage(deep=True).sum() > 0  # which pandas cannot say of categories that are sealed
