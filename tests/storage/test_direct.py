"""The compiled engine gives what zarr-python, h5py and NumPy give, for every kind of store, and really was used."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from annbatch import storage
from annbatch.storage.engine import _engine
from tests.cells import csr_attrs, csr_parts, open_store, random_csr, write_h5, write_zarr

from .kinds import KINDS, options_of
from .test_reading import check_csr, check_dense, requests

FEW = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], deadline=None)


class Stored:
    """Arrays written to a fresh folder, opened for reading, and removed at the end."""

    def __init__(self, arrays, attrs, kind, chunks, per_shard):
        self.folder = Path(tempfile.mkdtemp())
        form, options = options_of(kind, chunks, per_shard)
        if form == "h5":
            path = self.folder / "a.h5ad"
            dimensions = {array.ndim for array in arrays.values()}
            if dimensions == {len(chunks)} and "chunks" in options:
                # HDF5 refuses chunks longer than a dataset of fixed size.
                shape = min(array.shape for name, array in arrays.items() if name != "indptr")
                options["chunks"] = tuple(max(1, min(c, n)) for c, n in zip(chunks, shape, strict=True))
            write_h5(arrays, path, attrs, **options)
        else:
            path = self.folder / "a.zarr"
            write_zarr(arrays, path, attrs, int(form[-1]), **options)
        self.handle = open_store(path)
        self.group = self.handle["X"]

    def __enter__(self):
        return self.group

    def __exit__(self, *_):
        if isinstance(self.handle, h5py.File):
            self.handle.close()
        shutil.rmtree(self.folder)


def chunks_read():
    return _engine.counts["chunks"]


def in_memory_again(matrix, index_dtype):
    return {**csr_parts(matrix), "indices": matrix.indices.astype(index_dtype)}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@FEW
def test_csr_rows_equal_those_of_scipy_and_of_the_fallback(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64", "uint16", "uint8"]))
    index_dtype = data.draw(st.sampled_from(["int32", "int64", "uint16"]))
    n_var, n_obs = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 30))
    chunks, per_shard = (data.draw(st.integers(1, 300)),), (data.draw(st.integers(1, 4)),)
    density = data.draw(st.sampled_from([0.0, 0.1, 0.6]))
    matrix = random_csr(n_obs, n_var, density, seed=rng, dtype=dtype)
    memory = random_csr(5, n_var, density, seed=rng, dtype=dtype)
    matrices = [matrix, memory]
    request = data.draw(requests(matrices))
    out_dtype = data.draw(st.sampled_from([None, "float64"]))
    with Stored(in_memory_again(matrix, index_dtype), csr_attrs(matrix), kind, chunks, per_shard) as group:
        direct, slow = storage.open_matrix(group), storage.open_matrix(group, direct=False)
        assert direct.is_direct or not matrix.nnz
        assert not slow.is_direct
        wanted = sum(matrix.indptr[row + 1] - matrix.indptr[row] for source, row in request[0] if source == 0)
        event(f"values wanted: {bool(wanted)}")
        for threads in (1, 3):
            before = chunks_read()
            check_csr([direct, storage.open_matrix(memory)], matrices, request, num_threads=threads, dtype=out_dtype)
            assert chunks_read() > before or not wanted
            before = chunks_read()
            check_dense([direct, storage.open_matrix(memory)], matrices, request, num_threads=threads, dtype=out_dtype)
            assert chunks_read() > before or not wanted
        before = chunks_read()
        not_memory = storage.open_matrix(memory, direct=False)
        check_csr([slow, not_memory], matrices, request, dtype=out_dtype)
        check_dense([slow, not_memory], matrices, request, dtype=out_dtype)
        assert chunks_read() == before, "the fallback went through the engine"


@pytest.mark.parametrize("kind", KINDS)
def test_reads_that_wait_are_announced_and_give_the_same(kind, monkeypatch):
    monkeypatch.setattr(_engine, "waiting_ns", -(1 << 40))  # every read counts as one that waited
    matrix = random_csr(300, 40, 0.3, seed=0, dtype="float32")
    rows = np.random.default_rng(1).permutation(300)[:200]
    with Stored(csr_parts(matrix), csr_attrs(matrix), kind, (50,), (4,)) as group:
        part = storage.Part(storage.open_matrix(group), rows, np.arange(200))
        before = _engine.counts["announced"]
        for threads in (1, 3):
            (block,) = storage.read_csr([part], np.array([0, 200]), n_var=40, num_threads=threads)
            assert (block.to_scipy() != matrix[rows]).nnz == 0
            (batch,) = storage.read_dense([part], np.array([0, 200]), num_threads=threads)
            np.testing.assert_array_equal(batch, matrix[rows].toarray())
        # Where each chunk is a file of its own, there is nothing to announce.
        a_file_a_chunk = kind.startswith("zarr")
        assert (_engine.counts["announced"] == before) == a_file_a_chunk


@pytest.mark.parametrize("per_shard", [3, 5])
def test_of_every_shard_all_reads_but_the_first_are_announced(per_shard, monkeypatch):
    monkeypatch.setattr(_engine, "waiting_ns", -(1 << 40))
    matrix = random_csr(300, 40, 0.5, seed=0, dtype="float32")
    with Stored(csr_parts(matrix), csr_attrs(matrix), "shards-zstd", (50,), (per_shard,)) as group:
        before = _engine.counts["announced"]
        part = storage.Part(storage.open_matrix(group), np.arange(300), np.arange(300))
        storage.read_csr([part], np.array([0, 300]), n_var=40, num_threads=1)
        n_chunks = -(-matrix.nnz // 50)
        n_shards = -(-n_chunks // per_shard)
        assert n_shards > 10
        # Less one: nothing is known of the disk before the first read of all.
        assert _engine.counts["announced"] - before == 2 * (n_chunks - n_shards) - 1


def test_nothing_is_announced_where_no_read_waits(monkeypatch):
    monkeypatch.setattr(_engine, "waiting_ns", 1 << 40)
    matrix = random_csr(300, 40, 0.3, seed=0, dtype="float32")
    with Stored(csr_parts(matrix), csr_attrs(matrix), "shards-zstd", (50,), (4,)) as group:
        before = _engine.counts["announced"]
        part = storage.Part(storage.open_matrix(group), np.arange(300), np.arange(300))
        storage.read_csr([part], np.array([0, 300]), n_var=40)
        assert _engine.counts["announced"] == before


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@FEW
def test_dense_rows_equal_those_of_numpy_and_of_the_fallback(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int32", "bool", "float16"]))
    shape = (data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20)))
    array = (rng.integers(0, 9, shape) * rng.integers(0, 2, shape)).astype(dtype)
    chunks = tuple(data.draw(st.integers(1, 8)) for _ in shape)
    per_shard = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    request = data.draw(requests([array]))
    with Stored({"dense": array}, {}, kind, chunks, per_shard) as group:
        direct, slow = storage.open_matrix(group["dense"]), storage.open_matrix(group["dense"], direct=False)
        assert direct.is_direct
        assert not slow.is_direct
        before = chunks_read()
        check_dense([direct], [array], request, num_threads=2)
        assert chunks_read() > before or not request[0]
        before = chunks_read()
        check_dense([slow], [array], request)
        assert chunks_read() == before
        if dtype != "float16":
            check_dense([direct], [array], request, num_threads=2, dtype="float64")


@pytest.mark.parametrize("kind", ["h5-contiguous", "h5-gzip", "zarr2-blosc", "zarr3-plain", "shards-zstd"])
@given(data=st.data())
@FEW
def test_rows_of_more_dimensions_equal_those_of_numpy(kind, data):
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(data.draw(st.integers(1, 4))))
    chunks = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    per_shard = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    array = np.arange(np.prod(shape), dtype="int32").reshape(shape)
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=10)), np.int64)
    with Stored({"nd": array}, {}, kind, chunks, per_shard) as group:
        for direct in (True, False):
            source = storage.open_matrix(group["nd"], direct=direct)
            assert source.is_direct == direct
            part = storage.Part(source, rows, np.arange(len(rows)))
            (batch,) = storage.read_dense([part], np.array([0, len(rows)]))
            np.testing.assert_array_equal(batch, array[rows])


@pytest.mark.parametrize("form", ["h5", "zarr2", "zarr3", "shards"])
@pytest.mark.parametrize("fill", [0, 7])
def test_chunks_that_are_not_stored_have_the_fill_value(form, fill, tmp_path):
    expected = np.full((20, 6), fill, "float32")
    expected[8:12] = 3
    if form == "h5":
        with h5py.File(tmp_path / "a.h5", "w") as f:
            f.create_dataset("x", (20, 6), "float32", chunks=(4, 3), fillvalue=fill, compression="gzip")[8:12] = 3
        handle = h5py.File(tmp_path / "a.h5", "r")["x"]
    else:
        options = {"shards": (8, 6)} if form == "shards" else {}
        version = 2 if form == "zarr2" else 3
        handle = zarr.create_array(
            tmp_path / "a",
            shape=(20, 6),
            dtype="float32",
            chunks=(4, 3),
            fill_value=fill,
            zarr_format=version,
            **options,
        )
        handle[8:12] = 3
    source = storage.open_matrix(handle)
    assert source.is_direct
    (batch,) = storage.read_dense([storage.Part(source, np.arange(20), np.arange(20))], np.array([0, 20]))
    np.testing.assert_array_equal(batch, expected)


def test_each_chunk_is_decoded_once_per_request(tmp_path):
    matrix = random_csr(200, 50, seed=0)
    path = write_zarr(csr_parts(matrix), tmp_path / "a.zarr", csr_attrs(matrix), chunks=(100,), shards=(1000,))
    source = storage.open_matrix(zarr.open_group(path, mode="r")["X"])
    rows = np.random.default_rng(1).permutation(np.repeat(np.arange(200), 2))
    source.row_pointers  # noqa: B018 (read once for all requests)
    before = chunks_read()
    storage.read_csr([storage.Part(source, rows, np.arange(400))], np.array([0, 400]), n_var=50)
    assert chunks_read() - before == 2 * -(-matrix.nnz // 100)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int64"])
@pytest.mark.parametrize("blocksize", [0, 2048, 8192])
@pytest.mark.parametrize("cname", ["lz4", "lz4hc", "zstd"])
def test_parts_of_blosc_chunks_equal_the_whole(dtype, blocksize, cname, tmp_path):
    rng = np.random.default_rng(0)
    array = (rng.integers(0, 200, 30_000) * rng.integers(0, 2, 30_000)).astype(dtype)
    codec = zarr.codecs.BloscCodec(cname=cname, shuffle="shuffle", blocksize=blocksize)
    stored = zarr.create_array(tmp_path / "a", data=array, chunks=(7001,), compressors=codec)
    source = storage.open_matrix(stored)
    for rows in ([0], [6999, 7000], [13, 14, 15], [20_000], np.sort(rng.integers(0, 30_000, 300))):
        part = storage.Part(source, np.array(rows), np.arange(len(rows)))
        (batch,) = storage.read_dense([part], np.array([0, len(rows)]))
        np.testing.assert_array_equal(batch, array[rows])


UNUSUAL = {
    "big endian zarr": lambda folder, a: _zarr(folder, a.astype(">f4")),
    "big endian h5": lambda folder, a: _h5(folder, a.astype(">f4")),
    "fortran order zarr": lambda folder, a: zarr.create_array(folder / "a", data=a, zarr_format=2, order="F"),
    "transposed zarr": lambda folder, a: _zarr(folder, a, filters=zarr.codecs.TransposeCodec(order=(1, 0))),
    "delta filter": lambda folder, a: _zarr_2(folder, a),
    "zip store": lambda folder, a: _zip(folder, a),
    "memory store": lambda folder, a: zarr.create_array(zarr.storage.MemoryStore(), data=a),
    "h5 scaleoffset": lambda folder, a: _h5(folder, a.astype("int32"), chunks=(3, 3), scaleoffset=0),
    "h5 user block": lambda folder, a: _h5(folder, a, userblock=512),
    "h5 open for writing": lambda folder, a: h5py.File(folder / "w.h5", "w").create_dataset("x", data=a),
    "h5 in memory": lambda folder, a: h5py.File("m", "w", driver="core", backing_store=False).create_dataset(
        "x", data=a
    ),
    "h5 compact": lambda folder, a: _compact(folder, a),
    "h5 virtual": lambda folder, a: _virtual(folder, a),
    "index at the start": lambda folder, a: _zarr(
        folder, a, chunks=(2, 5), shards={"shape": (8, 5), "index_location": "start"}
    ),
}


def _zarr(folder, array, **options):
    return zarr.create_array(folder / "a", data=array, **options)


def _zarr_2(folder, array):
    import numcodecs

    return zarr.create_array(folder / "a", data=array, zarr_format=2, filters=[numcodecs.Delta("f4")])


def _zip(folder, array):
    with zarr.storage.ZipStore(folder / "a.zip", mode="w") as store:
        zarr.create_array(store, data=array)
    return zarr.open_array(zarr.storage.ZipStore(folder / "a.zip", mode="r"), mode="r")


def _h5(folder, array, userblock=0, **options):
    with h5py.File(folder / "a.h5", "w", userblock_size=userblock) as f:
        f.create_dataset("x", data=array, **options)
    return h5py.File(folder / "a.h5", "r")["x"]


def _compact(folder, array):
    with h5py.File(folder / "a.h5", "w") as f:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(f.id, b"x", h5py.h5t.py_create(array.dtype), space, settings)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return h5py.File(folder / "a.h5", "r")["x"]


def _virtual(folder, array):
    _h5(folder, array)
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(folder / "a.h5", "x", array.shape)
    with h5py.File(folder / "v.h5", "w") as f:
        f.create_virtual_dataset("x", layout)
    return h5py.File(folder / "v.h5", "r")["x"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_the_table_cannot_describe_is_read_all_the_same(name, tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (10, 5)).astype("float32")
    handle = UNUSUAL[name](tmp_path, array)
    source = storage.open_matrix(handle)
    assert source.is_direct == (name in ("index at the start", "zip store", "memory store"))
    rows = np.array([9, 0, 3, 3])
    (batch,) = storage.read_dense([storage.Part(source, rows, np.arange(4))], np.array([0, 4]))
    np.testing.assert_array_equal(batch, array[rows])
    assert batch.dtype.isnative


def test_offsets_beyond_two_to_the_31_values_work(tmp_path):
    """A sparse file: 3 * 2**30 values of which only the last row is stored."""
    n_values, n_var = 3 << 30, 1 << 20
    with h5py.File(tmp_path / "a.h5ad", "w") as f:
        group = f.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [2, n_var]})
        for name, dtype in (("data", "float32"), ("indices", "int32")):
            dataset = group.create_dataset(name, (n_values,), dtype, chunks=(1 << 20,))
            dataset[-10:] = np.arange(10) + 1
        group.create_dataset("indptr", data=np.array([0, n_values - 10, n_values]))
    with h5py.File(tmp_path / "a.h5ad", "r") as f:
        source = storage.open_matrix(f["X"])
        assert source.is_direct
        (block,) = storage.read_csr([storage.Part(source, np.array([1]), np.array([0]))], np.array([0, 1]), n_var=n_var)
        np.testing.assert_array_equal(block.data, np.arange(10) + 1)
        np.testing.assert_array_equal(block.indices, np.arange(10) + 1)
