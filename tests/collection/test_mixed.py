"""DatasetCollection, write_sharded and ``annbatch info`` with inputs that do not quite fit each other, or that come in odd ways."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch import DatasetCollection, Loader, write_sharded
from annbatch.cli import main
from annbatch.collection.building.inputs.inputs import function_fingerprint
from annbatch.collection.verify import accept
from annbatch.commands.info import describe
from tests.cells import as_array, cells, files_below, read_all, write

QUIET = {"progress": False}


def with_column(prefix, values):
    adata = cells(20, prefix=prefix)
    adata.obs["x"] = values
    return adata


def test_text_in_the_collection_and_categories_in_what_is_added(tmp_path):
    texts = [f"t{i}" for i in range(20)]
    place = DatasetCollection(tmp_path / "c.zarr")
    with ad.settings.override(allow_write_nullable_strings=True):
        path = write(with_column("a", pd.array(texts, dtype="string")), tmp_path / "a.zarr")
    place.add_adatas([path], **QUIET)
    place.add_adatas([with_column("b", pd.Categorical(["u", "v"] * 10))], **QUIET)
    found = place.obs()["x"].astype(str)
    assert list(found[[f"a_{i}" for i in range(20)]]) == texts
    assert list(found[[f"b_{i}" for i in range(20)]]) == ["u", "v"] * 10


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pd.Categorical([True, False] * 10), pd.Categorical([1, 2] * 10)),  # True would become 1
        (pd.Categorical([True, False] * 10), pd.Categorical([1, 0] * 10)),  # 1 would become True
        (pd.Categorical([2**63 + 1, 0] * 10), pd.Categorical([-1, 0] * 10)),  # they would become text
        (np.full(20, 2**63 + 1, np.uint64), np.full(20, 2**62 + 1, np.int64)),  # a float would round both
    ],
)
def test_columns_without_a_common_type_clash(tmp_path, first, second):
    place = DatasetCollection(tmp_path / "c.zarr")
    with pytest.raises(TypeError, match=r"obs\['x'\] clashes"):
        place.add_adatas([with_column("a", first), with_column("b", second)], **QUIET)
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pd.interval_range(0, 20), "interval"),
        (pd.date_range("2020", periods=20), "datetime64"),
        ([(1, i) for i in range(20)], "mixed"),
        ([1, "a"] * 10, "mixed-integer"),
    ],
)
def test_categories_that_files_do_not_hold(tmp_path, values, kind):
    """Some of them would become text."""
    with pytest.raises(TypeError, match=rf"obs\['x'\] of input_0 has categories of a kind .*\({kind}\)"):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([with_column("a", pd.Categorical(values))], **QUIET)
    assert not (tmp_path / "c.zarr").exists()


def test_names_of_obs_columns_must_be_text(tmp_path):
    adata = cells(20)
    adata.obs[5] = np.arange(20)
    with pytest.raises(TypeError, match=r"names of obs columns of input_0 must be text, got 5; rename it"):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)


def test_names_of_raw_genes_must_be_unique(tmp_path):
    adata = cells(20)
    raw = adata.copy()
    raw.var_names = ["same"] * raw.n_vars
    adata.raw = raw
    with pytest.raises(ValueError, match=r"raw\.var names of input_0 must be unique"):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], **QUIET)


@pytest.mark.parametrize("compact", [True, False])
def test_a_dataset_as_input_keeps_the_dtype_it_gives(tmp_path, compact):
    DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(20)], **QUIET)
    again = DatasetCollection(tmp_path / "d.zarr")
    with pytest.warns(UserWarning, match="'src_path'.* is replaced"):
        again.add_adatas([tmp_path / "c.zarr" / "dataset_0"], compact=compact, **QUIET)
    [group] = list(again)
    assert group["X/data"].dtype == (np.uint8 if compact else np.float32)
    loader = Loader(chunk_size=5, preload_nchunks=1, batch_size=5).use_collection(again)
    assert next(iter(loader))["X"].dtype == np.float32


@pytest.mark.parametrize("into", ["collection", "group"])
def test_view_of_a_backed_file(tmp_path, into):
    adata = cells(30)
    backed = ad.read_h5ad(write(adata, tmp_path / "a.h5ad"), backed="r")
    if into == "group":
        write_sharded(zarr.open_group(tmp_path / "w.zarr", mode="w"), backed[5:9, ::2])
        found = ad.io.read_elem(zarr.open_group(tmp_path / "w.zarr"))
    else:
        place = DatasetCollection(tmp_path / "c.zarr")
        place.add_adatas(["a.h5ad"], load_adata=lambda _: backed[5:9, ::2], shuffle=False, **QUIET)
        found = read_all(place)
    np.testing.assert_array_equal(as_array(found.X), as_array(adata[5:9, ::2].X))
    backed.file.close()


def test_another_load_adata_is_another_call(tmp_path, monkeypatch):
    from annbatch.collection.building import assemble

    def stop(*_):
        msg = "stop"
        raise RuntimeError(msg)

    path = write(cells(20), tmp_path / "a.h5ad")
    place = DatasetCollection(tmp_path / "c.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "assemble", stop)
        with pytest.raises(RuntimeError, match="stop"):
            place.add_adatas([path], load_adata=lambda p: ad.read_h5ad(p), **QUIET)
    with pytest.warns(UserWarning, match="removed the unfinished work of an interrupted call"):
        place.add_adatas([path], load_adata=lambda p: ad.read_h5ad(p)[:7].copy(), **QUIET)
    assert len(place.obs()) == 7


def test_fingerprint_of_a_function():
    def times(factor):
        return lambda x: x * factor

    assert function_fingerprint(times(2)) == function_fingerprint(times(2))
    assert function_fingerprint(times(2)) != function_fingerprint(times(3))
    assert function_fingerprint(partial(int, base=2)) == function_fingerprint(partial(int, base=2))
    assert function_fingerprint(partial(int, base=2)) != function_fingerprint(partial(int, base=3))
    unknown = times(lambda: None)
    assert function_fingerprint(unknown) != function_fingerprint(unknown)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"load_adata": 3}, TypeError, "load_adata must be a function"),
        ({"groupby": 5}, TypeError, "groupby must be a name or a list of names, got 5"),
    ],
)
def test_arguments_of_a_wrong_kind(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(5)], **options, **QUIET)


def test_columns_of_obs_are_a_list_of_names(tmp_path):
    place = DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(5)], **QUIET)
    with pytest.raises(TypeError, match="columns must be a list of names, got the string 'cell_type'"):
        place.obs("cell_type")
    with pytest.raises(ValueError, match="columns must name each only once"):
        place.obs(["cell_type", "cell_type"])


class TestWriteShardedPlace:
    def test_read_only_group(self, tmp_path):
        zarr.open_group(tmp_path / "w.zarr", mode="w")
        before = files_below(tmp_path)
        with pytest.raises(ValueError, match="group must be writable"):
            write_sharded(zarr.open_group(tmp_path / "w.zarr", mode="r"), cells(5))
        assert files_below(tmp_path) == before

    @pytest.mark.parametrize("key", ["", "../b", "a//b", "/a", ".", 3])
    def test_key_is_a_path_below(self, tmp_path, key):
        group = zarr.open_group(tmp_path / "w.zarr", mode="w")
        before = files_below(tmp_path)
        with pytest.raises(ValueError, match="key must be the name of a group"):
            write_sharded(group, cells(5), key=key)
        assert files_below(tmp_path) == before

    def test_groups_above_a_key_are_made(self, tmp_path):
        write_sharded(zarr.open_group(tmp_path / "w.zarr", mode="w"), cells(5), key="a/b")
        root = zarr.open_group(tmp_path / "w.zarr", mode="r")
        assert list(root.group_keys()) == ["a"]
        assert ad.io.read_elem(root["a"]["b"]).shape == (5, 12)

    def test_the_given_group_knows_what_it_holds(self, tmp_path):
        group = zarr.open_group(tmp_path / "w.zarr", mode="w", attributes={"mine": 1})
        write_sharded(group, cells(5))
        assert ad.io.read_elem(group).shape == (5, 12)
        attributes = dict(zarr.open_group(tmp_path / "w.zarr", mode="r").attrs)
        del attributes["annbatch-manifest"]
        assert attributes == {"encoding-type": "anndata", "encoding-version": "0.1.0", "mine": 1}


class TestCommand:
    def test_info_of_datasets_with_different_columns(self, tmp_path):
        place = DatasetCollection(tmp_path / "c.zarr")
        for prefix in "ab":
            place.add_adatas([cells(20, prefix=prefix)], **QUIET)
        obs = zarr.open_group(tmp_path / "c.zarr" / "dataset_0")["obs"]
        del obs["cell_type"]
        obs.attrs["column-order"] = [name for name in obs.attrs["column-order"] if name != "cell_type"]
        assert accept(tmp_path / "c.zarr", progress=False).is_sound  # it was changed on purpose
        found = describe(tmp_path / "c.zarr", None)
        assert found["obs"]["cell_type"] == "category"
        assert found["labels"]["cell_type"]["rows_without_label"] == 20

    def test_info_counts_rows_in_whole_numbers(self, tmp_path, capsys):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([cells(20)], n_obs_per_chunk=7, **QUIET)
        assert main(["info", str(tmp_path / "c.zarr")]) == 0
        assert "20 rows a shard" in capsys.readouterr().out

    def test_names_of_genes_may_hold_blanks(self, tmp_path):
        path = write(cells(20, genes=["gene one", "two"]), tmp_path / "a.h5ad")
        (tmp_path / "genes.txt").write_text("gene one\n\n")
        out = tmp_path / "c.zarr"
        assert main(["build", str(out), str(path), "--var-subset", str(tmp_path / "genes.txt"), "--quiet"]) == 0
        assert list(read_all(DatasetCollection(out)).var_names) == ["gene one"]


@pytest.mark.parametrize("threads", [0, 2])
def test_bars_count_rows(tmp_path, capsys, threads):
    place = DatasetCollection(tmp_path / "c.zarr")
    with ThreadPoolExecutor(threads) if threads else nullcontext() as executor:
        place.add_adatas([cells(33), cells(44, prefix="b")], dataset_size=50, executor=executor)
    shown = capsys.readouterr().err
    for what in ("Reading inputs", "Writing datasets"):
        [last] = [line for line in shown.replace("\r", "\n").splitlines() if line.startswith(what) and "100%" in line][
            -1:
        ]
        assert "77.0/77.0" in last


LARGE = 2**53 + 1  # the first whole number that float64 rounds


@pytest.mark.parametrize("where", ["X", "obs", "nullable obs"])
def test_whole_numbers_that_the_common_type_would_round_are_refused(where, tmp_path):
    first, second = cells(20, prefix="a"), cells(20, prefix="b")
    if where == "X":
        first.X = first.X.astype(np.int64)
        first.X.data[3] = LARGE
    else:
        numbers = np.full(20, LARGE)
        first.obs["n"] = pd.array(numbers, dtype="Int64") if where == "nullable obs" else numbers
        second.obs["n"] = np.linspace(0, 1, 20)
    paths = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")]
    with pytest.raises(ValueError, match=r"of .*a\.h5ad holds whole numbers that float64 cannot hold exactly"):
        DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, **QUIET)
    assert DatasetCollection(tmp_path / "c.zarr").is_empty


def test_whole_numbers_that_the_common_type_holds_are_stored(tmp_path):
    first, second = cells(20, prefix="a"), cells(20, prefix="b")
    first.X = first.X.astype(np.int64)
    first.X.data[3] = LARGE - 1
    paths = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")]
    whole = read_all(DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, shuffle=False, **QUIET))
    np.testing.assert_array_equal(as_array(whole.X)[:20], as_array(first.X))


def test_warnings_point_to_the_line_of_the_caller(tmp_path):
    one, other = cells(5, genes=["a", "b"]), cells(5, genes=["a", "b"], prefix="other")
    one.layers["only_here"] = one.X.copy()
    one.obs["src_path"] = "mine"
    place = DatasetCollection(tmp_path / "c.zarr")
    with pytest.warns(UserWarning, match="src_path|left out") as said:
        place.add_adatas([one, other], **QUIET)
    with pytest.warns(UserWarning, match="left out") as said_later:
        place.add_adatas([cells(5, genes=["a", "c"])], extra_genes="ignore", **QUIET)
    # anndata 0.13 sets an option of pandas 3 that will go.
    ours = [w for w in [*said, *said_later] if "option is deprecated" not in str(w.message)]
    assert [str(w.message).split()[0] for w in ours] == ["obs['src_path']", "left", "1"]
    assert {w.filename for w in ours} == {__file__}
