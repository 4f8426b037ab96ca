"""Which byte ranges to fetch: neighbours as one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["GAP_BYTES", "MOST_BYTES", "Places", "Ranges", "merged"]

# What lies between two places is fetched with them when it is no longer than this. A request costs about as much as so many
# bytes: measured in docs/far.md.
GAP_BYTES = 1 << 16
# Longer ranges are asked for in pieces of this size, which come over several connections.
MOST_BYTES = 8 << 20


class Places(NamedTuple):
    """Where bytes are: file numbers and half-open ranges, int64, one each."""

    file: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Ranges(NamedTuple):
    """What is fetched for some places.

    Attributes
    ----------
    file, start, stop
        int64, per range.
    of_place
        int64, per place the range that holds it.
    """

    file: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    of_place: np.ndarray


def merged(places: Places, gap: int = GAP_BYTES) -> Ranges:
    """Merge places that lie no further than `gap` bytes from each other in the same file.

    Places may overlap and come in any order; those without bytes are given the range that comes before them.
    """
    if not len(places.file):
        empty = np.empty(0, np.int64)
        return Ranges(empty, empty, empty, empty)
    order = np.lexsort((places.start, places.file))
    file, start, stop = places.file[order], places.start[order], places.stop[order]
    # So that one running maximum serves all files.
    shift = file * (int(stop.max()) + gap + 1)
    reached = np.maximum.accumulate(stop + shift)
    begins = np.ones(len(file), bool)
    begins[1:] = (start[1:] + shift[1:] > reached[:-1] + gap) | (file[1:] != file[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(file)) - 1
    of_place = np.empty(len(file), np.int64)
    of_place[order] = np.cumsum(begins) - 1
    return Ranges(file[first], start[first], reached[last] - shift[last], of_place)
