"""Every call writes in a generation of its own: what comes late, is damaged, or is somebody else's reaches no collection."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import DatasetCollection
from annbatch.collection.building import generation as generations
from annbatch.collection.building import journal
from annbatch.collection.building.columns import Column
from annbatch.collection.building.files import Lock
from annbatch.collection.building.generation import ClosedError, Generation
from annbatch.collection.building.journal import BusyError, WorkFolder
from annbatch.collection.building.schema import MatrixType, Schema
from annbatch.collection.building.schema_file import SchemaFile
from annbatch.storage import CorruptDataError
from tests.cells import cells, files_below, write

QUIET = {"progress": False}
FINISHED = "continuing an interrupted call; {} blocks and {} datasets were finished"


@pytest.fixture
def generation(tmp_path):
    return Generation.make(tmp_path)


@pytest.fixture
def inputs(tmp_path):
    return [write(cells(40, seed=i, prefix=f"p{i}"), tmp_path / f"{i}.h5ad") for i in range(2)]


def build(place, inputs, **options):
    return DatasetCollection(place).add_adatas(
        inputs, rng=np.random.default_rng(3), dataset_size=40, **QUIET, **options
    )


@pytest.fixture
def stop(monkeypatch):
    """A build that ends before its second dataset. Returns the generation it leaves."""

    def stopped(place, inputs):
        from annbatch.collection.building import assemble

        kept, n = assemble.write_dataset, 0

        def write_one(*args, **kwargs):
            nonlocal n
            n += 1
            if n == 2:
                msg = "stop"
                raise RuntimeError(msg)
            kept(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(assemble, "write_dataset", write_one)
            with pytest.raises(RuntimeError, match="stop"):
                build(place, inputs)
        [left] = (place / ".annbatch").glob("generation-*")
        return Generation(left)

    return stopped


class TestLateTasks:
    def test_a_block_of_a_closed_generation_is_not_kept(self, generation):
        draft = generation.draft()
        draft.write_bytes(b"block")
        generation.close()
        with pytest.raises(ClosedError, match="another call has taken over"):
            generation.keep_block(draft, "0-0-5")

    def test_what_a_late_worker_makes_anew_is_removed_again(self, generation):
        draft = generation.draft()
        closed = generation.close()
        (draft / "dataset_0" / "X").mkdir(parents=True)  # as zarr-python does
        with pytest.raises(ClosedError):
            generation.keep_dataset(draft, "dataset_0", 5)
        generation.drop(draft)
        assert not generation.path.exists()
        assert closed.exists()

    def test_a_task_may_be_run_twice(self, generation):
        for values in (b"first", b"first"):
            draft = generation.draft()
            draft.mkdir()
            (draft / "dataset_0").write_bytes(values)
            generation.keep_dataset(draft, "dataset_0", 5)
        assert not any(generation.drafts.iterdir())
        assert generation.problems("dataset_0", 5) == []

    def test_a_task_ends_with_its_caller(self, generation):
        pytest.importorskip("fcntl", reason="Unix locks")
        watched, lock = generation.watch_caller()
        watched.check_open()
        lock.release()
        with pytest.raises(ClosedError, match="has ended"):
            watched.check_open()

    def test_a_worker_on_another_machine_cannot_tell_and_goes_on(self, generation):
        Generation(generation.path, "another machine").check_open()


class TestLocks:
    def test_a_forked_child_does_not_hold_the_lock(self, tmp_path):
        if not hasattr(os, "fork"):
            pytest.skip("children are forked")
        lock = Lock(tmp_path / "lock")
        with pytest.raises(BlockingIOError):
            Lock(tmp_path / "lock")
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        lock.release()
        Lock(tmp_path / "lock").release()
        os.kill(child, 9)
        os.waitpid(child, 0)

    def test_a_caller_that_is_just_ending_is_waited_for(self, tmp_path, inputs, monkeypatch):
        held = [WorkFolder(tmp_path / "c.zarr").__enter__()]

        def wait(seconds):
            assert seconds < 1
            if held:
                held.pop().__exit__(None, None, None)

        monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=wait))
        assert len(build(tmp_path / "c.zarr", inputs).obs()) == 80
        assert not held

    def test_a_caller_that_ends_removes_nothing_of_the_next(self, tmp_path, monkeypatch):
        """The next caller has the lock between the removal of its file and that of the folder."""
        rmdir, later = os.rmdir, []

        def rmdir_late(path, **given):
            if Path(path).name == ".annbatch" and not later:
                later.append(WorkFolder(tmp_path / "c.zarr").__enter__())
            rmdir(path, **given)

        monkeypatch.setattr(os, "rmdir", rmdir_late)
        with WorkFolder(tmp_path / "c.zarr"):
            pass
        assert later[0].generation.path.is_dir()
        later[0].__exit__(None, None, None)
        assert not (tmp_path / "c.zarr/.annbatch").exists()

    def test_a_second_writer_is_told_within_seconds(self, tmp_path, inputs, monkeypatch):
        waits = []
        clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
        with WorkFolder(tmp_path / "c.zarr"):
            monkeypatch.setattr(journal, "time", clock)
            with pytest.raises(BusyError):
                build(tmp_path / "c.zarr", inputs)
        assert 0 < sum(waits) < 5


class TestTakingOver:
    def test_what_is_whole_is_taken_over(self, tmp_path, inputs, stop):
        stop(tmp_path / "c.zarr", inputs)
        with pytest.warns(UserWarning, match=FINISHED.format(2, 1)):
            assert len(build(tmp_path / "c.zarr", inputs).obs()) == 80

    def test_a_block_with_a_flipped_bit_is_read_again(self, tmp_path, inputs, stop):
        left = stop(tmp_path / "c.zarr", inputs)
        for number, block in enumerate(sorted(left.blocks.iterdir())):
            data = bytearray(block.read_bytes())
            data[len(data) * number // 2] ^= 1  # in the places of one, in what follows of the other
            block.write_bytes(data)
        with pytest.warns(UserWarning, match=FINISHED.format(0, 1)):
            assert len(build(tmp_path / "c.zarr", inputs).obs()) == 80

    @pytest.mark.parametrize("damage", ["missing", "cut", "more", "no receipt"])
    def test_a_dataset_that_is_not_whole_is_written_again(self, tmp_path, inputs, stop, damage):
        left = stop(tmp_path / "c.zarr", inputs)
        [shard] = (left.dataset("dataset_0") / "X" / "data" / "c").iterdir()
        match damage:
            case "missing":
                shard.unlink()
            case "cut":
                shard.write_bytes(shard.read_bytes()[:-1])
            case "more":
                shard.with_name("1").write_bytes(b"")
            case _:
                (left.ready / "dataset_0" / "receipt.json").unlink()
        with pytest.warns(UserWarning, match=FINISHED.format(2, 0)):
            assert len(build(tmp_path / "c.zarr", inputs).obs()) == 80

    def test_work_of_another_user_is_not_taken_over(self, tmp_path, inputs, stop, monkeypatch):
        left = stop(tmp_path / "c.zarr", inputs)
        mine, their_journal = generations.owner(left.path), left.path.parent / "journal.json"
        (tmp_path / "kept").hardlink_to(their_journal)  # so that no other file gets its number
        number = their_journal.stat().st_ino
        # Of a folder the name tells: no other generation has it, while its number may be given to a new one.
        monkeypatch.setattr(journal, "owner", lambda path: mine + (path == left.path or path.stat().st_ino == number))
        with pytest.warns(UserWarning, match="removed the unfinished work"):
            assert len(build(tmp_path / "c.zarr", inputs).obs()) == 80

    @pytest.mark.parametrize("planted", ["pickles", "links", "a foreign file", "another folder's links"])
    def test_what_others_put_into_the_work_folder_is_not_trusted(self, tmp_path, inputs, stop, monkeypatch, planted):
        """A folder that several may write to: nothing of theirs is run, or ends up in the collection."""
        left = stop(tmp_path / "c.zarr", inputs)
        blocks, dataset = sorted(left.blocks.iterdir()), left.dataset("dataset_0")
        match planted:
            case "pickles":
                trap = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "trapped") + b"'\ntR."
                for path in [*blocks, left.ready / "dataset_0" / "receipt.json", left.path / "more.pickle"]:
                    path.write_bytes(trap)
            case "links":
                for path in [*blocks, next((dataset / "X/data/c").iterdir())]:
                    path.rename(tmp_path / path.name)
                    path.symlink_to(tmp_path / path.name)
            case "a foreign file":
                foreign = {*(block.name for block in blocks), "zarr.json"}
                monkeypatch.setattr(journal, "owner", lambda path: path.lstat().st_uid + (path.name in foreign))
            case _:
                (left.ready / "dataset_0").rename(tmp_path / "dataset_0")
                (left.ready / "dataset_0").symlink_to(tmp_path / "dataset_0")
                shutil.rmtree(left.blocks)
                (tmp_path / "blocks").mkdir()
                left.blocks.symlink_to(tmp_path / "blocks")
        with pytest.warns(UserWarning, match=FINISHED.format(0, 0) + "|removed the unfinished work"):
            collection = build(tmp_path / "c.zarr", inputs)
        assert len(collection.obs()) == 80
        assert not (tmp_path / "trapped").exists()
        assert not any(path.is_symlink() for path in (tmp_path / "c.zarr").rglob("*"))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            '{"state": "publishing", "names": ["../x"], "version": 3, "call": "", "seed": 1, "existing": []}',
        ]
        + ['{"state": "building", "generation": "../../x", "version": 3, "call": "", "seed": 1, "existing": []}'],
    )
    def test_a_damaged_journal_is_named(self, tmp_path, inputs, text):
        work = tmp_path / "c.zarr" / ".annbatch"
        work.mkdir(parents=True)
        (work / "journal.json").write_text(text)
        with pytest.raises(CorruptDataError, match=r"journal.json is damaged; remove .*\.annbatch"):
            build(tmp_path / "c.zarr", inputs)

    def test_nothing_is_pickled(self, tmp_path, inputs, stop):
        left = stop(tmp_path / "c.zarr", inputs)
        kinds = {path.suffix or path.parent.name for path in left.path.parent.rglob("*") if path.is_file()}
        assert kinds - {".json", ".h5", "blocks"} <= {"c", "0", "generation", ".annbatch", left.name} | set(
            "0123456789"
        )
        for path in left.path.parent.rglob("*"):
            assert not path.is_file() or not path.read_bytes().startswith((b"\x80\x04", b"\x80\x05"))


class TestPuttingInPlace:
    def damage(self, monkeypatch, when, how):
        kept = getattr(WorkFolder, when)

        def damaged(self, *args):
            if when == "commit":
                how(self.generation.dataset("dataset_1"))
            else:
                how(args[0].dataset("dataset_1"))
            return kept(self, *args)

        monkeypatch.setattr(WorkFolder, when, damaged)

    def test_a_dataset_that_is_missing_before(self, tmp_path, inputs, monkeypatch):
        place = tmp_path / "c.zarr"
        DatasetCollection(place).add_adatas([cells(5)], **QUIET)
        before = files_below(place)
        self.damage(monkeypatch, "commit", lambda path: (path / "obs" / "zarr.json").unlink())
        with pytest.raises(RuntimeError, match="is not complete; run the same call again .*obs/zarr.json is missing"):
            build(place, inputs)
        assert {name: data for name, data in files_below(place).items() if ".annbatch" not in name} == before

    def test_a_dataset_that_is_not_there_after(self, tmp_path, inputs, monkeypatch):
        place = tmp_path / "c.zarr"
        DatasetCollection(place).add_adatas([cells(5)], **QUIET)
        self.damage(monkeypatch, "publish", lambda path: (path / "obs" / "zarr.json").unlink())
        with pytest.raises(RuntimeError, match="is not what was built; its new datasets stay hidden"):
            build(place, inputs)
        assert len(DatasetCollection(place).obs()) == 5

    def test_a_work_folder_that_was_removed_meanwhile(self, tmp_path, inputs, monkeypatch):
        place = tmp_path / "c.zarr"
        self.damage(monkeypatch, "commit", lambda path: (place / ".annbatch" / "journal.json").unlink())
        with pytest.raises(RuntimeError, match="removed or taken over by another call"):
            build(place, inputs)

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds out what was synced from /proc")
    @pytest.mark.parametrize("h5ad", [False, True])
    def test_all_is_on_the_disk_before_it_is_decided(self, tmp_path, inputs, monkeypatch, h5ad):
        """Nothing that the journal promises may be lost by a power cut: it was synced after it changed last."""
        place = tmp_path / "c"
        synced: dict[int, int] = {}
        fsync, replace, unlink = os.fsync, os.replace, os.unlink
        decided = []

        def record(descriptor):
            fsync(descriptor)
            synced[os.fstat(descriptor).st_ino] = time.time_ns()

        def unsynced(paths):
            found = {path: path.stat() for path in paths}
            return [str(path) for path, stat in found.items() if synced.get(stat.st_ino, 0) < stat.st_mtime_ns]

        def look(source, target):
            if Path(target).name == "journal.json" and json.loads(Path(source).read_text())["state"] == "publishing":
                work = Path(target).parent
                [ready] = work.glob("generation-*/ready")
                above = [ready, ready.parent, place, place.parent]
                decided.append(unsynced([*above, *ready.rglob("*"), Path(source)]))
            replace(source, target)

        def look_again(path, **options):
            if Path(path).name == "journal.json":
                decided.append(unsynced([place]))
            unlink(path, **options)

        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(os, "replace", look)
        monkeypatch.setattr(os, "unlink", look_again)
        DatasetCollection(place, is_collection_h5ad=h5ad).add_adatas(inputs, **QUIET)
        assert decided == [[], []]


@pytest.mark.parametrize("raw", [False, True])
def test_a_schema_is_read_back_as_it_was(tmp_path, raw):
    var = pd.DataFrame(
        {"length": [1, 2], "kind": pd.Categorical(["a", "b"])}, index=pd.Index(["g0", "g1"], name="gene")
    )
    columns = {
        "a/b": Column("categorical", categories=pd.Index(["x", "ü"], dtype=object), ordered=True),
        "none": Column("categorical", categories=pd.Index([], dtype=object)),
        "numbers": Column("categorical", categories=pd.Index([1.5, 2])),
        "bools": Column("categorical", categories=pd.Index([False, True], dtype=object)),
        "nullable": Column("nullable", "int16"),
        "text": Column("text"),
    }
    matrices = {"X": MatrixType(True, np.dtype("<f4"), (2,)), "obsm/pca": MatrixType(False, np.dtype("<f8"), (3, 4))}
    schema = Schema(columns, "cell", matrices, var, {"load/ing": np.eye(2)}, var if raw else None)
    stored = SchemaFile.write(schema, tmp_path / "schema.h5")
    found = stored.read()
    assert (found.matrices, found.index_name, list(found.obs)) == (matrices, "cell", list(columns))
    for name, column in columns.items():
        other = found.obs[name]
        assert (other.kind, other.dtype, other.ordered) == (column.kind, column.dtype, column.ordered)
        assert (other.categories is None) == (column.categories is None)
        if column.categories is not None:
            assert other.categories.tolist() == column.categories.tolist()
            assert other.categories.equals(column.categories.infer_objects())
    pd.testing.assert_frame_equal(found.var, var, check_index_type=False)
    np.testing.assert_array_equal(found.varm["load/ing"], np.eye(2))
    assert (found.raw_var is not None) == raw
    with h5py.File(stored.path, "r+") as file:
        file["var"].attrs["_index"] = "length"
    with pytest.raises(OSError, match="is damaged: temporary files of a build must be left alone"):
        SchemaFile(stored.path, stored.digest + " ").read()
