"""HDF5 files in far stores: h5py reads their structure through a file of blocks; rows never go through it.

h5py asks for a few hundred bytes at a time, here and there, and waits for each. So blocks are fetched whole and kept, and the
first and the last ones of a file, where its structure mostly is, come together when it is opened.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.errors import CorruptDataError

from .fetch import Want, fetcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py

    from .fetch import Fetcher
    from .options import FarOptions
    from .stores import Objects, Stamp

__all__ = ["FarFile", "far_file_of", "open_far_files"]

BLOCK_BYTES = 1 << 20
# Blocks at both ends that are fetched at once, and blocks that are kept.
_N_AT_ENDS = 1
_MOST_BLOCKS = 64

# Files that h5py has open, by the name that it shows: it keeps the text of the object that it was given.
_open_files: weakref.WeakValueDictionary[str, FarFile] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class FarFile(io.RawIOBase):
    """An object as a file for h5py: reads blocks and keeps some.

    Attributes
    ----------
    objects, key
        Where it is.
    stamp
        What the object was when it was opened: another one raises CorruptDataError.
    options
        How it is read.
    """

    def __init__(self, objects: Objects, key: str, stamp: Stamp, options: FarOptions) -> None:
        super().__init__()
        self.objects, self.key, self.stamp, self.options = objects, key, stamp, options
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._at = 0
        self._name = objects.text(key)
        with _lock:
            n_same = 1
            while (other := _open_files.get(self._name)) is not None and other is not self:
                n_same += 1
                self._name = f"{objects.text(key)} ({n_same})"
            _open_files[self._name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return FarFile, (self.objects, self.key, self.stamp, self.options)

    def __repr__(self) -> str:
        return self._name

    @property
    def queue(self) -> Fetcher:
        """What its bytes come through."""
        return _queue(self.options)

    # -- a file

    def readable(self) -> bool:
        """See the base class."""
        return True

    def seekable(self) -> bool:
        """See the base class."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See the base class."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.stamp.size}[whence]
        return self._at

    def tell(self) -> int:
        """See the base class."""
        return self._at

    def readinto(self, into: Any) -> int:
        """See the base class."""
        view = memoryview(into).cast("B")
        n_bytes = max(0, min(len(view), self.stamp.size - self._at))
        first, stop = self._at // BLOCK_BYTES, -(-(self._at + n_bytes) // BLOCK_BYTES)
        # A few at a time: what is kept has a bound.
        for low in range(first, stop, _MOST_BLOCKS // 2):
            blocks = range(low, min(low + _MOST_BLOCKS // 2, stop))
            self._fetch(blocks)
            for number in blocks:
                start = max(self._at, number * BLOCK_BYTES)
                end = min(self._at + n_bytes, (number + 1) * BLOCK_BYTES)
                part = self._blocks[number][start - number * BLOCK_BYTES : end - number * BLOCK_BYTES]
                view[start - self._at : end - self._at] = part.data
        self._at += n_bytes
        return n_bytes

    # -- blocks

    def _fetch(self, numbers: Sequence[int]) -> None:
        wants = []
        for number in numbers:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                continue
            start = number * BLOCK_BYTES
            block = np.empty(min(BLOCK_BYTES, self.stamp.size - start), np.uint8)
            wants.append(Want(self.objects, self.key, start, start + len(block), block.data, self.stamp))
        if wants:
            self.queue.fetch(wants)
            for want in wants:
                assert want.start is not None
                assert want.into is not None
                self._blocks[want.start // BLOCK_BYTES] = np.frombuffer(want.into, np.uint8)
            while len(self._blocks) > _MOST_BLOCKS:
                self._blocks.popitem(last=False)

    def ends(self) -> list[int]:
        """Return the numbers of the blocks at both ends."""
        n_blocks = -(-self.stamp.size // BLOCK_BYTES)
        return sorted({*range(min(_N_AT_ENDS, n_blocks)), *range(max(0, n_blocks - _N_AT_ENDS), n_blocks)})

    def forget(self) -> None:
        """Drop all blocks."""
        self._blocks.clear()

    def open(self) -> h5py.File:
        """Open it with h5py.

        Raises
        ------
        CorruptDataError
            It is no HDF5 file, or a damaged one.
        """
        import h5py

        try:
            return h5py.File(self, "r")
        except CorruptDataError:
            raise
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, ConnectionError | PermissionError | TimeoutError):
                raise
            msg = f"{self._name} cannot be opened, it seems to be damaged: {error}"
            raise CorruptDataError(msg) from error


def open_far_files(places: Sequence[tuple[Objects, str]], options: FarOptions) -> list[FarFile]:
    """Look at objects and fetch both ends of each, all together: two round trips."""
    if not places:
        return []
    queue = _queue(options)
    names = [objects.text(key) for objects, key in places]
    calls = [lambda objects=objects, key=key: objects.read_start(key, BLOCK_BYTES) for objects, key in places]
    files, wants = [], []
    for (objects, key), name, answer in zip(places, names, queue.gather(calls, names), strict=True):
        if isinstance(answer, FileNotFoundError):
            msg = f"there is no such object: {name}"
            raise FileNotFoundError(msg) from answer
        if isinstance(answer, BaseException):
            raise answer
        data, stamp = answer
        file = FarFile(objects, key, stamp, options)
        if len(data):
            file._blocks[0] = np.frombuffer(data, np.uint8)  # noqa: SLF001 (the two belong together)
        files.append(file)
        wants.append([number for number in file.ends() if number])
    _fetch_blocks(queue, files, wants)
    return files


def _fetch_blocks(queue: Fetcher, files: Sequence[FarFile], numbers: Sequence[Sequence[int]]) -> None:
    wants = []
    for file, wanted in zip(files, numbers, strict=True):
        for number in wanted:
            start = number * BLOCK_BYTES
            block = np.empty(min(BLOCK_BYTES, file.stamp.size - start), np.uint8)
            file._blocks[number] = block  # noqa: SLF001
            wants.append(Want(file.objects, file.key, start, start + len(block), block.data, file.stamp))
    queue.fetch(wants)


def far_file_of(file: h5py.File) -> FarFile | None:
    """Return the far file that h5py has open as `file`, or None when it is another kind."""
    return _open_files.get(file.filename) if file.driver == "fileobj" else None


def _queue(options: FarOptions) -> Fetcher:
    assert isinstance(options.max_in_flight, int)
    return fetcher(options.max_requests, options.max_in_flight)
