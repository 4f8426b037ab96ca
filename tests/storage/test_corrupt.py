"""Damaged and contradictory stores: an error that names file, array and chunk. Never a crash, a hang or a wrong value."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import warnings

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from annbatch import storage
from tests.cells import csr_attrs, csr_parts, random_csr, write_h5, write_zarr

from .kinds import KINDS, options_of

N_OBS, N_VAR = 300, 40
ROWS = np.arange(N_OBS)
MATRIX = random_csr(N_OBS, N_VAR, seed=0)
COMPRESSED = (ZstdCodec(),)


def opened(path):
    """Open X of a store; the h5py handle closes with the source's last reference."""
    handle = h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r")
    return storage.open_matrix(handle["X"])


def read_all(source, **options):
    part = storage.Part(source, ROWS, ROWS)
    return storage.read_csr([part], np.array([0, N_OBS]), n_var=N_VAR, num_threads=2, **options)


def read_all_dense(source):
    return storage.read_dense([storage.Part(source, ROWS, ROWS)], np.array([0, N_OBS]), num_threads=2)


def flip(path, offset):
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x55
    path.write_bytes(data)


def sharded(tmp_path, codecs=COMPRESSED):
    options = {"chunks": (200,), "shards": (2000,), "compressors": codecs}
    return write_zarr(csr_parts(MATRIX), tmp_path / "a.zarr", csr_attrs(MATRIX), **options)


def plain_zarr(tmp_path, codecs=COMPRESSED):
    return write_zarr(csr_parts(MATRIX), tmp_path / "a.zarr", csr_attrs(MATRIX), chunks=(200,), compressors=codecs)


def hdf5(tmp_path, **options):
    return write_h5(csr_parts(MATRIX), tmp_path / "a.h5ad", csr_attrs(MATRIX), chunks=(200,), **options)


def h5_chunk(path, name="data", number=1):
    with h5py.File(path, "r") as f:
        info = f["X"][name].id.get_chunk_info(number)
        return info.byte_offset, info.size


def truncated_shard(tmp_path):
    path = sharded(tmp_path)
    os.truncate(path / "X/data/c/0", 500)
    return path


def truncated_shard_with_its_index_in_front(tmp_path):
    shards = {"shape": (2000,), "index_location": "start"}
    options = {"chunks": (200,), "shards": shards, "compressors": COMPRESSED}
    path = write_zarr(csr_parts(MATRIX), tmp_path / "a.zarr", csr_attrs(MATRIX), **options)
    os.truncate(path / "X/data/c/0", 500)
    return path


def empty_shard(tmp_path):
    path = sharded(tmp_path)
    os.truncate(path / "X/data/c/0", 0)
    return path


def flipped_shard_index(tmp_path):
    path = sharded(tmp_path)
    shard = path / "X/indices/c/0"
    flip(shard, shard.stat().st_size - 30)
    return path


def shard_index_too_far(tmp_path):
    """A right checksum over an index that leads beyond the file."""
    path = sharded(tmp_path)
    shard = path / "X/data/c/0"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-164:-4], "<u8").copy()
    index[2] = 1 << 40
    data[-164:-4] = index.tobytes()
    import google_crc32c

    data[-4:] = np.uint32(google_crc32c.value(index.tobytes())).tobytes()
    shard.write_bytes(data)
    return path


def flipped_chunk_with_checksum(tmp_path):
    path = sharded(tmp_path, (ZstdCodec(), Crc32cCodec()))
    flip(path / "X/data/c/0", 20)
    return path


def flipped_blosc_header(tmp_path):
    path = plain_zarr(tmp_path, (BloscCodec(cname="lz4"),))
    flip(path / "X/data/c/1", 4)
    return path


def flipped_blosc_version(tmp_path):
    path = plain_zarr(tmp_path, (BloscCodec(cname="lz4"),))
    flip(path / "X/data/c/1", 0)
    return path


def truncated_chunk_file(tmp_path):
    path = plain_zarr(tmp_path)
    os.truncate(path / "X/data/c/1", 10)
    return path


def empty_chunk_file(tmp_path):
    path = plain_zarr(tmp_path, ())
    os.truncate(path / "X/data/c/1", 0)
    return path


