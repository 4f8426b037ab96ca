"""Rows and groups given to sides: how many go where, and which.

Plain functions of arrays. Numbers of rows are computed in whole numbers, so that they are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

__all__ = [
    "Groups",
    "allot_groups",
    "allot_rows",
    "apportion",
    "apportion_strata",
    "count_codes",
    "group_rows",
    "look_up",
]

# Rows that are worked on at once, in the cache.
_BLOCK = 1 << 16

# All ways of giving groups to sides are tried where there are no more than this, and numbers to be held for them.
_MOST_WAYS = 1 << 19
_MOST_NUMBERS = 1 << 22

# Exchanging two groups is tried among this many of the largest.
_MOST_EXCHANGED = 400

# Beginnings, and steps from each, of the search for a good way where there are too many to try all.
_N_STARTS = 8
_MOST_STEPS = 1000


# -- groups of rows


@dataclass(frozen=True)
class Groups:
    """Which group each row belongs to.

    Attributes
    ----------
    codes
        Per row the number of its group, int64 or smaller, in [0, n).
    labels
        Per group its label, or the labels of several columns as a tuple. A missing label is numpy.nan.
    """

    codes: np.ndarray
    labels: Sequence[Any]

    def only(self, rows: np.ndarray) -> Groups:
        """Return the groups of some rows (booleans); those without any are left out."""
        codes, occurring = _renumbered(self.codes[rows], len(self.labels))
        return Groups(codes, [self.labels[number] for number in occurring.tolist()])

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group."""
        return count_codes(self.codes, len(self.labels))


