"""The temporary file of one block: its fields, raw, with the rows sorted by their place in the output, and a catalogue.

The rows that one output range wants therefore lie together, and are read with one positional read per array.
"""

from __future__ import annotations

import json
import os
import struct
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.engine import _engine

from .fields import Array, Field, Ragged, WholeRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import FileIO
    from pathlib import Path

_ALIGN = 64
_PLACES = "/places"
# The end of a block: offset, length and checksum of the catalogue, and eight bytes that no other file ends with.
_TAIL = struct.Struct("<QQI8s")
_MAGIC = b"annblock"
_CHECKED_BYTES = 2**22


def write_spill(
    path: Path, places: Array, fields: Mapping[str, Field], ranges: Mapping[str, WholeRange], notes: Mapping[str, Any]
) -> None:
    """Write a block: its arrays, then a catalogue of them, then where the catalogue lies."""
    entries: dict[str, Any] = {}
    with path.open("wb") as file:

        def put(array: Array) -> dict[str, Any]:
            file.seek(-file.tell() % _ALIGN, os.SEEK_CUR)
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            sums = _checksums(data)
            entry = {"offset": file.tell(), "dtype": array.dtype.str, "shape": array.shape, "crc32c": sums}
            file.write(data.data)
            return entry

        for name, field in {_PLACES: places, **fields}.items():
            if isinstance(field, Ragged):
                entries[name] = {"indptr": put(field.indptr), "values": [put(values) for values in field.values]}
            else:
                entries[name] = put(field)
        catalogue = {
            "fields": entries,
            "ranges": {name: [r.whole, r.low, r.high] for name, r in ranges.items()},
            **notes,
        }
        encoded = json.dumps(catalogue).encode()
        offset = file.tell()
        file.write(encoded)
        file.write(_TAIL.pack(offset, len(encoded), _engine.crc32c(encoded), _MAGIC))


def is_intact(path: Path) -> bool:
    """Whether every byte of a block is as it was written."""
    try:
        arrays = [entry for value in _catalogue(path)["fields"].values() for entry in _arrays_of(value)]
        with path.open("rb", buffering=0) as file:
            return all(_matches_checksums(file, entry) for entry in arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _matches_checksums(file: FileIO, entry: dict[str, Any]) -> bool:
    n_left = np.dtype(entry["dtype"]).itemsize * prod(entry["shape"])
    file.seek(entry["offset"])
    for checksum in entry["crc32c"]:
        piece = file.read(min(n_left, _CHECKED_BYTES)) or b""
        n_left -= len(piece)
        if _engine.crc32c(piece) != checksum:
            return False
    return bool(n_left == 0)


def read_notes(path: Path) -> dict[str, Any]:
    """The catalogue of a block, without its fields."""
    catalogue = _catalogue(path)
    del catalogue["fields"]
    catalogue["ranges"] = {name: WholeRange(*values) for name, values in catalogue["ranges"].items()}
    return catalogue


def _catalogue(path: Path) -> dict[str, Any]:
    """What a block holds.

    Raises
    ------
    OSError
        It is cut short or damaged.
    """
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL.size))
        tail = file.read(_TAIL.size) or b""
        if len(tail) == _TAIL.size:
            offset, length, checksum, magic = _TAIL.unpack(tail)
            if magic == _MAGIC and offset + length + _TAIL.size == size:
                file.seek(offset)
                encoded = file.read(length) or b""
                if _engine.crc32c(encoded) == checksum:
                    return dict(json.loads(encoded))
    msg = f"{path} is damaged: temporary files of a build must be left alone; run the same call again to write it anew"
    raise OSError(msg)


def _checksums(data: Array) -> list[int]:
    """CRC-32C of each piece that is checked at a time."""
    return [_engine.crc32c(data[i : i + _CHECKED_BYTES]) for i in range(0, len(data), _CHECKED_BYTES)]


