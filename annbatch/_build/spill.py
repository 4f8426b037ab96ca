"""The temporary file of one block: its fields, raw, with the rows sorted by their place in the output.

The rows that one output range wants therefore lie together, and are read with one positional read per array.
"""

from __future__ import annotations

import json
import os
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .fields import Array, Field, Ragged, WholeRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import FileIO
    from pathlib import Path

_ALIGN = 64
_PLACES = "/places"


def write_spill(
    path: Path, places: Array, fields: Mapping[str, Field], ranges: Mapping[str, WholeRange], notes: Mapping[str, Any]
) -> None:
    """Write a block. The catalogue is renamed into place last: where it exists, the block is complete."""
    entries: dict[str, Any] = {}
    with path.open("wb") as file:

        def put(array: Array) -> dict[str, Any]:
            file.seek(-file.tell() % _ALIGN, os.SEEK_CUR)
            entry = {"offset": file.tell(), "dtype": array.dtype.str, "shape": array.shape}
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            return entry

        for name, field in {_PLACES: places, **fields}.items():
            if isinstance(field, Ragged):
                entries[name] = {"indptr": put(field.indptr), "values": [put(values) for values in field.values]}
            else:
                entries[name] = put(field)
        size = file.tell()
    catalogue = {
        "size": size,
        "fields": entries,
        "ranges": {name: [r.whole, r.low, r.high] for name, r in ranges.items()},
        **notes,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(catalogue))
    part.replace(_catalogue(path))


def is_complete(path: Path) -> bool:
    """Whether the block was written to its end."""
    try:
        return bool(json.loads(_catalogue(path).read_text())["size"] == path.stat().st_size)
    except (OSError, ValueError, KeyError):
        return False


def read_notes(path: Path) -> dict[str, Any]:
    """The catalogue of a complete block, without its fields."""
    catalogue = json.loads(_catalogue(path).read_text())
    del catalogue["fields"]
    catalogue["ranges"] = {name: WholeRange(*values) for name, values in catalogue["ranges"].items()}
    return dict(catalogue)


def _catalogue(path: Path) -> Path:
    return path.with_suffix(".json")


class Spill:
    """A complete block, open for reading. Only ``places`` (int64, ascending) is held in memory.

    Only the rows with places in ``[start, stop)`` are looked at.
    """

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._path = path
        self._fields = json.loads(_catalogue(path).read_text())["fields"]
        entry = self._fields[_PLACES]
        with path.open("rb", buffering=0) as file:
            places = _read(file, entry, 0, entry["shape"][0])
        self._first, last = (int(i) for i in np.searchsorted(places, [start, stop]))
        self.places = places[self._first : last].copy()

    def counts(self, name: str) -> Array:
        """Length of every row (of ``places``) of a ragged field."""
        with self._path.open("rb", buffering=0) as file:
            entry = self._fields[name]["indptr"]
            return np.diff(_read(file, entry, self._first, self._first + len(self.places) + 1))

    def sections(self, names: Sequence[str], start: int, stop: int) -> tuple[Array, dict[str, Field]]:
        """Places in ``[start, stop)``, and those rows of the named fields."""
        a, b = (int(i) for i in np.searchsorted(self.places, [start, stop]))
        places = self.places[a:b]
        a, b = a + self._first, b + self._first
        found: dict[str, Field] = {}
        if a == b:
            return places, found
        with self._path.open("rb", buffering=0) as file:
            for name in names:
                entry = self._fields[name]
                if "indptr" in entry:
                    indptr = _read(file, entry["indptr"], a, b + 1)
                    first, last = int(indptr[0]), int(indptr[-1])
                    values = tuple(_read(file, value, first, last) for value in entry["values"])
                    found[name] = Ragged(indptr - first, values)
                else:
                    found[name] = _read(file, entry, a, b)
        return places, found


def _read(file: FileIO, entry: dict[str, Any], start: int, stop: int) -> Array:
    """Rows ``[start, stop)`` of a stored array."""
    row_shape = tuple(entry["shape"][1:])
    out = np.empty((stop - start, *row_shape), np.dtype(entry["dtype"]))
    target = memoryview(out.reshape(-1).view(np.uint8))
    file.seek(entry["offset"] + start * out.dtype.itemsize * prod(row_shape))
    done = 0
    while done < len(target):
        got = file.readinto(target[done:])
        if not got:
            msg = "a temporary file of this build was cut short; run the same call again to write it anew"
            raise OSError(msg)
        done += got
    return out
