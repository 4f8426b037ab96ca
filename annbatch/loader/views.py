"""Which rows of the data a loader reads, and in which order it counts them.

Samplers see the rows of a view, numbered from 0; everything below the loader sees rows of the data. A `View` translates. It
costs nothing per row where the rows are long ranges of the data (all of it, to begin with), else four bytes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from annbatch._shared.args import as_count

__all__ = ["View"]

# Rows are worked on in blocks that stay in the cache: making a view needs little memory beside the view itself.
_BLOCK = 1 << 16

# Rows that a range must hold on average for ranges to be kept instead of rows: a row is then looked up by a binary
# search, which costs more than a look into a list, but saves at least 15 of 16 bytes.
_ROWS_PER_RANGE = 32

# Makes the rows of the data (int64), block after block; called as often as they are needed.
_Blocks: TypeAlias = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True, eq=False)
class View:
    """Rows of the data, in the order in which a loader counts them. Immutable.

    Held as the row numbers themselves, or as ranges of consecutive rows; the same rows are always held in the same way.

    Attributes
    ----------
    n_obs
        Rows of the view.
    n_data
        Rows of the data.
    rows
        Per row of the view its number in the data (uint32, or int64 from 2**32 rows on), or None where `starts` says it.
    starts, edges
        Per range the number in the data, and in the view, of its first row; None where `rows` says it.
    """

    n_obs: int
    n_data: int
    rows: np.ndarray | None = None
    starts: np.ndarray | None = None
    edges: np.ndarray | None = None

    @classmethod
    def of_all(cls, n_data: int) -> View:
        """Return the view of all rows."""
        return _one_range(0, n_data, n_data)

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> View:
        """Return the view of the rows where `mask` holds, of which there may be none."""
        return _view_of(_numbers_of(mask, len(mask), "mask"), len(mask), None)

    @classmethod
    def joined(cls, parts: Sequence[View]) -> View:
        """Return the view of all rows of several views, whose data lie below each other."""
        n_data = sum(part.n_data for part in parts)
        if all(part.is_all for part in parts):
            return cls.of_all(n_data)
        first_rows = np.cumsum([0, *(part.n_data for part in parts)]).tolist()

        def all_blocks() -> Iterator[np.ndarray]:
            for part, first_row in zip(parts, first_rows, strict=False):
                for block in part.blocks():
                    yield block + first_row

        return _view_of(all_blocks, n_data, None)

    @property
    def is_all(self) -> bool:
        """Whether the view is the data: all rows, in their order."""
        return self.n_obs == self.n_data and self._first == 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory for rows or ranges."""
        return sum(array.nbytes for array in (self.rows, self.starts, self.edges) if array is not None)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of the data (int64) that these rows of the view are.

        Parameters
        ----------
        numbers
            Integers in [0, n_obs), in any order. Not checked.
        """
        if self._first is not None:
            return numbers + self._first if self._first else numbers.astype(np.int64, copy=False)
        if self.rows is not None:
            return np.take(self.rows, numbers).astype(np.int64, copy=False)
        assert self.starts is not None
        assert self.edges is not None
        # The numbers are brought to the type of the edges, because NumPy would convert all the edges instead.
        of = np.searchsorted(self.edges, numbers.astype(self.edges.dtype), side="right") - 1
        taken: np.ndarray = self.starts[of] + (numbers - self.edges[of].astype(np.int64))
        return taken

    def subset(self, rows: Any, name: str = "rows") -> View:
        """Return the view of some rows of this one.

        Parameters
        ----------
        rows
            A boolean array of `n_obs`, row numbers of this view (negative ones count from the end), or a slice.
        name
            Of the parameter, for error texts.

        Raises
        ------
        TypeError
            When `rows` are neither booleans nor integers.
        ValueError
            When they are not one-dimensional, are booleans of another number, or choose no row.
        IndexError
            When a number is out of range.
        """
        numbers = _numbers_of(rows, self.n_obs, name)
        if isinstance(rows, slice) and self._first is not None:
            kept = range(self.n_obs)[rows]
            if len(kept) and kept.step == 1:
                return _one_range(self._first + kept.start, len(kept), self.n_data)
        return _view_of(lambda: map(self.take, numbers()), self.n_data, name)

    def has_rows_of(self, other: View) -> bool:
        """Whether another view of the same data has the same rows in the same order."""
        if self.n_obs != other.n_obs:
            return False
        held = ((self.rows, other.rows), (self.starts, other.starts), (self.edges, other.edges))
        return all(
            one is two or (one is not None and two is not None and np.array_equal(one, two)) for one, two in held
        )

    def of(self, array: np.ndarray) -> np.ndarray:
        """Entries of an array with one entry per row of the data, for the rows of the view."""
        if self.is_all:
            return array
        found = np.empty(self.n_obs, dtype=array.dtype)
        stop = 0
        for block in self.blocks():
            start, stop = stop, stop + len(block)
            np.take(array, block, out=found[start:stop])
        return found

    @cached_property
    def fingerprint(self) -> dict[str, Any] | None:
        """What tells these rows, in this order, from others: plain data. None for the view of all rows."""
        if self.is_all:
            return None
        digest = hashlib.sha256()
        for array in (self.rows, self.starts, self.edges):
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return {"n_obs": self.n_obs, "rows_sha256": digest.hexdigest()}

    @cached_property
    def repeats(self) -> bool:
        """Whether a row of the data comes more than once."""
        last = -1
        for block in self.blocks():
            if block[0] <= last or (np.diff(block) <= 0).any():
                break
            last = int(block[-1])
        else:
            return False
        seen = np.zeros(self.n_data, dtype=bool)
        for block in self.blocks():
            seen[block] = True
        return int(np.count_nonzero(seen)) < self.n_obs

    @property
    def _first(self) -> int | None:
        """First row of a view that is a single range."""
        return int(self.starts[0]) if self.starts is not None and len(self.starts) == 1 else None

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows of the data (int64), block after block."""
        for start in range(0, self.n_obs, _BLOCK):
            yield self.take(np.arange(start, min(start + _BLOCK, self.n_obs)))


