"""Plain twins of the kernels, written first and never optimised: same arguments, same numbers.

Random words come from `numpy.random.Philox`, which the kernels write out.
"""

from __future__ import annotations

import math

import numpy as np


class Words:
    """A stream of random words, one at a time."""

    def __init__(self, key, number, kind):
        self._philox = np.random.Philox(key=key, counter=np.array([0, 0, number, kind], dtype=np.uint64))

    def next(self):
        return int(self._philox.random_raw())

    def uniform(self):
        return (self.next() >> 11) * 2.0**-53

    def below(self, n):
        return self.several_below([n])[0]

    def several_below(self, bounds):
        """Independent uniform integers below each of `bounds`, from one word."""
        while True:
            rest, drawn = self.next(), []
            for bound in bounds:
                drawn.append(rest * bound >> 64)
                rest = rest * bound % 2**64
            # Lemire's test, for the product of the bounds: the words that make some results likelier are thrown away.
            if rest >= 2**64 % math.prod(bounds):
                return drawn


def draw_integers(key, number, kind, n, out):
    words = Words(key, number, kind)
    out[:] = [words.below(n) for _ in out]


def find_runs(codes, start, stop, run_start, run_code):
    window = codes[start:stop]
    edges = start + np.concatenate([[0], np.flatnonzero(window[1:] != window[:-1]) + 1])[: len(window)]
    n_found = min(len(edges), len(run_start))
    run_start[:n_found] = edges[:n_found]
    run_code[:n_found] = codes[edges[:n_found]]
    return n_found, int(edges[n_found]) if n_found < len(edges) else max(start, stop)


def group_runs(
    run_start,
    run_code,
    stop,
    chunk_size,
    class_offset,
    grouped_start,
    cumulative_starts,
    class_rows,
    class_short_runs,
):
    n_classes = len(class_rows)
    length = np.append(run_start[1:], stop) - run_start
    by_class = np.argsort(run_code, kind="stable")
    class_offset[:] = np.append(0, np.cumsum(np.bincount(run_code, minlength=n_classes)))
    grouped_start[:] = run_start[by_class]
    cumulative_starts[:] = np.append(0, np.cumsum(np.maximum(length - chunk_size + 1, 0)[by_class]))
    for c in range(n_classes):
        class_rows[c] = length[run_code == c].sum()
        class_short_runs[c] = (length[run_code == c] < chunk_size).sum()


def count_runs(codes, start, stop):
    window = codes[start:stop]
    return int((window[1:] != window[:-1]).sum()) + (len(window) > 0)


def count_codes(codes, start, stop, counts):
    window = codes[start:stop].astype(np.int64)
    wrong = window[(window < 0) | (window >= len(counts))]
    if len(wrong):
        return int(wrong[0])
    counts[:] = np.bincount(window, minlength=len(counts))
    return 0


def index_rows(codes, start, stop, class_offset, free, rows):
    rows[:] = start + np.argsort(codes[start:stop], kind="stable")
    free[:] = class_offset[1:]


def draw_groups(key, number, kind, cumulative_weights, drawable, out):
    words = Words(key, number, kind)
    for i in range(len(out)):
        out[i] = drawable[np.searchsorted(cumulative_weights, words.uniform(), side="right")]


def draw_run_chunks(key, number, kind, groups, group_chunks, class_offset, grouped_start, cumulative_starts, starts):
    words = Words(key, number, kind)
    for i in range(len(starts)):
        code = groups[i // group_chunks]
        runs = slice(class_offset[code], class_offset[code + 1])
        cumulative = cumulative_starts[runs]
        n_starts = int(cumulative_starts[class_offset[code + 1]] - cumulative[0])
        target = cumulative[0] + words.below(n_starts)
        run = np.searchsorted(cumulative, target, side="right") - 1
        starts[i] = grouped_start[runs][run] + target - cumulative[run]


def draw_index_rows(key, number, kind, groups, group_chunks, first, n_rows, rows, starts):
    words = Words(key, number, kind)
    for i in range(len(starts)):
        code = groups[i // group_chunks]
        starts[i] = rows[first[code] + words.below(int(n_rows[code]))]


def mixed(value, key):
    value = (value ^ key % 2**32) * 0x85EBCA6B % 2**32
    value = (value ^ value >> 15 ^ key >> 32) * 0xC2B2AE35 % 2**32
    return value ^ value >> 16


def permute(keys, n, n_left, n_right, first, out):
    for i in range(len(out)):
        value = first + i
        while True:
            left, right = divmod(value, n_right)
            for j in range(0, len(keys), 2):
                left = (left + (mixed(right, int(keys[j])) * n_left >> 32)) % n_left
                right = (right + (mixed(left, int(keys[j + 1])) * n_right >> 32)) % n_right
            value = left * n_right + right
            if value < n:
                break
        out[i] = value


# (below or at, integers per word)
DRAWS_PER_WORD = [
    (16, 15), (32, 11), (64, 9), (128, 8), (256, 7), (512, 6), (2**11, 5), (2**14, 4), (2**19, 3), (2**30, 2), (2**63, 1),
]  # fmt: skip


def shuffle_segments(key, number, kind, segment, out):
    words = Words(key, number, kind)
    out[:] = np.arange(len(out))
    for first in range(0, len(out), segment):
        left = min(segment, len(out) - first)
        while left > 1:
            n_draws = min(next(n for most, n in DRAWS_PER_WORD if left <= most), left - 1)
            for j in words.several_below([left - k for k in range(n_draws)]):
                left -= 1
                a, b = first + left, first + j
                out[a], out[b] = out[b], out[a]


def chunk_slices(starts, chunk_size, skip, n_rows):
    rows = [np.arange(start, start + chunk_size) for start in starts.tolist()]
    rows[0] = rows[0][skip:]
    slices = []
    for chunk in rows:
        chunk = chunk[:n_rows]
        n_rows -= len(chunk)
        slices.append(slice(int(chunk[0]), int(chunk[-1]) + 1))
    return slices
