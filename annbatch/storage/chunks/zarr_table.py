"""Chunk tables of Zarr arrays in local folders: format 2, format 3, format 3 with shards."""

from __future__ import annotations

import os
import stat
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.claims import check_chunk_size, check_keys, stored_bytes
from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import STAMP
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.local_zarr import is_version_3, location_of
from annbatch.storage.manifest import (
    MARK_BYTES,
    Files,
    check_array,
    check_file,
    files_of,
    first_file_key,
    parsed_document,
)

from .decoders import decoder
from .tables import MAX_CODECS, MAX_DIMS, ChunkTable, Codec, codec

if TYPE_CHECKING:
    import zarr

__all__ = ["ShardIndexes", "described_table", "parse_shard_index", "zarr_obstacle", "zarr_steps", "zarr_table"]

# Of so many, tables are made unseen.
_MANY_CHUNKS = 1 << 22
# Shards that hold so many bytes before they are encoded may need more than 32 bits for places.
_LARGE_SHARD = 2**32 - 2**29


def zarr_table(array: zarr.Array[Any]) -> ChunkTable | None:
    """Return the chunk table of an array, or None when it is stored in a way that only zarr-python can read.

    Looks at the metadata document, which the format defines, and not at zarr-python's classes.
    """
    from zarr.storage import LocalStore

    if not isinstance(array.store, LocalStore) or not _engine.can_read_files:
        return None
    folder = f"{array.store.root}/{array.path}" if array.path else str(array.store.root)
    files = files_of(folder) if is_version_3(array) else None
    name = "zarr.json" if is_version_3(array) else ".zarray"
    try:
        document = parsed_document(f"{folder}/{name}")
    except (OSError, ValueError):
        return None
    table = described_table(array, document, folder)
    if table is not None:
        if files is None:  # else the manifest says that the document is what it was
            first_key = (
                first_file_key(document) if is_version_3(array) else array.metadata.encode_chunk_key((0,) * array.ndim)
            )
            check_keys(folder, first_key)
        if isinstance(table.prepare, ShardIndexes):
            table.prepare.files = files
        elif files is not None:
            check_array(array)  # small: what is read by many rows has shards
        table.document = os.fsencode(f"{folder}/{name}")
    return table


def described_table(array: zarr.Array[Any], document: Any, folder: str) -> ChunkTable | None:
    """Return the table of an array whose metadata document and folder these are; None as :func:`zarr_table`."""
    dtype = np.dtype(array.dtype)
    plain = dtype.kind in "biufc" and dtype.isnative and dtype.itemsize <= 16
    if not plain or not 1 <= array.ndim <= MAX_DIMS or 0 in array.shape:
        return None
    try:
        if tuple(document["shape"]) != array.shape:
            return None
        make = _version_3 if is_version_3(array) else _version_2
        table = make(document, folder, dtype)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not what the format says: zarr-python shall read it or say what is wrong.
        return None
    if table is not None:
        check_chunk_size(array, table.chunk_shape, table.itemsize, location_of(array))
        fill = array.fill_value
        table.fill = np.asarray(0 if fill is None else fill, dtype).tobytes()
    return table


def zarr_steps(document: Any) -> list[tuple[str, Any]]:
    """Return names and settings of an array's codecs, in the order of encoding; of a sharded one those of its chunks."""
    if document["zarr_format"] == 2:
        return [(step["id"], step) for step in (*(document["filters"] or []), document["compressor"]) if step]
    named = document["codecs"]
    if [step["name"] for step in named] == ["sharding_indexed"]:
        named = named[0]["configuration"]["codecs"]
    return [(step["name"].removeprefix("numcodecs."), step.get("configuration", {})) for step in named]


def zarr_obstacle(document: Any, array: zarr.Array[Any]) -> str:
    """Say why :func:`described_table` has no table."""
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "biufc" or dtype.itemsize > 16:
        return f"its values are {dtype}"
    if not dtype.isnative:
        return "its bytes are in the other order"
    if 0 in array.shape:
        return "there is nothing in it"
    if not is_version_3(array) and document["order"] != "C" and array.ndim > 1:
        return "it lies in Fortran order"
    steps = zarr_steps(document)
    if any(name == "bytes" and step.get("endian", "little") != "little" for name, step in steps):
        return "its bytes are in the other order"
    unknown = [name for name, step in steps if name != "bytes" and _codecs([(name, step)], dtype.itemsize) is None]
    return f"of the codec {', '.join(unknown)}" if unknown else "its chunks lie in a way of their own"