def group_rows(columns: Sequence[tuple[np.ndarray, Sequence[Any]]]) -> Groups:
    """Group rows by one or several columns of labels; rows whose label is missing are a group, too.

    Parameters
    ----------
    columns
        Per column its codes (-1: missing), one per row, and the sorted labels that they number.

    Returns
    -------
    Groups
        Those that occur, sorted by their labels, missing ones first: their numbers do not depend on the order of the rows.
    """
    codes: np.ndarray | None = None
    labels: list[tuple[Any, ...]] = [()]
    for column, its_labels in columns:
        # Renumbered after each column: the product of many columns would outgrow int64.
        joint: np.ndarray = column.astype(np.int64 if codes is not None else np.int32) + 1
        if codes is not None:
            joint = joint + codes.astype(np.int64) * (len(its_labels) + 1)
        codes, occurring = _renumbered(joint, len(labels) * (len(its_labels) + 1))
        before = labels
        named = [np.nan, *its_labels]
        labels = [(*before[number // len(named)], named[number % len(named)]) for number in occurring.tolist()]
    assert codes is not None
    return Groups(codes, [label[0] for label in labels] if len(columns) == 1 else list(labels))


def _renumbered(codes: np.ndarray, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the codes that occur from 0 on, in their order; returns the new numbers, and the code of each."""
    if n_codes > max(1 << 16, 4 * len(codes)):
        occurring, renumbered = np.unique(codes, return_inverse=True)
        return renumbered.reshape(-1), occurring
    occurring = np.flatnonzero(count_codes(codes, n_codes))
    number = np.zeros(n_codes, dtype=np.min_scalar_type(max(len(occurring) - 1, 0)))
    number[occurring] = np.arange(len(occurring))
    return look_up(number, codes), occurring


def count_codes(codes: np.ndarray, n_codes: int) -> np.ndarray:
    """How often each number in [0, n_codes) occurs (int64)."""
    counts = np.zeros(n_codes, dtype=np.int64)
    # In blocks, because NumPy counts, and looks up, by numbers of eight bytes.
    n_block = max(_BLOCK, n_codes)
    for start in range(0, len(codes), n_block):
        counts += np.bincount(codes[start : start + n_block], minlength=n_codes)
    return counts


def look_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Entries of a table, one per code."""
    found = np.empty(len(codes), dtype=table.dtype)
    for start in range(0, len(codes), _BLOCK):
        np.take(table, codes[start : start + _BLOCK], out=found[start : start + _BLOCK])
    return found


# -- how many rows go where


def apportion(n: int, fractions: Sequence[Fraction]) -> np.ndarray:
    """Divide `n` into whole numbers (int64) as near to the fractions as can be, by largest remainders; ties go to the first."""
    exact = [n * fraction for fraction in fractions]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda side: counts[side] - exact[side])
    for side in by_remainder[: n - sum(counts)]:
        counts[side] += 1
    return np.array(counts, dtype=np.int64)


def apportion_strata(sizes: Sequence[int], fractions: Sequence[Fraction], rng: np.random.Generator) -> np.ndarray:
    """Divide each stratum into whole numbers, so that every stratum and the sum of all of them come out exactly.

    Parameters
    ----------
    sizes
        Rows of each stratum.
    fractions
        Of each side; their sum is 1.
    rng
        Decides which way is rounded.

    Returns
    -------
    ndarray
        int64, strata x sides. Rows add up to `sizes`; every number, and the sum of every column, is less than 1 away from
        its exact share.

    Notes
    -----
    Controlled rounding after Cox, "A constructive procedure for unbiased controlled rounding" (J. Am. Stat. Assoc. 82, 1987):
    along a cycle of numbers that are not whole, as much is added to every second one as is taken from the others, until
    one of them is whole. The chance of rounding up is the fraction that is rounded.
    """
    whole = math.lcm(*(fraction.denominator for fraction in fractions))
    weights = [int(fraction * whole) for fraction in fractions]
    n = sum(int(size) for size in sizes)
    counts = np.array([[int(size) * weight // whole for weight in weights] for size in sizes], dtype=np.int64)
    # What is left of every number, in units of 1 / whole. The last row makes all columns whole; rows are already.
    left = [[int(size) * weight % whole for weight in weights] for size in sizes]
    left.append([-n * weight % whole for weight in weights])
    in_row = [{column for column, value in enumerate(row) if value} for row in left]
    in_column = [[row for row in reversed(range(len(left))) if left[row][side]] for side in range(len(weights))]
    for row in range(len(left)):
        while in_row[row]:
            cycle = _cycle(row, in_row, in_column)
            up, down = cycle[::2], cycle[1::2]
            most_up = min(min(whole - left[r][c] for r, c in up), min(left[r][c] for r, c in down))
            most_down = min(min(left[r][c] for r, c in up), min(whole - left[r][c] for r, c in down))
            step = most_up if rng.random() * (most_up + most_down) < most_down else -most_down
            for sign, places in ((1, up), (-1, down)):
                for r, c in places:
                    left[r][c] += sign * step
                    if left[r][c] in (0, whole):
                        if r < len(counts):
                            counts[r, c] += left[r][c] == whole
                        in_row[r].discard(c)
    return counts


def _cycle(row: int, in_row: list[set[int]], in_column: list[list[int]]) -> list[tuple[int, int]]:
    """Places of a cycle, by turns along a row and along a column. No row or column holds a single number that is not whole.

    What is whole leaves `in_row` at once, `in_column` only here.
    """
    path: list[tuple[int, int]] = []
    rows, columns = {row: 0}, dict[int, int]()  # length of the path when each was met
    column = -1
    while True:
        column = min(other for other in in_row[row] if other != column)
        path.append((row, column))
        if column in columns:
            return path[columns[column] :]
        columns[column] = len(path)
        row = _other_row(row, column, in_row, in_column[column])
        path.append((row, column))
        if row in rows:
            return path[rows[row] :]
        rows[row] = len(path)


def _other_row(row: int, column: int, in_row: list[set[int]], rows: list[int]) -> int:
    place = len(rows) - 1
    while rows[place] == row or column not in in_row[rows[place]]:
        if rows[place] != row:
            del rows[place]
        place -= 1
    return rows[place]


# -- which rows and groups go where


def allot_rows(
    n_rows: int, fractions: Sequence[Fraction], rng: np.random.Generator, strata: Groups | None = None
) -> np.ndarray:
    """Give every row a side (small unsigned integers), at random; exact counts, in every stratum too."""
    if strata is None:
        return _shuffled(apportion(n_rows, fractions), rng)
    counts = apportion_strata(strata.sizes.tolist(), fractions, rng)
    by_stratum = np.concatenate([_shuffled(of_stratum, rng) for of_stratum in counts])
    side = np.empty_like(by_stratum)
    side[np.argsort(strata.codes, kind="stable")] = by_stratum
    return side


def _shuffled(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The number of each side as often as it counts, shuffled."""
    names = np.arange(len(counts), dtype=np.min_scalar_type(len(counts) - 1))
    n = int(counts.sum())
    if n <= _BLOCK or n >= 10**9:  # as many as NumPy draws from at once
        side = np.repeat(names, counts)
        rng.shuffle(side)
        return side
    # How many of each are in the next block, then shuffled there: the same chances, but it stays in the cache.
    side = np.empty(n, dtype=names.dtype)
    left = counts.copy()
    for start in range(0, n, _BLOCK):
        block = side[start : start + _BLOCK]
        here = rng.multivariate_hypergeometric(left, len(block), method="marginals")
        left -= here
        block[:] = np.repeat(names, here)
        rng.shuffle(block)
    return side


def allot_groups(
    groups: Groups, fractions: Sequence[Fraction], rng: np.random.Generator, strata: Groups | None = None
) -> np.ndarray:
    """Give every group a side, so that the sides come as near to the fractions as whole groups allow.

    Parameters
    ----------
    groups
        At least as many as sides.
    fractions
        Of each side; their sum is 1.
    rng
        Decides among equally good ways, and where to begin looking when there are too many to try all.
    strata
        Labels whose shares every side should keep, too.

    Returns
    -------
    ndarray
        Per group the number of its side. No side is empty.

    Notes
    -----
    What is made small is the sum over all sides of the squared difference between the fraction of the rows that the side
    got and the one that it should; with strata, half of it, and half of the mean over strata of the same for the rows of
    each. Up to half a million ways are all tried. Else the largest group that is left goes to the side that lacks
    most, then single groups are moved and pairs exchanged as long as that helps, from several beginnings.
    """
    weights = _weights(groups, strata)
    share = np.array([float(fraction) for fraction in fractions])
    n_groups, n_sides = len(weights), len(share)
    if n_sides == 1:
        return np.zeros(n_groups, dtype=np.intp)
    if n_groups * math.log(n_sides) <= math.log(min(_MOST_WAYS, _MOST_NUMBERS / weights.shape[1])):
        return _best_of_all(weights, share, rng)
    best, best_cost = None, math.inf
    for _ in range(_N_STARTS if n_groups <= 2000 else 1):
        side = _improved(_greedy(weights, share, rng), weights, share)
        cost = _cost(side, weights, share)
        if cost < best_cost:
            best, best_cost = side, cost
    assert best is not None
    return best


def _weights(groups: Groups, strata: Groups | None) -> np.ndarray:
    """Per group what it adds to a side, in every direction that counts; the sum of each column is that of all rows."""
    sizes = groups.sizes.astype(np.float64)
    total: np.ndarray = sizes[:, None] / sizes.sum()
    if strata is None:
        return total
    n_strata = len(strata.labels)
    joint = groups.codes.astype(np.int64) * n_strata + strata.codes
    table = np.bincount(joint, minlength=len(sizes) * n_strata).reshape(len(sizes), n_strata)
    return np.concatenate([total, table / table.sum(axis=0) / math.sqrt(n_strata)], axis=1)


def _excess(side: np.ndarray, weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Per side and direction how much too much it has."""
    held = np.zeros((len(share), weights.shape[1]))
    np.add.at(held, side, weights)
    held -= share[:, None] * weights.sum(axis=0)
    return held


def _cost(side: np.ndarray, weights: np.ndarray, share: np.ndarray) -> float:
    return float((_excess(side, weights, share) ** 2).sum())


def _best_of_all(weights: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n_groups, n_sides = len(weights), len(share)
    ways = np.arange(n_sides**n_groups)
    costs = np.zeros(len(ways))
    for side in range(n_sides):
        held = np.zeros((len(ways), weights.shape[1]))
        is_empty = np.ones(len(ways), dtype=bool)
        for group in range(n_groups):
            here = ways // n_sides**group % n_sides == side
            held[here] += weights[group]
            is_empty &= ~here
        costs += ((held - share[side] * weights.sum(axis=0)) ** 2).sum(axis=1)
        costs[is_empty] = math.inf
    best = np.flatnonzero(costs <= costs.min() * (1 + 1e-9) + 1e-18)
    way = int(rng.choice(best))
    return np.array([way // n_sides**group % n_sides for group in range(n_groups)], dtype=np.intp)


def _greedy(weights: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Largest group first, each to the side that it brings nearest to its share; the order is a little random."""
    n_groups, n_sides = len(weights), len(share)
    size = (weights**2).sum(axis=1)
    order = np.argsort(-size * np.exp(rng.normal(0, 0.5, n_groups)), kind="stable")
    excess = -share[:, None] * weights.sum(axis=0)
    side = np.empty(n_groups, dtype=np.intp)
    empty = set(range(n_sides))
    for n_left, group in zip(range(n_groups, 0, -1), order.tolist(), strict=True):
        gain = excess @ weights[group]
        # The last groups go to sides that have none.
        choices = sorted(empty) if n_left <= len(empty) else range(n_sides)
        to = min(choices, key=gain.__getitem__)
        excess[to] += weights[group]
        side[group] = to
        empty.discard(to)
    return side


def _improved(side: np.ndarray, weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Move single groups and exchange pairs as long as that brings the sides nearer to their shares."""
    n_groups, n_sides = len(weights), len(share)
    own = (weights**2).sum(axis=1)
    every = np.arange(n_groups)
    largest = np.argsort(-own, kind="stable")[:_MOST_EXCHANGED]
    products = weights[largest] @ weights[largest].T
    apart = 2 * (own[largest][:, None] + own[largest][None, :] - 2 * products)
    for _ in range(_MOST_STEPS):
        excess = _excess(side, weights, share)
        towards = weights @ excess.T
        here = towards[every, side]
        # What the cost becomes more by when a group moves to another side.
        change = 2 * (towards - here[:, None] + own[:, None])
        change[every, side] = 0
        change[np.bincount(side, minlength=n_sides)[side] == 1] = 0
        group, to = divmod(int(change.argmin()), n_sides)
        of_move = float(change[group, to])
        # And when two groups change places.
        there = towards[largest][:, side[largest]]
        change = 2 * (there - here[largest][:, None] + there.T - here[largest][None, :]) + apart
        change[side[largest][:, None] == side[largest][None, :]] = 0
        first, second = divmod(int(change.argmin()), len(largest))
        of_exchange = float(change[first, second])
        if min(of_move, of_exchange) > -1e-15:
            break
        if of_move <= of_exchange:
            side[group] = to
        else:
            first, second = largest[first], largest[second]
            side[first], side[second] = side[second], side[first]
    return side
