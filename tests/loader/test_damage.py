"""Damaged files through a loader: an error that names file, array and chunk. Never a crash, a hang or a wrong value."""

from __future__ import annotations

import functools
import os
import shutil
import threading

import h5py
import numpy as np
import pytest
import zarr

from annbatch import Loader, storage
from tests.cells import csr_attrs, write_h5, write_zarr
from tests.storage import test_corrupt as damaged

MATRIX = damaged.MATRIX


@pytest.fixture(params=["direct", "fallback"])
def way(request, monkeypatch):
    """How the stores of a test are read."""
    direct = request.param == "direct"
    monkeypatch.setattr(storage, "open_matrix", functools.partial(storage.open_matrix, direct=direct))
    return request.param


def loader_over(path, **options):
    """A loader over X of a store, added as it is by add_paths: no file stays open."""
    group = h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r")
    options = {"chunk_size": 10, "preload_nchunks": 10, "batch_size": 50, "return_index": True} | options
    loader = Loader(**options).add_dataset(group["X"])
    loader._table.matrices[("X", "")].sources[0].close()
    if path.is_file():
        group.close()
    return loader


# What is damaged: the array, the chunk of it; None where the damage has no chunk of its own.
PLACE = {
    damaged.truncated_shard: ("data", None),
    damaged.truncated_shard_with_its_index_in_front: ("data", None),
    damaged.empty_shard: ("data", None),
    damaged.flipped_shard_index: ("indices", None),
    damaged.shard_index_too_far: ("data", 1),
    damaged.flipped_chunk_with_checksum: ("data", 0),
    damaged.flipped_blosc_header: ("data", 1),
    damaged.flipped_blosc_version: ("data", 1),
    damaged.truncated_chunk_file: ("data", 1),
    damaged.empty_chunk_file: ("data", 1),
    damaged.short_uncompressed_chunk: ("data", 1),
    damaged.flipped_gzip_chunk: ("data", 1),
    damaged.flipped_h5_gzip_chunk: ("data", 1),
    damaged.flipped_h5_fletcher_chunk: ("data", 1),
    damaged.h5_column_too_big: ("indices", 1),
    damaged.negative_column: ("indices", 1),
}
# zarr-python and h5py read these all the same.
HARMLESS_TO_THE_LIBRARY = {damaged.flipped_blosc_header, damaged.flipped_blosc_version}


def test_the_table_is_complete():
    assert PLACE.keys() == damaged.FOUND_WHILE_READING.keys()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("damage", PLACE, ids=lambda f: f.__name__)
def test_damage_is_an_error_at_its_batch_or_before(damage, shuffle, way, tmp_path):
    path = damage(tmp_path)
    array, chunk = PLACE[damage]
    before = set(threading.enumerate())  # those of other tests may still be ending
    loader = loader_over(path, shuffle=shuffle)
    try:
        for batch in loader:
            np.testing.assert_array_equal(batch["X"].toarray(), MATRIX[batch["index"]].toarray())
    except storage.CorruptDataError as error:
        text = str(error)
        assert path.name in text
        assert array in text
        assert chunk is None or f"chunk {chunk}" in text
    else:
        assert way == "fallback"
        assert damage in HARMLESS_TO_THE_LIBRARY
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("annbatch")]


@pytest.mark.parametrize("form", ["h5", "zarr"])
@pytest.mark.parametrize("case", damaged.CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_refused_when_added(case, form, way, tmp_path):
    arrays, changed, text = damaged.CONTRADICTIONS[case]
    attrs = {key: value for key, value in {**csr_attrs(MATRIX), **changed}.items() if value is not None}
    write, name = (write_h5, "a.h5ad") if form == "h5" else (write_zarr, "a.zarr")
    path = write(arrays, tmp_path / name, attrs)
    with pytest.raises(storage.CorruptDataError, match=text) as caught:
        loader_over(path)
    assert name in str(caught.value)


@pytest.mark.parametrize("store", [damaged.sharded, damaged.hdf5], ids=["shards", "h5"])
@pytest.mark.parametrize("change", ["replaced", "cut", "removed"])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_file_that_changes_between_passes_is_noticed(store, change, prefetch, way, tmp_path):
    path = store(tmp_path)
    loader = loader_over(path, prefetch=prefetch)
    assert len(list(loader)) == 6
    for source in loader._table.matrices[("X", "")].sources:
        source.close()
    file = path / "X/data/c/0" if path.is_dir() else path
    if change == "replaced":
        if path.is_dir() and way == "fallback":
            return  # zarr-python reads the index of a shard anew each time: the new shard is read, and right
        shutil.copy(file, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    elif change == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
        if path.is_dir():
            (path / "X/data/zarr.json").unlink()
    with pytest.raises(storage.CorruptDataError, match=path.name):
        list(loader)