def _version_2(document: dict[str, Any], folder: str, dtype: np.dtype) -> ChunkTable | None:
    shape, chunk_shape = tuple(document["shape"]), tuple(document["chunks"])
    if document["order"] != "C" and len(shape) > 1:
        return None
    steps = [*(document["filters"] or []), *([document["compressor"]] if document["compressor"] else [])]
    codecs = _codecs([(step["id"], step) for step in steps], dtype.itemsize)
    if codecs is None:
        return None
    separator = document.get("dimension_separator", ".")
    return _one_file_per_chunk(shape, chunk_shape, dtype, codecs, f"{folder}/", separator)


def _version_3(document: dict[str, Any], folder: str, dtype: np.dtype) -> ChunkTable | None:
    shape = tuple(document["shape"])
    grid, key = document["chunk_grid"], document["chunk_key_encoding"]
    if grid["name"] != "regular" or document.get("storage_transformers") or not isinstance(document["data_type"], str):
        return None
    chunk_shape = tuple(grid["configuration"]["chunk_shape"])
    settings = key.get("configuration", {})
    if key["name"] == "default":
        separator = settings.get("separator", "/")
        prefix = f"{folder}/c{separator}"
    elif key["name"] == "v2":
        separator = settings.get("separator", ".")
        prefix = f"{folder}/"
    else:
        return None
    steps = document["codecs"]
    if [step["name"] for step in steps] == ["sharding_indexed"]:
        return _sharded(shape, chunk_shape, dtype, steps[0]["configuration"], prefix, separator)
    codecs = _version_3_codecs(steps, dtype)
    return None if codecs is None else _one_file_per_chunk(shape, chunk_shape, dtype, codecs, prefix, separator)


def _one_file_per_chunk(
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    dtype: np.dtype,
    codecs: list[Codec],
    prefix: str,
    separator: str,
) -> ChunkTable:
    grid = _grid(shape, chunk_shape)
    return ChunkTable(
        chunk_shape,
        grid,
        dtype.itemsize,
        codecs,
        root=prefix.encode(),
        separator=separator.encode(),
        file_grid=grid,
    )


