"""Which byte ranges to fetch: neighbours as one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["GAP_BYTES", "MOST_BYTES", "Located", "Ranges", "merged"]

# What lies between two ranges is fetched with them when it is no longer than this. A request costs about as much as so many
# bytes: measured in docs/far.md.
GAP_BYTES = 1 << 16
# Longer ranges are asked for in pieces of this size, which come over several connections.
MOST_BYTES = 8 << 20


class Located(NamedTuple):
    """Where bytes are: file numbers and half-open ranges, int64, one each."""

    file: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Ranges(NamedTuple):
    """What is fetched for what is located.

    Attributes
    ----------
    file, start, stop
        int64, per range.
    of_item
        int64, per item of what was located the range that holds it.
    """

    file: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    of_item: np.ndarray


def merged(located: Located, gap: int = GAP_BYTES) -> Ranges:
    """Merge what lies no further than `gap` bytes apart in the same file.

    Items may overlap and come in any order; those without bytes are given the range that comes before them.
    """
    if not len(located.file):
        empty = np.empty(0, np.int64)
        return Ranges(empty, empty, empty, empty)
    order = np.lexsort((located.start, located.file))
    file, start, stop = located.file[order], located.start[order], located.stop[order]
    # So that one running maximum serves all files.
    shift = file * (int(stop.max()) + gap + 1)
    reached = np.maximum.accumulate(stop + shift)
    begins = np.ones(len(file), bool)
    begins[1:] = (start[1:] + shift[1:] > reached[:-1] + gap) | (file[1:] != file[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(file)) - 1
    of_item = np.empty(len(file), np.int64)
    of_item[order] = np.cumsum(begins) - 1
    return Ranges(file[first], start[first], reached[last] - shift[last], of_item)
