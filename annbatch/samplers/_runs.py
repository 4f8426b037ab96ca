"""The run table: what can be drawn of each class inside a window of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from annbatch._rle import find_runs, group_runs

__all__ = ["RunTable", "Runs"]


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
            what = "NA" if lowest == -1 else f"code {lowest if lowest < 0 else highest}"
            msg = f"classes must not be NA and have codes in [0, {n_classes}), got {what} in rows [{runs.start}, {runs.stop})"
            raise ValueError(msg)
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
