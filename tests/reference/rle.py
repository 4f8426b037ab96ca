"""Plain twins of the kernels, written first and never optimised: same arguments, same numbers, same state afterwards."""

from __future__ import annotations

import numpy as np


def draw_integers(bit_generator, n, out):
    rng = np.random.Generator(bit_generator)
    for i in range(len(out)):
        out[i] = np.uint64(rng.integers(0, n - 1, endpoint=True, dtype=np.uint64)).astype(np.int64)


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


def draw_class_chunks(
    bit_generator,
    cumulative_weights,
    drawable,
    class_offset,
    grouped_start,
    cumulative_starts,
    group_chunks,
    starts,
):
    rng = np.random.Generator(bit_generator)
    for group in range(0, len(starts), group_chunks):
        code = drawable[np.searchsorted(cumulative_weights, rng.random(), side="right")]
        runs = slice(class_offset[code], class_offset[code + 1])
        cumulative = cumulative_starts[runs]
        n_starts = cumulative_starts[class_offset[code + 1]] - cumulative[0]
        for i in range(group, min(group + group_chunks, len(starts))):
            target = cumulative[0] + rng.integers(0, n_starts)
            run = np.searchsorted(cumulative, target, side="right") - 1
            starts[i] = grouped_start[runs][run] + target - cumulative[run]


def draw_chunks(bit_generator, displaced, n_drawn, out):
    rng = np.random.Generator(bit_generator)
    n_chunks = len(displaced)
    order = np.arange(n_chunks, dtype=displaced.dtype) ^ displaced
    for k in range(len(out)):
        here = n_drawn + k
        there = here + rng.integers(0, n_chunks - here)
        order[here], order[there] = order[there], order[here]
        out[k] = order[here]
    # Positions that are gone are never looked at again, so only the others must agree with the kernel.
    gone = n_drawn + len(out)
    displaced[gone:] = (np.arange(n_chunks, dtype=displaced.dtype) ^ order)[gone:]


def shuffle_segments(bit_generator, segment, out):
    rng = np.random.Generator(bit_generator)
    out[:] = np.arange(len(out))
    for first in range(0, len(out), segment):
        last = min(first + segment, len(out)) - 1
        for i in range(last, first, -1):
            j = first + rng.integers(0, i - first, endpoint=True)
            out[i], out[j] = out[j], out[i]
