"""How an array is stored, in words, agrees with how it is read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import zarr

from annbatch import storage

from .test_direct import UNUSUAL

WHY = {
    "big endian zarr": "its bytes are in the other order",
    "big endian h5": "its bytes are in the other order",
    "fortran order zarr": "it lies in Fortran order",
    "transposed zarr": "of the codec transpose",
    "delta filter": "of the codec delta",
    "zip store": None,
    "memory store": None,
    "h5 scaleoffset": "of the filter scaleoffset",
    "h5 user block": "the file has a user block",
    "h5 open for writing": "the file is open for writing",
    "h5 in memory": "the file is open for writing",
    "h5 compact": "it lies among the metadata (compact layout)",
    "h5 virtual": "it lies in other files",
    "index at the start": None,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_why_an_array_is_not_read_directly(name, tmp_path):
    handle = UNUSUAL[name](tmp_path, np.ones((10, 5), "float32"))
    obstacle = storage.storage_of(handle).obstacle
    assert obstacle == WHY[name]
    assert (obstacle is None) == storage.open_matrix(handle).is_direct


def test_codecs_are_named_in_the_order_of_encoding(tmp_path):
    array = np.arange(64, dtype="int32")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", data=array, chunks=(8,), compression="gzip", shuffle=True, fletcher32=True)
        f.create_dataset("plain", data=array)
    with h5py.File(tmp_path / "a.h5", "r") as f:
        assert storage.storage_of(f["x"]) == (("shuffle", "gzip", "fletcher32"), None)
        assert storage.storage_of(f["plain"]) == ((), None)
    blosc = zarr.codecs.BloscCodec(cname="zstd")
    sharded = zarr.create_array(tmp_path / "s", data=array, chunks=(8,), shards=(16,), compressors=blosc)
    assert storage.storage_of(sharded) == (("blosc (zstd)",), None)
    old = zarr.create_array(tmp_path / "o", data=array, zarr_format=2, compressors=None)
    assert storage.storage_of(old) == ((), None)
