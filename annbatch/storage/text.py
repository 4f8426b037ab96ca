"""Text of many rows, such as the names of cells, in little more memory than its bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from .engine._ragged import decode_texts, number_texts
from .pages import own_pages
from .row_pointers import RowPointers
from .shared_arrays import shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ROWS_AT_ONCE", "CompactText", "TextSource", "TextWriter", "is_utf8", "numbered", "packed"]

# Nobody can know it who makes a file.
_SEED = int.from_bytes(os.urandom(8), "little")

# Rows whose texts are Python strings at the same time.
ROWS_AT_ONCE = 1 << 16


@runtime_checkable
class TextSource(Protocol):
    """A stored column of text from which rows are read without a Python object each."""

    @property
    def rows(self) -> int:
        """Rows are read from a multiple of this on."""

    def read(self, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what :func:`packed` makes of rows, and maybe some behind them; None where another way must be found."""


@dataclass(frozen=True, eq=False)
class CompactText:
    """One text per row: UTF-8 bytes below each other, and about 1.2 bytes a row that say where each begins.

    As Python strings the names of cells take 60 to 80 bytes each, and the garbage collector goes through them.

    Attributes
    ----------
    data
        uint8, the bytes of all rows.
    places
        Where the bytes of each row lie.
    """

    data: np.ndarray
    places: RowPointers

    @classmethod
    def stacked(cls, texts: Sequence[CompactText]) -> CompactText:
        """Put texts below each other."""
        if len(texts) == 1:
            return texts[0]
        lengths = np.concatenate([text.places.lengths for text in texts])
        return _sealed(np.concatenate([text.data for text in texts]), lengths)

    def shared(self) -> CompactText:
        """Return the same, of arrays that processes share."""
        places = RowPointers(shared(self.places.lengths), shared(self.places.block_start), self.places.n_values)
        return CompactText(shared(self.data), places)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the texts of rows (int64, in range, any order): an object array of str."""
        texts = np.empty(len(rows), dtype=object)
        # In pieces, because where each lies takes 16 bytes a row.
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = rows[start : start + ROWS_AT_ONCE]
            decode_texts(self.data, *self.places.extents(piece), texts[start : start + ROWS_AT_ONCE])
        return texts

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the texts of all rows, so many at a time: object arrays of str."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield self.take(np.arange(start, min(start + ROWS_AT_ONCE, len(self))))

    def __len__(self) -> int:
        return len(self.places.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.data.nbytes + self.places.nbytes


class TextWriter:
    """Takes in the texts of rows, some at a time.

    Room grows as it is used, without a second copy: the system moves the pages of what is large, not the bytes.

    Parameters
    ----------
    n_rows
        How many rows there will be.
    """

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._data = np.empty(0, np.uint8)
        self._lengths = own_pages(n_rows, np.uint8)
        self._n_bytes = self._n_written = 0

    def write(self, data: np.ndarray, lengths: np.ndarray) -> None:
        """Append rows: their bytes (uint8, UTF-8), and how many each has (integers)."""
        stop, n_bytes = self._n_written + len(lengths), self._n_bytes + len(data)
        if n_bytes > len(self._data):
            # So much as all rows take if the others are like those up to now, and a little more.
            self._data.resize(max(n_bytes, int(1.02 * n_bytes / max(stop, 1) * self._n_rows)), refcheck=False)
        if len(lengths) and lengths.max() > np.iinfo(self._lengths.dtype).max:
            self._lengths = self._lengths.astype(np.min_scalar_type(int(lengths.max())))
        self._data[self._n_bytes : n_bytes] = data
        self._lengths[self._n_written : stop] = lengths
        self._n_written, self._n_bytes = stop, n_bytes

    def written(self) -> CompactText:
        """Return the texts, of all rows by now; the writer is of no use afterwards."""
        assert self._n_written == self._n_rows
        self._data.resize(self._n_bytes, refcheck=False)
        return _sealed(self._data, self._lengths)


def packed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the UTF-8 bytes of texts (uint8), and how many each has (int64).

    Parameters
    ----------
    values
        One-dimensional: str or bytes in any kind of array.

    Returns
    -------
    The two arrays, or None when one of the values is no text.

    Raises
    ------
    UnicodeDecodeError
        Bytes are no UTF-8.
    """
    items = values.tolist()
    try:
        data, lengths = np.frombuffer(b"".join(items), np.uint8), _lengths_of(items)
    except TypeError:
        pass
    else:
        if not is_utf8(data, lengths):
            for item in items:
                item.decode()
        return data, lengths
    try:
        text = "".join(items)
    except TypeError:
        if not all(isinstance(item, str | bytes) for item in items):
            return None
        return packed(np.array([item.decode() if isinstance(item, bytes) else item for item in items], dtype=object))
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8), _lengths_of(items)
    each = [item.encode("utf-8", "surrogatepass") for item in items]
    return np.frombuffer(b"".join(each), np.uint8), _lengths_of(each)


def numbered(data: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number the distinct ones of some texts.

    Parameters
    ----------
    data, lengths
        What :func:`packed` returns, of fewer than 2**30 texts.

    Returns
    -------
    codes
        int32, the number of each text.
    texts
        The distinct ones, in the order in which they come first.
    """
    n = len(lengths)
    slots = np.full(1 << (2 * n).bit_length(), -1, np.int32)
    codes, begin, size = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.int64)
    n_distinct = number_texts(data, lengths, _SEED, slots, codes, begin, size)
    texts = np.empty(n_distinct, dtype=object)
    decode_texts(data, begin[:n_distinct], size[:n_distinct], texts)
    return codes, texts.tolist()


def is_utf8(data: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether each of the texts whose bytes (uint8) lie below each other is UTF-8."""
    if not len(data) or data.max() < 0x80:
        return True
    try:
        data.tobytes().decode()
    except UnicodeDecodeError:
        return False
    # All together they are: each is, where none begins inside a character.
    starts = np.cumsum(lengths) - lengths
    return not (data[starts[lengths > 0]] & 0xC0 == 0x80).any()


def _lengths_of(items: list[Any]) -> np.ndarray:
    return np.fromiter(map(len, items), np.int64, len(items))


def _sealed(data: np.ndarray, lengths: np.ndarray) -> CompactText:
    places = RowPointers.of_lengths(lengths)
    for array in (data, places.lengths, places.block_start):
        array.flags.writeable = False
    return CompactText(data, places)
