"""Arrays that have pages of memory to themselves, which the system gets back when they are freed.

An allocator keeps what was freed among other memory that is in use: glibc does so with arrays of up to 32 MB. Of columns that are
read, handed over to a file that processes share, and freed, that was more than what remained.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["is_worth_pages", "own_pages"]

# Smaller arrays fill gaps, and are made more quickly by the allocator.
_SMALLEST = 1 << 20
# Without flags other processes would share them after a fork; Windows knows neither.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def is_worth_pages(n: int, dtype: DTypeLike) -> bool:
    """Whether an array of `n` items is large enough, and of plain values."""
    dtype = np.dtype(dtype)
    return n * dtype.itemsize >= _SMALLEST and not dtype.hasobject


def own_pages(n: int, dtype: DTypeLike) -> np.ndarray:
    """Return an uninitialised array of `n` plain values; a small one is as any other."""
    dtype = np.dtype(dtype)
    if not is_worth_pages(n, dtype):
        return np.empty(n, dtype)
    return np.frombuffer(mmap.mmap(-1, n * dtype.itemsize, **_PRIVATE), dtype)
