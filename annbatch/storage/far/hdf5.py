"""HDF5 files in far stores: h5py reads their structure through a file of slabs; rows never go through it.

h5py asks for a few hundred bytes at a time, here and there, and waits for each. So slabs are fetched whole and kept, and the
first and the last ones of a file, where its structure mostly is, come together when it is opened. Nodes of chunk indexes, which
lie all over the file, are fetched before h5py asks for them (:mod:`.hdf5_index`).
"""

from __future__ import annotations

import gc
import io
import os
import threading
import weakref
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.errors import CorruptDataError

from .fetch import Want, fetcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import h5py

    from .fetch import Fetcher
    from .options import FarOptions
    from .stores import Objects, Stamp

__all__ = ["SLAB_BYTES", "FarFile", "far_file_of", "fetch_slabs", "open_far_files"]

SLAB_BYTES = 1 << 20
# Slabs at the start and at the end that are fetched at once, and slabs that are kept. anndata writes obs and var after X.
_N_AT_START, _N_AT_END = 1, 4
_MOST_SLABS = 64
# Of what is read from front to back, so many slabs are fetched ahead at most.
_MOST_AHEAD = 16

# Files that h5py has open, by the name that it shows: it keeps the text of the object that it was given.
_open_files: weakref.WeakValueDictionary[str, FarFile] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class FarFile(io.RawIOBase):
    """An object as a file for h5py: reads slabs and keeps some.

    Attributes
    ----------
    objects, key
        Where it is.
    stamp
        What the object was when it was opened: another one raises CorruptDataError.
    options
        How it is read.
    n_node_bytes
        Bytes of nodes that are kept.
    """

    def __init__(self, objects: Objects, key: str, stamp: Stamp, options: FarOptions) -> None:
        super().__init__()
        self.objects, self.key, self.stamp, self.options = objects, key, stamp, options
        self._slabs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._nodes: dict[int, bytes] = {}
        self.n_node_bytes = 0
        self._at = 0
        self._following, self._n_ahead = -1, 1
        self._lacking: set[int] | None = None
        # h5py writes a question mark for whatever is not ASCII, so that two names could become one.
        self._name = ascii_text = objects.text(key).encode("ascii", "backslashreplace").decode()
        with _lock:
            n_same = 1
            while (other := _open_files.get(self._name)) is not None and other is not self:
                n_same += 1
                self._name = f"{ascii_text} ({n_same})"
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
        # HDF5 holds its lock until this returns. If the thread that fetches happened to collect h5py's objects as garbage,
        # it would wait for that lock, and this one for it.
        collects = gc.isenabled()
        gc.disable()
        try:
            n_bytes = self._copy(self._at, view)
        finally:
            if collects:
                gc.enable()
        self._at += n_bytes
        return n_bytes

    def peek(self, start: int, n_bytes: int) -> bytearray:
        """Return bytes from `start` on, fewer where the file ends; what is read next does not depend on it."""
        data = bytearray(max(0, min(n_bytes, self.stamp.size - start)))
        self._copy(start, memoryview(data))
        return data

    def _copy(self, start: int, view: memoryview) -> int:
        n_bytes = max(0, min(len(view), self.stamp.size - start))
        node = self._nodes.get(start)
        if node is not None and len(node) >= n_bytes:
            view[:n_bytes] = node[:n_bytes]
            return n_bytes
        first, stop = start // SLAB_BYTES, -(-(start + n_bytes) // SLAB_BYTES)
        # A few at a time: what is kept has a bound.
        for low in range(first, stop, _MOST_SLABS // 2):
            slabs = range(low, min(low + _MOST_SLABS // 2, stop))
            self._fetch(slabs)
            for number in slabs:
                begin = max(start, number * SLAB_BYTES)
                end = min(start + n_bytes, (number + 1) * SLAB_BYTES)
                part = self._slabs[number][begin - number * SLAB_BYTES : end - number * SLAB_BYTES]
                view[begin - start : end - start] = part.data
        return n_bytes

    # -- nodes of chunk indexes

    def has(self, start: int, n_bytes: int) -> bool:
        """Whether bytes are there without a request."""
        stop = min(start + n_bytes, self.stamp.size)
        node = self._nodes.get(start, b"")
        slabs = range(start // SLAB_BYTES, -(-stop // SLAB_BYTES))
        return len(node) >= stop - start or all(number in self._slabs for number in slabs)

    def keep_node(self, start: int, data: bytes) -> None:
        """Keep what was fetched of a chunk index, for who reads from `start` on."""
        self.n_node_bytes += len(data) - len(self._nodes.get(start, b""))
        self._nodes[start] = data

    # -- slabs

    def _fetch(self, numbers: Sequence[int]) -> None:
        missing = [number for number in numbers if number not in self._slabs]
        for number in numbers:
            if number in self._slabs:
                self._slabs.move_to_end(number)
        if not missing:
            return
        if self._lacking is not None:
            self._lacking.update(missing)
            msg = f"{self._name}: slabs {missing} are not there"
            raise OSError(msg)
        # Twice as many ahead each time that the next ones are asked for.
        self._n_ahead = min(2 * self._n_ahead, _MOST_AHEAD) if missing[0] == self._following else 1
        missing += self.lacking(range(missing[-1] + 1, missing[-1] + self._n_ahead))
        self._following = missing[-1] + 1
        fetch_slabs([self], [missing])
        while len(self._slabs) > _MOST_SLABS:
            self._slabs.popitem(last=False)

    def lacking(self, numbers: Iterable[int]) -> list[int]:
        """Return those of some slabs that the file has and that are not there."""
        n_slabs = -(-self.stamp.size // SLAB_BYTES)
        return [number for number in numbers if 0 <= number < n_slabs and number not in self._slabs]

    @contextmanager
    def only_what_is_there(self) -> Iterator[set[int]]:
        """Ask for nothing meanwhile: reading what is not there is an OSError. Yields the numbers of slabs that were missed."""
        self._lacking = set()
        try:
            yield self._lacking
        finally:
            self._lacking = None

    def ends(self) -> list[int]:
        """Return the numbers of the slabs at both ends."""
        n_slabs = -(-self.stamp.size // SLAB_BYTES)
        return sorted({*range(min(_N_AT_START, n_slabs)), *range(max(0, n_slabs - _N_AT_END), n_slabs)})

    def forget(self) -> None:
        """Drop all that is kept."""
        self._slabs.clear()
        self._nodes.clear()
        self.n_node_bytes = 0

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
    calls = [lambda objects=objects, key=key: objects.read_start(key, SLAB_BYTES) for objects, key in places]
    files, wants = [], []
    for (objects, key), name, answer in zip(places, names, queue.gather(calls, names), strict=True):
        if isinstance(answer, FileNotFoundError):
            msg = f"there is no such object: {name}"
            raise FileNotFoundError(msg) from answer
        if isinstance(answer, PermissionError):
            msg = f"{name}: {answer}"
            raise PermissionError(msg) from answer
        if isinstance(answer, BaseException):
            raise answer
        data, stamp = answer
        file = FarFile(objects, key, stamp, options)
        if len(data):
            file._slabs[0] = np.frombuffer(data, np.uint8)  # noqa: SLF001 (the two belong together)
        files.append(file)
        wants.append([number for number in file.ends() if number])
    fetch_slabs(files, wants)
    return files


def fetch_slabs(files: Sequence[FarFile], numbers: Sequence[Sequence[int]]) -> None:
    """Fetch slabs of files, given by their numbers, all together."""
    by_queue: dict[Fetcher, list[Want]] = {}
    slabs = []
    for file, wanted in zip(files, numbers, strict=True):
        for number in wanted:
            start = number * SLAB_BYTES
            slab = np.empty(min(SLAB_BYTES, file.stamp.size - start), np.uint8)
            slabs.append((file, number, slab))
            want = Want(file.objects, file.key, start, start + len(slab), slab.data, file.stamp)
            by_queue.setdefault(file.queue, []).append(want)
    for queue, wants in by_queue.items():
        queue.fetch(wants)
    for file, number, slab in slabs:  # not before they are there
        file._slabs[number] = slab  # noqa: SLF001


def far_file_of(file: h5py.File) -> FarFile | None:
    """Return the far file that h5py has open as `file`, or None when it is another kind."""
    found = _open_files.get(file.filename)
    # (Asking for the driver takes long, and most files are near.)
    return found if found is not None and file.driver == "fileobj" else None


def _queue(options: FarOptions) -> Fetcher:
    assert isinstance(options.max_in_flight, int)
    return fetcher(options.max_requests, options.max_in_flight)