def short_uncompressed_chunk(tmp_path):
    path = plain_zarr(tmp_path, ())
    os.truncate(path / "X/data/c/1", 100)
    return path


def flipped_gzip_chunk(tmp_path):
    path = plain_zarr(tmp_path, (GzipCodec(),))
    flip(path / "X/data/c/1", 30)
    return path


def flipped_h5_gzip_chunk(tmp_path):
    path = hdf5(tmp_path, compression="gzip")
    flip(path, h5_chunk(path)[0] + 20)
    return path


def flipped_h5_fletcher_chunk(tmp_path):
    path = hdf5(tmp_path, fletcher32=True)
    flip(path, h5_chunk(path)[0] + 20)
    return path


def h5_column_too_big(tmp_path):
    path = hdf5(tmp_path)
    with h5py.File(path, "r+") as f:
        f["X/indices"][250] = N_VAR
    return path


def negative_column(tmp_path):
    path = plain_zarr(tmp_path)
    zarr.open_group(path)["X/indices"][250] = -1
    return path


FOUND_WHILE_READING = {
    truncated_shard: (r"a\.zarr.*data/c/0", r"cut short|checksum of the shard index"),
    truncated_shard_with_its_index_in_front: (r"a\.zarr.*data/c/0", "leads beyond the end of the file, at chunk"),
    empty_shard: (r"a\.zarr.*data/c/0", "cut short"),
    flipped_shard_index: (r"a\.zarr.*indices/c/0", "checksum of the shard index does not match"),
    shard_index_too_far: (r"a\.zarr.*data/c/0", "beyond the end of the file"),
    flipped_chunk_with_checksum: (r"a\.zarr :: X/data, chunk 0 in .*c/0", "checksum of the chunk does not match"),
    flipped_blosc_header: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cannot be decoded"),
    flipped_blosc_version: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cannot be decoded"),
    truncated_chunk_file: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cannot be decoded"),
    empty_chunk_file: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cut short"),
    short_uncompressed_chunk: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cut short"),
    flipped_gzip_chunk: (r"a\.zarr :: X/data, chunk 1 in .*c/1", "cannot be decoded"),
    flipped_h5_gzip_chunk: (r"a\.h5ad :: /X/data, chunk 1 in .*a\.h5ad", "cannot be decoded"),
    flipped_h5_fletcher_chunk: (r"a\.h5ad :: /X/data, chunk 1 in .*a\.h5ad", "checksum of the chunk does not match"),
    h5_column_too_big: (r"a\.h5ad :: /X/indices, chunk 1", "column number is outside 0 <= column < 40"),
    negative_column: (r"a\.zarr :: X/indices, chunk 1", "column number is outside 0 <= column < 40"),
}


@pytest.mark.parametrize("damage", FOUND_WHILE_READING, ids=lambda f: f.__name__)
def test_damage_is_reported_with_file_array_and_chunk(damage, tmp_path):
    source = opened(damage(tmp_path))
    assert source.is_direct
    where, what = FOUND_WHILE_READING[damage]
    with pytest.raises(storage.CorruptDataError, match=f"(?s){where}.*({what})"):
        read_all(source)
    with pytest.raises(storage.CorruptDataError, match=f"(?s){where}.*({what})"):
        read_all_dense(source)
    with pytest.raises(storage.CorruptDataError):
        read_all(source, dtype="float64", pool=storage.BufferPool())


