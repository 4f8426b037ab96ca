"""Chunk tables of HDF5 datasets, contiguous and chunked, through h5py's chunk queries."""

from __future__ import annotations

import os
import sys
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.claims import check_chunk_count, check_chunk_size
from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import STAMP
from annbatch.storage.errors import CorruptDataError, damage_named
from annbatch.storage.far.hdf5 import far_file_of
from annbatch.storage.far.hdf5_index import fetch_chunk_indexes
from annbatch.storage.hdf5_headers import edges_are_unfiltered, layout_message, local_bytes, sizes_are_usual
from annbatch.storage.hdf5_items import TEXT_PLACE
from annbatch.storage.local_hdf5 import remembered

from .decoders import decoder
from .tables import MAX_CODECS, MAX_DIMS, ChunkTable, Codec, codec, joined_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import h5py

__all__ = [
    "FILTERS",
    "edges_are_bare",
    "filters_of",
    "has_usual_places",
    "hdf5_obstacle",
    "hdf5_table",
    "text_table",
    "unchunked_items",
]

# Of layout messages with a version of at most this, chunks are found through a B-tree that all versions of HDF5 read right.
_OLD_LAYOUT = 3
# Of those with one of these, data that lie in them begin behind four bytes: version, class 0, size.
_WITH_COMPACT = (3, 4)
# Items of a contiguous dataset that one task reads at most: enough for one read, few enough to share the work.
_CONTIGUOUS_CHUNK = 1 << 16
# Bytes of items that are looked at together.
_PEEK_BYTES = 1 << 24


