"""DatasetCollection and write_sharded: obs read in blocks of rows, and inputs and outputs of unusual kinds."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch import DatasetCollection, write_sharded
from annbatch.collection.building import journal, look, plan
from annbatch.collection.building.fields import decode_text
from annbatch.collection.building.inputs import inputs, obs, spool
from annbatch.collection.building.inputs.inputs import InputSpec, input_of_adata
from annbatch.collection.building.interning import Interned
from annbatch.collection.building.output import write as writing
from annbatch.collection.building.schema import describe_input
from annbatch.storage import CorruptDataError
from tests.cells import as_array, cells, read_all, write

QUIET = {"progress": False}


def every_kind(n_obs: int, prefix: str) -> ad.AnnData:
    """Cells with a column of every kind."""
    adata = cells(n_obs, prefix=prefix)
    rng = np.random.default_rng(n_obs)
    missing = rng.random(n_obs) < 0.3
    adata.obs["whole"] = pd.array(np.where(missing, None, np.arange(n_obs)), dtype="Int64")
    adata.obs["truth"] = pd.array(np.where(missing, None, rng.random(n_obs) < 0.5), dtype="boolean")
    adata.obs["day"] = pd.Categorical(rng.choice([1, 7, 30], n_obs), ordered=True)
    adata.obs["odd"] = np.array(["", "\N{GREEK SMALL LETTER ALPHA}" * 3, "x"], dtype=object)[rng.integers(0, 3, n_obs)]
    return adata


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything that is cut into pieces is cut into many."""
    monkeypatch.setattr(plan, "_LEAST_BLOCK_BYTES", 2000)
    monkeypatch.setattr(look, "_GRAIN_BYTES", 500)
    monkeypatch.setattr(writing, "_ROWS_AT_ONCE", 13)
    monkeypatch.setattr(obs, "_SAMPLE_ROWS", 10)
    monkeypatch.setattr(obs, "LONG_CHUNK_ROWS", 10)
    monkeypatch.setattr(spool, "LONG_CHUNK_ROWS", 10)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr", "memory"])
@pytest.mark.parametrize("groupby", [None, ["odd", "day"]])
def test_obs_in_many_pieces_is_what_it_was(tmp_path, small_pieces, suffix, groupby):
    adatas = [every_kind(90, "a"), every_kind(70, "b")]
    given = adatas
    if suffix != "memory":
        given = [write(adata, tmp_path / f"{name}.{suffix}") for name, adata in zip("ab", adatas, strict=True)]
    place = DatasetCollection(tmp_path / "c.zarr").add_adatas(given, groupby=groupby, dataset_size=100, **QUIET)
    found = place.obs()
    expected = pd.concat([adata.obs for adata in adatas]).loc[found.index]
    for name in expected.columns:
        assert found[name].isna().tolist() == expected[name].isna().tolist()
        present = found[name].notna()
        assert found[name][present].tolist() == expected[name][present].tolist(), name
    values = read_all(place)
    whole = ad.concat(adatas)[values.obs_names]
    np.testing.assert_array_equal(as_array(values.X), as_array(whole.X))
    if groupby:
        for dataset in place:
            part = found.loc[ad.io.read_elem(dataset).obs_names, groupby]
            assert part.equals(part.sort_values(groupby, kind="stable"))
    assert not list(tmp_path.glob("c.zarr/.annbatch"))


def test_blocks_were_many(tmp_path, small_pieces, monkeypatch):
    """The test above cuts obs into pieces indeed."""
    read = []
    rows = obs.StoredObs.rows
    monkeypatch.setattr(obs.StoredObs, "rows", lambda self, a, b: read.append(b - a) or rows(self, a, b))
    path = write(every_kind(90, "a"), tmp_path / "a.zarr")
    DatasetCollection(tmp_path / "c.zarr").add_adatas([path], **QUIET)
    assert len(read) > 5
    assert max(read) < 90


def test_rows_of_obs_come_from_a_window():
    adata = every_kind(50, "a")
    opened = input_of_adata("a", adata)
    for start, stop in [(0, 5), (3, 9), (2, 4), (40, 50), (0, 50), (7, 7)]:
        for window_bytes in (1, 3000, 10**9):
            found = opened.obs_rows(start, stop, window_bytes)
            pd.testing.assert_frame_equal(found.frame, adata.obs.iloc[start:stop])
            assert decode_text(found.names.letters).tolist() == adata.obs_names[start:stop].tolist()


