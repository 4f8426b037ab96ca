"""Far data gives the batches that local data gives, bit for bit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import DatasetCollection, Loader, MappedCollection, storage
from annbatch.storage.far import fetch
from tests.cells import as_array

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

SETTINGS = {"chunk_size": 3, "preload_nchunks": 20, "batch_size": 20, "shuffle": True, "return_index": True}
NAMES = ["cells.zarr", "cells_0.h5ad", "gzip.h5ad", "zarr2.zarr", "zarr3.zarr"]


def loader_at(path, **settings):
    loader = Loader(rng=np.random.default_rng(0), **{**SETTINGS, **settings})
    return loader.use_collection(path) if str(path).endswith("cells.zarr") else loader.add_paths([path])


def same(far, local):
    assert far.keys() == local.keys()
    for key, value in local.items():
        if isinstance(value, dict):
            same(far[key], value)
        elif isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(far[key], value)
        elif sp.issparse(value):
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(far[key], part), getattr(value, part))
        else:
            np.testing.assert_array_equal(far[key], value)


def check(far, local):
    n_batches = 0
    for theirs, ours in zip(far, local, strict=True):
        same(theirs, ours)
        n_batches += 1
    assert n_batches == len(local)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_as_read_from_disk(name, prefetch, server, folder):
    far, local = loader_at(f"{server.url}/{name}", prefetch=prefetch), loader_at(folder / name, prefetch=prefetch)
    for _ in range(2):
        check(far, local)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings",
    [
        {"dense": True},
        {"layers": ["twice"], "obsm": ["pca", "tiles"], "obs_columns": ["label"]},
        {"var_names": ["g7", "g3", "g20"]},
        {"dense": True, "dtype": "float16", "obs_columns": []},
    ],
)
def test_with_all_that_a_batch_can_have(name, settings, server, folder):
    if name == "cells.zarr" and "layers" in settings:
        settings = {**settings, "prefetch": 2}
    check(loader_at(f"{server.url}/{name}", **settings), loader_at(folder / name, **settings))


@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_read_by_the_engine(name, server):
    (group,) = storage.open_groups([f"{server.url}/{name}"])
    if name == "cells.zarr":
        group = group[storage.find_datasets(group)[0]]
    for path in ("X", "layers/twice", "obsm/pca"):
        source = storage.open_matrix(group[path])
        assert source.is_direct
        assert source.is_far
        assert server.url in source.location


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_a_small_bound_on_bytes_and_requests_changes_nothing(name, server, folder):
    small = {"max_requests": 2, "max_in_flight": 2000, "prefetch": 2}
    check(loader_at(f"{server.url}/{name}", **small), loader_at(folder / name))
    assert server.most_open <= 2


def test_a_loader_travels_to_another_process(server, folder):
    for name in NAMES:
        far = loader_at(f"{server.url}/{name}")
        check(pickle.loads(pickle.dumps(far)), loader_at(folder / name))


@pytest.mark.parametrize("name", ["cells_0.h5ad", "zarr3.zarr"])
def test_mapped_collection(name, server, folder):
    far = MappedCollection([f"{server.url}/{name}"], obs_keys=["label"], layers_keys=["X", "twice"])
    local = MappedCollection([folder / name], obs_keys=["label"], layers_keys=["X", "twice"])
    rows = [5, 0, 299, 7]
    for theirs, ours in zip(far.__getitems__(rows), local.__getitems__(rows), strict=True):
        for key in ours:
            np.testing.assert_array_equal(theirs[key], ours[key])


@pytest.mark.parametrize("kind", ["memory", "zip", "group"])
def test_any_store_of_zarr(kind, server, folder, tmp_path):
    from zarr.storage import FsspecStore, MemoryStore, ZipStore

    files = {
        str(p.relative_to(folder / "cells.zarr")): p.read_bytes()
        for p in (folder / "cells.zarr").rglob("*")
        if p.is_file()
    }
    if kind == "group":
        store = FsspecStore.from_url(f"{server.url}/cells.zarr", read_only=True)
    else:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        store = MemoryStore() if kind == "memory" else ZipStore(tmp_path / "a.zip", mode="w")
        for name, data in files.items():
            sync(store.set(name, default_buffer_prototype().buffer.from_bytes(data)))
    if kind == "zip":
        store.close()
        store = ZipStore(tmp_path / "a.zip", mode="r")
    far = Loader(rng=np.random.default_rng(0), prefetch=2, **SETTINGS).use_collection(zarr.open_group(store, mode="r"))
    check(far, loader_at(folder / "cells.zarr"))


@pytest.mark.parametrize("given", ["collection", "groups"])
def test_settings_are_for_collections_that_are_handed_over_too(given, server, folder, tmp_path):
    collection = DatasetCollection(f"memory://{tmp_path}/cells.zarr")
    collection.add_adatas([folder / "cells_0.h5ad", folder / "cells_1.h5ad"], dataset_size=200, progress=False)
    far = Loader(rng=np.random.default_rng(0), cache=tmp_path, max_requests=3, **SETTINGS)
    far.use_collection(collection if given == "collection" else list(collection))
    assert far._table.is_far
    tables = [source.data.table for source in far._table.first_matrix.sources]
    assert {table.options.max_requests for table in tables} == {3}
    assert len({id(table.objects) for table in tables}) == 1
    assert sum(batch["X"].shape[0] for batch in far) == 600


def test_obstore(server, folder):
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    from zarr.storage import ObjectStore

    group = zarr.open_group(ObjectStore(obstore.store.LocalStore(str(folder / "cells.zarr")), read_only=True), mode="r")
    far = Loader(rng=np.random.default_rng(0), **SETTINGS)
    check(far.use_collection(group), loader_at(folder / "cells.zarr"))


def test_neighbours_are_fetched_as_one(server, folder):
    loader = Loader(chunk_size=100, preload_nchunks=1, batch_size=100, obs_columns=[])
    loader.add_paths([f"{server.url}/cells_0.h5ad"])
    server.requests.clear()
    before = fetch.counts["requests"]
    assert as_array(next(iter(loader))["X"]).shape == (100, 40)
    assert fetch.counts["requests"] - before <= 3 * 2  # values and column numbers, of one load request or three
