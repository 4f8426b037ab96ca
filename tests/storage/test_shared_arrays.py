"""Big arrays in files that all processes of a machine map: never wrong, harmless when the folder is."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import ClassSampler, Loader, MappedCollection
from annbatch.storage import CorruptDataError, open_group, open_matrix, shared_arrays
from annbatch.storage.row_pointers import RowPointers
from tests.cells import write

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files are not mapped on this system")

N_ROWS = 70_000
OLD_NS = 10**18  # long ago


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNBATCH_CACHE_DIR", str(tmp_path / "kept"))
    # Small arrays are to be enough for a test.
    monkeypatch.setattr(shared_arrays, "_SMALLEST_SENT", 1000)
    return tmp_path / "kept" / f"annbatch-{os.geteuid()}"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrays"))


def write_rows(path: Path, lengths: np.ndarray) -> Path:
    """An AnnData store of rows of so many ones, with labels."""
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    x = sp.csr_matrix(
        (np.ones(pointers[-1], "float32"), np.zeros(pointers[-1], "int32"), pointers), shape=(len(lengths), 3)
    )
    kinds = pd.Categorical(np.array(list("abc"))[np.arange(len(lengths)) % 3])
    obs = pd.DataFrame({"kind": kinds}, index=[f"c{row}" for row in range(len(lengths))])
    write(ad.AnnData(x, obs, pd.DataFrame(index=["x", "y", "z"])), path)
    settle(path)
    return path


def settle(path: Path) -> None:
    """Let the files be of long ago, as files that are read usually are; the time of change of their entries is not ours to set."""
    for each in [path, *path.rglob("*")]:
        os.utime(each, ns=(OLD_NS, OLD_NS))


@pytest.fixture(params=[".h5ad", ".zarr"])
def stored(request, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_arrays, "_SETTLED_NS", 0)
    return write_rows(tmp_path / f"cells{request.param}", np.arange(N_ROWS) % 5)


def pointers_of(path: Path) -> RowPointers:
    group = open_group(path)
    try:
        return open_matrix(group["X"]).row_pointers
    finally:
        if hasattr(group, "close"):
            group.close()


def refuse(*_):
    msg = "read from the store"
    raise AssertionError(msg)


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return type(getattr(array, "obj", array)).__name__ == "FileMap"


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
def test_row_pointers_are_read_once_and_mapped_from_then_on(folder, stored, monkeypatch):
    first = pointers_of(stored)
    assert is_mapped(first.lengths)
    monkeypatch.setattr(RowPointers, "read", refuse)
    again = pointers_of(stored)
    np.testing.assert_array_equal(again.lengths, np.arange(N_ROWS) % 5)
    np.testing.assert_array_equal(again.block_start, first.block_start)
    assert (again.n_values, again.lengths.dtype) == (first.n_values, np.uint8)
    assert not again.lengths.flags.writeable
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(folder)] == [0o600]


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
def test_data_that_changed_in_place_are_read_again(folder, stored):
    pointers_of(stored)
    lengths = np.arange(N_ROWS)[::-1] % 5  # as many values, the same size
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    zarr.open_group(stored, mode="r+")["X/indptr"][:] = indptr
    settle(stored)
    np.testing.assert_array_equal(pointers_of(stored).lengths, lengths)
    assert len(files(folder)) == 2


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
def test_data_that_changed_a_moment_ago_are_not_kept(folder, stored, monkeypatch):
    monkeypatch.setattr(shared_arrays, "_SETTLED_NS", 10**18)
    pointers_of(stored)
    assert files(folder) == []


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
def test_data_that_change_while_they_are_read_are_not_kept(folder, stored, monkeypatch):
    read = RowPointers.read

    def changing(*arguments):
        found = read(*arguments)
        os.utime(stored / "X/indptr/zarr.json", ns=(OLD_NS + 5, OLD_NS + 5))
        return found

    monkeypatch.setattr(RowPointers, "read", changing)
    np.testing.assert_array_equal(pointers_of(stored).lengths, np.arange(N_ROWS) % 5)
    assert files(folder) == []


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
def test_chunks_behind_a_link_are_read_each_time(folder, stored):
    """They can be exchanged for others without a change to anything in the store."""
    chunks, elsewhere = stored / "X/indptr/c", stored.parent / "elsewhere"
    chunks.rename(elsewhere)
    chunks.symlink_to(elsewhere)
    settle(stored)
    pointers_of(stored)
    other = write_rows(stored.parent / "other.zarr", np.arange(N_ROWS)[::-1] % 5)
    shutil.rmtree(elsewhere)
    (other / "X/indptr/c").rename(elsewhere)
    np.testing.assert_array_equal(pointers_of(stored).lengths, np.arange(N_ROWS)[::-1] % 5)


def test_hdf5_is_read_by_every_process_and_shared_by_what_it_holds(folder, tmp_path):
    """HDF5 may answer from memory what was in a file before it changed, and a dataset may lie in other files."""
    path = write_rows(tmp_path / "a.h5ad", np.arange(N_ROWS) % 5)
    assert is_mapped(pointers_of(path).lengths)
    held = h5py.File(path, "r")
    indptr = held["X/indptr"]
    indptr[:]
    other = write_rows(tmp_path / "b.h5ad", np.arange(N_ROWS)[::-1] % 5)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    settle(path)
    with suppress(CorruptDataError):
        Loader().add_dataset(ad.io.sparse_dataset(held["X"]))
    held.close()
    np.testing.assert_array_equal(pointers_of(path).lengths, np.arange(N_ROWS)[::-1] % 5)


def test_an_array_that_changes_while_it_is_written_is_not_kept(folder, monkeypatch):
    array = np.arange(5000.0)
    write = shared_arrays._write

    def changing(key, facts, arrays):
        arrays[0][7] = -1
        return write(key, facts, arrays)

    monkeypatch.setattr(shared_arrays, "_write", changing)
    data = shared_arrays._dumps(array)
    assert files(folder) == []
    np.testing.assert_array_equal(pickle.loads(data), array)


def test_a_process_with_another_folder_finds_what_it_is_sent(folder, monkeypatch, tmp_path):
    array = np.arange(5000.0)
    data = shared_arrays._dumps(array)
    monkeypatch.setenv("ANNBATCH_CACHE_DIR", str(tmp_path / "another"))
    found = pickle.loads(data)
    np.testing.assert_array_equal(found, array)
    assert is_mapped(found)


@pytest.mark.parametrize("stored", [".zarr"], indirect=True)
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "head", "no arrays", "writable", "link"])
def test_a_file_that_cannot_be_trusted_is_made_anew(folder, stored, damage):
    pointers_of(stored)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    if damage == "writable":
        path.chmod(0o666)
    elif damage == "link":
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")
    elif damage == "no arrays":
        head = json.loads(data[: shared_arrays._HEAD_BYTES])
        data[: shared_arrays._HEAD_BYTES] = json.dumps({**head, "arrays": []}).encode().ljust(shared_arrays._HEAD_BYTES)
        path.write_bytes(data)
    else:
        data[{"flipped": 5000, "head": 1}.get(damage, 0)] ^= 1
        path.write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b""}.get(damage, bytes(data)))
    np.testing.assert_array_equal(pointers_of(stored).lengths, np.arange(N_ROWS) % 5)
    assert is_mapped(pointers_of(stored).lengths)


@pytest.mark.parametrize("how", ["a file in its place", "open to others", "switched off", "too small", "full"])
def test_a_folder_that_cannot_be_used_is_done_without(folder, stored, monkeypatch, how):
    folder.parent.mkdir()
    if how == "a file in its place":
        folder.touch()
    elif how == "open to others":
        folder.mkdir(mode=0o700)
        folder.chmod(0o777)
    elif how == "switched off":
        monkeypatch.setenv("ANNBATCH_CACHE_DIR", "")
    elif how == "too small":
        monkeypatch.setenv("ANNBATCH_CACHE_SIZE", "1KB")
    else:
        monkeypatch.setattr(Path, "replace", full_disk)
    np.testing.assert_array_equal(pointers_of(stored).lengths, np.arange(N_ROWS) % 5)
    assert not is_mapped(pointers_of(stored).lengths)
    assert list(folder.parent.rglob("*.arrays")) == list(folder.parent.rglob(".*")) == []


@pytest.mark.parametrize("size", ["abc", "0", "-1GB"])
def test_a_size_that_is_none_is_said(size, folder, monkeypatch):
    monkeypatch.setenv("ANNBATCH_CACHE_SIZE", size)
    with pytest.raises(ValueError, match=f"ANNBATCH_CACHE_SIZE must be .*{size}"):
        shared_arrays.shared(np.zeros(10_000, np.uint8))
    monkeypatch.setenv("ANNBATCH_CACHE_SIZE", "")
    shared_arrays.shared(np.zeros(10_000, np.uint8))
    assert len(files(folder)) == 1


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_map_outlives_its_file(folder, stored):
    found = pointers_of(stored)
    for path in files(folder):
        path.unlink()
    np.testing.assert_array_equal(found.lengths, np.arange(N_ROWS) % 5)


def test_maps_keep_no_file_open(folder):
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.exists() else 0
    held = [shared_arrays.shared(np.full(5000, number)) for number in range(50)]
    assert len(files(folder)) == 50
    if before:
        assert len(list(handles.iterdir())) <= before + 1
    assert [int(array[0]) for array in held] == list(range(50))


def test_what_was_used_least_recently_goes_first_and_what_is_in_use_stays(folder, monkeypatch):
    monkeypatch.setenv("ANNBATCH_CACHE_SIZE", "50KB")
    shared_arrays.shared(np.zeros(10_000, np.uint8))
    shared_arrays.shared(np.ones(10_000, np.uint8))
    old, recent = files(folder)
    assert len(shared_arrays.shared(np.full(30_000, 2, np.uint8))) == 30_000  # has no room beside what is in use
    assert files(folder) == [old, recent]
    left = folder / ".left-by-a-killed-process"
    left.touch()
    os.utime(left, ns=(OLD_NS, OLD_NS))
    os.utime(old, ns=(OLD_NS, OLD_NS))
    shared_arrays.shared(np.full(20_000, 3, np.uint8))
    assert old not in files(folder)
    assert recent in files(folder)
    assert len(files(folder)) == 2
    assert not left.exists()


def test_arrays_come_back_as_they_were(folder):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 100, 5000, dtype="uint16"),
        rng.random((50, 100), dtype="float32"),
        np.asfortranarray(rng.random((100, 50))),
        np.array(["abc", "d"] * 1000),
        rng.random(10_000)[::2],
        np.array(["object"] * 2000, dtype=object),
    ]
    arrays[0].flags.writeable = False
    for before, after in zip(arrays, pickle.loads(shared_arrays._dumps(arrays)), strict=True):
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype
        assert after.flags.writeable == before.flags.writeable
    assert len(files(folder)) == 4


def test_what_is_written_to_a_mapped_array_stays_in_the_process(folder):
    before = np.arange(5000)
    first, second = pickle.loads(shared_arrays._dumps(before)), pickle.loads(shared_arrays._dumps(before))
    first[:] = 0
    np.testing.assert_array_equal(second, before)
    np.testing.assert_array_equal(shared_arrays.shared(before), before)


def test_what_is_shared_cannot_be_written_to(folder):
    with pytest.raises(ValueError, match="read-only"):
        shared_arrays.shared(np.arange(5000))[0] = 1


def test_an_array_that_changed_is_not_taken_for_what_it_was(folder):
    array = np.arange(5000)
    shared_arrays.shared(array)
    array[7] = -1
    assert shared_arrays.shared(array)[7] == -1


def test_a_process_that_finds_a_file_gone_says_which_and_what_to_do(folder):
    data = shared_arrays._dumps(np.arange(5000))
    (path,) = files(folder)
    path.unlink()
    with pytest.raises(
        RuntimeError, match=rf"{re.escape(str(path))} is gone.*Start the workers again.*ANNBATCH_CACHE_DIR"
    ):
        pickle.loads(data)


def test_what_comes_from_a_file_is_not_mapped_again(folder):
    array = shared_arrays.shared(np.arange(5000))
    assert shared_arrays.shared(array) is array


# -- loaders


def make_loader(path: Path, **options) -> Loader:
    return Loader(batch_size=100, labels=["kind"], return_index=True, obs_columns=[], **options).add_paths([path])


def codes(loader: Loader) -> np.ndarray:
    return np.concatenate([batch["labels"]["kind"] for batch in loader])


def test_a_pickled_loader_holds_nothing_per_row(folder, stored):
    loader = make_loader(stored)
    data = pickle.dumps(loader)
    assert len(data) < N_ROWS / 4
    np.testing.assert_array_equal(codes(pickle.loads(data)), codes(loader))


def test_the_first_pickle_writes_no_file(folder, tmp_path):
    """What there is per row of obs is in files when data is added, numbers and codes too: a pickle takes no time per row."""
    kinds = pd.Categorical(np.array(list("abc"))[np.arange(N_ROWS) % 3])
    obs = pd.DataFrame({"kind": kinds, "n": np.arange(N_ROWS)}, index=[f"c{row}" for row in range(N_ROWS)])
    path = write(ad.AnnData(sp.csr_matrix((N_ROWS, 3), dtype="float32"), obs), tmp_path / "cells.h5ad")
    loader = Loader(batch_size=100, return_index=True).add_paths([path])
    (table,) = loader._table.obs.pieces
    assert is_mapped(table.values[0].array.codes)
    assert is_mapped(table.values[1].to_numpy())
    before = files(folder)
    data = pickle.dumps(loader)
    assert files(folder) == before
    assert len(data) < N_ROWS
    one, other = next(iter(loader)), next(iter(pickle.loads(data)))
    pd.testing.assert_frame_equal(one["obs"], obs.iloc[one["index"]])
    pd.testing.assert_frame_equal(other["obs"], obs.iloc[other["index"]])
    with pytest.raises(ValueError, match="read-only"):
        one["obs"]["kind"].cat.categories.values[0] = "other"


def test_a_pickle_that_is_read_where_the_files_are_gone_reads_the_data_again(folder, stored):
    loader = make_loader(stored)
    data = pickle.dumps(loader)
    for path in files(folder):
        path.unlink()
    np.testing.assert_array_equal(codes(pickle.loads(data)), codes(loader))


def test_data_that_were_changed_before_the_pickle_is_read_are_refused(folder, stored):
    data = pickle.dumps(make_loader(stored))
    for path in files(folder):
        path.unlink()
    other = write_rows(stored.with_name(f"other{stored.suffix}"), np.arange(N_ROWS) % 4)
    if stored.is_dir():
        stored.rename(stored.with_name("old"))
    other.rename(stored)
    with pytest.raises(ValueError, match="changed"):
        pickle.loads(data)


def test_copies_of_a_loader_need_no_files(folder, stored):
    loader = make_loader(stored)
    for copied in (copy.copy(loader), copy.deepcopy(loader), loader.subset(slice(0, 1000))):
        assert len(codes(copied)) in (1000, N_ROWS)


class Probe:
    """What a spawned process finds of what it was sent."""

    def __init__(self, *held):
        self.held = held

    def __call__(self):
        process = get_context("spawn").Process(target=self.tell)
        process.start()
        process.join()
        return process.exitcode

    def tell(self):
        shared_arrays._SETTLED_NS, shared_arrays._SMALLEST_SENT = 0, 1000  # as where it was sent from
        loader, mapped = self.held
        sampler = loader.batch_sampler
        assert is_mapped(loader._table.labels.codes("kind"))
        assert is_mapped(loader._table.matrices["X", ""].sources[0].row_pointers.lengths)
        assert is_mapped(np.asarray(sampler.classes.codes))
        assert is_mapped(mapped._columns["kind"].codes)
        assert len(codes(loader)) == 1000
        assert mapped[3]["kind"] == 0
        sampler.mask = slice(0, 500)


@pytest.mark.usefixtures("folder")
def test_spawned_processes_map_what_loaders_samplers_and_mapped_collections_hold(stored):
    kinds = pd.Categorical(np.array(list("abc"))[np.arange(N_ROWS) % 3])
    sampler = ClassSampler(chunk_size=1, preload_nchunks=100, batch_size=100, classes=kinds, num_samples=1000)
    loader = Loader(batch_sampler=sampler, labels=["kind"], obs_columns=[]).add_paths([stored])
    assert Probe(loader, MappedCollection([stored], obs_keys="kind"))() == 0


WRITER = """
import sys, numpy as np
from annbatch.storage import shared_arrays
shared_arrays._SMALLEST_SENT = 1000
for _ in range(20):
    for number in range(5):
        array = shared_arrays.shared(np.full(5000, number))
        assert (array == number).all()
        for path in shared_arrays._folder().glob("*.arrays"):
            if number == int(sys.argv[1]):
                path.unlink(missing_ok=True)
"""


def test_many_processes_at_once_get_what_is_right(folder):
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(number)]) for number in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    assert list(folder.glob(".*")) == []
