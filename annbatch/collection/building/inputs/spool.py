"""Text of a Zarr store in a temporary file, where a few rows of it can be read.

anndata writes a column of text as one chunk. It would be decoded, all of it, for every block of rows.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.running_sum import starts_of
from annbatch.collection.building.fields import Array, Ragged, Text, decode_text, encode_text
from annbatch.storage.chunks.zarr_text import TextChunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedRandom
    from pathlib import Path

# Chunks of more rows than this are worth it.
LONG_CHUNK_ROWS = 2**14
# What a row of a chunk takes while zarr-python decodes it: its letters twice, a Python object, and entries of two
# arrays (measured: 150 bytes for 20 letters).
DECODING_BYTES = 200
_copying = threading.Lock()


def _after_fork() -> None:
    global _copying
    _copying = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class SpooledText:
    """A stored array of text, copied to a temporary file when the first rows are read."""

    dtype = np.dtype(object)
    rows = 1

    def __init__(self, stored: Any, scratch: Path | None) -> None:
        self._stored = stored
        self._scratch = scratch
        self._file: BufferedRandom | None = None
        self.shape: tuple[int, ...] = stored.shape
        self.decoding_bytes = min(int(stored.chunks[0]), self.shape[0]) * DECODING_BYTES

    def __getitem__(self, rows: slice | tuple[()]) -> Array:
        start, stop, _ = (rows if isinstance(rows, slice) else slice(None)).indices(self.shape[0])
        if stop <= start:
            return np.empty(0, object)
        found = self._text(start, stop)
        text = decode_text(found.letters)
        text[found.missing] = None
        return text

    def read(self, rows: slice) -> tuple[Array, Array] | None:
        """Bytes of the texts of rows, and how many each has; None where one is missing."""
        found = self._text(rows.start, rows.stop)
        return None if found.missing.any() else (found.letters.values[0], np.diff(found.letters.indptr))

    def _text(self, start: int, stop: int) -> Text:
        if self._file is None:
            with _copying:  # one at a time, whatever the number of threads: a chunk may be big
                self._file = self._copy()
        indptr = self._read(self._starts, np.dtype(np.int64), start, stop + 1)
        letters = Ragged(indptr - indptr[0], (self._read(0, np.dtype(np.uint8), *indptr[[0, -1]].tolist()),))
        return Text(letters, self._read(self._masks, np.dtype(bool), start, stop))

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _copy(self) -> BufferedRandom:
        """Write letters, then where each row starts, then which are missing."""
        file: Any = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by close()
        counts, masks = [np.zeros(1, np.int64)], []
        for text in self._chunks():
            file.write(text.letters.values[0].data)
            counts.append(np.diff(text.letters.indptr))
            masks.append(text.missing)
        self._starts = file.tell()
        file.write(np.cumsum(np.concatenate(counts)).data)
        self._masks = file.tell()
        file.write(np.concatenate(masks).data)
        return file  # type: ignore[no-any-return]

    def _chunks(self) -> Iterator[Text]:
        """All texts, a chunk or a part of it at a time."""
        chunks = TextChunks.of(self._stored)
        step = int(self._stored.chunks[0])
        for start in range(0, self.shape[0], step):
            pair = None if chunks is None else chunks.read(slice(start, min(start + step, self.shape[0])))
            if pair is not None:
                data, lengths = pair
                yield Text(Ragged(starts_of(lengths), (data,)), np.zeros(len(lengths), bool))
                continue
            chunk = np.asarray(self._stored[start : start + step])
            for first in range(0, len(chunk), LONG_CHUNK_ROWS):
                yield encode_text(as_text(chunk[first : first + LONG_CHUNK_ROWS]).tolist())

    def _read(self, offset: int, dtype: np.dtype[Any], start: int, stop: int) -> Array:
        assert self._file is not None
        out = np.empty(stop - start, dtype)
        self._file.seek(offset + start * dtype.itemsize)
        self._file.readinto(out.view(np.uint8).data)
        return out


def as_text(values: Array) -> Array:
    """Values of an array of text of any kind as str."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(object)