class Spill:
    """A complete block, to read rows of: row ``i`` of the block is the one with the ``i``-th lowest place.

    Nothing but where the arrays lie is held in memory, and of that as little as can be: a build may have thousands of
    blocks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        fields = _catalogue(path)["fields"]
        arrays = [entry for value in fields.values() for entry in _arrays_of(value)]
        self._offsets = np.array([entry["offset"] for entry in arrays], np.int64)
        self._n_rows = int(fields[_PLACES]["shape"][0])
        kinds = [(name, len(_arrays_of(value)), "indptr" in value) for name, value in fields.items()]
        types = [(entry["dtype"], tuple(entry["shape"][1:])) for entry in arrays]
        self._arrays = _spill_arrays(tuple(kinds), tuple(types))

    def find(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the block, half open, whose places are in ``[start, stop)``."""
        array = self._arrays.first[_PLACES]
        # Looked up where they lie: that reads a few pages instead of all places.
        places = np.memmap(self._path, self._arrays.types[array][0], "r", int(self._offsets[array]), (self._n_rows,))
        first, last = np.searchsorted(places, [start, stop])
        return int(first), int(last)

    def places(self, first: int, last: int) -> Array:
        """Places (int64, ascending) of rows ``[first, last)`` of the block."""
        with self._path.open("rb", buffering=0) as file:
            return self._read(file, self._arrays.first[_PLACES], first, last)

    def counts(self, name: str, first: int, last: int) -> Array:
        """Length of rows ``[first, last)`` of a ragged field."""
        with self._path.open("rb", buffering=0) as file:
            return np.diff(self._read(file, self._arrays.first[name], first, last + 1))

    def total(self, name: str, first: int, last: int) -> int:
        """Number of values in rows ``[first, last)`` of a ragged field."""
        with self._path.open("rb", buffering=0) as file:
            begin, end = (self._read(file, self._arrays.first[name], row, row + 1)[0] for row in (first, last))
        return int(end - begin)

    def fields(self, names: Sequence[str], first: int, last: int) -> dict[str, Field]:
        """Rows ``[first, last)`` of the named fields."""
        found: dict[str, Field] = {}
        with self._path.open("rb", buffering=0) as file:
            for name in names:
                array = self._arrays.first[name]
                if name in self._arrays.n_values:
                    indptr = self._read(file, array, first, last + 1)
                    begin, end = int(indptr[0]), int(indptr[-1])
                    values = [self._read(file, array + 1 + k, begin, end) for k in range(self._arrays.n_values[name])]
                    found[name] = Ragged(indptr - begin, tuple(values))
                else:
                    found[name] = self._read(file, array, first, last)
        return found

    def _read(self, file: FileIO, array: int, start: int, stop: int) -> Array:
        return _read(file, int(self._offsets[array]), *self._arrays.types[array], start, stop)


class _SpillArrays:
    """What is the same in most blocks of a build."""

    def __init__(
        self, kinds: tuple[tuple[str, int, bool], ...], types: tuple[tuple[str, tuple[int, ...]], ...]
    ) -> None:
        self.types = [(np.dtype(dtype), row_shape) for dtype, row_shape in types]
        numbers = accumulate((n for _, n, _ in kinds), initial=0)
        self.first = {name: number for (name, _, _), number in zip(kinds, numbers, strict=False)}
        self.n_values = {name: n - 1 for name, n, is_ragged in kinds if is_ragged}


_spill_arrays = lru_cache(maxsize=64)(_SpillArrays)


def _arrays_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Arrays of a field: one, or of a ragged one its indptr and its values."""
    return [entry["indptr"], *entry["values"]] if "indptr" in entry else [entry]


def _read(file: FileIO, offset: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], start: int, stop: int) -> Array:
    """Rows ``[start, stop)`` of a stored array."""
    out = np.empty((stop - start, *row_shape), dtype)
    target = memoryview(out.reshape(-1).view(np.uint8))
    file.seek(offset + start * out.dtype.itemsize * prod(row_shape))
    done = 0
    while done < len(target):
        got = file.readinto(target[done:])
        if not got:
            msg = "a temporary file of this build was cut short; run the same call again to write it anew"
            raise OSError(msg)
        done += got
    return out
