"""Which row goes where. Pure functions of seed and sizes: memory, threads and machines have no say in it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .fields import Array


def dataset_edges(n_obs: int, most: int) -> Array:
    """Cut ``n_obs`` rows into datasets of at most ``most`` rows, as even as can be (int64 edges)."""
    n_datasets = -(-n_obs // most)
    return np.arange(n_datasets + 1, dtype=np.int64) * n_obs // n_datasets


def destinations(
    n_obs: int, edges: Array, *, shuffle: bool, rng: np.random.Generator, sort_keys: Array | None = None
) -> Array:
    """Place in the output of every input row, inputs one after the other.

    With ``shuffle`` each of the ``n_obs!`` orders is as likely as any other. With ``sort_keys`` (one integer a row)
    each dataset is then sorted by them; the sort is stable, so rows with equal keys stay in shuffled order.
    """
    dtype = np.uint32 if n_obs < 2**32 else np.int64
    places = np.arange(n_obs, dtype=dtype)
    if shuffle:
        rng.shuffle(places)
    if sort_keys is None:
        return places
    row_at = np.empty_like(places)
    row_at[places] = np.arange(n_obs, dtype=dtype)
    for start, stop in pairwise(edges.tolist()):
        rows = row_at[start:stop]
        rows = rows[np.argsort(sort_keys[rows], kind="stable")]
        places[rows] = np.arange(start, stop, dtype=dtype)
    return places


def plan_bytes(n_obs: int, most: int, key_bytes: int = 0) -> int:
    """Memory that :func:`destinations` takes at most.

    Datasets have ``most`` rows, a sort key ``key_bytes`` (0: none). ``plan_bytes(n_obs, 0)`` is what its result takes.
    """
    width = 4 if n_obs < 2**32 else 8
    if not key_bytes:
        return n_obs * width
    # Of all rows: place, row at a place, key. Of a dataset: its rows, their keys, their order and the room to find it,
    # the rows in it.
    return n_obs * (2 * width + key_bytes) + min(most, n_obs) * (2 * width + key_bytes + 16)


def block_edges(bytes_before: Array, most_bytes: int, row_step: int = 1) -> Array:
    """Cut an input into blocks of rows that take at most ``most_bytes`` each (a single row may take more).

    ``bytes_before[i]`` bytes belong to the rows before ``i``. Edges are multiples of ``row_step`` where the size
    allows.
    """
    n_obs = len(bytes_before) - 1
    edges = [0]
    while edges[-1] < n_obs:
        start = edges[-1]
        stop = int(np.searchsorted(bytes_before, bytes_before[start] + most_bytes, side="right")) - 1
        if stop - stop % row_step > start:
            stop -= stop % row_step
        edges.append(min(max(stop, start + 1), n_obs) if stop < n_obs else n_obs)
    return np.array(edges, np.int64)


def cut_by_bytes(row_bytes: Array, most_bytes: int) -> Array:
    """Edges of runs of rows that take at most ``most_bytes`` each; zero rows give no run."""
    before = np.zeros(len(row_bytes) + 1, np.int64)
    np.cumsum(row_bytes, out=before[1:])
    return block_edges(before, most_bytes)


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """Stream of a build that belongs to ``key``."""
    sequence: Any = np.random.SeedSequence(seed, spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence))
