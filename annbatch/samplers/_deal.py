"""How a pass is dealt out among ranks.

The rows of a pass stand in the order in which the pass visits them; *places* are their numbers in that order. A rank gets every
`world_size`-th load request, as long as there are enough for all, and an equal part of the rows that are left then. All of
this is arithmetic: nobody draws, or knows of, what another rank does.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Deal", "Interval", "without"]

# Places, half open.
Interval = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """What each of `world_size` ranks does of a pass.

    A rank counts its own rows from 0. The first ones come in whole load requests, dealt out in turn; the last ones, which are
    the *tail*, are an equal part of what remains. The tail begins at least one round early, so that there is room in it for the
    rows that are left out (by `drop_last`, or to give every rank the same number of batches): they are neighbours
    at a place that the caller draws, and not always those at the end.

    Attributes
    ----------
    intervals
        The places that are dealt out, ascending: int64, (n, 2), half open.
    passed
        Places in all intervals before each one, and in all: int64, n + 1.
    request_rows
        Rows of a load request, a multiple of the batch size.
    world_size
        Number of ranks.
    n_rounds
        Load requests of each rank before the tail.
    tails
        Rows of each rank's tail.
    gap
        The rows that are left out, counted over all intervals.
    """

    intervals: np.ndarray
    passed: np.ndarray
    request_rows: int
    world_size: int
    n_rounds: int
    tails: tuple[int, ...]
    gap: Interval

    @classmethod
    def of(
        cls,
        intervals: Sequence[Interval] | np.ndarray,
        *,
        request_rows: int,
        batch_size: int,
        world_size: int = 1,
        drop_last: bool,
        equal_batches: bool = True,
        n_rows_each: int | None = None,
        left_out_at: Callable[[int], int],
    ) -> Deal:
        """Deal the places in `intervals` out.

        Parameters
        ----------
        drop_last
            Leave out what does not fill a batch.
        equal_batches
            Leave out what would give some ranks a batch more than others.
        n_rows_each
            Rows that a rank shall do at most; the others are left out.
        left_out_at
            Called with a number `n`, returns where in [0, n) the rows that are left out begin.
        """
        intervals = np.array(intervals, dtype=np.int64).reshape(-1, 2)
        passed = np.append(0, np.cumsum(intervals[:, 1] - intervals[:, 0]))
        n_rows = int(passed[-1])
        n_rounds = max(n_rows // (world_size * request_rows) - 1, 0)
        head = n_rounds * world_size * request_rows
        n_tail = n_rows - head
        if n_rows_each is not None:
            n_tail = min(n_tail, world_size * (n_rows_each - n_rounds * request_rows))
        unit = batch_size if drop_last else 1
        each, left_over = divmod(n_tail // unit, world_size)
        # As request_rows is a multiple of batch_size, only the tails decide about the number of batches.
        if equal_batches and left_over and (drop_last or each % batch_size == 0):
            left_over = 0
        tails = tuple(unit * (each + (rank < left_over)) for rank in range(world_size))
        n_left_out = n_rows - head - sum(tails)
        first = head + (left_out_at(n_rows - head - n_left_out + 1) if n_left_out else sum(tails))
        return cls(intervals, passed, request_rows, world_size, n_rounds, tails, (first, first + n_left_out))

    def n_rows(self, rank: int) -> int:
        """Rows that `rank` does."""
        return self.n_rounds * self.request_rows + self.tails[rank]

    def places(self, rank: int, first: int, last: int) -> list[Interval]:
        """Places of the rank's own rows [first, last), in order."""
        found: list[Interval] = []
        in_requests = self.n_rounds * self.request_rows
        while first < min(last, in_requests):
            number, offset = divmod(first, self.request_rows)
            n_rows = min(self.request_rows - offset, last - first)
            start = (number * self.world_size + rank) * self.request_rows + offset
            self._add(found, start, start + n_rows)
            first += n_rows
        if first < last:
            start = in_requests * self.world_size + sum(self.tails[:rank]) + first - in_requests
            stop = start + last - first
            # The gap is not counted by those who do the rows around it.
            n_before = max(min(stop, self.gap[0]) - start, 0)
            n_skipped = self.gap[1] - self.gap[0]
            self._add(found, start, start + n_before)
            self._add(found, start + n_before + n_skipped, stop + n_skipped)
        return found

    def rest(self, n_done: int) -> list[Interval]:
        """What remains of the pass, ascending, once every rank has done its first `n_done` rows."""
        left: list[Interval] = []
        number, offset = divmod(n_done, self.request_rows)
        if number < self.n_rounds:
            for request in range(number * self.world_size, (number + 1) * self.world_size):
                self._add(left, request * self.request_rows + offset, (request + 1) * self.request_rows)
            rounds = self.world_size * self.request_rows
            self._add(left, (number + 1) * rounds, self.n_rounds * rounds)
        for rank in range(self.world_size):
            first = max(n_done, self.n_rounds * self.request_rows)
            for start, stop in self.places(rank, first, self.n_rows(rank)):
                if left and left[-1][1] == start:
                    start = left.pop()[0]
                left.append((start, stop))
        return left

    def _add(self, found: list[Interval], first: int, last: int) -> None:
        """Add rows [first, last), counted over all intervals, as places."""
        number = int(np.searchsorted(self.passed, first, side="right")) - 1
        while first < last:
            start, passed = int(self.intervals[number, 0]), int(self.passed[number])
            stop = min(last, int(self.passed[number + 1]))
            place = start + first - passed
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + stop - first)
            elif stop > first:
                found.append((place, place + stop - first))
            first = stop
            number += 1


def without(intervals: Sequence[Interval], places: np.ndarray) -> np.ndarray:
    """Take single places out of ascending intervals that hold them all."""
    places = np.sort(places)
    given = np.array(intervals, dtype=np.int64).reshape(-1, 2)
    starts, stops = np.sort(np.append(given[:, 0], places + 1)), np.sort(np.append(given[:, 1], places))
    return np.stack([starts, stops], axis=1)[starts < stops]
