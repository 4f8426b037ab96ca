"""Chunk tables of HDF5 datasets, contiguous and chunked, through h5py's chunk queries."""

from __future__ import annotations

import os
import struct
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.claims import check_chunk_count
from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import STAMP
from annbatch.storage.far.hdf5 import far_file_of
from annbatch.storage.far.hdf5_index import fetch_chunk_indexes
from annbatch.storage.hdf5_headers import edges_are_unfiltered, local_bytes

from .tables import MAX_CODECS, MAX_DIMS, ChunkTable, Codec, codec, joined_places

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

__all__ = ["edges_are_bare", "hdf5_table"]

# Items of a contiguous dataset that one task reads at most: enough for one read, few enough to share the work.
_CONTIGUOUS_CHUNK = 1 << 16


def hdf5_table(dataset: h5py.Dataset) -> ChunkTable | None:
    """Return the chunk table of a dataset, or None when only HDF5 itself can read it."""
    if not _is_plain(dataset):
        return None
    codecs = _codecs(dataset)
    if codecs is None:
        return None
    is_far = dataset.file.driver == "fileobj"
    stamp = None if is_far else _stamp(dataset)
    if stamp is None and not is_far:
        return None
    shape, itemsize = dataset.shape, dataset.dtype.itemsize
    common: dict[str, Any] = {
        "itemsize": itemsize,
        "codecs": codecs,
        "fill": np.asarray(dataset.fillvalue, dataset.dtype).tobytes(),
        "root": os.fsencode(os.path.abspath(dataset.file.filename)),  # noqa: PTH100
        "stamp": stamp,
    }
    if dataset.chunks:
        grid = tuple(-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
        check_chunk_count(dataset, f"{dataset.file.filename} :: {dataset.name}")
        are_bare = edges_are_bare(dataset)
        if are_bare is None:
            return None
        offset, length, mask = _chunk_places(dataset, grid)
        if are_bare:
            mask[_beyond_the_end(dataset, grid)] = (1 << len(codecs)) - 1
        return ChunkTable(
            dataset.chunks,
            grid,
            chunk_places=joined_places(offset.reshape(-1), length.reshape(-1)),
            mask=mask.reshape(-1) if mask.any() else None,
            **common,
        )
    start = dataset.id.get_offset()
    if start is None:
        return None
    # Contiguous: cut into chunks of whole rows that the file knows nothing of.
    row_size = prod(shape[1:])
    rows = max(1, _CONTIGUOUS_CHUNK // row_size)
    n_chunks = -(-shape[0] // rows)
    offset = start + np.arange(n_chunks, dtype=np.int64) * (rows * row_size * itemsize)
    length = np.minimum(start + prod(shape) * itemsize - offset, rows * row_size * itemsize)
    grid = (n_chunks,) + (1,) * (len(shape) - 1)
    return ChunkTable((rows, *shape[1:]), grid, chunk_places=joined_places(offset, length), **common)


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes in the file are the items, apart from the filters."""
    import h5py

    dtype = dataset.dtype
    if dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 16 or not _engine.can_read_files:
        return False
    if not dataset.shape or 0 in dataset.shape or len(dataset.shape) > MAX_DIMS:
        return False
    file = dataset.file
    # An open file that may still be written can hold data that are not yet on disk.
    is_file = file.driver == "sec2" or far_file_of(file) is not None
    if file.mode != "r" or not is_file or file.userblock_size:
        return False
    if dataset.is_virtual or dataset.external:
        return False
    if dataset.id.get_create_plist().get_layout() not in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS):
        return False
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True)))


def _stamp(dataset: h5py.Dataset) -> np.ndarray | None:
    """Return size, time and inode of the file that HDF5 has open; None when its path now leads to another one."""
    try:
        opened = os.fstat(dataset.file.id.get_vfd_handle())
        named = os.stat(dataset.file.filename)  # noqa: PTH116
    except OSError:
        return None
    if (opened.st_ino, opened.st_dev) != (named.st_ino, named.st_dev):
        return None
    return np.array([(opened.st_size, opened.st_mtime_ns, opened.st_ino)], STAMP)


def edges_are_bare(dataset: h5py.Dataset) -> bool | None:
    """Whether a dataset has filters, and chunks that reach beyond its end are stored without them; None where it cannot be told."""
    if not dataset.chunks or not dataset.id.get_create_plist().get_nfilters():
        return False
    if all(n % c == 0 for n, c in zip(dataset.shape, dataset.chunks, strict=True)):
        return False
    file = far_file_of(dataset.file)
    try:
        return edges_are_unfiltered(dataset, local_bytes(dataset.file) if file is None else file.peek)
    except OSError:
        return None  # HDF5 shall read it or say what is wrong


def _beyond_the_end(dataset: h5py.Dataset, grid: tuple[int, ...]) -> np.ndarray:
    """Whether each chunk reaches beyond the end of the dataset."""
    beyond = np.zeros(grid, dtype=bool)
    for axis, (n, c) in enumerate(zip(dataset.shape, dataset.chunks, strict=True)):
        if n % c:
            beyond[(slice(None),) * axis + (-1,)] = True
    return beyond


def _chunk_places(dataset: h5py.Dataset, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chunks = dataset.chunks
    offset, length = np.zeros(grid, np.int64), np.full(grid, -1, np.int64)
    mask = np.zeros(grid, np.uint32)

    def note(info: Any) -> None:
        at = tuple(start // c for start, c in zip(info.chunk_offset, chunks, strict=True))
        offset[at], length[at], mask[at] = info.byte_offset, info.size, info.filter_mask

    fetch_chunk_indexes([dataset])
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(note)
    else:
        for i in range(dataset.id.get_num_chunks()):
            note(dataset.id.get_chunk_info(i))
    return offset, length, mask


def _codecs(dataset: h5py.Dataset) -> list[Codec] | None:
    """Return the engine's codecs for the filters, or None when one is not known."""
    settings = dataset.id.get_create_plist()
    codecs = []
    for i in range(settings.get_nfilters()):
        number, _, values, _ = settings.get_filter(i)
        name, decoder = _FILTERS.get(number, (None, None))
        found = None if name is None else codec(name, values[0] if name == "shuffle" and values else 0, decoder)
        if found is None:
            return None
        codecs.append(found)
    return codecs if len(codecs) <= MAX_CODECS else None


def _by_numcodecs(name: str) -> Callable[[Any], Any]:
    def decode(chunk: Any) -> Any:
        import numcodecs

        return numcodecs.get_codec({"id": name}).decode(chunk)

    return decode


def _lz4_by_numcodecs(chunk: Any) -> bytes:
    """Decode HDF5's framing of LZ4 blocks: sizes are big-endian."""
    import numcodecs

    chunk = bytes(chunk)
    total, block = struct.unpack_from(">QI", chunk)
    at, done, parts = 12, 0, []
    while done < total:
        wanted = min(block, total - done)
        (size,) = struct.unpack_from(">I", chunk, at)
        stored = chunk[at + 4 : at + 4 + size]
        parts.append(stored if size == wanted else numcodecs.LZ4().decode(struct.pack("<I", wanted) + stored))
        at += 4 + size
        done += wanted
    return b"".join(parts)


# Registered HDF5 filter numbers.
_FILTERS: dict[int, tuple[str, Callable[[Any], Any] | None]] = {
    1: ("zlib", _by_numcodecs("zlib")),
    2: ("shuffle", None),
    3: ("fletcher32", None),
    32000: ("lzf", None),
    32001: ("blosc", _by_numcodecs("blosc")),
    32004: ("lz4_hdf5", _lz4_by_numcodecs),
    32015: ("zstd", _by_numcodecs("zstd")),
}
