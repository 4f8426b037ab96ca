"""Where rows of different lengths lie, in about two bytes a row: their lengths, and one start for every 64 rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from annbatch._shared.running_sum import starts_of

from .engine._ragged import BLOCK_ROWS, check_pointers, find_extents, keep_lengths
from .errors import CorruptDataError
from .pages import own_pages
from .shared_arrays import is_settled, kept, shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .chunks.arrays import StoredArray

__all__ = ["RowPointers"]

# Entries of the stored array that are in memory at a time.
_ENTRIES_AT_ONCE = 1 << 20
# So few are read more quickly than they are looked for.
_FEW_ROWS = 1 << 16


class _ChangedError(Exception):
    """The files changed while they were read; what was read may be of before or after."""

    def __init__(self, pointers: RowPointers) -> None:
        super().__init__()
        self.pointers = pointers


@dataclass(frozen=True, slots=True, eq=False)
class RowPointers:
    """Where the values of each row lie among the values of a CSR matrix.

    Attributes
    ----------
    lengths
        Unsigned integers of the smallest type that holds the longest row: stored values of each row.
    block_start
        int64: the first value of every 64th row, from row 0 on.
    n_values
        Stored values of all rows.
    """

    lengths: np.ndarray
    block_start: np.ndarray
    n_values: int

    @classmethod
    def read(cls, stored: StoredArray, n_values: int) -> RowPointers:
        """Read a stored row pointer (n_obs + 1 entries), a piece at a time, and check it.

        Raises
        ------
        CorruptDataError
            It does not start at 0, decreases, or leads beyond the ``n_values`` stored values.
        """
        n_rows = stored.shape[0] - 1
        lengths = own_pages(n_rows, np.uint8)
        block_start = np.empty(-(-n_rows // BLOCK_ROWS), np.int64)
        longest = np.zeros(1, np.int64)
        last = 0
        for first, pointers in _pieces(stored):
            if first == 0 and pointers[0] != 0:
                msg = f"{stored.location} must start with 0, got {pointers[0]}"
                raise CorruptDataError(msg)
            falls = check_pointers(pointers, longest)
            if falls >= 0:
                msg = (
                    f"{stored.location} must not decrease, but goes from {pointers[falls]} to {pointers[falls + 1]} "
                    f"at row {first + falls}"
                )
                raise CorruptDataError(msg)
            last = int(pointers[-1])
            if last > n_values:
                msg = f"{stored.location} ends at {last}, but only {n_values} values are stored"
                raise CorruptDataError(msg)
            if longest[0] > np.iinfo(lengths.dtype).max:
                lengths = lengths.astype(np.min_scalar_type(int(longest[0])))
            keep_lengths(pointers, first, lengths, block_start)
        for array in (lengths, block_start):
            array.flags.writeable = False
        return cls(lengths, block_start, last)

    @classmethod
    def shared(cls, stored: StoredArray, n_values: int) -> RowPointers:
        """Return the same as :meth:`read`, from what another process of this machine has read where there is such.

        Where only reading tells whether the data are the same, they are read, and then shared by what they are.
        """
        if stored.shape[0] <= _FEW_ROWS:
            return cls.read(stored, n_values)
        found = stored.identity()
        if found is None:
            pointers = cls.read(stored, n_values)
            return cls(shared(pointers.lengths), shared(pointers.block_start), pointers.n_values)
        if not is_settled(found.newest_ns):
            return cls.read(stored, n_values)

        def make() -> tuple[int, list[np.ndarray]]:
            pointers = cls.read(stored, n_values)
            again = stored.identity()
            if again is None or again.text != found.text:
                raise _ChangedError(pointers)
            return pointers.n_values, [pointers.lengths, pointers.block_start]

        try:
            last, (lengths, block_start) = kept(
                f"row pointers\n{stored.shape} {stored.dtype} {n_values}\n{found.text}", make, 2
            )
        except _ChangedError as error:
            return error.pointers
        return cls(lengths, block_start, last)

    @classmethod
    def of_lengths(cls, lengths: np.ndarray) -> RowPointers:
        """Take lengths (unsigned integers, one a row) as they are."""
        edges = np.arange(0, len(lengths), BLOCK_ROWS)
        in_block = np.add.reduceat(lengths, edges, dtype=np.int64) if len(edges) else np.empty(0, np.int64)
        block_start = np.zeros(len(edges), np.int64)
        np.cumsum(in_block[:-1], out=block_start[1:])
        return cls(lengths, block_start, int(in_block.sum()))

    def extents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of the first value, and of values, of each of ``rows`` (int64, in range); both int64."""
        start, length = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        find_extents(self.lengths, self.block_start, rows, start, length)
        return start, length

    def stop_within(self, start: int, n_values: int) -> int:
        """Return a row > ``start`` such that the rows from ``start`` to before it have at most ``n_values`` values.

        As far as whole blocks go: it lies up to 63 rows before the last such row. One row may have more values.
        """
        (first,), _ = self.extents(np.array([start]))
        if self.n_values - first <= n_values:
            return len(self.lengths)
        block = int(np.searchsorted(self.block_start, first + n_values, side="right")) - 1
        return max(start + 1, block * BLOCK_ROWS)

    def indptr(self) -> np.ndarray:
        """Return the row pointer in full: int64, n_obs + 1 entries."""
        return starts_of(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.lengths.nbytes + self.block_start.nbytes


def _pieces(stored: StoredArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the entries in pieces that overlap by one, each with the number of its first entry; int64 or uint64."""
    n = stored.shape[0]
    for first in range(0, max(1, n - 1), _ENTRIES_AT_ONCE):
        values = stored.read(first, min(first + _ENTRIES_AT_ONCE + 1, n))
        wide = np.uint64 if values.dtype == np.uint64 else np.int64
        yield first, np.ascontiguousarray(values, wide)
