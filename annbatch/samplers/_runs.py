"""What can be drawn of each class inside a window of rows: a table of runs, or, for scattered classes, an index of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._rle import count_codes, count_runs, draw_index_rows, draw_run_chunks, find_runs, group_runs, index_rows

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["RowIndex", "RowWindow", "RunTable", "Runs", "rows_are_scattered"]


def rows_are_scattered(codes: np.ndarray, start: int, stop: int) -> bool:
    """Whether runs are so short that an index of rows (4 bytes a row) is smaller than a table of runs (16 bytes a run)."""
    return bool(4 * count_runs(codes, start, stop) > stop - start)


def _refuse_codes(code: int, n_classes: int, start: int, stop: int) -> None:
    what = "NA" if code == -1 else f"code {code}"
    msg = f"classes must not be NA and have codes in [0, {n_classes}), got {what} in rows [{start}, {stop})"
    raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of equal codes in the rows ``start <= row < stop``, at least one row.

    Attributes
    ----------
    first_row
        int64, first row of each run, ascending.
    code
        int64, the code of each run.
    """

    start: int
    stop: int
    first_row: np.ndarray
    code: np.ndarray

    @classmethod
    def find(cls, codes: np.ndarray, start: int, stop: int, *, guess: int) -> Runs:
        """Find the runs of ``codes[start:stop]``, about `guess` of them.

        One pass over the codes, whatever their integer type; memory grows with the number of runs, not of rows.
        """
        capacity, position = min(guess, 65_536), start
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        while position < stop:
            # Output that grows when there are more runs than fit.
            first_row, code = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.int64)
            n_found, position = find_runs(codes, position, stop, first_row, code)
            pieces.append((first_row[:n_found], code[:n_found]))
            capacity *= 2
        if len(pieces) == 1:
            return cls(start, stop, *pieces[0])
        return cls(start, stop, *(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.first_row.nbytes + self.code.nbytes

    def within(self, start: int, stop: int) -> Runs | None:
        """Cut to fewer rows; None when these runs do not cover all of them. O(runs within)."""
        if start < self.start or stop > self.stop:
            return None
        first = int(np.searchsorted(self.first_row, start, side="right")) - 1
        last = int(np.searchsorted(self.first_row, stop, side="left"))
        first_row = self.first_row[first:last].copy()
        first_row[0] = start
        return Runs(start, stop, first_row, self.code[first:last])


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs of equal codes, sorted by class. The runs of class `c` are ``class_offset[c]:class_offset[c + 1]``.

    Attributes
    ----------
    class_offset
        int64, one entry more than classes.
    run_start
        int64, first row of each run, ascending within a class.
    cumulative_starts
        int64, one entry more than runs: chunk starts in all runs before this one. A run of ``L`` rows has
        ``L - chunk_size + 1`` of them; a shorter run than a chunk has none.
    class_rows, class_short_runs
        int64, per class: rows, and runs that are shorter than a chunk.
    """

    class_offset: np.ndarray
    run_start: np.ndarray
    cumulative_starts: np.ndarray
    class_rows: np.ndarray
    class_short_runs: np.ndarray

    @classmethod
    def build(cls, runs: Runs, *, n_classes: int, chunk_size: int) -> RunTable:
        """Sort runs by class and count what can be drawn from them.

        Raises
        ------
        ValueError
            When a code is not in ``[0, n_classes)``.
        """
        # Looked at on every build, since the kernel below indexes with the codes.
        lowest, highest = int(runs.code.min()), int(runs.code.max())
        if lowest < 0 or highest >= n_classes:
            _refuse_codes(lowest if lowest < 0 else highest, n_classes, runs.start, runs.stop)
        table = cls(
            class_offset=np.empty(n_classes + 1, dtype=np.int64),
            run_start=np.empty(len(runs.first_row), dtype=np.int64),
            cumulative_starts=np.empty(len(runs.first_row) + 1, dtype=np.int64),
            class_rows=np.empty(n_classes, dtype=np.int64),
            class_short_runs=np.empty(n_classes, dtype=np.int64),
        )
        group_runs(
            runs.first_row,
            runs.code,
            runs.stop,
            chunk_size,
            table.class_offset,
            table.run_start,
            table.cumulative_starts,
            table.class_rows,
            table.class_short_runs,
        )
        return table

    def draw(
        self, key: np.ndarray, number: int, kind: int, groups: np.ndarray, group_chunks: int, starts: np.ndarray
    ) -> None:
        """Draw the first rows of chunks, `group_chunks` for each of the classes in `groups`."""
        draw_run_chunks(
            key,
            number,
            kind,
            groups,
            group_chunks,
            self.class_offset,
            self.run_start,
            self.cumulative_starts,
            starts,
        )

    @property
    def class_starts(self) -> np.ndarray:
        """Chunk starts of every class (int64)."""
        return np.diff(self.cumulative_starts[self.class_offset])


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The rows ``start <= row < stop``, sorted by class; for chunks of a single row.

    Attributes
    ----------
    class_offset
        int64, one entry more than classes.
    rows
        uint32 or uint64, ascending within a class; those of class `c` are ``class_offset[c]:class_offset[c + 1]``.
    """

    start: int
    stop: int
    class_offset: np.ndarray
    rows: np.ndarray

    @classmethod
    def build(cls, codes: np.ndarray, start: int, stop: int, *, n_classes: int) -> RowIndex:
        """Sort the rows of ``codes[start:stop]``: two passes over the codes, no memory but the result's.

        Raises
        ------
        ValueError
            When a code is not in ``[0, n_classes)``.
        """
        counts = np.empty(n_classes, dtype=np.int64)
        wrong = count_codes(codes, start, stop, counts)
        if wrong:
            _refuse_codes(wrong, n_classes, start, stop)
        class_offset = np.append(0, np.cumsum(counts))
        rows: npt.NDArray[Any] = np.empty(stop - start, dtype=np.uint32 if stop <= 2**32 else np.uint64)
        index_rows(codes, start, stop, class_offset, counts, rows)
        return cls(start, stop, class_offset, rows)

    def within(self, start: int, stop: int) -> RowWindow | None:
        """Cut to fewer rows, which share this index's memory; None when it does not cover them. O(classes log rows)."""
        if start < self.start or stop > self.stop:
            return None
        pieces = [self.rows[a:b] for a, b in zip(self.class_offset[:-1], self.class_offset[1:], strict=True)]
        first = [int(np.searchsorted(piece, start)) for piece in pieces]
        last = [int(np.searchsorted(piece, stop)) for piece in pieces]
        n_rows = np.array(last, dtype=np.int64) - np.array(first, dtype=np.int64)
        return RowWindow(self.rows, self.class_offset[:-1] + np.array(first, dtype=np.int64), n_rows)


@dataclass(frozen=True, slots=True)
class RowWindow:
    """A part of a row index: the rows of class `c` are ``rows[first[c]:first[c] + class_rows[c]]``."""

    rows: np.ndarray
    first: np.ndarray
    class_rows: np.ndarray

    @property
    def class_starts(self) -> np.ndarray:
        """Chunk starts of every class (int64): its rows."""
        return self.class_rows

    @property
    def class_short_runs(self) -> np.ndarray:
        """Runs that are shorter than a chunk (int64): none, chunks being single rows."""
        return np.zeros_like(self.class_rows)

    def draw(
        self, key: np.ndarray, number: int, kind: int, groups: np.ndarray, group_chunks: int, starts: np.ndarray
    ) -> None:
        """Draw rows, `group_chunks` for each of the classes in `groups`."""
        draw_index_rows(key, number, kind, groups, group_chunks, self.first, self.class_rows, self.rows, starts)
