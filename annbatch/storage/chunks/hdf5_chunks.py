"""What chunks of an HDF5 dataset would take, looked at before HDF5 itself reads them.

HDF5 takes the memory that a filter asks for: a chunk of gzip that unpacks to gigabytes takes gigabytes, whatever the dataset says. So
does text, of which every row may point to the same long one; text that is damaged it may read for ever.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from annbatch.storage.claims import check_chunk_count, check_chunk_size
from annbatch.storage.engine import _engine
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.far.hdf5 import far_file_of
from annbatch.storage.hdf5_headers import header_address, local_bytes
from annbatch.storage.hdf5_heap import LocalHeap, places_in_use
from annbatch.storage.hdf5_items import TEXT_PLACE, stored_items
from annbatch.storage.local_hdf5 import remembered

from .decoders import decoder, with_room
from .hdf5_table import FILTERS, has_usual_places, hdf5_table, unchunked_items
from .straight import read_straight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annbatch.storage.hdf5_items import ItemPlaces

    from .tables import ChunkTable

__all__ = ["check_chunks", "text_places"]

# What a chunk may unpack to without a look, and what a stored byte becomes at most. (Of other codecs: any number.)
_HARMLESS_BYTES = 64 * 2**20
_MOST_PER_BYTE = {"zlib": 1032, "lzf": 132, "lz4_hdf5": 255}
# Filters whose result is as large as what they were given, but for a checksum.
_SAME_SIZE = {"shuffle", "fletcher32"}
# Bytes of items with texts that are looked at together.
_BYTES_AT_ONCE = 1 << 24


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
    where, is_local = f"{file.filename} :: {dataset.name}", far_file_of(file) is None
    item, _ = _items_of(dataset) if is_local and dataset.dtype.hasobject else (None, b"")
    itemsize = _itemsize(dataset) if item is None else item.item_bytes
    if dataset.chunks and itemsize is not None:
        check_chunk_size(dataset, dataset.chunks, itemsize, where)
        check_chunk_count(dataset, where)
        if is_local:
            _check_unpacked(dataset, prod(dataset.chunks) * itemsize, where)
    if item is not None and len(item.offsets):
        _check_texts(dataset)


@remembered
def _items_of(dataset: h5py.Dataset) -> tuple[ItemPlaces | None, bytes]:
    """Return where texts are noted in the items of a dataset, and its fill value; None where only HDF5 can tell."""
    if not has_usual_places(dataset):
        return None, b""
    return stored_items(local_bytes(dataset.file), header_address(h5py.h5g.get_objinfo(dataset.id, b".")))


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


@remembered  # each column of a compound array is read by itself
def _check_texts(dataset: h5py.Dataset) -> None:
    """Refuse texts that HDF5 would not come to the end of, or of more bytes than the file has: of a usual file, every text lies in it once."""
    where = f"{dataset.file.filename} :: {dataset.name}"
    item, fill = _items_of(dataset)
    assert item is not None
    n_bytes, used = 0, [np.empty(0, np.uint64)]
    if len(fill) == item.item_bytes:
        used.append(places_in_use(item.places(fill).reshape(-1)))
    for places in text_places(dataset, item):
        n_bytes += int((places["n_bytes"] * item.units.astype(np.float64)).sum())
        used.append(places_in_use(places.reshape(-1)))
        _check_claim(dataset, n_bytes, where)
    LocalHeap(dataset.file, where).check(np.unique(np.concatenate(used)))


def text_places(dataset: h5py.Dataset, item: ItemPlaces) -> Iterator[np.ndarray]:
    """Yield the places of the texts in a dataset of a local file of the usual form: for some items at a time, one row for each.

    Nothing of chunks that were never written, and nothing of what only HDF5 can read.

    Parameters
    ----------
    dataset
        Of a file that cannot change.
    item
        Where they lie in each item.
    """
    stored = _chunk_items(dataset, item.item_bytes) if dataset.chunks else unchunked_items(dataset, item.item_bytes)
    return map(item.places, stored)


def _chunk_items(dataset: h5py.Dataset, itemsize: int) -> Iterator[np.ndarray]:
    """Yield the items (of so many bytes) of the chunks that are stored and can be read: of the others HDF5 shall say what is wrong."""
    item = np.dtype((np.void, itemsize))
    table = hdf5_table(dataset, item)
    if table is None:
        return
    n_items, n_chunks = prod(table.chunk_shape), prod(table.grid)
    # The items of a chunk lie behind each other.
    flat = replace(table, chunk_shape=(n_items,), grid=(n_chunks,))
    stored = np.flatnonzero(table.places_of(np.arange(n_chunks))[1] >= 0)
    for run in np.split(stored, np.flatnonzero(np.diff(stored) > 1) + 1):
        for chunks in np.split(run, range(_at_once(table), len(run), _at_once(table))):
            found = read_straight(flat, item, chunks[0] * n_items, (chunks[-1] + 1) * n_items) if len(chunks) else None
            if found is not None:
                yield _inside(found, chunks, table, dataset.shape)
                continue
            for chunk in chunks:
                found = read_straight(flat, item, chunk * n_items, (chunk + 1) * n_items)
                if found is not None:
                    yield _inside(found, chunk[None], table, dataset.shape)


def _at_once(table: ChunkTable) -> int:
    """Chunks that are looked at together."""
    return max(1, _BYTES_AT_ONCE // table.chunk_bytes)


def _inside(items: np.ndarray, chunks: np.ndarray, table: ChunkTable, shape: tuple[int, ...]) -> np.ndarray:
    """Return those items of chunks that are none beyond the end of the array."""
    is_inside = np.ones((len(chunks), *table.chunk_shape), bool)
    for axis, at in enumerate(np.unravel_index(chunks, table.grid)):
        n = table.chunk_shape[axis]
        along = at[:, None] * n + np.arange(n) < shape[axis]
        is_inside &= along.reshape(len(chunks), *(n if i == axis else 1 for i in range(len(shape))))
    return items if is_inside.all() else items[is_inside.reshape(-1)]


def _check_claim(dataset: h5py.Dataset, n_bytes: int, where: str) -> None:
    size = dataset.file.id.get_filesize()
    if n_bytes > max(_HARMLESS_BYTES, size):
        msg = f"{where}: its text claims {n_bytes} bytes or more, in a file of {size}: the file is damaged"
        raise CorruptDataError(msg)
