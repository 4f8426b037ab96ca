"""What chunks of an HDF5 dataset would take, looked at before HDF5 itself reads them.

HDF5 takes the memory that a filter asks for: a chunk of gzip that unpacks to gigabytes takes gigabytes, whatever the dataset says. So
does text, of which every row may point to the same long one; text that is damaged it may read for ever.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from annbatch.storage.claims import check_chunk_count, check_chunk_size
from annbatch.storage.engine import _engine
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.far.hdf5 import far_file_of
from annbatch.storage.hdf5_heap import TEXT_PLACE, LocalHeap, places_in_use

from .decoders import decoder, with_room
from .hdf5_table import FILTERS, text_table, unchunked_places
from .straight import read_straight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tables import ChunkTable

__all__ = ["check_chunks"]

# What a chunk may unpack to without a look, and what a stored byte becomes at most. (Of other codecs: any number.)
_HARMLESS_BYTES = 64 * 2**20
_MOST_PER_BYTE = {"zlib": 1032, "lzf": 132, "lz4_hdf5": 255}
# Filters whose result is as large as what they were given, but for a checksum.
_SAME_SIZE = {"shuffle", "fletcher32"}
# Rows of text that are looked at together.
_ROWS_AT_ONCE = 1 << 20


def check_chunks(dataset: h5py.Dataset) -> None:
    """Refuse a dataset that would take far more memory than is right; of far files only by what it claims.

    Raises
    ------
    CorruptDataError
        A chunk claims to be far larger than the dataset, or unpacks to more than a chunk is, there is more text than file, or text that is damaged.
    """
    if dataset.shape is None or 0 in dataset.shape:
        return
    file = dataset.file
    where, itemsize = f"{file.filename} :: {dataset.name}", _itemsize(dataset)
    is_local = far_file_of(file) is None
    if dataset.chunks and itemsize is not None:
        check_chunk_size(dataset, dataset.chunks, itemsize, where)
        check_chunk_count(dataset, where)
        if is_local:
            _check_unpacked(dataset, prod(dataset.chunks) * itemsize, where)
    places = text_table(dataset) if is_local else None
    if places is not None:
        _check_text(dataset, places, where)
        return
    texts = unchunked_places(dataset) if is_local else None
    if texts is not None:
        _check_claim(dataset, int(texts["n_bytes"].sum(dtype=np.int64)), where)
        LocalHeap(file, where).check(places_in_use(texts))


def _itemsize(dataset: h5py.Dataset) -> int | None:
    """Bytes of an item in the file; None where they are unknown here."""
    if not dataset.dtype.hasobject:
        size: int = dataset.id.get_type().get_size()
        return size
    return TEXT_PLACE.itemsize if h5py.check_string_dtype(dataset.dtype) is not None else None


def _check_unpacked(dataset: h5py.Dataset, chunk_bytes: int, where: str) -> None:
    """Unpack those chunks on trial that could become far more than they should."""
    settings = dataset.id.get_create_plist()
    names = [FILTERS.get(settings.get_filter(i)[0]) for i in range(settings.get_nfilters())]
    if not set(names) - _SAME_SIZE:
        return
    most, limit = dataset.file.id.get_filesize(), with_room(chunk_bytes)
    suspects: list[tuple[Any, int, list[str]]] = []

    def note(info: Any) -> None:
        used = []  # in the order in which they are undone, as far as they are known here
        for i in reversed(range(len(names))):
            name = names[i]
            if name is None:
                break
            if not info.filter_mask >> i & 1:
                used.append(name)
        factors = [_MOST_PER_BYTE.get(name, 2**32) for name in used if name not in _SAME_SIZE]
        if info.size > limit or info.size * prod(factors) > _HARMLESS_BYTES + limit:
            suspects.append((info.chunk_offset, info.size, used))

    dataset.id.chunk_iter(note)
    for at, n_stored, used in suspects:
        if n_stored > min(most, limit):
            msg = f"{where}, chunk at {at}: {n_stored} bytes are stored of {chunk_bytes}: the file is damaged"
            raise CorruptDataError(msg)
        raw: Any = dataset.id.read_direct_chunk(at)[1]
        for name in used:
            try:
                raw = _unpacked(name, raw, limit)
            except ValueError as error:
                msg = f"{where}, chunk at {at}: {error}"
                raise CorruptDataError(msg) from error


def _unpacked(name: str, raw: Any, limit: int) -> Any:
    """Undo one filter, as far as sizes are concerned."""
    if name == "shuffle":
        return raw
    if name == "fletcher32":
        return raw[:-4]
    decode = decoder(name)
    found = _engine.decode(name, raw, limit) if decode is None else decode(raw, limit)
    if found is None:
        msg = f"a chunk does not decode to at most {limit} bytes"
        raise ValueError(msg)
    return found


def _check_text(dataset: h5py.Dataset, places: ChunkTable, where: str) -> None:
    """Refuse text that HDF5 would not come to the end of, or of more bytes than the file has: of a usual file, every text lies in it once."""
    n_rows, n_bytes = dataset.shape[0], 0
    used = [np.empty(0, np.uint64)]
    at_once = -(-_ROWS_AT_ONCE // places.chunk_shape[0]) * places.chunk_shape[0]
    for start in range(0, n_rows, at_once):
        found = read_straight(places, TEXT_PLACE, start, min(start + at_once, n_rows))
        for piece in _whole_chunks(places, start, min(start + at_once, n_rows)) if found is None else [found]:
            n_bytes += int(piece["n_bytes"].sum(dtype=np.int64))
            used.append(places_in_use(piece))
        _check_claim(dataset, n_bytes, where)
    LocalHeap(dataset.file, where).check(np.unique(np.concatenate(used)))


def _check_claim(dataset: h5py.Dataset, n_bytes: int, where: str) -> None:
    size = dataset.file.id.get_filesize()
    if n_bytes > max(_HARMLESS_BYTES, size):
        msg = f"{where}: its text claims {n_bytes} bytes or more, in a file of {size}: the file is damaged"
        raise CorruptDataError(msg)


def _whole_chunks(places: ChunkTable, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield what the chunks hold that can be read: of the others HDF5 shall say what is wrong."""
    (rows,) = places.chunk_shape
    for first in range(start, stop, rows):
        found = read_straight(places, TEXT_PLACE, first, min(first + rows, stop))
        if found is not None:
            yield found