def hdf5_table(dataset: h5py.Dataset, item: np.dtype | None = None) -> ChunkTable | None:
    """Return the chunk table of a dataset, or None when only HDF5 itself can read it.

    Parameters
    ----------
    dataset
        Of numbers; with `item` of anything.
    item
        What an item is in the file, with references to text; in chunks that are not stored, it is of zeros here.
    """
    obstacle = hdf5_obstacle(dataset) if item is None else _obstacle_around(dataset)
    if obstacle is not None:
        return None
    codecs = [codec for _, codec in filters_of(dataset) if codec is not None]
    file = dataset.file  # h5py makes an object each time
    is_far = file.driver == "fileobj"
    stamp = None if is_far else _stamp(file)
    if stamp is None and not is_far:
        return None
    shape, itemsize = dataset.shape, (item or dataset.dtype).itemsize
    common: dict[str, Any] = {
        "itemsize": itemsize,
        "codecs": codecs,
        "fill": bytes(itemsize) if item is not None else np.asarray(dataset.fillvalue, dataset.dtype).tobytes(),
        "root": os.fsencode(os.path.abspath(file.filename)),  # noqa: PTH100
        "stamp": stamp,
    }
    if dataset.chunks:
        grid = tuple(-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
        where = f"{file.filename} :: {dataset.name}"
        check_chunk_size(dataset, dataset.chunks, itemsize, where)
        check_chunk_count(dataset, where)
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


def text_table(dataset: h5py.Dataset) -> ChunkTable | None:
    """Return the chunk table of the places (TEXT_PLACE) at which the texts of a column lie in its file.

    None where only HDF5 can tell, or a chunk is not stored: its rows have the fill value.
    """
    import h5py

    text = h5py.check_string_dtype(dataset.dtype)
    if text is None or text.length is not None or dataset.ndim != 1 or not has_usual_places(dataset):
        return None
    table = hdf5_table(dataset, TEXT_PLACE)
    if table is None or table.places_of(np.arange(prod(table.grid)))[1].min() < 0:
        return None
    return table


def unchunked_items(dataset: h5py.Dataset, itemsize: int) -> Iterator[bytes]:
    """Yield the bytes of the items of a dataset without chunks, so many whole items at a time; nothing where only HDF5 can tell.

    Parameters
    ----------
    dataset
        With :func:`has_usual_places`.
    itemsize
        Bytes of an item in the file.
    """
    if dataset.is_virtual or dataset.external:
        return
    n_bytes, start, peek = prod(dataset.shape) * itemsize, dataset.id.get_offset(), _peek(dataset)
    if start is None:
        message = layout_message(dataset, peek) or b""
        found = message[4:] if message[1:2] == b"\0" and message[0] in _WITH_COMPACT else b""
        if len(found) >= n_bytes:
            yield found[:n_bytes]
        return
    file_bytes = dataset.file.id.get_filesize()
    step = max(1, _PEEK_BYTES // itemsize) * itemsize
    for at in range(0, min(n_bytes, file_bytes - start), step):
        found = bytes(peek(start + at, min(step, n_bytes - at, file_bytes)))
        yield found[: len(found) // itemsize * itemsize]  # where the file was cut short, HDF5 shall say so


def has_usual_places(dataset: h5py.Dataset) -> bool:
    """Whether places of texts in a dataset's items can be followed past HDF5: a local file of the usual form that cannot change."""
    file = dataset.file
    return (
        _engine.can_read_files
        and sys.byteorder == "little"
        and file.driver == "sec2"
        and file.mode == "r"
        and sizes_are_usual(local_bytes(file)(0, 64))
    )


def hdf5_obstacle(dataset: h5py.Dataset) -> str | None:
    """Say why only HDF5 itself can read a dataset; None where the bytes in the file are the items, apart from known filters."""
    import h5py

    dtype = dataset.dtype
    if dtype.kind not in "biufc" or dtype.itemsize > 16:
        return f"its values are {dtype}"
    if not dtype.isnative:
        return "its bytes are in the other order"
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True)):
        return "its items are laid out in a way of their own"
    return _obstacle_around(dataset)


def _obstacle_around(dataset: h5py.Dataset) -> str | None:
    """Say why only HDF5 itself can read a dataset whose items are no obstacle."""
    import h5py

    if not _engine.can_read_files:
        return "files cannot be read so on this system"
    if not dataset.shape or 0 in dataset.shape:
        return "there is nothing in it"
    if len(dataset.shape) > MAX_DIMS:
        return f"it has more than {MAX_DIMS} dimensions"
    file = dataset.file
    # An open file that may still be written can hold data that are not yet on disk.
    if file.mode != "r":
        return "the file is open for writing"
    if not (file.driver == "sec2" or far_file_of(file) is not None):
        return f"the file is open by the driver {file.driver!r}"
    if file.userblock_size:
        return "the file has a user block"
    if dataset.is_virtual or dataset.external:
        return "it lies in other files"
    if not dataset.chunks and dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        return "it lies among the metadata (compact layout)"
    if _places_are_mixed_up(dataset):
        return "HDF5 tells wrong places of its chunks, as a single axis may grow and it is not the first"
    filters = filters_of(dataset)
    unknown = [name for name, found in filters if found is None]
    if unknown:
        return f"of the filter {', '.join(unknown)}"
    return f"it has more than {MAX_CODECS} filters" if len(filters) > MAX_CODECS else None


def _places_are_mixed_up(dataset: h5py.Dataset) -> bool:
    """Whether HDF5, asked where chunks are, may name other chunks, though it reads them right.

    Seen of HDF5 2.0: an index for a single axis that may grow (extensible array) numbers chunks with that axis first, and the numbers are
    taken apart as if it stood where it stands.
    """
    if not dataset.chunks or len(dataset.shape) == 1:
        return False
    growing = [axis for axis, n in enumerate(dataset.maxshape) if n is None]
    if len(growing) != 1 or growing == [0]:
        return False
    try:
        message = layout_message(dataset, _peek(dataset))
    except OSError:
        return True
    return not message or message[0] > _OLD_LAYOUT


def _peek(dataset: h5py.Dataset) -> Callable[[int, int], bytes | bytearray]:
    """Return what reads bytes of a dataset's file."""
    file = dataset.file
    far = far_file_of(file)
    return local_bytes(file) if far is None else far.peek


@remembered
def _stamp(file: h5py.File) -> np.ndarray | None:
    """Return size, time and inode of the file that HDF5 has open; None when its path now leads to another one."""
    try:
        opened = os.fstat(file.id.get_vfd_handle())
        named = os.stat(file.filename)  # noqa: PTH116
    except OSError:
        return None
    if (opened.st_ino, opened.st_dev) != (named.st_ino, named.st_dev):
        return None
    return np.array([(opened.st_size, opened.st_mtime_ns, opened.st_ino)], STAMP)


def edges_are_bare(dataset: h5py.Dataset) -> bool | None:
    """Whether a dataset has filters, and chunks that reach beyond its end are stored without them; None where it cannot be told."""
    if not dataset.chunks or not filters_of(dataset):
        return False
    if all(n % c == 0 for n, c in zip(dataset.shape, dataset.chunks, strict=True)):
        return False
    try:
        return edges_are_unfiltered(dataset, _peek(dataset))
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
        if any(i >= n for i, n in zip(at, grid, strict=True)):
            msg = f"{dataset.file.filename} :: {dataset.name}: a chunk at {info.chunk_offset} lies outside the dataset of shape {dataset.shape}"
            raise CorruptDataError(msg)
        offset[at], length[at], mask[at] = info.byte_offset, info.size, info.filter_mask

    fetch_chunk_indexes([dataset])
    with damage_named(f"{dataset.file.filename} :: {dataset.name}"):
        if hasattr(dataset.id, "chunk_iter"):
            dataset.id.chunk_iter(note)
        else:
            for i in range(dataset.id.get_num_chunks()):
                note(dataset.id.get_chunk_info(i))
    return offset, length, mask


@remembered
def filters_of(dataset: h5py.Dataset) -> list[tuple[str, Codec | None]]:
    """Return the name of each filter and the engine's codec for it, or None where there is none, in the order of encoding."""
    settings = dataset.id.get_create_plist()
    filters: list[tuple[str, Codec | None]] = []
    for i in range(settings.get_nfilters()):
        number, _, values, said = settings.get_filter(i)
        known = FILTERS.get(number)
        name = _NAMES.get(number) or known or said.decode(errors="replace").partition(";")[0] or f"number {number}"
        found = (
            None if known is None else codec(known, values[0] if known == "shuffle" and values else 0, decoder(known))
        )
        filters.append((name, found))
    return filters


# Registered HDF5 filter numbers.
FILTERS = {
    1: "zlib",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4_hdf5",
    32015: "zstd",
}
# What people call them, where it is something else.
_NAMES = {1: "gzip", 6: "scaleoffset", 32004: "lz4", 32008: "bitshuffle"}
