"""Chunk tables: where chunks lie, in eight bytes a chunk, and none for shards that were not touched."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from annbatch import Loader, MappedCollection, storage
from annbatch.storage.chunks import arrays
from annbatch.storage.chunks.arrays import stored_array
from annbatch.storage.chunks.tables import ABSENT, ChunkTable, joined_places
from tests.cells import cells, write


@pytest.mark.parametrize(("largest", "dtype"), [(ABSENT - 1, np.uint32), (ABSENT, np.int64), (2**40, np.int64)])
def test_places_are_as_narrow_as_they_fit(largest, dtype):
    offset, length = np.array([0, largest, 7]), np.array([5, 3, -1])
    table = ChunkTable((1,), (3,), 1, chunk_places=joined_places(offset, length))
    assert table.chunk_places.dtype == dtype
    found = table.places_of(np.array([2, 1, 0]))
    np.testing.assert_array_equal(found, [offset[::-1], length[::-1]])


def test_a_shard_beyond_four_gigabytes_widens_the_table_and_keeps_what_is_known():
    table = ChunkTable((1,), (4,), 1, chunk_places=np.zeros((4, 2), np.uint32), per_file=(2,), file_grid=(2,))
    table.note_places((slice(0, 2),), np.array([10, 0]), np.array([20, -1]))
    table.note_places((slice(2, 4),), np.array([2**33, 5]), np.array([6, -1]))
    assert table.chunk_places.dtype == np.int64
    np.testing.assert_array_equal(table.places_of(np.arange(4)), [[10, 0, 2**33, 5], [20, -1, 6, -1]])


@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_the_file_of_a_chunk_is_that_of_the_grid(n_dims):
    grid, per_file = (5, 3, 4)[:n_dims], (2, 3, 3)[:n_dims]
    file_grid = tuple(-(-n // m) for n, m in zip(grid, per_file, strict=True))
    table = ChunkTable((1,) * n_dims, grid, 1, per_file=per_file, file_grid=file_grid)
    expected = [
        np.ravel_multi_index(tuple(i // m for i, m in zip(at, per_file, strict=True)), file_grid)
        for at in np.ndindex(*grid)
    ]
    np.testing.assert_array_equal(table.files_of(np.arange(np.prod(grid))), expected)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", [(23,), (13, 10), (7, 6, 5)])
def test_shards_of_any_shape_are_read_with_places_of_either_width(shape, wide, tmp_path, monkeypatch):
    if wide:
        monkeypatch.setattr("annbatch.storage.chunks.zarr_table._LARGE_SHARD", 0)
    n = len(shape)
    values = np.random.default_rng(0).integers(0, 100, shape).astype("float32")
    values[:4] = 0  # chunks and shards that are not stored
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=shape, dtype="float32", chunks=(2,) * n, shards=(4,) * n, fill_value=0,
        config={"write_empty_chunks": False},
    )  # fmt: skip
    stored[...] = values
    source = storage.open_matrix(zarr.open_array(tmp_path / "a.zarr", mode="r"))
    if n == 1:
        assert stored_array(stored).table.chunk_places.dtype == (np.int64 if wide else np.uint32)
    rows = np.random.default_rng(1).permutation(shape[0])
    (found,) = storage.read_dense([storage.Part(source, rows, np.arange(len(rows)))], np.array([0, len(rows)]))
    assert source.is_direct
    np.testing.assert_array_equal(found, values[rows])


def test_a_table_of_shards_that_were_not_touched_takes_no_memory(tmp_path):
    """Its pages come from the system untouched; 2**22 chunks would take 32 MB."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2**22 * 8,), dtype="uint8", chunks=(8,), shards=(2**20,), fill_value=0
    )
    before = resident()
    table = stored_array(array).table
    assert table.chunk_places.nbytes == 2**22 * 8
    assert resident() - before < table.chunk_places.nbytes / 4
    table.prepare(np.array([2**21]))
    assert table.places_of(np.array([2**21]))[1] == [-1]
    assert resident() - before < table.chunk_places.nbytes / 2


def resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        pytest.skip("this system does not say what is resident")


# -- open files


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_MOST_OPEN", 3)
    return [write(cells(20, 5, seed=number, prefix=f"f{number}_"), tmp_path / f"{number}.h5ad") for number in range(8)]


def n_open() -> int:
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def test_a_loader_keeps_few_of_many_files_open(many):
    before = n_open()
    loader = Loader(batch_size=8, shuffle=True, chunk_size=1, preload_nchunks=160).add_paths(many)
    assert sum(batch["X"].shape[0] for batch in loader) == 160
    assert n_open() - before <= 3


def test_a_mapped_collection_keeps_few_of_many_files_open(many):
    before = n_open()
    mapped = MappedCollection(many)
    assert len(mapped.__getitems__(list(range(160)))) == 160
    assert n_open() - before <= 3


def test_files_that_were_closed_for_others_are_read_again(many):
    loader = Loader(batch_size=160).add_paths(many)
    (first,), (again,) = list(loader), list(pickle.loads(pickle.dumps(loader)))
    np.testing.assert_array_equal(first["X"].toarray(), again["X"].toarray())


def test_running_out_of_file_handles_is_no_damage(many, monkeypatch):
    loader = Loader(batch_size=160).add_paths(many[:1])

    def no_more(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(arrays, "open_local_file", no_more)
    with pytest.raises(OSError, match="Too many open files") as caught:
        list(loader)
    assert not isinstance(caught.value, ValueError)
