"""Objects that are not what they were when the dataset was written are found when they are first touched, far away too."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from annbatch import DatasetCollection, Loader, storage
from benchmarks.far.server import RangeServer
from tests.trust.test_listing import rewritten

from .test_same_batches import SETTINGS, check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder / "cells.zarr", tmp_path / "cells.zarr")
    return tmp_path


def shards(copy):
    return sorted(path for path in copy.glob("cells.zarr/dataset_1/X/data/c/*") if path.is_file())


def longer(path):
    """Another shard in its place: its index is right in itself."""
    data = path.read_bytes()
    path.write_bytes(b"\0" * 16 + data)


@pytest.mark.parametrize("travels", [False, True])
def test_a_shard_of_another_size(copy, travels):
    longer(shards(copy)[-1])
    with RangeServer(copy) as server:
        far = loader_at(f"{server.url}/cells.zarr")
        far = pickle.loads(pickle.dumps(far)) if travels else far
        with pytest.raises(
            storage.CorruptDataError, match=r"dataset_1/X/data/c/\d+ .*had \d+ bytes when it was written"
        ):
            list(far)


def test_a_shard_that_is_missing(copy):
    shards(copy)[0].unlink()
    with RangeServer(copy) as server, pytest.raises(storage.CorruptDataError, match="X/data/c/0 is missing; it had"):
        list(loader_at(f"{server.url}/cells.zarr"))


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def without_copies(copy):
    """What a collection is like that others, or earlier versions, have put there."""
    root = copy / "cells.zarr/zarr.json"
    document = json.loads(root.read_text())
    del document["consolidated_metadata"]
    root.write_text(json.dumps(document))


DOCUMENTS = ["X/data/zarr.json", "X/zarr.json", "obs/zarr.json", "obs/label/codes/zarr.json", "zarr.json"]


@pytest.mark.parametrize(
    ("name", "damage"),
    # Where the document of a dataset is missing, there is no dataset.
    [*((name, "changed") for name in DOCUMENTS), *((name, "missing") for name in DOCUMENTS[:-1])],
)
def test_a_metadata_document(name, damage, copy):
    without_copies(copy)
    path = copy / "cells.zarr/dataset_1" / name
    if damage == "changed":
        changed(path, '"attributes": {', '"attributes": { "a": 1,')
    else:
        path.unlink()
    words = f"dataset_1/{name} is " + (
        "damaged, or was changed after it was written" if damage == "changed" else "missing"
    )
    with RangeServer(copy) as server:
        with pytest.raises(storage.CorruptDataError, match=words):
            loader_at(f"{server.url}/cells.zarr")
        with pytest.raises(storage.CorruptDataError, match=words):
            loader_at(f"{server.url}/cells.zarr/dataset_1")


@pytest.mark.parametrize("given", ["url", "group"])
def test_copies_of_documents_that_are_not_true_are_not_used(given, copy, folder):
    """Documents are read one by one then, as where there are no copies."""
    changed(copy / "cells.zarr/zarr.json", '"data_type": "uint8"', '"data_type": "int8"')
    with RangeServer(copy) as server:
        url = f"{server.url}/cells.zarr"
        if given == "group":
            group = zarr.open_group(zarr.storage.FsspecStore.from_url(url, read_only=True), mode="r")
            far = Loader(rng=np.random.default_rng(0), **SETTINGS).use_collection(group)
        else:
            far = loader_at(url)
        assert any("/X/data/zarr.json" in path for _, path, _ in server.requests)
        check(far, loader_at(folder / "cells.zarr"))
        # And those are compared, too.
        path = copy / "cells.zarr/dataset_0/X/data/zarr.json"
        changed(path, '"data_type": "uint8"', '"data_type": "int8"')
        with pytest.raises(storage.CorruptDataError, match="dataset_0/X/data/zarr.json is damaged, or was changed"):
            loader_at(url)


def test_copies_are_what_is_read_where_they_are_true(copy, folder):
    with RangeServer(copy) as server:
        far = loader_at(f"{server.url}/cells.zarr")
        assert not [path for _, path, _ in server.requests if path.endswith("/X/data/zarr.json")]
        check(far, loader_at(folder / "cells.zarr"))


class MakesDocumentsAnew(zarr.storage.WrapperStore):
    """A store that keeps what documents mean, and not their bytes."""

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if found is None or not key.endswith("zarr.json"):
            return found
        return prototype.buffer.from_bytes(json.dumps(json.loads(found.to_bytes()), sort_keys=True).encode())


def test_a_store_that_makes_documents_anew(copy, folder):
    without_copies(copy)
    group = zarr.open_group(MakesDocumentsAnew(zarr.storage.LocalStore(copy / "cells.zarr", read_only=True)), mode="r")
    far = Loader(rng=np.random.default_rng(0), **SETTINGS).use_collection(group)
    check(far, loader_at(folder / "cells.zarr"))


def test_what_is_as_it_was_is_read(copy, folder):
    with RangeServer(copy) as server:
        check(loader_at(f"{server.url}/cells.zarr"), loader_at(folder / "cells.zarr"))


def in_memory(path):
    """The same store in memory, opened for reading."""
    store = zarr.storage.MemoryStore()
    for file in path.rglob("*"):
        if file.is_file():
            data = default_buffer_prototype().buffer.from_bytes(file.read_bytes())
            sync(store.set(file.relative_to(path).as_posix(), data))
    return zarr.open_group(store, mode="r")


@pytest.mark.filterwarnings("ignore:Object at dataset_1", "ignore:Writing zarr v2 data")
@pytest.mark.parametrize("has_copies", [True, False])
def test_a_dataset_that_was_written_anew_in_zarr_format_2(has_copies, copy):
    """As anndata 0.12 does; where the collection has copies of its metadata, it is found when it is read."""
    if not has_copies:
        without_copies(copy)
    rewritten(copy / "cells.zarr", zarr_format=2)
    words = r"dataset_1.* was written in Zarr format 2.*zarr_write_format = 3"
    with RangeServer(copy) as server, pytest.raises(storage.CorruptDataError, match=words):
        list(loader_at(f"{server.url}/cells.zarr"))
    group = in_memory(copy / "cells.zarr")
    with pytest.raises(storage.CorruptDataError, match=words):
        list(Loader(rng=np.random.default_rng(0), **SETTINGS).use_collection(group))
    with pytest.raises(storage.CorruptDataError, match=words):
        Loader(**SETTINGS).use_collection(DatasetCollection(group))