def _one_range(start: int, n_obs: int, n_data: int) -> View:
    dtype = _dtype(max(n_data, n_obs))
    return View(n_obs, n_data, starts=np.array([start], dtype=dtype), edges=np.array([0], dtype=dtype))


def _dtype(n: int) -> np.dtype[Any]:
    """Smallest of two types that holds numbers below `n`."""
    return np.dtype(np.uint32 if n <= 2**32 else np.int64)


def _view_of(blocks: _Blocks, n_data: int, name: str | None) -> View:
    """Make a view of rows; `name`, where a parameter chose them, means that there must be some."""
    n_obs = n_ranges = 0
    for block, breaks in _with_breaks(blocks()):
        n_obs += len(block)
        n_ranges += len(breaks)
    if n_obs == 0:
        if name is None:
            return _one_range(0, 0, n_data)
        msg = f"{name} must choose at least one row, got none"
        raise ValueError(msg)
    if n_ranges * _ROWS_PER_RANGE > n_obs and n_ranges > 1:
        rows = np.empty(n_obs, dtype=_dtype(n_data))
        stop = 0
        for block in blocks():
            start, stop = stop, stop + len(block)
            rows[start:stop] = block
        return View(n_obs, n_data, rows=rows)
    starts, edges = (np.empty(n_ranges, dtype=_dtype(max(n_data, n_obs))) for _ in range(2))
    n_done = stop = 0
    for block, breaks in _with_breaks(blocks()):
        start, stop = stop, stop + len(breaks)
        starts[start:stop] = block[breaks]
        edges[start:stop] = breaks + n_done
        n_done += len(block)
    return View(n_obs, n_data, starts=starts, edges=edges)


def _with_breaks(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks that hold rows, each with the places in it where a range of consecutive rows begins."""
    following = -1
    for block in blocks:
        if len(block):
            breaks = np.flatnonzero(np.diff(block) != 1) + 1
            if block[0] != following:
                breaks = np.concatenate([[0], breaks])
            following = int(block[-1]) + 1
            yield block, breaks


def _numbers_of(rows: Any, n_obs: int, name: str) -> _Blocks:
    """Check `rows` and return what makes their numbers in [0, n_obs), block after block."""
    if isinstance(rows, slice):
        for part in ("start", "stop", "step"):
            if getattr(rows, part) is not None:
                as_count(f"{name}.{part}", getattr(rows, part), minimum=-(2**63))
        if rows.step is not None and int(rows.step) == 0:
            msg = f"{name} must have a step other than 0, got {rows}"
            raise ValueError(msg)
        rows = range(n_obs)[rows]
    if isinstance(rows, range):
        chosen = rows
        if len(chosen):
            _check_range(name, min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]), n_obs)

        def blocks_of_range() -> Iterator[np.ndarray]:
            for first in range(0, len(chosen), _BLOCK):
                part = chosen[first : first + _BLOCK]
                yield _from_the_end(np.arange(part.start, part.stop, part.step), n_obs)

        return blocks_of_range
    if not hasattr(rows, "dtype"):
        rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, (str, bytes)) else rows
        rows = np.asarray(rows) if rows != [] else np.empty(0, dtype=np.int64)
    array = np.asarray(rows)
    if array.dtype.kind not in "biu":
        msg = f"{name} must be booleans or row numbers, got {array.dtype}"
        raise TypeError(msg)
    if array.ndim != 1:
        msg = f"{name} must be one-dimensional, got shape {array.shape}"
        raise ValueError(msg)
    if array.dtype.kind == "b":
        if len(array) != n_obs:
            msg = f"{name} must hold one boolean for each of the {n_obs} rows, got {len(array)}"
            raise ValueError(msg)

        def blocks_of_mask() -> Iterator[np.ndarray]:
            for first in range(0, n_obs, _BLOCK):
                yield np.flatnonzero(array[first : first + _BLOCK]) + first

        return blocks_of_mask
    if len(array):
        _check_range(name, int(array.min()), int(array.max()), n_obs)

    def blocks_of_numbers() -> Iterator[np.ndarray]:
        for first in range(0, len(array), _BLOCK):
            yield _from_the_end(array[first : first + _BLOCK].astype(np.int64), n_obs)

    return blocks_of_numbers


def _check_range(name: str, lowest: int, highest: int, n_obs: int) -> None:
    if lowest < -n_obs or highest >= n_obs:
        msg = f"{name} must be row numbers in [{-n_obs}, {n_obs}), got numbers from {lowest} to {highest}"
        raise IndexError(msg)


def _from_the_end(numbers: np.ndarray, n_obs: int) -> np.ndarray:
    negative = numbers < 0
    return np.where(negative, numbers + n_obs, numbers) if negative.any() else numbers
