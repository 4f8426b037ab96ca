"""The order in which a pass visits its chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from annbatch._rle import permute

from ._streams import Draw

if TYPE_CHECKING:
    from ._streams import PassStreams

__all__ = ["ChunkOrder", "ChunksInOrder", "ShuffledChunks"]

# Twice as many as statistics can tell from a random permutation at these sizes: with 4 rounds, inversions and displacements
# of 20,000 chunks differ visibly from those of a Fisher-Yates shuffle, with 6 nothing does (tests/samplers/test_order.py).
_N_ROUNDS = 8
# Below this a table takes 64 KB at most, and every permutation can come out.
_TABLE_BELOW = 1 << 14
# Halves of a number must be below 2**31.
_MOST_CHUNKS = 1 << 62


class ChunkOrder(Protocol):
    """Says which chunk comes at which place of a pass."""

    def between(self, first: int, last: int) -> np.ndarray:
        """Numbers (int64) of the chunks at the places in [first, last)."""


class ChunksInOrder:
    """Chunk `i` at place `i`."""

    def between(self, first: int, last: int) -> np.ndarray:
        """Numbers (int64) of the chunks at the places in [first, last)."""
        return np.arange(first, last)


class ShuffledChunks:
    """A random permutation of `n_chunks` whole chunks, then chunk `n_chunks`, the short one, if there is one.

    A function of the place, which costs the same anywhere in a pass and holds nothing (see :func:`annbatch._rle.permute`);
    a table where there are few chunks.
    """

    def __init__(self, n_chunks: int, streams: PassStreams) -> None:
        if n_chunks > _MOST_CHUNKS:
            msg = f"the range must have at most 2**62 chunks, got {n_chunks}; use a larger chunk_size"
            raise ValueError(msg)
        self._n_chunks = n_chunks
        self._table: np.ndarray | None = None
        if n_chunks < _TABLE_BELOW:
            self._table = streams.shuffled(Draw.ORDER, 0, n_chunks, n_chunks)
            return
        self._keys = streams.keys(_N_ROUNDS)
        self._n_left = math.isqrt(n_chunks - 1) + 1
        self._n_right = -(-n_chunks // self._n_left)

    def between(self, first: int, last: int) -> np.ndarray:
        """Numbers (int64) of the chunks at the places in [first, last)."""
        numbers = np.full(last - first, self._n_chunks, dtype=np.int64)
        whole = numbers[: max(min(last, self._n_chunks) - first, 0)]
        if self._table is not None:
            whole[:] = self._table[first : first + len(whole)]
        else:
            permute(self._keys, self._n_chunks, self._n_left, self._n_right, first, whole)
        return numbers
