"""A call made again, a file named twice, a collection built anew: no cell is doubled, nothing is lost, without a word."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress

import numpy as np
import pytest

from annbatch import DatasetCollection
from annbatch.cli import main
from annbatch.collection import swap
from annbatch.collection.building import known
from annbatch.collection.building.journal import BusyError, WorkFolder
from annbatch.commands.info import describe
from tests.cells import cells, files_below, write

QUIET = {"progress": False}


@pytest.fixture
def inputs(tmp_path):
    return [
        write(cells(20, seed=0, prefix="a"), tmp_path / "a.h5ad"),
        write(cells(20, seed=1, prefix="b"), tmp_path / "b.zarr"),
    ]


@pytest.fixture(params=[False, True], ids=["zarr", "h5ad"])
def place(request, tmp_path):
    return DatasetCollection(tmp_path / "c", is_collection_h5ad=request.param)


class TestIfExists:
    def test_a_finished_call_repeated(self, place, inputs, caplog):
        place.add_adatas(inputs, **QUIET)
        with pytest.raises(ValueError, match=r'holds 2 of 2 inputs already: .*a\.h5ad.*pass if_exists="skip"'):
            place.add_adatas(inputs, **QUIET)
        caplog.set_level("INFO", "annbatch")
        assert place.add_adatas(inputs, if_exists="skip", **QUIET) is place  # no warning: it was asked for
        assert re.search(
            r"left out 2 of 2 inputs that are there already, or are named twice: .*a\.h5ad, .*b\.zarr", caplog.text
        )
        assert len(place.obs()) == 40
        place.add_adatas(inputs, if_exists="add", **QUIET)
        assert len(place.obs()) == 80

    def test_one_more_input(self, place, inputs, tmp_path):
        place.add_adatas(inputs[:1], **QUIET)
        place.add_adatas(inputs, if_exists="skip", **QUIET)
        assert sorted(place.obs().index.str[0].value_counts().to_dict().items()) == [("a", 20), ("b", 20)]

    def test_the_same_file_under_another_name_of_its_path(self, place, inputs, tmp_path, monkeypatch):
        place.add_adatas([str(inputs[0])], **QUIET)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="holds 1 of 1 inputs already"):
            place.add_adatas(["./a.h5ad"], **QUIET)

    def test_named_twice(self, place, inputs):
        with pytest.raises(ValueError, match=r"must name each input once, got .*a\.h5ad more than once"):
            place.add_adatas([*inputs, inputs[0]], **QUIET)
        place.add_adatas([*inputs, inputs[0]], if_exists="skip", **QUIET)
        assert len(place.obs()) == 40

    def test_a_file_that_has_changed_is_added_and_said(self, place, inputs):
        place.add_adatas(inputs[:1], **QUIET)
        write(cells(25, seed=0, prefix="a"), inputs[0])
        with pytest.warns(
            UserWarning, match="a.h5ad has changed since the collection took its rows; all rows are added"
        ):
            place.add_adatas(inputs[:1], **QUIET)
        assert len(place.obs()) == 45

    def test_a_file_of_the_same_size_with_another_name_of_a_row_has_changed(self, place, tmp_path):
        """Wherever the row stands: only names in the middle were looked at, and such a file was left out."""
        path = write(cells(600, 3), tmp_path / "a.h5ad")
        place.add_adatas([path], **QUIET)
        size, n_added = path.stat().st_size, 600
        for row in (0, 599):
            other = cells(600, 3)
            other.obs_names = [name.upper() if number == row else name for number, name in enumerate(other.obs_names)]
            write(other, path)
            assert path.stat().st_size == size
            with pytest.warns(UserWarning, match=r"a\.h5ad has changed since the collection took its rows"):
                place.add_adatas([path], if_exists="skip", **QUIET)
            n_added += 600
        assert len(place.obs()) == n_added

    def test_objects_in_memory_are_always_added(self, place):
        for _ in range(2):
            place.add_adatas([cells(5), cells(5)], **QUIET)
        assert len(place.obs()) == 20

    def test_collections_that_do_not_note_their_inputs(self, place, inputs, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("annbatch.collection.building.assemble.write_sources", lambda *_: None)
            place.add_adatas(inputs, **QUIET)
        with pytest.raises(ValueError, match="holds 2 of 2 inputs already"):
            place.add_adatas(inputs, **QUIET)

    def test_what_is_noted_is_seen_by_nobody_else(self, place, inputs):
        import anndata as ad

        place.add_adatas(inputs, **QUIET)
        for group in place:
            column = group["obs/src_path"]
            note = np.array(column.attrs.get(known.NOTE) if known.NOTE in column.attrs else column[known.NOTE])
            assert note.shape == (2, 3)
            assert note[0, 1] == inputs[0].stat().st_size
            assert list(ad.io.read_elem(group).obs["src_path"].cat.categories) == list(map(str, inputs))

    def test_a_bad_choice(self, place, inputs):
        with pytest.raises(ValueError, match="if_exists must be one of 'error', 'skip', 'add', got 'append'"):
            place.add_adatas(inputs, if_exists="append", **QUIET)


class TestOverwrite:
    def test_a_new_collection_takes_the_place_of_the_old_one(self, tmp_path, inputs, monkeypatch):
        out = tmp_path / "c.zarr"
        for path in inputs:
            assert main(["build", str(out), str(path), "--overwrite", "--quiet"]) == 0
        assert set(DatasetCollection(out).obs().index.str[0]) == {"b"}
        monkeypatch.setattr(swap, "_exchange", lambda *_: False)  # where the file system cannot
        assert main(["build", str(out), str(inputs[0]), "--overwrite", "--quiet"]) == 0
        assert set(DatasetCollection(out).obs().index.str[0]) == {"a"}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "b.zarr", "c.zarr"]

    def test_the_old_one_stays_when_the_build_fails(self, tmp_path, inputs, capsys):
        out = tmp_path / "c.zarr"
        DatasetCollection(out).add_adatas(inputs[:1], **QUIET)
        before = files_below(out)
        assert main(["build", str(out), str(inputs[1]), "--groupby", "none", "--overwrite", "--quiet"]) == 1
        assert files_below(out) == before

    def test_what_is_no_collection_is_not_overwritten(self, tmp_path, inputs, capsys):
        (tmp_path / "c.zarr" / "thesis").mkdir(parents=True)
        assert main(["build", str(tmp_path / "c.zarr"), str(inputs[0]), "--overwrite", "--quiet"]) == 1
        assert "is no collection" in capsys.readouterr().err
        assert (tmp_path / "c.zarr" / "thesis").exists()

    def test_a_swap_that_was_interrupted(self, tmp_path, inputs):
        out = tmp_path / "c.zarr"
        DatasetCollection(out).add_adatas(inputs[:1], **QUIET)
        out.rename(tmp_path / ".c.zarr.annbatch-old")
        with suppress(OSError), swap.overwriting(out):
            raise OSError
        assert len(DatasetCollection(out).obs()) == 20

    def test_one_that_is_being_written_to(self, tmp_path, inputs):
        with WorkFolder(tmp_path / "c.zarr"), pytest.raises(BusyError), swap.overwriting(tmp_path / "c.zarr"):
            pass


class TestInfo:
    @pytest.fixture
    def interrupted(self, tmp_path, inputs, monkeypatch):
        def interrupt(place):
            with monkeypatch.context() as patch:
                patch.setattr(WorkFolder, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    place.add_adatas(inputs, rng=np.random.default_rng(0), **QUIET)

        return interrupt

    def test_an_interrupted_build(self, tmp_path, inputs, interrupted, capsys):
        place = DatasetCollection(tmp_path / "c.zarr")
        interrupted(place)
        for n_rows in (0, 5):
            assert main(["info", str(tmp_path / "c.zarr"), "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["n_obs"], found["unfinished"]) == (n_rows, "was interrupted")
            shutil.rmtree(tmp_path / "c.zarr")
            place.add_adatas([cells(5)], **QUIET)
            interrupted(place)
        assert main(["info", str(tmp_path / "c.zarr")]) == 0
        assert "a build was interrupted: the same `annbatch build`" in capsys.readouterr().out

    def test_a_build_that_goes_on(self, tmp_path, interrupted):
        interrupted(DatasetCollection(tmp_path / "c.zarr"))
        with WorkFolder(tmp_path / "c.zarr"):
            assert describe(tmp_path / "c.zarr", None)["unfinished"] == "is being written to"


def test_a_collection_of_h5ad_files_is_known_by_its_files(tmp_path, inputs):
    DatasetCollection(tmp_path / "c", is_collection_h5ad=True).add_adatas(inputs[:1], **QUIET)
    found = DatasetCollection(tmp_path / "c").add_adatas(inputs[1:], **QUIET)
    assert found.names == ["dataset_0.h5ad", "dataset_1.h5ad"]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == found.names


def test_a_command_s_error_names_its_own_options(tmp_path, inputs, capsys):
    assert main(["build", str(tmp_path / "c.zarr"), *map(str, inputs), "--quiet"]) == 0
    assert main(["build", str(tmp_path / "c.zarr"), *map(str, inputs), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "pass --if-exists skip to leave them out, or --if-exists add" in said
    assert "if_exists" not in said


def test_the_demo_never_writes_over_anything(tmp_path, capsys):
    (tmp_path / "cells_0.h5ad").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--quiet"]) == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert (tmp_path / "cells_0.h5ad").read_text() == "mine"
