"""The chunk index of far HDF5 files comes in few round trips, says what the local one says, and may be damaged."""

from __future__ import annotations

import gc
import struct

import h5py
import numpy as np
import pytest

from annbatch import Loader, storage
from annbatch.storage.chunks.hdf5_table import hdf5_table
from annbatch.storage.far import fetch, hdf5, hdf5_index, hdf5_opening, opening
from benchmarks.far.server import RangeServer
from tests.cells import cells, write

from .test_same_batches import check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

KINDS = {
    "plain": {},
    "gzip": {"compression": "gzip", "compression_opts": 1},
    "shuffle": {"compression": "gzip", "shuffle": True},
    "fletcher32": {"fletcher32": True},
    "lzf": {"compression": "lzf"},
}
# Three levels of nodes, and a last chunk that is not full.
N_ITEMS, N_PER_CHUNK = 16 * 5000 + 5, 16


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """So that small files are as far-flung as large ones are."""
    for module in (hdf5, hdf5_opening):
        monkeypatch.setattr(module, "SLAB_BYTES", 1 << 13)


@pytest.fixture
def n_rounds(monkeypatch):
    """Return how often somebody waited for bytes since this was asked last."""
    calls = []
    before = fetch.Fetcher.fetch

    def counted(self, wants, cancel=None):
        calls.append(list(wants))
        return before(self, calls[-1], cancel)

    monkeypatch.setattr(fetch.Fetcher, "fetch", counted)

    def since():
        n_calls = sum(map(bool, calls))
        calls.clear()
        return n_calls

    return since


def write_chunked(path, libver, **kind):
    with h5py.File(path, "w", libver=libver) as file:
        values = np.random.default_rng(0).integers(0, 9, N_ITEMS).astype("int32")
        file.create_dataset("x", data=values, chunks=(N_PER_CHUNK,), **kind)
        # Some chunks are not stored; a second dimension; one that may grow.
        sparse = file.create_dataset("sparse", (N_ITEMS,), "int32", chunks=(N_PER_CHUNK,), **kind)
        sparse[640:700] = 3
        sparse[-3:] = 4
        file.create_dataset("two", data=values[:9000].reshape(90, 100), chunks=(7, 9), **kind)
        file.create_dataset("grows", data=values[:9000], chunks=(9,), maxshape=(None,), **kind)
        file.create_dataset("empty", (0,), "int32", chunks=(9,), maxshape=(None,), **kind)
        for number in range(40):  # a header in several parts
            file["x"].attrs[f"note {number}"] = "words " * 20
    return path


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_local_one_says(kind, libver, tmp_path):
    path = write_chunked(tmp_path / "a.h5", libver, **KINDS[kind])
    with RangeServer(tmp_path) as server, h5py.File(path) as local:
        (far,) = storage.open_groups([f"{server.url}/a.h5"])
        for name in local:
            theirs, ours = hdf5_table(far[name]), hdf5_table(local[name])
            assert (theirs is None) == (ours is None)
            if ours is None:
                continue
            np.testing.assert_array_equal(theirs.chunk_places, ours.chunk_places)
            assert (theirs.mask is None) == (ours.mask is None)
        far.close()


@pytest.mark.parametrize("libver", ["earliest", ("v108", "v108")])
def test_a_round_trip_for_each_level_of_its_tree(libver, tmp_path, n_rounds):
    # An HDF5 of those years writes new headers and the old index.
    write_chunked(tmp_path / "a.h5", libver, compression="gzip")
    with RangeServer(tmp_path) as server:
        (far,) = storage.open_groups([f"{server.url}/a.h5"])
        datasets = [far[name] for name in ("x", "two", "grows")]
        n_rounds()
        hdf5_index.fetch_chunk_indexes(datasets)
        assert 1 <= n_rounds() <= 3
        for dataset in datasets:
            hdf5_table(dataset)
        assert n_rounds() == 0
        far.close()


def write_far_flung(folder, number, **kwargs):
    adata = cells(3000, 40, seed=number, prefix=f"{number}_")
    write(adata, folder / f"{number}.h5ad", **kwargs)
    with h5py.File(folder / f"{number}.h5ad", "r+") as file:
        for name in ("data", "indices"):
            values = file["X"][name][:]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(64,))


def test_files_are_opened_in_as_many_round_trips_as_one(tmp_path, n_rounds):
    for number in range(4):
        write_far_flung(tmp_path, number)
    found = []
    with RangeServer(tmp_path) as server:
        for n_files in (1, 4):
            n_rounds()
            Loader().add_paths([f"{server.url}/{number}.h5ad" for number in range(n_files)])
            found.append(n_rounds())
    # Slabs of 8 kB are small for text, and where its pieces lie only h5py knows.
    assert found[0] <= 24
    assert found[1] - found[0] <= 3 * 8


def test_batches_from_there_are_the_local_ones(tmp_path):
    write_far_flung(tmp_path, 0)
    with RangeServer(tmp_path) as server:
        check(loader_at(f"{server.url}/0.h5ad"), loader_at(tmp_path / "0.h5ad"))


