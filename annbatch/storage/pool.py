"""Big arrays whose memory is used again, because the first touch of fresh memory is many times slower than a copy."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["BufferPool"]

# Below this malloc reuses memory by itself.
_SMALL = 1 << 16


class BufferPool:
    """Hands out uninitialised arrays whose memory comes back when the last reference to it is gone.

    The memory returns only when the array, every view of it and everything that holds one of them (a scipy matrix, a torch
    tensor) were dropped; an array that is still in use is never handed out again. The pool keeps at most what was in
    use at one time, so it never raises the peak of the process. All methods may be called from several threads.

    Parameters
    ----------
    max_bytes
        Upper bound on unused memory that is kept, in bytes. None: only the bound above.

    Examples
    --------
    >>> from annbatch.storage import BufferPool
    >>> pool = BufferPool()
    >>> a = pool.empty((1000, 500), "float32")
    >>> address = a.ctypes.data
    >>> del a
    >>> pool.empty((1000, 500), "float32").ctypes.data == address
    True
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            msg = f"max_bytes must be >= 0 or None, got {max_bytes}"
            raise ValueError(msg)
        self._max_bytes = max_bytes
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        """Open empty books."""
        self._free: dict[int, list[np.ndarray]] = {}
        self._free_bytes = 0
        self._used_bytes = 0
        self._peak_bytes = 0
        # A reference can die in any thread, even in the middle of one of our own methods (garbage collection runs
        # where it likes), so returning memory is one append, and the books are brought up to date later.
        self._returned: deque[np.ndarray] = deque()
        self._watched: dict[int, weakref.ref[np.ndarray]] = {}
        self._books = threading.RLock()

    @property
    def free_bytes(self) -> int:
        """Bytes kept for reuse."""
        with self._books:
            self._collect()
            return self._free_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of arrays that are still referenced."""
        with self._books:
            self._collect()
            return self._used_bytes

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an uninitialised C-contiguous array.

        Parameters
        ----------
        shape
            Shape of the array.
        dtype
            Dtype of the array; object dtypes are refused with a TypeError.
        """
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            msg = f"dtype must hold plain values, got {dtype}"
            raise TypeError(msg)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes < _SMALL:
            return np.empty(shape, dtype)
        with self._books:
            self._collect()
            block = self._take(_rounded(n_bytes))
        # A memoryview in between stops NumPy from tracing views back to the block: they all keep `array` alive.
        array: np.ndarray = np.frombuffer(memoryview(block)[:n_bytes], dtype).reshape(shape)
        owner = array.base if isinstance(array.base, np.ndarray) else array
        self._watch(owner, block)
        return array

    def clear(self) -> None:
        """Give all unused memory back to the system."""
        with self._books:
            self._collect()
            self._free.clear()
            self._free_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (BufferPool, (self._max_bytes,))

    def _take(self, n_bytes: int) -> np.ndarray:
        # Batches of one loader differ a little in size: a somewhat larger block serves as well.
        fitting = [size for size, blocks in self._free.items() if blocks and n_bytes <= size <= n_bytes + n_bytes // 2]
        if fitting:
            block = self._free[min(fitting)].pop()
            self._free_bytes -= block.nbytes
        else:
            block = np.empty(n_bytes, np.uint8)
        self._used_bytes += block.nbytes
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)
        self._shrink()
        return block

    def _watch(self, owner: np.ndarray, block: np.ndarray) -> None:
        key = id(block)
        returned, watched = self._returned, self._watched

        def give_back(_: object) -> None:
            watched.pop(key, None)
            returned.append(block)

        watched[key] = weakref.ref(owner, give_back)

    def _collect(self) -> None:
        while True:
            try:
                block = self._returned.popleft()
            except IndexError:
                break
            self._used_bytes -= block.nbytes
            self._free_bytes += block.nbytes
            self._free.setdefault(block.nbytes, []).append(block)
        self._shrink()

    def _shrink(self) -> None:
        limit = self._peak_bytes - self._used_bytes
        if self._max_bytes is not None:
            limit = min(limit, self._max_bytes)
        while self._free_bytes > limit:
            size = max(size for size, blocks in self._free.items() if blocks)
            self._free[size].pop()
            self._free_bytes -= size


_pools: weakref.WeakSet[BufferPool] = weakref.WeakSet()


def _after_fork() -> None:
    """Forget what a thread that the fork has not may have been in the middle of changing, and the lock that it held."""
    for pool in list(_pools):
        pool._begin()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _rounded(n_bytes: int) -> int:
    """Round up to an eighth of a power of two, so that arrays of nearly the same size share blocks."""
    step = 1 << max(12, n_bytes.bit_length() - 4)
    return -(-n_bytes // step) * step