def test_equal_genes_and_labels_of_many_inputs_are_in_memory_once():
    interned = Interned()
    first, second, other = (
        interned.description(describe_input(input_of_adata(name, cells(5, genes, prefix=name))))
        for name, genes in [("a", 12), ("b", 12), ("c", 13)]
    )
    assert first.var is second.var
    assert first.var is not other.var
    assert first.obs["cell_type"].categories is other.obs["cell_type"].categories


def test_interned_things_differ_in_type_or_name():
    interned = Interned()
    whole, real = pd.Index([1, 2]), pd.Index([1.0, 2.0])
    assert interned.one(whole) is whole
    assert interned.one(real) is real
    frame = pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="genes"))
    assert interned.one(frame) is frame
    assert interned.one(frame.rename_axis("other")).index.name == "other"


def test_spooled_text_is_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "LONG_CHUNK_ROWS", 3)
    texts = np.array([f"text {i}" * (i % 3) for i in range(11)], dtype=object)
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=3)
    stored = group.create_array("t", shape=(11,), dtype=str, chunks=(4,))
    stored[:] = texts
    text = spool.SpooledText(stored, tmp_path)
    for start, stop in [(0, 0), (0, 11), (2, 5), (10, 20), (5, 2)]:
        assert text[start:stop].tolist() == texts[start:stop].tolist()
    assert text[()].tolist() == texts.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["t.zarr"]  # the temporary file has no name
    text.close()


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_null_elements_are_none(tmp_path, name):
    """anndata.io.write_elem writes a missing raw and X as "null"."""
    without_X = ad.AnnData(obs=cells(10).obs, layers={"counts": cells(10).X}, shape=(10, 12))
    for i, adata in enumerate([cells(10), without_X]):
        path = tmp_path / f"{i}{name}"
        if path.suffix == ".zarr":
            write(adata, tmp_path / path.name)
        else:
            with h5py.File(path, "w") as file:
                ad.io.write_elem(file, "/", adata)
        place = DatasetCollection(tmp_path / f"{i}.zarr").add_adatas([path], **QUIET)
        assert read_all(place).shape == (10, 12)
        assert (read_all(place).X is None) == (adata.X is None)


def test_read_lazy(tmp_path):
    pytest.importorskip("xarray", reason="anndata's read_lazy needs xarray")
    pytest.importorskip("dask", reason="anndata's read_lazy needs dask")
    from anndata.experimental import read_lazy

    adata = every_kind(60, "a")
    adata.layers["counts"] = adata.X * 2
    adata.obsm["pca"] = np.random.default_rng(0).random((60, 3))
    adata.varm["loadings"] = np.ones((12, 2))
    path = write(adata, tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own notes on what it experiments with
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas(
            [path], load_adata=read_lazy, groupby="odd", rng=np.random.default_rng(0), **QUIET
        )
    plain = DatasetCollection(tmp_path / "d.zarr").add_adatas(
        [path], groupby="odd", rng=np.random.default_rng(0), **QUIET
    )
    lazy, direct = read_all(place), read_all(plain)
    assert lazy.obs_names.tolist() == direct.obs_names.tolist()
    pd.testing.assert_frame_equal(lazy.obs[sorted(lazy.obs)], direct.obs[sorted(direct.obs)])
    np.testing.assert_array_equal(as_array(lazy.X), as_array(direct.X))
    np.testing.assert_array_equal(as_array(lazy.layers["counts"]), as_array(direct.layers["counts"]))
    np.testing.assert_array_equal(lazy.obsm["pca"], direct.obsm["pca"])
    np.testing.assert_array_equal(lazy.varm["loadings"], direct.varm["loadings"])


class TestSrcPath:
    def test_a_column_of_that_name_is_replaced_with_a_warning(self, tmp_path):
        adata = cells(10)
        adata.obs["src_path"] = "from elsewhere"
        with pytest.warns(UserWarning, match=r"obs\['src_path'\] of 1 of 2 inputs, e.g. input_0, is replaced"):
            place = DatasetCollection(tmp_path / "c.zarr").add_adatas([adata, cells(5, prefix="b")], **QUIET)
        assert set(place.obs()["src_path"]) == {"input_0", "input_1"}

    def test_adding_to_a_collection_does_not_warn(self, tmp_path):
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10)], **QUIET)
        place.add_adatas([cells(10, prefix="b")], **QUIET)
        assert len(place.obs()) == 20

    def test_write_sharded_keeps_it(self, tmp_path):
        adata = cells(10)
        adata.obs["src_path"] = np.array([f"file {i}" for i in range(10)], dtype=object)
        write_sharded(zarr.open_group(tmp_path / "c.zarr", mode="w"), adata)
        written = ad.io.read_elem(zarr.open_group(tmp_path / "c.zarr", mode="r"))
        assert written.obs["src_path"].tolist() == adata.obs["src_path"].tolist()

    @pytest.mark.parametrize("replaced", [False, True])
    @pytest.mark.filterwarnings("ignore:obs.'src_path'. of 2:UserWarning")
    def test_group_by_it(self, tmp_path, replaced):
        adatas = [cells(10, prefix=prefix) for prefix in "ab"]
        for adata in adatas if replaced else ():
            adata.obs["src_path"] = "before"
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas(adatas, groupby="src_path", **QUIET)
        assert place.obs()["src_path"].tolist() == ["input_0"] * 10 + ["input_1"] * 10


