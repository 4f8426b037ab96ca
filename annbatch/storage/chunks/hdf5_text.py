"""Text of local HDF5 files, read without a Python object per text.

In the array stands where each text lies: the file address of a *collection* of the global heap, and a number in it. h5py has HDF5 look up,
and allocate, each text, and makes a Python object of it: a third of a microsecond. Here collections, which hold hundreds of texts,
are read as plain bytes. The words are those of the HDF5 File Format Specification: III.E (global heap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.engine._ragged import heap_texts
from annbatch.storage.hdf5_heap import MOST_BYTES, LocalHeap, places_in_use
from annbatch.storage.hdf5_items import TEXT_PLACE
from annbatch.storage.text import is_utf8

from .hdf5_table import text_table
from .straight import read_straight

if TYPE_CHECKING:
    import h5py

    from .tables import ChunkTable

__all__ = ["HeapTexts"]

_MOST_OBJECTS = 1 << 16
_ROWS_AT_ONCE = 1 << 15


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

        None when HDF5 has to read them: they are no UTF-8, or take much memory; or a chunk is damaged, HDF5 shall say how.

        Parameters
        ----------
        rows
            start <= row < stop.

        Raises
        ------
        CorruptDataError
            A text is not where it should be; HDF5 might look for it for ever. Or a chunk is cut short.
        """
        references = read_straight(self._table, TEXT_PLACE, rows.start, rows.stop)
        if references is None:
            return None
        n_bytes = int(references["n_bytes"].sum(dtype=np.int64))
        file = self._dataset.file
        if n_bytes > max(MOST_BYTES, file.id.get_filesize()):
            return None  # many rows have the same text
        heap = LocalHeap(file, f"{file.filename} :: {self._dataset.name.strip('/')}")
        pairs = []
        for start in range(0, max(1, len(references)), _ROWS_AT_ONCE):
            pair = _texts(references[start : start + _ROWS_AT_ONCE], heap, rows.start + start)
            if pair is None:
                return None
            pairs.append(pair)
        data, lengths = zip(*pairs, strict=True)
        return (np.concatenate(data), np.concatenate(lengths)) if len(pairs) > 1 else pairs[0]


def _texts(references: np.ndarray, heap: LocalHeap, first_row: int) -> tuple[np.ndarray, np.ndarray] | None:
    n_bytes = int(references["n_bytes"].sum(dtype=np.int64))
    if n_bytes > MOST_BYTES:
        return None
    addresses = places_in_use(references)
    found = heap.collections(addresses)
    if found.n_bytes > MOST_BYTES:
        return None
    data, begin, end = heap.read(found)
    lengths, texts = np.empty(len(references), np.int64), np.empty(n_bytes, np.uint8)
    place = np.full(_MOST_OBJECTS, -1, np.int64)
    n_found = heap_texts(data, references, addresses, begin, end, place, lengths, texts)
    if n_found < 0:
        heap.check_places(references, first_row=first_row)
        return None  # the same ones are looked for again and again
    return (texts[:n_found], lengths) if is_utf8(texts[:n_found], lengths) else None
