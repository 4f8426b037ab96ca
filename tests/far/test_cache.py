"""Ranges kept on a local disk: later passes and other processes read them there, and never what is no longer true."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading

import numpy as np
import pytest
import zarr

from annbatch import Loader, storage
from annbatch.storage.far import cache as cache_module
from annbatch.storage.far import clients, fetch
from annbatch.storage.far.cache import PAGE_BYTES, RangeCache
from annbatch.storage.far.stores import FsspecObjects, HttpObjects, ObstoreObjects, Stamp
from annbatch.storage.listing import LISTING
from benchmarks.far.server import RangeServer

from .test_same_batches import check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

NAMES = ["cells.zarr", "cells_0.h5ad", "gzip.h5ad"]
# Of arrays without shards every chunk is an object.
WHOLE = ["zarr2.zarr", "zarr3.zarr"]


@pytest.fixture(autouse=True)
def new_process():
    """What this process knows of caches is forgotten, as if it had just been started."""
    cache_module._caches.clear()
    yield
    cache_module._caches.clear()


def data_requests(server):
    return [path for _, path, bounds in server.requests if bounds and bounds[0] >= 0 and bounds != (0, 1 << 20)]


@pytest.mark.parametrize("name", NAMES + WHOLE)
def test_the_second_pass_asks_for_nothing(name, server, folder, tmp_path):
    far, local = loader_at(f"{server.url}/{name}", cache=tmp_path / "kept"), loader_at(folder / name)
    check(far, local)
    server.requests.clear()
    # All rows were read, so everything is there.
    check(far, local)
    assert server.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_so_does_another_process_but_for_what_tells_that_nothing_changed(name, server, folder, tmp_path):
    list(loader_at(f"{server.url}/{name}", cache=tmp_path))
    cache_module._caches.clear()
    before = fetch.counts["cached_bytes"]
    far = loader_at(f"{server.url}/{name}", cache=tmp_path)
    server.requests.clear()
    check(far, loader_at(folder / name))
    assert fetch.counts["cached_bytes"] > before
    assert data_requests(server) == []


@pytest.mark.parametrize(
    "settings", [{"dense": True}, {"var_names": ["g3", "g1"]}, {"layers": ["twice"], "prefetch": 3}]
)
def test_whatever_is_read(settings, server, folder, tmp_path):
    far, local = (
        loader_at(f"{server.url}/cells.zarr", cache=tmp_path, **settings),
        loader_at(folder / "cells.zarr", **settings),
    )
    for _ in range(3):
        check(far, local)


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_what_changed_is_read_anew(name, folder, tmp_path):
    shutil.copytree(folder / "cells.zarr", tmp_path / "cells.zarr")
    shutil.copy(folder / "cells_0.h5ad", tmp_path)
    with RangeServer(tmp_path) as server:
        url = f"{server.url}/{name}"
        list(loader_at(url, cache=tmp_path / "kept"))
        if name == "cells.zarr":
            # Another dataset under the same name.
            shutil.rmtree(tmp_path / "cells.zarr/dataset_0")
            shutil.copytree(folder / "cells.zarr/dataset_1", tmp_path / "cells.zarr/dataset_0")
            root = tmp_path / "cells.zarr/zarr.json"
            metadata = json.loads(root.read_text())
            del metadata["consolidated_metadata"], metadata["attributes"][LISTING]  # they were about the old one
            root.write_text(json.dumps(metadata))
        else:
            shutil.copy(folder / "cells_1.h5ad", tmp_path / "cells_0.h5ad")
        check(loader_at(url, cache=tmp_path / "kept"), loader_at(tmp_path / name))


def test_without_etag_and_time_nothing_is_kept(folder, tmp_path):
    with RangeServer(folder, tags=False, dates=False) as server:
        far, local = loader_at(f"{server.url}/cells.zarr", cache=tmp_path), loader_at(folder / "cells.zarr")
        for _ in range(2):
            check(far, local)
    assert list(tmp_path.rglob("*.segment")) == []


def test_queries_tell_objects_apart(tmp_path):
    """They may have the same size and time, of which some servers make their ETags."""
    cache, stamp, data = RangeCache(str(tmp_path), None), Stamp(PAGE_BYTES, '"same"'), bytes(PAGE_BYTES)
    url = "http://localhost/get?id="
    plain = [HttpObjects(f"{url}{number}") for number in (1, 2)]
    files = pytest.importorskip("fsspec").filesystem("http")
    for one, other in (
        plain,
        [clients.PlainOrFsspec(each, FsspecObjects(files, f"{url}{i}")) for i, each in enumerate(plain, 1)],
    ):
        cache.add(one, "", stamp, 0, memoryview(data))
        cache.add_whole(one, "", stamp, data)
        first, stop = np.array([0]), np.array([PAGE_BYTES])
        assert cache.find(one, "", stamp, first, stop)[0] != 0
        assert cache.find_whole(one, "", stamp) is not None
        assert cache.find(other, "", stamp, first, stop)[0] == 0
        assert cache.find_whole(other, "", stamp) is None
        assert "?" not in one.text("")  # there may be a signature in it


@pytest.mark.parametrize("kind", ["memory", "dir"])
def test_nothing_is_kept_of_stores_without_a_name(kind, tmp_path):
    """The next one in memory may have the same address, and numbers its objects alike; one of a folder does not say which."""
    cache, stamp = RangeCache(str(tmp_path), None), Stamp(PAGE_BYTES, '"0"')
    if kind == "memory":
        obstore = pytest.importorskip("obstore", reason="obstore is not installed")
        objects = ObstoreObjects(obstore.store.MemoryStore())
    else:
        files = pytest.importorskip("fsspec").filesystem
        objects = FsspecObjects(files("dir", path="/one", fs=files("file")), "")
    cache.add(objects, "a", stamp, 0, memoryview(bytes(PAGE_BYTES)))
    cache.add_whole(objects, "a", stamp, bytes(PAGE_BYTES))
    assert not list(tmp_path.rglob("*.*"))


def test_deleting_the_folder_loses_nothing_but_time(server, folder, tmp_path):
    far = loader_at(
        f"{server.url}/cells.zarr", cache=tmp_path / "kept", chunk_size=100, preload_nchunks=1, batch_size=100
    )
    local = loader_at(folder / "cells.zarr", chunk_size=100, preload_nchunks=1, batch_size=100)
    list(far)
    list(local)
    batches = iter(far)
    first = next(batches)
    shutil.rmtree(tmp_path / "kept")
    rest = [first, *batches]
    check(rest, list(local))
    check(far, local)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_disk_that_is_full_is_no_error(prefetch, server, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    far = loader_at(f"{server.url}/cells.zarr", cache=tmp_path, prefetch=prefetch)
    with pytest.warns(RuntimeWarning, match="No space left on device; nothing more is kept there") as warned:
        check(far, loader_at(folder / "cells.zarr"))
    (warning,) = warned
    assert warning.filename.endswith("test_same_batches.py")  # where the loader is iterated over


def test_threads_that_find_the_disk_full_at_once_tell_it_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    class MetObjects:
        """Both threads ask for the object's identity before either goes on to write."""

        both = threading.Barrier(2, timeout=60)

        def identity(self, key):
            self.both.wait()
            return f"https://cells/{key}"

    monkeypatch.setattr(os, "pwrite", full)
    cache = RangeCache(str(tmp_path), None)
    given = (MetObjects(), "x", Stamp(PAGE_BYTES, "a"), 0, memoryview(bytes(PAGE_BYTES)))
    threads = [threading.Thread(target=cache.add, args=given, name=f"annbatch-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.warns(RuntimeWarning, match="No space left on device; nothing more is kept there") as warned:
        cache_module.tell_untold()
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad", "group"])
def test_a_folder_that_cannot_be_is_told_when_data_are_added(name, server, folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    far = Loader(cache=tmp_path / "file/kept", prefetch=1)
    if name == "group":
        place = zarr.open_group(zarr.storage.FsspecStore.from_url(f"{server.url}/cells.zarr", read_only=True), mode="r")
    else:
        place = f"{server.url}/{name}"
    add = (lambda place: far.add_paths([place])) if name.endswith("h5ad") else far.use_collection
    with pytest.warns(RuntimeWarning, match="file/kept.*; nothing more is kept there") as warned:
        add(place)
    (warning,) = warned
    assert warning.filename == __file__
    assert len(list(far)) == len(far)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_someone_else_is_not_used(server, folder, tmp_path, monkeypatch):
    check(loader_at(f"{server.url}/cells.zarr", cache=tmp_path), loader_at(folder / "cells.zarr"))
    cache_module._caches.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do everything
    with pytest.warns(RuntimeWarning, match="Permission denied; nothing more is kept there"):
        far = loader_at(f"{server.url}/cells.zarr", cache=tmp_path)
    check(far, loader_at(folder / "cells.zarr"))
    assert before.keys() == set(tmp_path.rglob("*"))


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the system does not tell holes")
def test_nothing_of_a_head_is_first_stored_through_its_mapping(tmp_path):
    """On a full disk that would kill the process."""
    cache = RangeCache(str(tmp_path), None)
    cache.add(OBJECTS, "x", Stamp(1 << 20, "a"), 1 << 19, memoryview(bytes(PAGE_BYTES)))
    (path,) = tmp_path.rglob("*.segment")
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) >= cache_module._HEAD_BYTES


@pytest.mark.parametrize("name", WHOLE)
def test_an_object_that_was_kept_and_then_damaged_on_the_disk_is_fetched_again(name, server, folder, tmp_path):
    far, local = loader_at(f"{server.url}/{name}", cache=tmp_path), loader_at(folder / name)
    check(far, local)
    kept_objects = list(tmp_path.rglob("*.object"))
    assert kept_objects
    for number, path in enumerate(kept_objects):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if number % 2 else data[: len(data) // 2])
    server.requests.clear()
    check(far, local)
    assert len(server.requests) >= len(kept_objects)


def test_whole_objects_are_within_the_bound_and_the_disk_may_be_full(tmp_path, monkeypatch):
    cache = RangeCache(str(tmp_path), 4 << 20)
    for number in range(40):
        cache.add_whole(OBJECTS, f"x{number}", Stamp(1 << 19, "a"), os.urandom(1 << 19))
        assert size_of(tmp_path) <= (4 << 20) + (2 << 20)
    stamp = Stamp(100, "a")
    cache.add_whole(OBJECTS, "y", stamp, bytes(range(100)))
    assert cache.find_whole(OBJECTS, "y", stamp).tobytes() == bytes(range(100))
    assert cache.find_whole(OBJECTS, "y", Stamp(100, "b")) is None
    cache.add_whole(OBJECTS, "z", Stamp(100, ""), bytes(100))
    assert cache.find_whole(OBJECTS, "z", Stamp(100, "")) is None
    shutil.rmtree(tmp_path)
    assert cache.find_whole(OBJECTS, "y", stamp) is None

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "mkdir", full)
    with pytest.warns(RuntimeWarning, match="No space left on device; nothing more is kept there"):
        cache.add_whole(OBJECTS, "y", stamp, bytes(100))


OBJECTS = HttpObjects("http://nowhere/")


def kept(cache, key, stamp, start, stop):
    (address,), used = cache.find(OBJECTS, key, stamp, np.array([start]), np.array([stop]))
    if not address:
        return None
    (segment,) = used
    offset = address - segment.address
    return bytes(segment.memory[offset : offset + stop - start])


def test_only_what_is_all_there_is_found(tmp_path):
    cache, stamp, data = (
        RangeCache(str(tmp_path), None),
        Stamp(5 * PAGE_BYTES + 10, "a"),
        os.urandom(5 * PAGE_BYTES + 10),
    )
    cache.add(OBJECTS, "x", stamp, 100, memoryview(data)[100 : 3 * PAGE_BYTES + 5])
    assert kept(cache, "x", stamp, 0, 200) is None
    assert kept(cache, "x", stamp, PAGE_BYTES + 3, 3 * PAGE_BYTES) == data[PAGE_BYTES + 3 : 3 * PAGE_BYTES]
    assert kept(cache, "x", stamp, PAGE_BYTES + 3, 3 * PAGE_BYTES + 1) is None
    cache.add(OBJECTS, "x", stamp, 3 * PAGE_BYTES, memoryview(data)[3 * PAGE_BYTES :])
    assert kept(cache, "x", stamp, 2 * PAGE_BYTES, len(data)) == data[2 * PAGE_BYTES :]
    assert kept(cache, "x", Stamp(stamp.size, "b"), 2 * PAGE_BYTES, len(data)) is None
    assert kept(cache, "y", stamp, 2 * PAGE_BYTES, len(data)) is None


def test_ranges_across_segments(tmp_path):
    cache, stamp = RangeCache(str(tmp_path), None), Stamp(1 << 30, "a")
    start = cache_module.SEGMENT_BYTES - 2 * PAGE_BYTES
    data = os.urandom(5 * PAGE_BYTES)
    cache.add(OBJECTS, "x", stamp, start, memoryview(data))
    assert kept(cache, "x", stamp, start, start + len(data)) == data
    assert kept(cache, "x", stamp, start + 3 * PAGE_BYTES, start + len(data)) == data[3 * PAGE_BYTES :]


def test_after_the_system_was_started_again_only_what_was_on_the_disk_counts(tmp_path):
    stamp, data = Stamp(1 << 20, "a"), os.urandom(2 * PAGE_BYTES)
    cache = RangeCache(str(tmp_path), None)
    cache.add(OBJECTS, "x", stamp, 0, memoryview(data)[:PAGE_BYTES])
    cache.sync()
    cache.add(OBJECTS, "x", stamp, PAGE_BYTES, memoryview(data)[PAGE_BYTES:])
    same_boot = RangeCache(str(tmp_path), None)
    assert kept(same_boot, "x", stamp, 0, 2 * PAGE_BYTES) == data
    later = RangeCache(str(tmp_path), None)
    later._boot = b"another"
    assert kept(later, "x", stamp, 0, PAGE_BYTES) == data[:PAGE_BYTES]
    assert kept(later, "x", stamp, PAGE_BYTES, 2 * PAGE_BYTES) is None


def size_of(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path):
    size = 20 << 20
    cache = RangeCache(str(tmp_path), size)
    data = memoryview(os.urandom(1 << 20))
    for number in range(60):
        cache.add(OBJECTS, f"x{number}", Stamp(1 << 20, "a"), 0, data)
        for path in tmp_path.rglob("*.segment"):
            if path.stat().st_mtime > 10**9:
                os.utime(path, (number + 1, number + 1))  # coarse clocks would not tell them apart
        assert size_of(tmp_path) <= size + (2 << 20)
    stamp = Stamp(1 << 20, "a")
    assert kept(cache, "x59", stamp, 0, 1 << 20) == bytes(data)
    assert kept(cache, "x0", stamp, 0, 1 << 20) is None


def _fill(folder, seed, n_objects):
    rng = np.random.default_rng(seed)
    cache = RangeCache(folder, 8 << 20)
    wrong = 0
    for number in rng.integers(0, n_objects, 300).tolist():
        data = np.random.default_rng(number).bytes(20 * PAGE_BYTES)
        low = int(rng.integers(0, 19)) * PAGE_BYTES
        found = kept(cache, f"x{number}", Stamp(1 << 30, "a"), low, low + PAGE_BYTES)
        wrong += found not in (None, data[low : low + PAGE_BYTES])
        cache.add(OBJECTS, f"x{number}", Stamp(1 << 30, "a"), low, memoryview(data)[low:])
    return wrong


def test_several_processes_fill_and_empty_it(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        wrong = pool.starmap(_fill, [(str(tmp_path), seed, 100) for seed in range(2)])
    assert wrong == [0, 0]
    assert size_of(tmp_path) <= 2 * (8 << 20)


def test_arguments():
    with pytest.raises(ValueError, match="cache_size must be given together with cache"):
        storage.FarOptions(cache_size="1GB")
    with pytest.raises(TypeError, match="cache must be the path of a folder or None, got int"):
        storage.FarOptions(cache=3)
    with pytest.raises(ValueError, match="max_requests must be >= 1, got 0"):
        storage.FarOptions(max_requests=0)
    with pytest.raises(ValueError, match="max_in_flight must be a size"):
        storage.FarOptions(max_in_flight="many")
    with pytest.raises(TypeError, match="storage_options must be a dict or None, got str"):
        storage.FarOptions(storage_options="key")