class TestNames:
    @pytest.mark.parametrize("name", ["", ".", "..", "_index", "zarr.json", "a/../b", "note/a", "é" * 128])
    def test_columns_that_cannot_be_stored(self, tmp_path, name):
        adata = cells(10)
        adata.obs[name] = 1
        with pytest.raises(
            ValueError, match=r"obs columns of input_0 has the name .*, under which nothing can be stored"
        ):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    @pytest.mark.parametrize("name", ["", "..", "zarr.json"])
    def test_index_whose_name_cannot_be_stored(self, tmp_path, name):
        adata = cells(10)
        adata.obs.index.name = name
        with pytest.raises(ValueError, match=r"the index of obs of input_0 has the name .*, under which nothing"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    @pytest.mark.parametrize("kind", ["layers", "obsm"])
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_elements_that_cannot_be_stored(self, tmp_path, kind):
        adata = cells(10)
        getattr(adata, kind)["a/b"] = np.ones((10, 12))
        with pytest.raises(ValueError, match=rf"{kind} of input_0 has the name 'a/b', under which"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    @pytest.mark.parametrize("name", ["note", "src_path", "barcode"])
    def test_index_with_the_name_of_a_column(self, tmp_path, name):
        adata = cells(10)
        adata.obs.index.name = name
        obs = DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET).obs()
        assert obs.index.name == (name if name == "barcode" else None)
        assert sorted(obs.index) == sorted(adata.obs_names)
        assert sorted(obs["note"]) == sorted(adata.obs["note"])

    def test_sparse_columns_and_broken_text(self, tmp_path):
        adata = cells(10)
        adata.obs["x"] = pd.arrays.SparseArray([0] * 10)
        with pytest.raises(
            TypeError, match=r"obs\['x'\] of input_0 has dtype Sparse.*, which AnnData files do not hold"
        ):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)
        adata.obs["x"] = np.array(["\ud800"] * 10, dtype=object)
        with pytest.raises(ValueError, match=r"obs\['x'\] of input_0 must be text without halves of surrogate"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)


class TestPaths:
    def test_a_relative_path_stays_where_it_was(self, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(tmp_path)
        place = DatasetCollection("c.zarr").add_adatas([cells(10)], **QUIET)
        assert repr(place) == "<DatasetCollection c.zarr: 1 dataset>"
        os.chdir(elsewhere)
        assert len(place) == 1
        place.add_adatas([cells(10, prefix="b")], **QUIET)
        assert len(place.obs()) == 20
        assert not list(elsewhere.iterdir())

    def test_inputs_go_to_tasks_by_absolute_path_and_are_named_as_given(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(cells(10), tmp_path / "a.h5ad")
        spec = InputSpec.of("a.h5ad", None, 0)
        assert spec.label == "a.h5ad"
        assert spec.item == tmp_path / "a.h5ad"

    @pytest.mark.parametrize("name", ["a.zarr", "a.h5ad"])
    def test_open_groups_are_known_again(self, tmp_path, name):
        path = write(cells(10), tmp_path / name)

        def fingerprint():
            if path.suffix == ".zarr":
                return InputSpec.of(zarr.open_group(path, mode="r"), None, 0).fingerprint()
            with h5py.File(path) as file:
                return InputSpec.of(file["/"], None, 0).fingerprint()

        assert fingerprint() == fingerprint()
        before = fingerprint()
        write(cells(11), tmp_path / name)
        assert fingerprint() != before

    def test_dataset_without_obs(self, tmp_path):
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10)], **QUIET)
        zarr.open_group(tmp_path / "c.zarr" / "dataset_1", mode="w", zarr_format=3)
        for read in (place.obs, lambda: list(place), lambda: place.add_adatas([cells(5)], **QUIET)):
            with pytest.raises(
                CorruptDataError, match=r"dataset_1 is no dataset of a collection: it has no obs and no var"
            ):
                read()

    @pytest.mark.parametrize("make", ["file", "proc"])
    def test_a_folder_that_cannot_be_made(self, tmp_path, make):
        if make == "file":
            (tmp_path / "file").write_text("")
            parent = tmp_path / "file"
        else:
            parent = Path("/proc/none")
            if not parent.parent.exists():
                pytest.skip("no /proc here")
        with pytest.raises(OSError, match="file|none"):
            DatasetCollection(parent / "c.zarr").add_adatas([cells(5)], **QUIET)


