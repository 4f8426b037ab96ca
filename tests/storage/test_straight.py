"""Small stores are opened without zarr-python's event loop: what is read straight is what zarr-python reads."""

from __future__ import annotations

from collections import Counter

import anndata as ad
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from annbatch import Loader
from annbatch.storage import manifest
from annbatch.storage.chunks.bounded import readable
from annbatch.storage.chunks.straight import read_straight
from annbatch.storage.chunks.zarr_table import zarr_table
from annbatch.storage.engine import _engine
from annbatch.storage.frames import FrameReader
from tests.cells import write

pytestmark = pytest.mark.skipif(not _engine.can_read_files, reason="the engine reads no files on this system")

LAYOUTS = {
    "format 2": {"zarr_format": 2, "chunks": (7,)},
    "format 3": {"zarr_format": 3, "chunks": (7,), "compressors": (ZstdCodec(),)},
    "shards": {"zarr_format": 3, "chunks": (7,), "shards": (28,), "compressors": (BloscCodec(), Crc32cCodec())},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float32", "float64"])
def test_any_range_is_what_zarr_reads(layout, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("annbatch.storage.chunks.straight._CHUNKS_AT_ONCE", 3)
    values = np.random.default_rng(0).integers(0, 100, 60).astype(dtype)
    values[14:21] = 0  # a chunk that is not stored
    array = zarr.create_array(tmp_path / "a.zarr", shape=60, dtype=dtype, fill_value=0, **LAYOUTS[layout])
    array[:] = values
    table = zarr_table(array)
    assert table is not None
    for start in range(0, 61, 5):
        for stop in range(start, 61, 3):
            found = read_straight(table, array.dtype, start, stop)
            assert found is not None
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, values[start:stop])


@pytest.mark.parametrize("n_left", [3, 40])
def test_what_blosc_compressed_and_is_cut_short_is_refused(n_left, tmp_path):
    """zarr-python would read what lies behind it in memory."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=20, chunks=(10,), dtype="i4", zarr_format=2, compressors=numcodecs.Blosc(shuffle=0)
    )
    array[:] = np.arange(20)
    path = tmp_path / "a.zarr/1"
    path.write_bytes(path.read_bytes()[:n_left])
    table = zarr_table(array)
    assert table is not None
    np.testing.assert_array_equal(read_straight(table, array.dtype, 0, 10), np.arange(10))
    assert read_straight(table, array.dtype, 0, 20) is None  # zarr-python shall say what is wrong
    with pytest.raises(ValueError, match="cut short"):
        readable(array)[10:]


def test_a_damaged_chunk_is_left_to_zarr(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=10, chunks=(10,), dtype="i4", compressors=(ZstdCodec(), Crc32cCodec())
    )
    array[:] = 1
    path = tmp_path / "a.zarr/c/0"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    table = zarr_table(array)
    assert table is not None
    assert read_straight(table, array.dtype, 0, 10) is None


def cells(n_obs: int) -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([f"kïnd {row % 3}" for row in range(n_obs)]),
            "score": np.arange(n_obs, dtype="f4"),
            "note": pd.array([f"note {row}" for row in range(n_obs)], dtype=object),
            "maybe": pd.array([None if row % 4 else row for row in range(n_obs)], dtype="Int32"),
        },
        index=[f"cell {row}" for row in range(n_obs)],
    )
    return ad.AnnData(sp.random(n_obs, 5, 0.5, "csr", dtype="f4", rng=0), obs)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_small_stores_are_opened_without_reads_of_zarr(zarr_format, tmp_path, monkeypatch):
    path = write(cells(50), tmp_path / "a", f"zarr{zarr_format}")
    expected = ad.read_zarr(path)
    monkeypatch.setattr(manifest, "_SETTLED_NS", -(10**12))  # as if it were of long ago

    def refuse(*_, **__):
        raise AssertionError

    parsed = Counter[str]()
    original = manifest._parsed

    def counted(path, data):
        parsed[path] += 1
        return original(path, data)

    for name in ("__getitem__", "get_orthogonal_selection", "get_basic_selection"):
        monkeypatch.setattr(zarr.Array, name, refuse)
    for name in ("open_group", "open_array", "open"):
        monkeypatch.setattr(zarr, name, refuse)
    monkeypatch.setattr(manifest, "_parsed", counted)
    loader = Loader(batch_size=50, labels=["kind"], covariates=["score"]).add_paths([path])
    assert set(parsed.values()) == {1}
    (batch,) = loader
    pd.testing.assert_frame_equal(batch["obs"], expected.obs.astype({"note": batch["obs"]["note"].dtype}))
    np.testing.assert_array_equal(batch["labels"]["kind"], np.arange(50) % 3)


def test_a_part_of_the_rows_is_what_they_are_in_the_whole(tmp_path):
    reader = FrameReader(zarr.open_group(write(cells(100), tmp_path / "a.zarr"), mode="r")["obs"])
    whole = reader.frame()
    for rows in (slice(0, 0), slice(0, 1), slice(30, 70), slice(99, 200), slice(100, 100), slice(5, 3)):
        expected = whole.iloc[rows]
        # pandas 3 tells text from other objects by looking at it: of no rows it is what it was read as.
        there = len(expected) > 0
        pd.testing.assert_frame_equal(reader.frame(rows=rows), expected, check_dtype=there, check_index_type=there)
