"""Nothing is lost, whenever a build dies: kill -9 before every step and at random moments, a full disk, two writers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from annbatch import DatasetCollection
from annbatch.collection.building.journal import BusyError, WorkFolder
from tests.cells import cells, files_below, write

QUIET = {"progress": False}
CHILD = Path(__file__).with_name("crash_child.py")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write(cells(60, seed=seed, prefix=name), tmp_path / f"{name}.h5ad")
    DatasetCollection(tmp_path / "start.zarr").add_adatas([cells(30, prefix="old")], **QUIET)
    return tmp_path


def kills(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(CHILD), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found):
    """The collection is as before or as after; the same call completes it, adds nothing twice and leaves nothing behind."""
    old = 30 if "dataset_0" in found["seen"]["datasets"] and found["final"]["rows"] % 120 else 0
    assert found["seen"]["rows"] in (old, old + 120), found
    assert found["seen"]["rows"] == found["seen"]["distinct"]
    assert found["final"]["rows"] == old + 120, found
    assert found["final"]["distinct"] == old + 120
    assert found["left"] == ["zarr.json"], found


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_before_every_change_of_a_name(folder):
    results = kills(folder, "step")
    assert len(results) > 20
    assert sum(r["status"] == 0 for r in results) == 2  # the last of each series was not killed
    for found in results:
        check(found)
    said = " ".join(text for found in results for text in found["said"])
    assert "continuing an interrupted call" in said
    assert "only had to put its datasets in place" in said


@needs_fork
@pytest.mark.slow
def test_killed_at_random_moments(folder):
    for found in kills(folder, "random", "12"):
        check(found)


def test_unfinished_work_of_another_call_is_removed_and_said(folder, monkeypatch):
    place = folder / "start.zarr"
    before = files_below(place)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("annbatch.collection.building.assemble.write_dataset", full)
        with pytest.raises(OSError, match="No space left") as caught:
            DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    assert "What was finished is kept in" in caught.value.__notes__[0]
    assert {k: v for k, v in files_below(place).items() if ".annbatch" not in k} == before
    with pytest.warns(UserWarning, match="removed the unfinished work of an interrupted call"):
        DatasetCollection(place).add_adatas([folder / "b.h5ad"], **QUIET)
    assert not (place / ".annbatch").exists()
    assert len(DatasetCollection(place).obs()) == 90


def test_blocks_are_read_again_after_a_restart_of_the_machine(folder, monkeypatch):
    place = folder / "new.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(
            "annbatch.collection.building.assemble.write_dataset",
            lambda *_, **__: (_ for _ in ()).throw(OSError("stop")),
        )
        with pytest.raises(OSError, match="stop"):
            DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    blocks = [path for path in (place / ".annbatch").rglob("*") if path.parent.name == "blocks"]
    assert blocks
    for block in blocks:
        block.write_bytes(b"\0" * block.stat().st_size)  # what a file system may make of what it had not written yet
    with pytest.warns(UserWarning, match="continuing an interrupted call; 0 blocks"):
        DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    assert len(DatasetCollection(place).obs()) == 60


def test_files_that_may_not_grow(folder):
    """A limit on the size of files stands for a full disk where no small file system can be mounted."""
    resource = pytest.importorskip("resource", reason="limits of processes are a Unix thing")
    assert resource
    code = (
        "import resource, sys, numpy as np; from annbatch import DatasetCollection\n"
        "place = DatasetCollection(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "place.add_adatas(sys.argv[2:], rng=np.random.default_rng(0), progress=False)"
    )
    place = folder / "start.zarr"
    before = files_below(place)
    inputs = [str(folder / "a.h5ad"), str(folder / "b.h5ad")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(place), *inputs],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert {k: v for k, v in files_below(place).items() if ".annbatch" not in k} == before
    with pytest.warns(UserWarning, match="continuing an interrupted call"):
        DatasetCollection(place).add_adatas(inputs, rng=np.random.default_rng(0), **QUIET)
    assert len(DatasetCollection(place).obs()) == 150


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many kB; another call gives it another size."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = False

    def of_size(kilobytes):
        nonlocal mounted
        options = f"remount,size={kilobytes}k" if mounted else f"size={kilobytes}k"
        command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs needs root")
        mounted = True
        return mount

    yield of_size
    if mounted:
        # Lazily: a file that a failed test left open must not leave the mount behind.
        subprocess.run([shutil.which("umount") or "umount", "-l", str(mount)], check=True)


def test_full_disk(small_disk):
    mount = small_disk(200)
    place = DatasetCollection(mount / "c.zarr")
    with pytest.raises(OSError, match="No space left on device"):
        place.add_adatas([cells(3000, seed=1)], **QUIET)
    assert place.is_empty
    assert DatasetCollection(mount / "c.zarr").obs().empty
    with pytest.warns(UserWarning, match="removed the unfinished work"):
        place.add_adatas([cells(20)], **QUIET)
    assert len(place.obs()) == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*interrupted call")
def test_disk_that_is_full_at_any_stage(folder, small_disk, tmp_path):
    """The collection is as it was; with more room the same call goes on."""
    inputs = [write(cells(2500, seed=i, prefix=f"big{i}"), tmp_path / f"big{i}.h5ad") for i in range(2)]
    # What the collection takes of a file system of pages of 4 kB, and room for one file that is being written.
    taken = sum(4 * -(-max(path.stat().st_size, 1) // 4096) for path in (folder / "start.zarr").rglob("*"))
    n_full = 0
    for kilobytes in range(taken + 20, taken + 1370, 75):
        place = small_disk(kilobytes) / "c.zarr"
        shutil.copytree(folder / "start.zarr", place)
        before = files_below(place)
        call = partial(DatasetCollection(place).add_adatas, inputs, dataset_size=1500, **QUIET)
        with suppress(OSError):
            call(rng=np.random.default_rng(0))
        if len(DatasetCollection(place)) == 1:
            n_full += 1
            # Finished datasets may be in place, hidden: the disk was full when the root was to be written, the last of all.
            assert {k: v for k, v in files_below(place).items() if k in before} == before
            small_disk(20_000)
            call(rng=np.random.default_rng(0))
        obs = DatasetCollection(place).obs()
        assert len(obs) == len(set(obs.index)) == 5030
        assert not (place / ".annbatch").exists()
        small_disk(20_000)
        shutil.rmtree(place)
    assert n_full > 8


def test_second_writer_gets_a_clear_error(folder):
    place = folder / "start.zarr"
    with WorkFolder(place), pytest.raises(BusyError, match="is being written to by another process"):
        DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    assert len(DatasetCollection(place).obs()) == 90


def test_readers_see_the_collection_as_it_was_while_it_is_added_to(folder, monkeypatch):
    place = folder / "start.zarr"
    seen = []
    publish = WorkFolder.publish

    def publish_and_look(self, *args):
        publish(self, *args)
        seen.append((len(DatasetCollection(place, mode="r")), [p.name for p in sorted(place.glob("dataset_*"))]))

    monkeypatch.setattr(WorkFolder, "publish", publish_and_look)
    DatasetCollection(place).add_adatas([folder / "a.h5ad"], **QUIET)
    assert seen == [(1, ["dataset_0", "dataset_1"])]
    assert len(DatasetCollection(place)) == 2