@pytest.mark.parametrize("damage", FOUND_WHILE_READING, ids=lambda f: f.__name__)
def test_the_fallback_reports_damage_as_well_or_the_store_is_still_readable_to_it(damage, tmp_path):
    source = storage.open_matrix(_group(damage(tmp_path)), direct=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (block,) = read_all(source)
        except storage.CorruptDataError as error:
            assert "a.zarr" in str(error) or "a.h5ad" in str(error)  # noqa: PT017
        else:
            # Blosc, as zarr-python calls it, does not look at every header byte.
            assert (block.to_scipy() != MATRIX).nnz == 0


def _group(path):
    return (h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r"))["X"]


def matrix_with(**changed):
    return {**csr_parts(MATRIX), **changed}


FALLING = MATRIX.indptr.copy()
FALLING[7], FALLING[8] = FALLING[-1], 0
LATE = MATRIX.indptr.copy()
LATE[0] = 1
LONG = MATRIX.indptr.copy()
LONG[-1] += 5
NEGATIVE = MATRIX.indptr.copy()
NEGATIVE[0] = -5

CONTRADICTIONS = {
    "falling indptr": (matrix_with(indptr=FALLING), {}, "indptr must not decrease, but goes from [0-9]+ to 0 at row 7"),
    "indptr starts late": (matrix_with(indptr=LATE), {}, "indptr must start with 0, got 1"),
    "indptr is negative": (matrix_with(indptr=NEGATIVE), {}, "indptr must start with 0, got -5"),
    "indptr too long": (matrix_with(indptr=LONG), {}, "indptr ends at [0-9]+, but only [0-9]+ values are stored"),
    "indptr too few": (matrix_with(indptr=MATRIX.indptr[:-1]), {}, "must have n_obs \\+ 1 = 301 entries, got 300"),
    "fewer indices": (matrix_with(indices=MATRIX.indices[:-1]), {}, "values, but indices has"),
    "fewer values": (matrix_with(data=MATRIX.data[:-1]), {}, "values, but indices has"),
    "indices are floats": (
        matrix_with(indices=MATRIX.indices.astype("float32")),
        {},
        "must hold integers, got float32",
    ),
    "data has two axes": (matrix_with(data=MATRIX.data[:, None]), {}, "must be one-dimensional, got shape"),
    "no shape": (matrix_with(), {"shape": None}, "has no shape attribute"),
    "shape of three": (matrix_with(), {"shape": [300, 40, 1]}, "shape must be two numbers >= 0, got"),
    "shape of text": (matrix_with(), {"shape": "abc"}, "shape must be whole numbers, got abc"),
    "shape of floats": (matrix_with(), {"shape": [300.5, 40.0]}, "shape must be whole numbers, got"),
    "negative shape": (matrix_with(), {"shape": [300, -1]}, "shape must be two numbers >= 0, got"),
}


@pytest.mark.parametrize("form", ["h5", "zarr"])
@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_refused(case, form, tmp_path):
    arrays, changed, text = CONTRADICTIONS[case]
    attrs = {key: value for key, value in {**csr_attrs(MATRIX), **changed}.items() if value is not None}
    write, name = (write_h5, "a.h5ad") if form == "h5" else (write_zarr, "a.zarr")
    path = write(arrays, tmp_path / name, attrs)
    with pytest.raises(storage.CorruptDataError, match=text) as caught:
        read_all(opened(path))
    assert name in str(caught.value)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    path = write_h5(matrix_with(data=MATRIX.data.astype("S5")), tmp_path / "a.h5ad", csr_attrs(MATRIX))
    with pytest.raises(TypeError, match=r"a\.h5ad :: /X/data must hold numbers, got \|S5"):
        opened(path)


@pytest.mark.parametrize("missing", ["data", "indices", "indptr"])
def test_a_missing_part_is_named(missing, tmp_path):
    path = hdf5(tmp_path)
    with h5py.File(path, "r+") as f:
        del f["X"][missing]
    with pytest.raises(storage.CorruptDataError, match=f"holds no CSR matrix: {missing} missing"):
        opened(path)


def test_bad_columns_in_memory_are_refused():
    broken = sp.csr_matrix(np.ones((2, 3), "float32"))
    broken.indices[2] = 3
    with pytest.raises(
        storage.CorruptDataError, match="matrix in memory :: indices, chunk 0: a column number is outside"
    ):
        storage.read_csr(
            [storage.Part(storage.open_matrix(broken), np.array([0, 1]), np.array([0, 1]))], np.array([0, 2]), n_var=3
        )


@pytest.mark.parametrize("store", [sharded, hdf5], ids=["shards", "h5"])
@pytest.mark.parametrize("change", ["replaced", "cut", "removed", "touched"])
def test_a_file_that_changes_while_open_is_noticed(store, change, tmp_path):
    path = store(tmp_path)
    source = opened(path)
    read_all(source)
    file = path / "X/data/c/0" if path.is_dir() else path
    if change == "replaced":
        shutil.copy(file, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    elif change == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif change == "removed":
        file.unlink()
    else:
        flip(file, 100)
    with pytest.raises(storage.CorruptDataError, match="the file was changed, replaced or removed after it was opened"):
        read_all(source)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "fallback"])
@pytest.mark.parametrize("touched", [True, False], ids=["touched", "untouched"])
@pytest.mark.parametrize("store", [plain_zarr, sharded], ids=["plain", "shards"])
def test_a_store_that_is_moved_away_is_noticed(store, touched, direct, tmp_path):
    """Zarr says that a missing chunk has the fill value: so a share that was unmounted would turn into zeros."""
    path = store(tmp_path)
    source = storage.open_matrix(_group(path), direct=direct)
    source.row_pointers  # noqa: B018
    if touched:
        first = storage.Part(source, ROWS[:1], ROWS[:1])
        storage.read_csr([first], np.array([0, 1]), n_var=N_VAR)
    path.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(
        storage.CorruptDataError, match=r"a\.zarr.*(moved or removed|replaced or removed) after it was opened"
    ):
        read_all(source)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "fallback"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_that_were_never_stored_have_the_fill_value(zarr_format, direct, tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(40, 3), chunks=(10, 2), dtype="f4", fill_value=np.nan, zarr_format=zarr_format
    )
    array[5:15] = 1
    (batch,) = storage.read_dense(
        [storage.Part(storage.open_matrix(array, direct=direct), np.arange(40), np.arange(40))], np.array([0, 40])
    )
    np.testing.assert_array_equal(batch, array[:])


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "fallback"])
def test_a_relative_path_stays_right_when_the_folder_is_changed(direct, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sharded(tmp_path)
    source = storage.open_matrix(zarr.open_group("a.zarr", mode="r")["X"], direct=direct)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (block,) = read_all(pickle.loads(pickle.dumps(source)))
    assert (block.to_scipy() != MATRIX).nnz == 0


def test_a_chunk_file_that_is_cut_while_open_is_noticed(tmp_path):
    path = plain_zarr(tmp_path, ())
    source = opened(path)
    read_all(source)
    os.truncate(path / "X/data/c/0", 50)
    with pytest.raises(storage.CorruptDataError, match=r"chunk 0 in .*cut short"):
        read_all(source)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "plain" not in kind and "contiguous" not in kind])
