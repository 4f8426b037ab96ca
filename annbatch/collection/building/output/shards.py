"""Zarr shards written as a stream: a chunk is compressed as soon as it is full, and no more than one waits in memory.

zarr-python writes a shard in one piece, which must be in memory with everything that goes into it, and its compressed
chunks as well. Here the metadata is zarr-python's own and the bytes of the shards are ours. A shard begins with a mark
made of the checksums of its chunks (see storage/manifest.py), which no chunk contains and no other reader looks at.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.engine import _engine
from annbatch.storage.manifest import MARK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from io import BufferedWriter
    from pathlib import Path

    import zarr

    from annbatch.collection.building.fields import Array

_MISSING = 2**64 - 1
# lz4hc finds nothing more than lz4 in so few bytes, takes twice as long, and is decoded by the same code.
_TOO_SMALL_FOR_HC = 512
# A thread is handed so many chunks, or bytes, at a time: whichever are more.
_CHUNKS_PER_TASK = 16
_BYTES_PER_TASK = 2**18


class ShardStream:
    """Fills a sharded Zarr v3 array from its first row to its last.

    Parameters
    ----------
    array
        A new array, chunked along the first axis only, with the index of its shards at the end.
    path
        Its folder.
    pool
        Threads that compress.
    """

    def __init__(self, array: zarr.Array[Any], path: Path, pool: Executor) -> None:
        self._path = path
        self._pool = pool
        self._shape = array.shape
        self._chunk = np.zeros(array.chunks, array.dtype.newbyteorder("="))
        self._rows_in_chunk = 0
        self._n_rows = 0
        self._encode = chunk_encoder(array)
        shards = array.shards
        assert shards is not None
        self._chunks_per_shard = shards[0] // array.chunks[0]
        self._index = self._new_index()
        self._chunks_in_shard = 0
        self._shards = 0
        self._file: BufferedWriter | None = None
        self._offset = 0
        self._mark = _new_mark()

    def append(self, rows: Array) -> None:
        """Add rows; the memory of ``rows`` may be reused afterwards."""
        rows = np.ascontiguousarray(rows, self._chunk.dtype)
        self._n_rows += len(rows)
        size = len(self._chunk)
        start = 0
        if self._rows_in_chunk:
            start = min(size - self._rows_in_chunk, len(rows))
            self._chunk[self._rows_in_chunk : self._rows_in_chunk + start] = rows[:start]
            self._rows_in_chunk += start
            if self._rows_in_chunk < size:
                return
            self._write([self._encode(self._chunk)])
        stop = start + (len(rows) - start) // size * size
        step = size * max(_CHUNKS_PER_TASK, _BYTES_PER_TASK // max(1, self._chunk.nbytes))
        groups = [rows[i : min(i + step, stop)] for i in range(start, stop, step)]
        for encoded in self._pool.map(self._encode_group, groups):
            self._write(encoded)
        self._rows_in_chunk = len(rows) - stop
        self._chunk[: self._rows_in_chunk] = rows[stop:]

    def close(self) -> None:
        """Write what is left. Every row must have come."""
        if self._n_rows != self._shape[0]:
            msg = f"{self._path} wants {self._shape[0]} rows, got {self._n_rows}"
            raise RuntimeError(msg)
        if self._rows_in_chunk:
            self._chunk[self._rows_in_chunk :] = 0  # Zarr chunks are always full; what is beyond the end is never read.
            self._write([self._encode(self._chunk)])
        self._close_shard()

    def abandon(self) -> None:
        """Let go of the file, whatever is missing in it."""
        if self._file is not None:
            with suppress(OSError):  # the disk may be full, and the file is going to be removed
                self._file.close()
            self._file = None

    def _encode_group(self, rows: Array) -> list[bytes]:
        size = len(self._chunk)
        return [self._encode(rows[i : i + size]) for i in range(0, len(rows), size)]

    def _new_index(self) -> Array:
        return np.full((self._chunks_per_shard, 2), _MISSING, "<u8")

    def _write(self, chunks: list[bytes]) -> None:
        """Append chunks; where a shard is full, the next one begins."""
        while chunks:
            if self._file is None:
                path = self._path.joinpath("c", str(self._shards), *["0"] * (len(self._shape) - 1))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("wb")
                self._offset = self._file.write(bytes(MARK_BYTES))
            first = self._chunks_in_shard
            here, chunks = chunks[: self._chunks_per_shard - first], chunks[self._chunks_per_shard - first :]
            self._chunks_in_shard += len(here)
            sizes = np.fromiter(map(len, here), np.uint64, len(here))
            entries = self._index[first : self._chunks_in_shard]
            entries[:, 1] = sizes
            entries[:, 0] = self._offset + np.cumsum(sizes) - sizes
            self._offset += self._file.write(b"".join(here))
            self._mark.update(b"".join([chunk[-4:] for chunk in here]))
            if self._chunks_in_shard == self._chunks_per_shard:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._file is None:
            return
        index = self._index.tobytes()
        with self._file as file:
            file.write(index)
            file.write(_crc32c(index))
            self._mark.update(index)
            file.seek(0)
            file.write(self._mark.digest())
        self._file = None
        self._mark = _new_mark()
        self._index = self._new_index()
        self._chunks_in_shard = 0
        self._shards += 1


def _new_mark() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=MARK_BYTES)


def _crc32c(data: bytes) -> bytes:
    return int(_engine.crc32c(data)).to_bytes(4, "little")


def chunk_encoder(array: zarr.Array[Any]) -> Callable[[Array], bytes]:
    """What turns a chunk of this array into the bytes that belong into its shard; safe to call from several threads."""
    import numcodecs

    steps: list[Callable[[Any], Any]] = []
    for codec in array.compressors:
        described: dict[str, Any] = codec.to_dict()  # type: ignore[union-attr]
        options = described.get("configuration", {})
        match described["name"]:
            case "blosc":
                shuffle = ("noshuffle", "shuffle", "bitshuffle").index(options.pop("shuffle"))
                itemsize = options.pop("typesize")
                if steps or itemsize != array.dtype.itemsize:  # numcodecs takes the item size from the buffer
                    return _slow_encoder(array)
                steps.append(_blosc(shuffle=shuffle, chunk_bytes=prod(array.chunks) * itemsize, **options))
            case "zstd":
                steps.append(numcodecs.Zstd(**options).encode)
            case "gzip":
                steps.append(numcodecs.GZip(**options).encode)
            case "crc32c":
                steps.append(_with_checksum)
            case _:
                return _slow_encoder(array)
    if array.filters or array.dtype.byteorder == ">":
        return _slow_encoder(array)

    def encode(chunk: Array) -> bytes:
        for step in steps:
            chunk = step(chunk)
        return bytes(chunk)

    return encode


def _blosc(*, cname: str, clevel: int, shuffle: int, blocksize: int, chunk_bytes: int) -> Callable[[Any], bytes]:
    """Blosc without what numcodecs does around each call, which takes as long as the compression of a small chunk."""
    from numcodecs.blosc import compress

    if cname == "lz4hc" and chunk_bytes <= _TOO_SMALL_FOR_HC:
        cname = "lz4"
    name = cname.encode()
    return lambda chunk: compress(chunk, name, clevel, shuffle, blocksize)


def _with_checksum(data: Any) -> bytes:
    chunk = bytes(data)
    return chunk + _crc32c(chunk)


def _slow_encoder(array: zarr.Array[Any]) -> Callable[[Array], bytes]:
    """Let zarr-python encode a chunk of a codec we do not know, as the only chunk of an array in memory."""
    import zarr
    from zarr.storage import MemoryStore

    def encode(chunk: Array) -> bytes:
        stored: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(stored),
            data=chunk,
            chunks=chunk.shape,
            filters=array.filters,
            compressors=array.compressors,
            serializer=array.serializer or "auto",
            config={"write_empty_chunks": True},
        )
        return bytes(next(v for k, v in stored.items() if not k.endswith("zarr.json")).to_bytes())

    return encode


def with_checksums(compressors: Iterable[Any]) -> tuple[Any, ...]:
    """Codecs of chunks that end with a checksum."""
    from zarr.codecs import Crc32cCodec

    compressors = tuple(compressors)
    return compressors if compressors and isinstance(compressors[-1], Crc32cCodec) else (*compressors, Crc32cCodec())


def default_compressors() -> tuple[Any, ...]:
    """Compressors of matrices; docs/collections.md has the measurements behind the choice."""
    from zarr.codecs import BloscCodec

    return (BloscCodec(cname="lz4hc", clevel=2, shuffle="shuffle"),)
