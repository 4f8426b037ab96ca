"""Chunk tables of far arrays: an object of the store for a file of the folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.chunks.described import document_of
from annbatch.storage.chunks.tables import ChunkTable
from annbatch.storage.chunks.zarr_table import ShardIndexes, described_table, parse_shard_index
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.manifest import Files, check_file, described_files

from .clients import objects_of
from .fetch import fetcher
from .options import FarOptions
from .ranges import Located

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

    from .cache import RangeCache
    from .fetch import Cancel, Fetcher
    from .hdf5 import FarFile
    from .stores import Objects, Stamp

__all__ = [
    "FarTable",
    "check_document",
    "check_size",
    "check_whole",
    "far_hdf5_table",
    "far_table",
    "read_shard_indexes",
]


@dataclass(slots=True, eq=False)
class FarTable(ChunkTable):
    """Where the chunks of a far array lie.

    Attributes
    ----------
    objects
        The store. Its keys are what paths are in a local table.
    options
        How it is read.
    stamps
        By number of the file: what the object was when its part of ``chunk_places`` was read.
    shards
        Takes in the indexes of shards; None: there are no shards.
    files
        What the manifest of the dataset says of the objects; None where there is none.
    document_key
        Key of the array's metadata; "" for HDF5.
    """

    objects: Objects | None = None
    options: FarOptions = field(default_factory=FarOptions)
    stamps: dict[int, Stamp] = field(default_factory=dict)
    shards: ShardIndexes | None = None
    files: Files | None = None
    document_key: str = ""

    @property
    def fetcher(self) -> Fetcher:
        """The queue that this table's bytes come through."""
        assert isinstance(self.options.max_in_flight, int)
        return fetcher(self.options.max_requests, self.options.max_in_flight)

    @property
    def cache(self) -> RangeCache | None:
        """The folder where its ranges are kept."""
        return self.options.open_cache()

    def key(self, file: int) -> str:
        """Return the key of an object."""
        prefix = self.root.decode() + self.key_prefix.decode()
        if not self.file_grid:
            return prefix
        return prefix + self.separator.decode().join(str(int(i)) for i in np.unravel_index(file, self.file_grid))

    def name_of(self, chunk: int) -> str:
        """See the base class."""
        assert self.objects is not None
        return self.objects.text(self.key(self.file_of(chunk)))

    @property
    def is_whole(self) -> bool:
        """Whether a chunk is a whole object, whose size is not known."""
        return self.chunk_places is None

    def located(self, tasks: np.ndarray) -> Located:
        """Return what the tasks (a table of TASK) need; an empty range from -1 for a chunk that is not stored.

        Where chunks are not encoded, that is only from the first to the last item that is wanted.
        """
        chunk = tasks["chunk"]
        file = self.files_of(chunk)
        if self.chunk_places is None:
            return Located(file, np.zeros(len(chunk), np.int64), np.full(len(chunk), self.chunk_bytes, np.int64))
        start, length = self.places_of(chunk)
        stop = start + length
        if not self.codecs:
            stop = np.minimum(stop, start + tasks["high"] * self.itemsize)
            start = np.minimum(stop, start + tasks["low"] * self.itemsize)
        absent = length < 0
        if absent.any():
            start, stop = np.where(absent, -1, start), np.where(absent, -1, stop)
        return Located(file, start, stop)


def far_table(array: zarr.Array[Any]) -> FarTable | None:
    """Return the chunk table of an array of any store but a local folder; None as for ``zarr_table``."""
    from .zarr_store import FarStore

    try:
        name, document = document_of(array)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    table = described_table(array, document, array.path)
    if table is None:
        return None
    store = array.store
    objects = getattr(store, "objects", None)
    options = getattr(store, "far_options", None)
    given = {field.name: getattr(table, field.name) for field in fields(ChunkTable) if field.name != "prepare"}
    far = FarTable(**given)
    # The root of a store has no path, and keys do not begin with a slash.
    far.root, far.key_prefix = (table.root + table.key_prefix).lstrip(b"/"), b""
    far.stamp = None
    far.objects = objects_of(store) if objects is None else objects
    far.options = FarOptions() if options is None else options
    far.document_key = f"{array.path}/{name}".lstrip("/")
    if isinstance(store, FarStore) and array.metadata.zarr_format == 3 and store.is_listed(array.path):
        far.files = described_files(document, far.objects.text(far.document_key))
    if isinstance(table.prepare, ShardIndexes):
        far.shards = table.prepare
        far.shards.table = far
    return far


