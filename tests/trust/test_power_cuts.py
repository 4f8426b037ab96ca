"""The power goes while a collection is built: nothing that was there is lost, and the same call finishes right.

A build is recorded: what was synced, and which names stood where, at each call of the system that syncs, renames or removes.
For a moment of it, the folder is then made as a disk may hold it that has kept only what was synced by then.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from annbatch import DatasetCollection
from tests.cells import cells, write

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds out what was synced from /proc")

QUIET = {"progress": False}
HOOKED = ("fsync", "replace", "rename", "unlink")


class Disk:
    """What is on the disk, at every moment since it was made.

    Files and folders are known by their numbers, which stay theirs: whatever was synced is kept open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        #: Per moment, its name; what was synced just before it, (number, content); and all names, with (number, size or None).
        self.moments: list[tuple[str, tuple[int, object] | None, dict[str, tuple[int, int | None]]]] = []
        self._lock = threading.Lock()
        self._kept: list[int] = []
        self._folders: set[int] = set()
        self._number = root.stat().st_ino
        for path in [root, *root.rglob("*")]:
            self._note("before", self._content(path))
        #: The first moment at which all that was there is known.
        self.first = len(self.moments) - 1

    def record(self, patch: pytest.MonkeyPatch) -> None:
        for name in HOOKED:
            patch.setattr(os, name, self._hooked(name, getattr(os, name)))

    def _hooked(self, name, original):
        def call(*args, **kwargs):
            with self._lock:
                done = original(*args, **kwargs)
                synced = self._content(Path(f"/proc/self/fd/{args[0]}").readlink()) if name == "fsync" else None
                self._note(f"{name} {args}", synced)
            return done

        return call

    def _content(self, path: Path) -> tuple[int, object]:
        self._kept.append(os.open(path, os.O_RDONLY))
        content = {child.name: child.stat().st_ino for child in path.iterdir()} if path.is_dir() else path.read_bytes()
        return path.stat().st_ino, content

    def _note(self, name, synced):
        names: dict[str, tuple[int, int | None]] = {}
        self._list("", names)
        self.moments.append((name, synced, names))

    def _list(self, folder: str, names: dict[str, tuple[int, int | None]]) -> None:
        with suppress(FileNotFoundError):  # another thread removes it
            for entry in os.scandir(self.root / folder):
                name = f"{folder}{entry.name}"
                names[name] = (entry.inode(), None if entry.is_dir() else entry.stat().st_size)
                if entry.is_dir():
                    self._folders.add(entry.inode())
                    self._list(f"{name}/", names)

    def close(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)

    def after(self, moment: int, loss: str, root: Path) -> None:
        """Make the folder as it is when the power goes after a moment.

        Parameters
        ----------
        moment
            Its number.
        loss
            "names": only names that were synced are there. "contents": all names are there, and what was not synced is empty.
            "zeros": the same, filled with zeros.
        root
            The folder to make.
        """
        synced = dict(each for _, each, _ in self.moments[: moment + 1] if each is not None)
        root.mkdir()
        if loss == "names":
            self._restore(self._number, synced, root)
            return
        names = self.moments[moment][2]
        for name in sorted(names):
            number, size = names[name]
            if size is None:
                (root / name).mkdir()
            elif number in synced:
                (root / name).write_bytes(synced[number])
            else:
                (root / name).write_bytes(bytes(size if loss == "zeros" else 0))

    def _restore(self, folder: int, synced: dict[int, object], path: Path) -> None:
        for name, number in synced.get(folder, {}).items():
            if number in self._folders:
                (path / name).mkdir()
                self._restore(number, synced, path / name)
            else:
                (path / name).write_bytes(synced.get(number, b""))


@pytest.fixture(scope="module", params=[False, True], ids=["zarr", "h5ad"])
def build(request, tmp_path_factory):
    """A recorded build: 40 cells in two datasets beside 5 that are there, and the call that made it."""
    folder = tmp_path_factory.mktemp("power")
    obs = {"note": [f"number {i}" for i in range(40)]}
    inputs = [write(cells(40, 5, obs=obs), folder / "a.h5ad")]

    def call(place):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DatasetCollection(place, is_collection_h5ad=request.param).add_adatas(
                inputs, dataset_size=20, rng=np.random.default_rng(3), if_exists="skip", **QUIET
            )

    place = folder / "c"
    before = cells(5, 5, obs={"note": obs["note"][:5]}, prefix="before")
    DatasetCollection(place, is_collection_h5ad=request.param).add_adatas([before], **QUIET)
    disk = Disk(place)
    with pytest.MonkeyPatch.context() as patch:
        disk.record(patch)
        call(place)
    assert n_cells(place) == 45
    yield disk, call
    disk.close()


def n_cells(place):
    collection = DatasetCollection(place, mode="r")
    assert collection.verify(progress=False).is_sound
    return len(collection.obs())


def cut(build, place, moments, losses):
    disk, call = build
    for moment in moments:
        for loss in losses:
            said = f"{loss} lost after {disk.moments[moment][0]}, moment {moment}"
            disk.after(moment, loss, place)
            assert n_cells(place) in (5, 45), said
            call(place)
            assert n_cells(place) == 45, said
            assert not (place / ".annbatch").exists(), said
            shutil.rmtree(place)


def test_when_the_journal_changes(build, tmp_path):
    moments = [number for number, (name, _, _) in enumerate(build[0].moments) if "journal.json" in name]
    assert len(moments) >= 3, "begun, decided, done"
    cut(build, tmp_path / "c", moments, ["names", "zeros"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["names", "contents", "zeros"])
def test_at_many_moments(build, tmp_path, loss):
    first, n_moments = build[0].first, len(build[0].moments)
    last = range(n_moments - 20, n_moments)
    cut(build, tmp_path / "c", sorted({*range(first, n_moments, 8), *last}), [loss])


def test_the_disk_forgets_what_was_not_synced(tmp_path, monkeypatch):
    root = tmp_path / "a"
    root.mkdir()
    (root / "old").write_text("old")
    disk = Disk(root)
    disk.record(monkeypatch)
    (root / "new").write_text("new")
    with (root / "synced").open("w") as file:
        file.write("synced")
        file.flush()
        os.fsync(file.fileno())
    (root / "old").unlink()
    last = len(disk.moments) - 1
    monkeypatch.undo()
    disk.close()
    for loss, expected in (
        ("names", {"old": b"old"}),
        ("contents", {"new": b"", "synced": b"synced"}),
        ("zeros", {"new": bytes(3), "synced": b"synced"}),
    ):
        disk.after(last, loss, tmp_path / loss)
        assert {path.name: path.read_bytes() for path in (tmp_path / loss).iterdir()} == expected
