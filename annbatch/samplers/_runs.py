"""The run table: what can be drawn of each class inside a window of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from annbatch._rle import find_runs, group_runs

__all__ = ["RunTable"]


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
    def build(cls, codes: np.ndarray, start: int, stop: int, *, n_classes: int, chunk_size: int) -> RunTable:
        """Build the table over ``codes[start:stop]``, at least one row.

        One pass over the codes, whatever their integer type; memory grows with the number of runs, not of rows.

        Raises
        ------
        ValueError
            When a code is not in ``[0, n_classes)``.
        """
        run_start, run_code = _find_all_runs(codes, start, stop, guess=(stop - start) // chunk_size + 1)
        # Looked at on every build, since the kernel below indexes with the codes, which their owner may have changed.
        lowest, highest = int(run_code.min()), int(run_code.max())
        if lowest < 0 or highest >= n_classes:
            what = "NA" if lowest == -1 else f"code {lowest if lowest < 0 else highest}"
            msg = f"classes must not be NA and have codes in [0, {n_classes}), got {what} in rows [{start}, {stop})"
            raise ValueError(msg)
        table = cls(
            class_offset=np.empty(n_classes + 1, dtype=np.int64),
            run_start=np.empty(len(run_start), dtype=np.int64),
            cumulative_starts=np.empty(len(run_start) + 1, dtype=np.int64),
            class_rows=np.empty(n_classes, dtype=np.int64),
            class_short_runs=np.empty(n_classes, dtype=np.int64),
        )
        group_runs(
            run_start,
            run_code,
            stop,
            chunk_size,
            table.class_offset,
            table.run_start,
            table.cumulative_starts,
            table.class_rows,
            table.class_short_runs,
        )
        return table


def _find_all_runs(codes: np.ndarray, start: int, stop: int, *, guess: int) -> tuple[np.ndarray, np.ndarray]:
    """First row and code of every run, into output that grows when there are more runs than fit."""
    capacity = min(guess, 65_536)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    while True:
        run_start, run_code = np.empty(capacity, dtype=np.int64), np.empty(capacity, dtype=np.int64)
        n_found, start = find_runs(codes, start, stop, run_start, run_code)
        pieces.append((run_start[:n_found], run_code[:n_found]))
        if start >= stop:
            break
        capacity *= 2
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])