def test_random_damage_never_crashes_and_never_reads_outside(kind, tmp_path):
    """Bytes of chunks are overwritten at random: the result is an error or numbers, and the process lives."""
    rng = np.random.default_rng(0)
    form, options = options_of(kind, (500,), (3,))
    outcomes = set()
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if form == "h5":
            path = write_h5(csr_parts(MATRIX), folder / "a.h5ad", csr_attrs(MATRIX), **options)
            with h5py.File(path, "r") as f:
                dataset = f["X/data"].id
                places = [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
            spans = [(path, info.byte_offset, info.size) for info in places]
        else:
            path = write_zarr(csr_parts(MATRIX), folder / "a.zarr", csr_attrs(MATRIX), int(form[-1]), **options)
            files = [
                f
                for f in (path / "X/data").rglob("*")
                if f.is_file() and f.name not in ("zarr.json", ".zarray", ".zattrs")
            ]
            spans = [(f, 0, f.stat().st_size) for f in files]
        for file, start, size in spans:
            data = bytearray(file.read_bytes())
            for _ in range(rng.integers(1, 20)):
                data[start + rng.integers(0, size)] = rng.integers(0, 256)
            file.write_bytes(data)
        try:
            (block,) = read_all(opened(path))
        except storage.CorruptDataError:
            outcomes.add("error")
        else:
            outcomes.add("numbers")
            np.testing.assert_array_equal(block.indices, MATRIX.indices)
    assert outcomes


def test_threads_and_handles_are_gone_after_reading(tmp_path):
    source = opened(sharded(tmp_path))

    def resources():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208

    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("needs /proc to count threads and file handles")
    read_all(source)
    before = resources()
    for _ in range(20):
        read_all(source)
    # Fewer where a thread of an earlier test was still ending; more for as long as the last of its own ones are.
    deadline = time.monotonic() + 60
    while any(now > then for now, then in zip(resources(), before, strict=True)):
        assert time.monotonic() < deadline, (before, resources())
        time.sleep(0.01)