def _sharded(
    shape: tuple[int, ...],
    shard_shape: tuple[int, ...],
    dtype: np.dtype,
    settings: dict[str, Any],
    prefix: str,
    separator: str,
) -> ChunkTable | None:
    chunk_shape = tuple(settings["chunk_shape"])
    codecs = _version_3_codecs(settings["codecs"], dtype)
    index_codecs = _version_3_codecs(settings["index_codecs"], np.dtype(np.uint64))
    if codecs is None or index_codecs is None or [kind for kind, _ in index_codecs] not in ([], ["crc32c"]):
        return None
    grid, file_grid = _grid(shape, chunk_shape), _grid(shape, shard_shape)
    if prod(grid) > _MANY_CHUNKS and 16 * prod(grid) > stored_bytes(Path(prefix).parent):
        return None  # more chunks than the shards have room to name: nothing is made for each of them
    per_shard = tuple(s // c for s, c in zip(shard_shape, chunk_shape, strict=True))
    table = _one_file_per_chunk(shape, chunk_shape, dtype, codecs, prefix, separator)
    table.file_grid = file_grid
    table.per_file = per_shard
    # Memory that is taken only where shards are touched. Should a shard be so large all the same, places become wider then.
    may_be_large = prod(shard_shape) * dtype.itemsize >= _LARGE_SHARD
    table.chunk_places = np.zeros((prod(grid), 2), np.int64 if may_be_large else np.uint32)
    table.stamp = np.full(prod(file_grid), -1, STAMP)
    table.prepare = ShardIndexes(
        table, per_shard, has_checksum=bool(index_codecs), at_end=settings.get("index_location", "end") == "end"
    )
    return table


def parse_shard_index(
    index: np.ndarray, per_shard: tuple[int, ...], size: int, *, has_checksum: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the chunks of a shard of ``size`` bytes are, from the bytes (uint8) of its index.

    Returns
    -------
    offset, length
        int64, of shape ``per_shard``; 0 and -1 for a chunk that is not stored.

    Raises
    ------
    ValueError
        The checksum does not match, or a chunk is said to end beyond the end of the shard.
    """
    if has_checksum and _engine.crc32c(index[:-4]) != int(index[-4:].view("<u4")[0]):
        msg = "the checksum of the shard index does not match"
        raise ValueError(msg)
    entries = index[: 16 * prod(per_shard)].view("<u8").reshape(*per_shard, 2)
    offset, length = entries[..., 0], entries[..., 1]
    missing = (entries == np.uint64(2**64 - 1)).all(axis=-1)
    too_far = ~missing & ((offset > size) | (length > size - offset))
    if too_far.any():
        number = int(np.flatnonzero(too_far)[0])
        msg = f"the shard index leads beyond the end of the file, at chunk {number} of the shard"
        raise ValueError(msg)
    return np.where(missing, 0, offset).astype(np.int64), np.where(missing, -1, length.astype(np.int64))


class ShardIndexes:
    """Reads the index of a shard when a chunk of it is wanted for the first time."""

    def __init__(self, table: ChunkTable, per_shard: tuple[int, ...], *, has_checksum: bool, at_end: bool) -> None:
        self.table, self.per_shard, self.has_checksum, self.at_end = table, per_shard, has_checksum, at_end
        self.known = np.zeros(table.n_files, bool)
        self.files: Files | None = None  # what a manifest says of them

    @property
    def n_bytes(self) -> int:
        """Bytes of an index."""
        return 16 * prod(self.per_shard) + 4 * self.has_checksum

    def __call__(self, chunks: np.ndarray) -> None:
        """Read the indexes of the shards that hold these chunks."""
        files = self.table.files_of(chunks)
        for file in np.unique(files[~self.known[files]]):
            self._load(int(file))
            self.known[file] = True

    def _load(self, file: int) -> None:
        table = self.table
        assert table.stamp is not None
        path = table.path(file)
        n_bytes = self.n_bytes
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                msg = f"{path} is not a regular file"
                raise CorruptDataError(msg)
            with path.open("rb") as f:
                found = os.fstat(f.fileno())
                if found.st_size < n_bytes:
                    msg = f"{path} is cut short: its shard index alone takes {n_bytes} bytes, got {found.st_size}"
                    raise CorruptDataError(msg)
                if self.files is not None:
                    mark = int.from_bytes(f.read(MARK_BYTES), "little")
                    expected = int(self.files.sizes[file]), int(self.files.marks[file])
                    check_file(str(path), expected, (found.st_size, mark))
                f.seek(found.st_size - n_bytes if self.at_end else 0)
                index = np.frombuffer(f.read(n_bytes), np.uint8)
        except FileNotFoundError:
            if not os.path.exists(table.document):  # noqa: PTH110
                msg = (
                    f"{path} is missing, as is the array's metadata: the store was moved or removed after it was opened"
                )
                raise CorruptDataError(msg) from None
            if self.files is not None:
                check_file(str(path), (int(self.files.sizes[file]), 0), (-1, 0))
            # No shard: all its chunks have the fill value. There is no stamp to compare with, but also no file to open.
            self.note_absent(file)
            return
        if len(index) != n_bytes:
            msg = f"{path} is cut short while its shard index is read"
            raise CorruptDataError(msg)
        try:
            offset, length = parse_shard_index(index, self.per_shard, found.st_size, has_checksum=self.has_checksum)
        except ValueError as error:
            msg = f"{path}: {error}"
            raise CorruptDataError(msg) from None
        self.note(file, offset, length)
        table.stamp[file] = found.st_size, found.st_mtime_ns, found.st_ino

    def note_absent(self, file: int) -> None:
        """Take over that none of the chunks of a shard is stored."""
        self.note(file, np.zeros(self.per_shard, np.int64), np.full(self.per_shard, -1, np.int64))

    def note(self, file: int, offset: np.ndarray, length: np.ndarray) -> None:
        """Take over where the chunks of a shard are: what :func:`parse_shard_index` returned."""
        table = self.table
        position = np.unravel_index(file, table.file_grid)
        first = [int(p) * n for p, n in zip(position, self.per_shard, strict=True)]
        inside = tuple(
            slice(f, min(f + n, whole)) for f, n, whole in zip(first, self.per_shard, table.grid, strict=True)
        )
        used = tuple(slice(0, s.stop - s.start) for s in inside)
        table.note_places(inside, offset[used], length[used])


def _grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(shape, chunk_shape, strict=True))


def _version_3_codecs(steps: list[dict[str, Any]], dtype: np.dtype) -> list[Codec] | None:
    named = []
    for step in steps:
        settings = step.get("configuration", {})
        if step["name"] == "bytes":
            if settings.get("endian", "little") != "little" and dtype.itemsize > 1:
                return None
            continue
        named.append((step["name"].removeprefix("numcodecs."), settings))
    return _codecs(named, dtype.itemsize)


def _codecs(steps: list[tuple[str, dict[str, Any]]], itemsize: int) -> list[Codec] | None:
    """Return the engine's codecs for encoding steps, or None when one is not known."""
    codecs = []
    for name, settings in steps:
        if name == "crc32c" and settings.get("location", "end") == "end":
            found = codec("crc32c")
        elif name == "shuffle":
            found = codec("shuffle", int(settings.get("elementsize", itemsize)))
        elif name in ("blosc", "zstd", "zlib", "gzip", "lz4"):
            found = codec(name, python=decoder(name))
        else:
            return None
        if found is None:
            return None
        codecs.append(found)
    return codecs if len(codecs) <= MAX_CODECS else None
