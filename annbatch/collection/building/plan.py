"""The second step: which row goes where, and how much is in memory at a time.

Where rows go is a pure function of seed and sizes: memory, threads and machines have no say in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.running_sum import starts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from .fields import Array

# Least memory that blocks of rows get, all together, and each.
_LEAST_WORKING_MEMORY = 64 * 10**6
_LEAST_ROOM_OF_A_BLOCK = 8 * 10**6
# Small blocks stay in memory that the allocator has at hand, which saves the first touch of fresh pages; but a big
# build must not be cut into more blocks than a file system likes.
_LEAST_BLOCK_BYTES = 32 * 10**6
_MOST_BLOCK_BYTES = 512 * 10**6
_MANY_BLOCKS = 256
# How often the values of a block, or of a piece of a dataset, are in memory at one time: as read, fitted, and on their
# way to the disk; and the rows of obs that were read with those of a block.
_COPIES = 4
# Least bytes that are read in one go from a block while a dataset is assembled.
_SECTION_BYTES = 2**18


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
    return block_edges(starts_of(row_bytes), most_bytes)


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """Stream of a build that belongs to ``key``."""
    sequence: Any = np.random.SeedSequence(seed, spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence))


@dataclass(frozen=True)
class Budget:
    """How ``max_memory`` is shared out.

    Attributes
    ----------
    n_parallel
        Blocks that are dealt at a time in a process.
    block_bytes
        Most bytes of a block; of obs, as much is read in one go.
    most_bytes
        Most bytes of the rows of a dataset that are in memory at a time.
    """

    n_parallel: int
    block_bytes: int
    most_bytes: int

    @classmethod
    def of(
        cls,
        edges: Array,
        unions: Sequence[pd.Index[Any]],
        *,
        total_bytes: int,
        held_bytes: int,
        label_bytes: int,
        max_memory: int,
        n_threads: int,
    ) -> Budget:
        """Share ``max_memory`` out; what grows with the rows comes first.

        Parameters
        ----------
        edges
            Of the datasets.
        unions
            Values of each groupby column.
        total_bytes, held_bytes, label_bytes
            Of all rows of the inputs; of what is in memory while inputs are open; of the codes of groupby columns.

        Raises
        ------
        ValueError
            It is too little.
        """
        n_obs = int(edges[-1])
        held = plan_bytes(n_obs, 0) + held_bytes
        planning = plan_bytes(n_obs, int(np.diff(edges).max()), _key_bytes(unions)) + label_bytes
        least = max(planning, held + _LEAST_WORKING_MEMORY)
        if max_memory < least:
            msg = f"max_memory must be at least {least / 1e6:.0f}MB for {n_obs} rows, got {max_memory / 1e6:.0f}MB"
            raise ValueError(msg)
        room = max_memory - held
        n_parallel = max(1, min(n_threads, room // (_COPIES * _LEAST_ROOM_OF_A_BLOCK)))
        wanted = min(max(_LEAST_BLOCK_BYTES, total_bytes // _MANY_BLOCKS), _MOST_BLOCK_BYTES)
        return cls(n_parallel, min(wanted, room // (_COPIES * n_parallel)), max_memory // _COPIES)

    def piece_bytes(self, n_blocks: int) -> int:
        """Bytes of rows that a dataset fetches at a time from so many blocks."""
        return min(max(_LEAST_BLOCK_BYTES, n_blocks * _SECTION_BYTES), self.most_bytes)


def _key_bytes(unions: Sequence[pd.Index[Any]]) -> int:
    """Width of the integers that :func:`sort_keys` makes (0 without groupby)."""
    n_keys = prod(len(union) + 1 for union in unions)
    return np.min_scalar_type(min(n_keys, 2**63)).itemsize if unions else 0
