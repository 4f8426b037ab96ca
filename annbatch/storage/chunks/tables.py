"""The chunk table: what every format comes down to.

For each chunk the file, the byte offset, the byte length; for the array the codecs. The compiled engine reads from that and
needs to know nothing else.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.engine import _engine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ABSENT", "MAX_CODECS", "MAX_DIMS", "ChunkTable", "Codec", "codec", "joined_places"]

# What the engine has room for: as in _engine.pyx.
MAX_CODECS = 8
MAX_DIMS = 8
# Length of a chunk that is not stored, where places are uint32.
ABSENT = 2**32 - 1

# A name of _engine.CODECS and its parameter: the item size of a shuffle, the decode function of a Python codec, else 0.
Codec = tuple[str, Any]


@dataclass(slots=True, eq=False)
class ChunkTable:
    """Where the chunks of one array lie and how they are encoded.

    Chunks are numbered in C order of the chunk grid. Edge chunks are stored in full size.

    Attributes
    ----------
    chunk_shape
        Items per chunk along each axis.
    grid
        Number of chunks along each axis.
    itemsize
        Bytes of an item.
    codecs
        In the order of encoding.
    fill
        The bytes of an item of a chunk that is not stored.
    memory
        uint8, the whole array when it is in memory; the attributes below are then not used.
    root
        Path of the file, or the folder that holds the files.
    key_prefix, separator, file_grid
        File ``i`` is ``root + key_prefix`` and the position of ``i`` in ``file_grid``. An empty grid: ``root`` is the file.
    chunk_places
        uint32 or int64 of shape (chunks, 2): offset and length of each chunk in its file, in bytes. None: a chunk is a whole file. A
        length of ``ABSENT``, in int64 of -1, says that the chunk is not stored. Of shards that were not touched yet it is
        memory that was not touched yet.
    mask
        uint32, per chunk: bit ``i`` says that codec ``i`` was left out for it. None: none was.
    per_file
        Chunks of a file along each axis. Empty: chunk ``i`` is in file ``i``, or there is just one file.
    stamp
        A row of STAMP per file: size, modification time in ns, inode, as they were when ``chunk_places`` were read.
    document
        Path of the array's metadata. A chunk whose file is missing has the fill value only while this is there.
    prepare
        Called with the numbers of the chunks that are about to be read, to fill ``chunk_places`` and ``stamp``.
    """

    chunk_shape: tuple[int, ...]
    grid: tuple[int, ...]
    itemsize: int
    codecs: list[Codec] = field(default_factory=list)
    fill: bytes = b""
    memory: np.ndarray | None = None
    root: bytes = b""
    key_prefix: bytes = b""
    separator: bytes = b"/"
    file_grid: tuple[int, ...] = ()
    chunk_places: np.ndarray | None = None
    mask: np.ndarray | None = None
    per_file: tuple[int, ...] = ()
    stamp: np.ndarray | None = None
    document: bytes = b""
    prepare: Callable[[np.ndarray], None] | None = None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return prod(self.chunk_shape) * self.itemsize

    @property
    def n_files(self) -> int:
        """Number of files, those that do not exist included."""
        return prod(self.file_grid)

    def files_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the numbers (int64) of the files that hold chunks."""
        if self.n_files == 1:
            return np.zeros(len(chunks), np.int64)
        if not self.per_file:
            return chunks
        if len(self.per_file) == 1:
            found: np.ndarray = chunks // self.per_file[0]
            return found
        position = np.unravel_index(chunks, self.grid)
        of_axis = tuple(along // n for along, n in zip(position, self.per_file, strict=True))
        return np.ravel_multi_index(of_axis, self.file_grid)

    def file_of(self, chunk: int) -> int:
        """Return the number of the file that holds a chunk."""
        return int(self.files_of(np.array([chunk]))[0])

    def places_of(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return offset and length of chunks (int64); a length of -1 for one that is not stored."""
        places = self.chunk_places
        assert places is not None
        offset, length = places[chunks].T.astype(np.int64)
        if places.dtype == np.uint32:
            length[length == ABSENT] = -1
        return offset, length

    def note_places(self, chunks: Any, offset: np.ndarray, length: np.ndarray) -> None:
        """Take over where chunks are.

        Parameters
        ----------
        chunks
            Index into an array of the shape of the grid.
        offset, length
            int64, of the shape that the index has; -1 for the length of a chunk that is not stored.
        """
        with _locks[0]:
            assert self.chunk_places is not None
            if self.chunk_places.dtype == np.uint32 and not _are_narrow(offset, length):
                self.chunk_places = _widened(self.chunk_places)
            for column, values in enumerate((offset, length)):
                self.chunk_places.reshape(*self.grid, 2)[(*chunks, column)] = values.astype(self.chunk_places.dtype)

    def path(self, file: int) -> Path:
        """Return the path of a file."""
        if not self.file_grid:
            return Path(self.root.decode())
        position = np.unravel_index(file, self.file_grid)
        key = self.separator.decode().join(str(int(i)) for i in position)
        return Path(self.root.decode() + self.key_prefix.decode() + key)

    def name_of(self, chunk: int) -> str:
        """Name the file that holds a chunk, for error texts."""
        return str(self.path(self.file_of(chunk)))


def joined_places(offset: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Put offsets and lengths (int64, one per chunk, a length of -1 for one that is not stored) together as places."""
    narrow = _are_narrow(offset, length)
    return np.stack([offset, length], axis=1).astype(np.uint32 if narrow else np.int64)


def _are_narrow(offset: np.ndarray, length: np.ndarray) -> bool:
    """Whether uint32 holds them; -1 becomes ABSENT."""
    return not offset.size or bool(max(int(offset.max()), int(length.max())) < ABSENT)


def _widened(places: np.ndarray) -> np.ndarray:
    wide = places.astype(np.int64)
    wide[wide[:, 1] == ABSENT, 1] = -1
    return wide


# Held while places are noted, which may move them. In a list, so that a forked process gets a new one.
_locks = [threading.Lock()]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _locks.__setitem__(0, threading.Lock()))


def codec(kind: str, parameter: int = 0, python: Callable[[Any, int], Any] | None = None) -> Codec | None:
    """Return a codec for the engine; None when nothing here decodes it.

    Parameters
    ----------
    kind
        A name of ``_engine.CODECS``.
    parameter
        Item size of a shuffle.
    python
        Decodes one chunk, to at most so many bytes; used where the compiled library is missing.
    """
    use_libdeflate()
    if _engine.decodes(kind):
        return kind, parameter
    return None if python is None else ("python", python)


@cache
def use_libdeflate() -> bool:
    """Let the engine use libdeflate when the ``deflate`` package or the system has it; say whether.

    It decodes gzip data about half again as fast as zlib-ng. The package is a thin wrapper that exports the library's own
    functions, so its compiled module is as good as the library itself.
    """
    names = ["libdeflate.so.0", "libdeflate.0.dylib"]
    try:
        _deflate = import_module("deflate._deflate")
    except ImportError:
        pass
    else:
        names.insert(0, str(_deflate.__file__))
    functions = ("alloc_decompressor", "free_decompressor", "zlib_decompress", "gzip_decompress")
    for name in names:
        try:
            library = ctypes.CDLL(name)
            addresses = [
                ctypes.cast(getattr(library, f"libdeflate_{f}"), ctypes.c_void_p).value or 0 for f in functions
            ]
        except (OSError, AttributeError):
            continue
        _engine.use_libdeflate(*addresses)
        return True
    return False
