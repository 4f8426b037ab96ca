"""Text of local HDF5 files, read without a Python object per text.

In the array stands where each text lies: the file address of a *collection* of the global heap, and a number in it. h5py has HDF5 look up,
and allocate, each text, and makes a Python object of it: a third of a microsecond. Here collections, which hold hundreds of texts,
are read as plain bytes. The words are those of the HDF5 File Format Specification: III.E (global heap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.engine._ragged import heap_texts
from annbatch.storage.hdf5_headers import local_bytes
from annbatch.storage.text import is_utf8

from .hdf5_table import TEXT_PLACE, text_table
from .straight import read_straight

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

    from .tables import ChunkTable

__all__ = ["HeapTexts"]

_HEAD = np.dtype([("signature", "S4"), ("version", "u1"), ("reserved", "V3"), ("size", "<u8")])
_MOST_OBJECTS = 1 << 16
_ROWS_AT_ONCE = 1 << 15
# What collections of so many rows, and their texts, take at most.
_MOST_BYTES = 1 << 26
# Collections that lie no further apart are read together.
_GAP = 1 << 13


class HeapTexts:
    """The texts of a one-dimensional array of text of any length.

    Attributes
    ----------
    rows
        Rows that are read together: any.
    """

    rows = 1

    def __init__(self, dataset: h5py.Dataset, table: ChunkTable) -> None:
        self._dataset, self._table = dataset, table

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> HeapTexts | None:
        """Return the texts of a dataset; None when only HDF5 itself can read them."""
        table = text_table(dataset)
        return None if table is None else cls(dataset, table)

    def read(self, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the UTF-8 bytes of the texts of rows (uint8), and how many each has (int64).

        None when something is wrong with one of them: HDF5 shall say what.

        Parameters
        ----------
        rows
            start <= row < stop.

        Raises
        ------
        CorruptDataError
            A chunk is cut short.
        """
        references = read_straight(self._table, TEXT_PLACE, rows.start, rows.stop)
        if references is None:
            return None
        n_bytes = int(references["n_bytes"].sum(dtype=np.int64))
        file = self._dataset.file
        if n_bytes > max(_MOST_BYTES, file.id.get_filesize()):
            return None  # many rows have the same text
        peek = local_bytes(file)
        pairs = []
        for start in range(0, max(1, len(references)), _ROWS_AT_ONCE):
            pair = _texts(references[start : start + _ROWS_AT_ONCE], peek)
            if pair is None:
                return None
            pairs.append(pair)
        data, lengths = zip(*pairs, strict=True)
        return (np.concatenate(data), np.concatenate(lengths)) if len(pairs) > 1 else pairs[0]


def _texts(references: np.ndarray, peek: Callable[[int, int], bytes]) -> tuple[np.ndarray, np.ndarray] | None:
    address, n_bytes = references["address"], int(references["n_bytes"].sum(dtype=np.int64))
    if n_bytes > _MOST_BYTES:
        return None
    turns = np.flatnonzero(address[1:] != address[:-1]) + 1
    distinct = np.unique(address[np.append(0, turns)] if len(address) else address)
    distinct = distinct[distinct > 0]
    try:
        found = _collections(distinct, peek)
    except OSError:
        return None
    if found is None:
        return None
    heap, begin, end = found
    lengths, data = np.empty(len(references), np.int64), np.empty(n_bytes, np.uint8)
    place = np.full(_MOST_OBJECTS, -1, np.int64)
    n_found = heap_texts(heap, references, distinct, begin, end, place, lengths, data)
    if n_found < 0 or not is_utf8(data[:n_found], lengths):
        return None
    return data[:n_found], lengths


def _collections(
    address: np.ndarray, peek: Callable[[int, int], bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the bytes of collections (uint8), and where in these each begins and ends; None where there are others than expected.

    Parameters
    ----------
    address
        uint64, ascending, each once.
    peek
        Reads so many bytes from a place in the file.
    """
    if not len(address):
        return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
    if address[-1] > np.iinfo(np.int64).max - _MOST_BYTES:
        return None
    starts = address.astype(np.int64)
    heads = b"".join(peek(start, _HEAD.itemsize) for start in starts.tolist())
    if len(heads) < len(starts) * _HEAD.itemsize:
        return None
    head = np.frombuffer(heads, _HEAD)
    sizes = head["size"]
    are_collections = (head["signature"] == b"GCOL").all() and (head["version"] == 1).all()
    if not are_collections or sizes.max() > _MOST_BYTES:
        return None
    stops = starts + sizes.astype(np.int64)
    if (starts[1:] < stops[:-1]).any():
        return None
    firsts = np.flatnonzero(np.append(True, starts[1:] > stops[:-1] + _GAP))
    span_starts, span_stops = starts[firsts], stops[np.append(firsts[1:] - 1, len(stops) - 1)]
    lengths = span_stops - span_starts
    if lengths.sum() > _MOST_BYTES:
        return None
    heap = b"".join(peek(*span) for span in zip(span_starts.tolist(), lengths.tolist(), strict=True))
    if len(heap) < lengths.sum():
        return None
    moved = np.repeat(np.cumsum(lengths) - lengths - span_starts, np.diff(np.append(firsts, len(starts))))
    return np.frombuffer(heap, np.uint8), starts + moved, stops + moved
