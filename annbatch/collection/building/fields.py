"""Row-aligned data of every kind as fields: fixed rows (an ndarray) or ragged ones (one indptr, several value arrays).

A CSR matrix is ragged with two value arrays (data, indices), a text column ragged with one (UTF-8 bytes), everything
else is fixed. So dealing, spilling and assembling know nothing of genes, categories or missing values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from annbatch._shared.running_sum import starts_of
from annbatch.storage.dtypes import cast_exactly

from ._pack import place_rows, whole_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Array: TypeAlias = np.ndarray[Any, Any]

# What a row counts besides its matrices and obs, so that rows without either have a size.
ROW_BYTES = 64


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row ``i`` is ``values[k][indptr[i]:indptr[i + 1]]`` for each value array ``k``."""

    indptr: Array
    values: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def take(self, rows: Array) -> Ragged:
        """Rows in the order given (int64)."""
        starts = np.ascontiguousarray(self.indptr[rows])
        counts = self.indptr[rows + 1] - starts
        indptr = starts_of(counts)
        values = tuple(np.empty(int(indptr[-1]), source.dtype) for source in self.values)
        for source, target in zip(self.values, values, strict=True):
            place_rows(source.view(np.uint8), starts, counts, target.view(np.uint8), indptr[:-1], target.dtype.itemsize)
        return Ragged(indptr, values)


Field: TypeAlias = Array | Ragged


def size_of(field: Field) -> int:
    """Bytes of a field."""
    if isinstance(field, Ragged):
        return field.indptr.nbytes + sum(values.nbytes for values in field.values)
    return field.nbytes


def place_ragged(section: Ragged, places: Array, out: Ragged) -> None:
    """Copy row ``i`` of a section to row ``places[i]`` of ``out``, whose indptr is already right."""
    counts = np.diff(section.indptr)
    starts = np.ascontiguousarray(out.indptr[places])
    for source, target in zip(section.values, out.values, strict=True):
        same_type = np.ascontiguousarray(source.astype(target.dtype, copy=False))
        place_rows(
            same_type.view(np.uint8), section.indptr[:-1], counts, target.view(np.uint8), starts, target.dtype.itemsize
        )


class Text(NamedTuple):
    """A column of text: the UTF-8 bytes of each row, and a bool mask of the missing ones, which have none."""

    letters: Ragged
    missing: Array

    def part(self, start: int, stop: int) -> Text:
        """Rows ``[start, stop)``, without a copy of their bytes."""
        indptr = self.letters.indptr[start : stop + 1]
        values = tuple(values[indptr[0] : indptr[-1]] for values in self.letters.values)
        return Text(Ragged(indptr - indptr[0], values), self.missing[start:stop])

    def take(self, rows: Array) -> Text:
        """Rows in the order given (int64)."""
        return Text(self.letters.take(rows), self.missing[rows])


def encode_text(texts: Sequence[Any]) -> Text:
    """Text of Python strings; whatever else is among them is missing."""
    try:
        joined = "".join(texts)
    except TypeError:
        joined = ""
        counts = None
    else:
        counts = np.fromiter(map(len, texts), np.int64, len(texts)) if joined.isascii() else None
    if counts is not None:  # by far the most frequent, and several times as fast
        return Text(Ragged(starts_of(counts), (np.frombuffer(joined.encode(), np.uint8),)), np.zeros(len(texts), bool))
    missing = np.array([not isinstance(text, str) for text in texts], bool)
    encoded = [text.encode() if isinstance(text, str) else b"" for text in texts]
    indptr = starts_of(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return Text(Ragged(indptr, (np.frombuffer(b"".join(encoded), np.uint8),)), missing)


def check_text(values: Iterable[Any], what: str, *, may_have_nul: bool = False) -> None:
    """Raise ValueError for text that cannot be stored: with half of a surrogate pair or, in HDF5, a NUL inside."""
    texts = [value for value in values if isinstance(value, str)]
    if _is_storable("".join(texts), may_have_nul=may_have_nul):
        return
    bad = next(text for text in texts if not _is_storable(text, may_have_nul=may_have_nul))
    but = "halves of surrogate pairs" if may_have_nul else "NUL characters and halves of surrogate pairs"
    msg = f"{what} must be text without {but}, got {bad[:50]!r}; rename it"
    raise ValueError(msg)


def _is_storable(text: str, *, may_have_nul: bool) -> bool:
    if not may_have_nul and "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in set(text))


def decode_text(field: Ragged) -> Array:
    """Object array of str of what :func:`encode_text` made; missing entries are empty."""
    data = field.values[0].tobytes()
    edges = field.indptr.tolist()
    texts = np.empty(len(field), object)
    if data.isascii():
        text = data.decode()
        texts[:] = [text[a:b] for a, b in pairwise(edges)]
    else:
        texts[:] = [data[a:b].decode() for a, b in pairwise(edges)]
    return texts


@dataclass(frozen=True)
class WholeRange:
    """What decides the stored type of values: whether all are whole numbers, and the lowest and highest of them."""

    whole: bool = True
    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, values: Array) -> WholeRange:
        """Look at values of any dtype; booleans and other non-numbers are never whole."""
        flat = np.ascontiguousarray(values).reshape(-1)
        if flat.dtype.kind in "iu":
            return cls(low=int(flat.min()), high=int(flat.max())) if flat.size else cls()
        if flat.dtype in (np.float32, np.float64):
            return cls(*whole_range(flat))
        if flat.dtype == np.float16:
            return cls(*whole_range(flat.astype(np.float32)))
        return cls(whole=False)

    @classmethod
    def union(cls, ranges: Sequence[WholeRange]) -> WholeRange:
        """Range of the values of all."""
        if not all(r.whole for r in ranges):
            return cls(whole=False)
        return cls(low=min((r.low for r in ranges), default=0), high=max((r.high for r in ranges), default=0))

    def smallest_type(self, otherwise: np.dtype[Any]) -> np.dtype[Any]:
        """Smallest integer type that holds the range exactly; ``otherwise`` when the values are not whole."""
        if not self.whole:
            return otherwise
        names = ("u1", "u2", "u4", "u8") if self.low >= 0 else ("i1", "i2", "i4", "i8")
        for name in names:
            info = np.iinfo(name)
            if info.min <= self.low and self.high <= info.max:
                return np.dtype(name)
        return otherwise


def check_exact(values: Array, dtype: np.dtype[Any], what: str) -> None:
    """Raise ValueError when whole numbers would be rounded by becoming ``dtype``, the common type of all inputs."""
    if values.dtype.kind not in "iu" or dtype.kind not in "fc" or not values.size:
        return
    largest = 2 ** (np.finfo(dtype).nmant + 1)
    if -largest <= int(values.min()) and int(values.max()) <= largest:
        return
    try:
        cast_exactly(values, dtype)
    except ValueError:
        msg = (
            f"{what} holds whole numbers that {dtype} cannot hold exactly, but other inputs make it {dtype}; "
            "store it with one type in all inputs"
        )
        raise ValueError(msg) from None
