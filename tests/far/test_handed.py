"""Stores and open files that are handed over in place of URLs."""

from __future__ import annotations

import asyncio
import bz2
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
import zarr

from annbatch import Loader, MappedCollection, storage
from annbatch.storage.far.stores import FsspecObjects, HttpObjects

from .test_same_batches import SETTINGS, check, loader_at

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")


def _obstore(server, folder, name, tmp_path):
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    return obstore.store.LocalStore(str(folder)), name


def _obstore_http(server, folder, name, tmp_path):
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    return obstore.store.HTTPStore.from_url(server.url, client_options={"allow_http": True}), name


def _fsspec_file(server, folder, name, tmp_path):
    return fsspec.open(f"{server.url}/{name}")


def _file_system(server, folder, name, tmp_path):
    return fsspec.filesystem("http"), f"{server.url}/{name}"


def _zip(server, folder, name, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for path in [folder / name, *(folder / name).rglob("*")]:
            if path.is_file():
                packed.write(path, path.relative_to(folder))
    return fsspec.filesystem("zip", fo=str(tmp_path / "all.zip")), name


def _zarr_store(server, folder, name, tmp_path):
    return zarr.storage.FsspecStore.from_url(f"{server.url}/", read_only=True), name


def _local_file(server, folder, name, tmp_path):
    return fsspec.open(str(folder / name))


def _local_store(server, folder, name, tmp_path):
    return zarr.storage.LocalStore(folder, read_only=True), name


def _local_store_from_its_root(server, folder, name, tmp_path):
    return zarr.storage.LocalStore(folder, read_only=True), f"/{name}"


def _zip_store(server, folder, name, tmp_path):
    _zip(server, folder, name, tmp_path)
    return zarr.storage.ZipStore(tmp_path / "all.zip"), name  # which nobody has opened yet


def _tar(server, folder, name, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as packed:
        packed.add(folder / name, name)
    return fsspec.filesystem("tar", fo=str(tmp_path / "all.tar")), name


def _dir(server, folder, name, tmp_path):
    return fsspec.filesystem("dir", path=str(folder), fs=fsspec.filesystem("file")), name


HANDED = [_obstore, _fsspec_file, _file_system, _zip, _zarr_store, _local_file, _local_store]


@pytest.mark.parametrize(
    ("hand", "name"),
    # obstore asks HTTP servers for lists in a way that few know, so it reads no Zarr there.
    [
        (_obstore_http, "cells_0.h5ad"),
        (_local_store_from_its_root, "cells_0.h5ad"),
        (_zip_store, "zarr3.zarr"),
        (_tar, "cells_0.h5ad"),
        (_dir, "zarr3.zarr"),
        *((hand, name) for hand in HANDED for name in ("gzip.h5ad", "zarr3.zarr")),
    ],
)
def test_as_read_from_disk(hand, name, server, folder, tmp_path):
    far = Loader(rng=np.random.default_rng(0), prefetch=2, **SETTINGS)
    far.add_paths([hand(server, folder, name, tmp_path)])
    local = loader_at(folder / name, prefetch=2)
    check(far, local)
    check(pickle.loads(pickle.dumps(far)), local)


def test_a_file_system_with_one_position_for_all_is_asked_by_one_at_a_time():
    """That of tar archives reads through one file: of two threads, each moved it for the other."""

    class Archive:
        protocol, async_impl, asynchronous = "tar", False, False
        n_inside = most_inside = 0

        def cat_file(self, path, start, end):
            self.n_inside += 1
            self.most_inside = max(self.most_inside, self.n_inside)
            time.sleep(0.01)
            self.n_inside -= 1
            return bytes(end - start)

    async def read(objects):
        await asyncio.gather(*(objects.read("a", 0, memoryview(bytearray(9)), None) for _ in range(4)))

    archive = Archive()
    asyncio.run(read(FsspecObjects(archive, "")))
    assert archive.most_inside == 1


@pytest.mark.parametrize("hand", [_obstore, _fsspec_file, _local_file])
def test_mapped_collection(hand, server, folder, tmp_path):
    names = ["cells_0.h5ad", "zarr3.zarr"]
    far = MappedCollection([hand(server, folder, name, tmp_path) for name in names], obs_keys=["label"])
    local = MappedCollection([folder / name for name in names], obs_keys=["label"])
    far = pickle.loads(pickle.dumps(far))
    for row in (0, 299, 307):
        np.testing.assert_array_equal(far[row]["X"], local[row]["X"])
        assert far[row]["label"] == local[row]["label"]
    np.testing.assert_array_equal(far.get_merged_labels("batch"), local.get_merged_labels("batch"))


def test_an_open_file_and_one_in_memory(server, folder):
    """That a file is open already makes no difference: where it stands is not looked at, nor changed."""
    files = fsspec.filesystem("memory")
    files.pipe_file("/handed/cells.h5ad", (folder / "cells_0.h5ad").read_bytes())
    try:
        open_far = fsspec.filesystem("http").open(f"{server.url}/cells_0.h5ad")
        open_far.seek(100)
        for place in ((files, "/handed/cells.h5ad"), open_far):
            check(
                Loader(rng=np.random.default_rng(0), **SETTINGS).add_paths([place]), loader_at(folder / "cells_0.h5ad")
            )
        assert open_far.tell() == 100
        open_far.close()
    finally:
        files.rm("/handed", recursive=True)


def test_plain_http_comes_through_the_small_client_here_too(server):
    place = storage.as_places("paths", [fsspec.open(f"{server.url}/cells_0.h5ad")])[0]
    objects, key = place.object()
    assert isinstance(objects._plain, HttpObjects)
    assert objects.text(key) == str(place) == f"{server.url}/cells_0.h5ad"


def test_what_is_not_there(server, folder, tmp_path):
    for name in ("nothing.h5ad", "nothing.zarr", "nothing"):
        for hand in (_obstore, _file_system):
            with pytest.raises(FileNotFoundError, match=name):
                Loader().add_paths([hand(server, folder, name, tmp_path)])


def test_wrong_use(server, folder, tmp_path):
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    store = obstore.store.LocalStore(str(folder))
    with pytest.raises(TypeError, match=r"paths must be a list, got a single pair: put it into a list"):
        Loader().add_paths((store, "cells_0.h5ad"))
    with pytest.raises(TypeError, match="path_list must be a list, got a single file"):
        MappedCollection(fsspec.open(f"{server.url}/cells_0.h5ad"))
    with pytest.raises(TypeError, match="does not tell where it is: pass the store and the path"):
        Loader().add_paths([obstore.open_reader(store, "cells_0.h5ad")])
    with pytest.raises(TypeError, match=r"paths must hold paths, URLs, .*got \(3, 'a.h5ad'\) \(tuple\)"):
        Loader().add_paths([(3, "a.h5ad")])
    with pytest.raises(TypeError, match=r"collection must be .*got LocalStore.*zarr.open_group\(store, mode='r'\)"):
        Loader().use_collection(store)
    (tmp_path / "a.bz2").write_bytes(bz2.compress(b"cells"))
    with pytest.raises(ValueError, match="paths must hold files that are read as they are, got .* compression='bz2'"):
        Loader().add_paths([fsspec.open(str(tmp_path / "a.bz2"), compression="infer")])