class TestLocks:
    def test_file_system_without_locks(self, tmp_path, monkeypatch):
        fcntl = pytest.importorskip("fcntl", reason="Unix locks")

        def flock(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.warns(UserWarning, match="writers cannot be kept apart here.*Function not implemented"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(5)], **QUIET)
        assert len(DatasetCollection(tmp_path / "c.zarr").obs()) == 5

    def test_a_lock_that_was_left_over_is_no_obstacle(self, tmp_path):
        work = tmp_path / "c.zarr" / journal.WORK_FOLDER
        work.mkdir(parents=True)
        (work / "lock").write_text("")
        DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(5)], **QUIET)
        assert not work.exists()


class TestOtherStores:
    @pytest.fixture
    def store(self):
        return zarr.storage.MemoryStore()

    def test_killed_while_datasets_are_copied(self, store, monkeypatch):
        from annbatch.collection.places import OtherZarr

        group = zarr.open_group(store, mode="a", zarr_format=3, path="c")
        DatasetCollection(group).add_adatas([cells(10)], **QUIET)
        take_in = OtherZarr.take_in

        def die(self, dataset, key):
            take_in(self, dataset, key)
            raise KeyboardInterrupt

        monkeypatch.setattr(OtherZarr, "take_in", die)
        with pytest.raises(KeyboardInterrupt):
            DatasetCollection(group).add_adatas([cells(20, prefix="b")], dataset_size=10, **QUIET)
        monkeypatch.setattr(OtherZarr, "take_in", take_in)
        again = DatasetCollection(group)
        assert again.names == ["dataset_0"]
        assert len(again.obs()) == 10
        with pytest.warns(UserWarning, match="removed the unfinished work of an interrupted call"):
            again.add_adatas([cells(20, prefix="b")], dataset_size=10, **QUIET)
        assert again.names == ["dataset_0", "dataset_1", "dataset_2"]
        assert len(set(again.obs().index)) == 30
        attributes = dict(zarr.open_group(store, mode="r", path="c").attrs)
        assert list(attributes.pop("annbatch-datasets")) == again.names
        assert attributes == {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}

    def test_read_only_store_is_refused_before_any_work(self, store):
        DatasetCollection(zarr.open_group(store, mode="a", zarr_format=3)).add_adatas([cells(10)], **QUIET)
        group = zarr.open_group(store.with_read_only(read_only=True), mode="r")
        with pytest.raises(ValueError, match="was opened read-only"):
            DatasetCollection(group).add_adatas([cells(10)], load_adata=lambda _: pytest.fail("work"), **QUIET)

    def test_url(self):
        pytest.importorskip("fsspec", reason="URLs need fsspec")
        url = "memory://annbatch-test/c.zarr"
        with pytest.raises(FileNotFoundError):
            DatasetCollection(url, mode="r")
        with pytest.raises(FileNotFoundError):  # and the first look made nothing
            DatasetCollection(url, mode="r")
        place = DatasetCollection(url).add_adatas([cells(10)], **QUIET)
        assert len(place.obs()) == 10
        assert len(DatasetCollection(url, mode="r")) == 1


class TestMemory:
    def test_too_little(self, tmp_path):
        with pytest.raises(ValueError, match="max_memory must be at least 64MB for 10 rows, got 1MB"):
            DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(10)], max_memory="1MB", **QUIET)
        assert not (tmp_path / "c.zarr").exists()

    @pytest.mark.parametrize("much", ["65MB", "900TB"])
    def test_little_and_more_than_there_is(self, tmp_path, much):
        place = DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(30)], max_memory=much, **QUIET)
        assert len(place.obs()) == 30


def test_fingerprint_of_something_in_memory_is_always_new():
    spec = InputSpec.of(cells(3), None, 0)
    assert spec.fingerprint() != spec.fingerprint()
    assert inputs.function_fingerprint(None) == ""