def nodes_of(path):
    """Return the positions of nodes of chunk indexes, by their level."""
    data = path.read_bytes()
    found, at = {}, data.find(b"TREE")
    while at >= 0:
        if data[at + 4] == 1:
            found.setdefault(data[at + 5], []).append(at)
        at = data.find(b"TREE", at + 1)
    return found


DAMAGE = {
    "signature": lambda node: b"EERT" + node[4:],
    "kind": lambda node: node[:4] + b"\0" + node[5:],
    "level too high": lambda node: node[:5] + b"\xff" + node[6:],
    "too many entries": lambda node: node[:6] + b"\xff\xff" + node[8:],
    "children beyond the end": lambda node: node[:48] + struct.pack("<Q", 1 << 62) + node[56:],
    "children at the end": lambda node: node[:48] + b"\xff" * 8 + node[56:],
}


def check_that_fetching_ends(folder, n_rounds):
    with RangeServer(folder) as server:
        (far,) = storage.open_groups([f"{server.url}/a.h5"])
        dataset = far["x"]
        n_rounds()
        hdf5_index.fetch_chunk_indexes([dataset])
        assert n_rounds() <= 3
        far.close()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_damaged_node_is_left_to_hdf5(damage, level, tmp_path, n_rounds):
    path = write_chunked(tmp_path / "a.h5", "earliest")
    at = nodes_of(path)[level][0]
    data = bytearray(path.read_bytes())
    data[at : at + 56] = DAMAGE[damage](bytes(data[at : at + 56]))
    path.write_bytes(data)
    check_that_fetching_ends(tmp_path, n_rounds)


def test_nodes_that_lead_in_a_circle_or_to_each_other_end(tmp_path, n_rounds):
    path = write_chunked(tmp_path / "a.h5", "earliest")
    nodes = nodes_of(path)
    data = bytearray(path.read_bytes())
    roots = nodes[2]
    for level in (1, 2):
        for at in nodes[level]:
            for entry in range(64):
                # Every child is a root, the node itself, or the same leaf.
                child = (roots[0], at, nodes[0][0])[entry % 3]
                struct.pack_into("<Q", data, at + 48 + 32 * entry, child)
            struct.pack_into("<H", data, at + 6, 64)
    path.write_bytes(data)
    check_that_fetching_ends(tmp_path, n_rounds)


def test_the_thread_that_fetches_collects_no_h5py_objects(tmp_path, monkeypatch):
    """It would wait for HDF5's lock, which whoever waits for it holds: no byte came for three minutes."""
    path = write_chunked(tmp_path / "a.h5", "earliest")
    with RangeServer(tmp_path) as server:
        (far,) = storage.open_groups([f"{server.url}/a.h5"])
        kind, thresholds = type(hdf5.far_file_of(far).objects), gc.get_threshold()
        read, n_reads = kind.read, []

        async def busily(*args, **kwargs):
            gc.set_threshold(1, 1, 1)
            n_reads.append(len([[] for _ in range(1000)]))
            return await read(*args, **kwargs)

        monkeypatch.setattr(kind, "read", busily)
        file = hdf5.far_file_of(far)
        file.forget()
        gc.collect()
        gc.set_threshold(10**6)  # not in this thread
        try:
            circle = [h5py.File(path)]
            circle.append(circle)
            del circle
            assert len(far["two"][:]) == 90
            assert gc.isenabled()
        finally:
            gc.set_threshold(*thresholds)
        assert n_reads
        far.close()


def test_a_bound_on_what_is_kept(tmp_path, n_rounds, monkeypatch):
    write_chunked(tmp_path / "a.h5", "earliest")
    monkeypatch.setattr(hdf5_index, "_MOST_NODE_BYTES", 30_000)
    with RangeServer(tmp_path) as server, h5py.File(tmp_path / "a.h5") as local:
        (far,) = storage.open_groups([f"{server.url}/a.h5"])
        dataset = far["x"]
        hdf5_index.fetch_chunk_indexes([dataset])
        assert hdf5.far_file_of(far).n_node_bytes <= 30_000
        np.testing.assert_array_equal(hdf5_table(dataset).chunk_places, hdf5_table(local["x"]).chunk_places)
        far.close()


def test_what_is_read_from_front_to_back_is_fetched_ahead(tmp_path, n_rounds):
    data = np.random.default_rng(0).bytes(100 << 13)
    (tmp_path / "a.h5").write_bytes(data)
    with RangeServer(tmp_path) as server:
        options = storage.FarOptions()
        (file,) = hdf5.open_far_files([opening._object_at(f"{server.url}/a.h5", options)], options)
        n_rounds()
        assert b"".join(bytes(file.peek(at, 1 << 12)) for at in range(0, len(data), 1 << 12)) == data
        assert n_rounds() <= 12  # 1, 2, 4, 8, 16, 16, ...