def far_hdf5_table(table: ChunkTable, file: FarFile) -> FarTable:
    """Return the table of a dataset in a far file, given as that of a local one."""
    given = {field.name: getattr(table, field.name) for field in fields(ChunkTable)}
    far = FarTable(**{**given, "root": file.key.encode()})
    far.objects, far.options, far.stamps = file.objects, file.options, {0: file.stamp}
    return far


def read_shard_indexes(tables: Sequence[tuple[FarTable, np.ndarray]], cancel: Cancel | None = None) -> None:
    """Read the shard indexes that are not known yet, of tables and the chunks that are wanted of each, all together."""
    by_fetcher: dict[Fetcher, list[tuple[FarTable, int]]] = {}
    for table, chunks in tables:
        if table.shards is not None and len(chunks):
            files = np.unique(table.files_of(chunks))
            missing = files[~table.shards.known[files]]
            by_fetcher.setdefault(table.fetcher, []).extend((table, int(file)) for file in missing)
    for queue, wanted in by_fetcher.items():
        if wanted:
            _read_indexes(queue, list(dict.fromkeys(wanted)), cancel)


def _read_indexes(queue: Fetcher, wanted: list[tuple[FarTable, int]], cancel: Cancel | None) -> None:
    calls, names = [], []
    for table, file in wanted:
        assert table.shards is not None
        assert table.objects is not None
        read = table.objects.read_end if table.shards.at_end else table.objects.read_start
        key, n_bytes = table.key(file), table.shards.n_bytes
        calls.append(lambda read=read, key=key, n_bytes=n_bytes: read(key, n_bytes))
        names.append(f"{table.objects.text(key)}, shard index")
    absent = []
    for (table, file), name, answer in zip(wanted, names, queue.gather(calls, names, cancel), strict=True):
        shards = table.shards
        assert shards is not None
        if isinstance(answer, FileNotFoundError):
            # No shard: all its chunks have the fill value.
            check_size(table, file, -1)
            absent.append(table)
            shards.note_absent(file)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            data, stamp = answer
            check_size(table, file, stamp.size)
            index = np.frombuffer(data, np.uint8)
            if len(index) != shards.n_bytes:
                what = "is empty" if not stamp.size else f"has {stamp.size} bytes"
                msg = f"{name}: it is cut short: the index takes {shards.n_bytes} bytes, and the object {what}"
                raise CorruptDataError(msg)
            try:
                found = parse_shard_index(index, shards.per_shard, max(stamp.size, 0), has_checksum=shards.has_checksum)
            except ValueError as error:
                msg = f"{name}: {error}"
                raise CorruptDataError(msg) from None
            shards.note(file, *found)
            table.stamps[file] = stamp
        shards.known[file] = True
    for table in dict.fromkeys(absent):
        check_document(table)


def check_size(table: FarTable, file: int, found: int) -> None:
    """Raise when an object has another size in bytes (-1: there is none) than when the dataset was written."""
    if table.files is not None and table.objects is not None:
        check_file(table.objects.text(table.key(file)), (int(table.files.sizes[file]), 0), (found, 0))


def check_whole(table: FarTable, file: int, data: memoryview) -> None:
    """Raise when an object that is a chunk is not the one of the time when the dataset was written."""
    if table.files is not None and table.objects is not None:
        expected = int(table.files.sizes[file]), int(table.files.marks[file])
        mark = int.from_bytes(data[max(0, len(data) - 4) :], "little")
        check_file(table.objects.text(table.key(file)), expected, (len(data), mark))


def check_document(table: FarTable) -> None:
    """Raise when the metadata of an array that lacks an object is gone, too: then its chunks are lost, not absent."""
    if not table.document_key or table.objects is None:
        return
    objects, key = table.objects, table.document_key
    name = objects.text(key)
    (answer,) = table.fetcher.gather([lambda: objects.stat(key)], [name])
    if isinstance(answer, FileNotFoundError):
        msg = f"{name} is missing, as are objects of the array: the store was moved or removed after it was opened"
        raise CorruptDataError(msg)
    if isinstance(answer, BaseException):
        raise answer
