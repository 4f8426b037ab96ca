"""Reading a whole array only to see whether it can be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from annbatch.storage.chunks.arrays import StoredArray, stored_array
from annbatch.storage.chunks.bounded import readable
from annbatch.storage.claims import check_chunk_count, check_files
from annbatch.storage.engine import _rows
from annbatch.storage.errors import CorruptDataError, damage_named

from .jobs import Job
from .run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Damaged", "prove"]

# Decoded bytes that are in memory at a time.
_WINDOW_BYTES = 1 << 25


class Damaged(NamedTuple):
    """A chunk (numbered in C order of the chunk grid; None: the whole array) that cannot be read, and why."""

    chunk: int | None
    error: Exception


def prove(elem: Any, n_columns: int | None, num_threads: int) -> Iterator[tuple[int, list[Damaged]]]:
    """Read all chunks of a stored array once.

    Parameters
    ----------
    elem
        A Zarr array or HDF5 dataset, of any type.
    n_columns
        Not None: the items are column numbers, which must be less than this.
    num_threads
        Most threads to decode with.

    Yields
    ------
    Decoded bytes that were read since the last time, and the chunks among them that are damaged. Errors of reading that are
    no damage (a disk that fails) count as such here: what cannot be read is what the caller wants to know.
    """
    if elem.shape is None:  # a null of HDF5
        return
    where = str(getattr(elem, "store_path", None) or f"{elem.file.filename} :: {elem.name}")
    try:
        check_chunk_count(elem, where)
        array = _numbers(elem)
        chunk_bytes = 0 if array is None else prod(array.chunk_shape) * array.dtype.itemsize
        is_direct = array is not None and array.is_direct
        if not is_direct and not hasattr(elem, "file"):
            check_files(elem)
    except (CorruptDataError, OSError) as error:
        yield 0, [Damaged(None, error)]
        return
    if array is None or not is_direct:
        yield from _prove_by_library(elem, where, num_threads)
        return
    table = array.table
    assert table is not None
    n_chunks, at_once = prod(table.grid), max(1, _WINDOW_BYTES // max(1, chunk_bytes))
    # Column numbers are renumbered on their way, to one of two types.
    target = array.dtype if n_columns is None else np.dtype(np.int64 if array.dtype.itemsize == 8 else np.int32)
    room = np.empty(min(n_chunks, at_once) * prod(array.chunk_shape), target)
    for first in range(0, n_chunks, at_once):
        stop = min(first + at_once, n_chunks)
        damaged = []
        if _read(array, first, stop, room, n_columns, num_threads) is not None:
            each = [(chunk, _read(array, chunk, chunk + 1, room, n_columns, 1)) for chunk in range(first, stop)]
            damaged = [Damaged(chunk, error) for chunk, error in each if error is not None]
        yield (stop - first) * chunk_bytes, damaged


def _numbers(elem: Any) -> StoredArray | None:
    """The array for the engine, if it holds numbers."""
    return stored_array(elem) if getattr(elem.dtype, "kind", "O") in "biufc" and elem.shape else None


def _read(
    array: StoredArray, first: int, stop: int, room: np.ndarray, n_columns: int | None, num_threads: int
) -> Exception | None:
    """Decode the chunks first <= chunk < stop to ``room``; return what went wrong."""
    size = prod(array.chunk_shape)
    edges = np.arange(first, stop + 1, dtype=np.int64) * size
    if array.chunk_shape[1:] == array.shape[1:]:
        # What lies in the last chunk beyond the end of the array is nothing.
        np.minimum(edges, prod(array.shape), out=edges)
    rows = np.arange(stop - first, dtype=np.int64)
    address = room.__array_interface__["data"][0] + rows * (size * room.itemsize)
    plan = _rows.plan_ranges(rows, edges[:-1], np.diff(edges), address, room.itemsize, size)
    try:
        run([Job(array, plan, size, room.dtype, n_columns)], num_threads)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return error
    return None


def _prove_by_library(elem: Any, where: str, num_threads: int) -> Iterator[tuple[int, list[Damaged]]]:
    """Let zarr-python or h5py read it, a row of chunks at a time."""
    is_hdf5 = hasattr(elem, "file")
    itemsize = getattr(elem.dtype, "itemsize", 8)
    try:
        with damage_named(where):
            elem = readable(elem)
    except (CorruptDataError, OSError, MemoryError) as error:
        yield 0, [Damaged(None, error)]
        return

    def read(chunk: int, start: int, stop: int) -> tuple[int, list[Damaged]]:
        try:
            with damage_named(where):
                values = np.asarray(elem[start:stop] if elem.shape else elem[()])
                if is_hdf5 and values.dtype == object:
                    for value in values.reshape(-1):
                        if isinstance(value, bytes):
                            value.decode()
        except (CorruptDataError, OSError, MemoryError) as error:
            return 0, [Damaged(chunk, error)]
        return values.size * itemsize, []

    if not elem.shape:
        yield read(0, 0, 1)
        return
    rows = (getattr(elem, "chunks", None) or (max(1, _WINDOW_BYTES // max(1, prod(elem.shape[1:]) * itemsize)),))[0]
    per_row = prod(-(-n // c) for n, c in zip(elem.shape[1:], elem.chunks[1:], strict=True)) if elem.chunks else 1
    pieces = [(i // rows * per_row, i, min(i + rows, elem.shape[0])) for i in range(0, elem.shape[0], rows)]
    if is_hdf5 or len(pieces) == 1:
        for piece in pieces:
            yield read(*piece)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="annbatch-verify") as threads:
        yield from threads.map(lambda piece: read(*piece), pieces)
