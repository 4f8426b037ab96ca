"""A folder on a local disk that keeps byte ranges of far objects: for later passes, and for other processes.

An object that is read in ranges is kept in segments, sparse files that hold its bytes where they stand in the object, after a head that says which
pages are there. Segments are mapped, so what is kept is decoded from where it lies, and processes see what others have
added. Pages are only ever added, and segments only ever removed as a whole, which harms nobody who has them mapped: so no
locks are needed.

An object that is always read whole (a Zarr chunk without shards) is a file of its own, after the checksum of its bytes.

The name of a file is a hash of the object's name, size and ETag (or time of change): an object that changed has others,
and the old ones go when room is needed. A page counts in the boot of the system in which it was written; after that
only if it was known to be on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import struct
import threading
import time
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from annbatch._shared.args import levels_to_user
from annbatch.storage.engine import _engine

from .fetch import counts

if TYPE_CHECKING:
    from .stores import Objects, Stamp

__all__ = ["PAGE_BYTES", "RangeCache", "range_cache", "tell_untold"]

PAGE_BYTES = 4096
SEGMENT_BYTES = 1 << 26
# A range that begins in a segment may end so far behind it.
_OVERLAP_BYTES = 1 << 24
_N_PAGES = (SEGMENT_BYTES + _OVERLAP_BYTES) // PAGE_BYTES
_BOOT_BYTES = PAGE_BYTES
_HEAD_BYTES = _BOOT_BYTES + _N_PAGES
_FILE_BYTES = _HEAD_BYTES + SEGMENT_BYTES + _OVERLAP_BYTES
# What the head says of a page.
_WRITTEN, _SYNCED = 1, 2
# Seconds after which it is looked whether a segment is still there, and bytes after which data are brought to the disk.
_LOOK_AGAIN_S = 10.0
_SYNC_BYTES = 1 << 28
_SUFFIX, _WHOLE_SUFFIX = ".segment", ".object"
_CHECKSUM = struct.Struct("<Q")


def _boot() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        # Where the system does not tell, only what is known to be on the disk counts for other processes.
        return f"process {os.getpid()} {time.time_ns()}".encode()


@dataclass(slots=True, eq=False)
class _Segment:
    """A mapped segment of an object, from byte `start` of it."""

    path: Path
    start: int
    inode: int
    memory: mmap.mmap
    pages: np.ndarray
    address: int
    looked: float
    unsynced: list[tuple[int, int]] = field(default_factory=list)

    def has(self, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Say for half-open ranges of pages whether all of each are there."""
        before = np.concatenate(([0], np.cumsum(self.pages != 0)))
        there: np.ndarray = before[stop] - before[first] == stop - first
        return there


class RangeCache:
    """The folder, as one process sees it."""

    def __init__(self, folder: str, size: int | None) -> None:
        self.folder, self.size = Path(folder), size
        self._boot = _boot()
        self._lock = threading.RLock()
        self._segments: dict[tuple[str, int], _Segment | None] = {}
        self._names: dict[tuple[str, int, str], str] = {}
        self._n_since_look = 0
        self._n_unsynced = 0
        self._is_full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            self._give_up(error)
        self._make_room()

    # -- reading

    def find(
        self, objects: Objects, key: str, stamp: Stamp | None, start: np.ndarray, stop: np.ndarray
    ) -> tuple[np.ndarray, list[object]]:
        """Return for half-open ranges of an object the address of each, int64, 0 where it is not all there.

        The addresses are valid as long as what comes second is kept.
        """
        address = np.zeros(len(start), np.int64)
        used: list[object] = []
        if stamp is None or not stamp.tag:
            return address, used
        name = self._name(objects, key, stamp)
        if name is None:
            return address, used
        number = start // SEGMENT_BYTES
        for segment_number in np.unique(number).tolist():
            segment = self._segment(name, segment_number, make=False)
            if segment is None:
                continue
            own = np.flatnonzero(number == segment_number)
            low, high = start[own] - segment.start, stop[own] - segment.start
            fits = high <= SEGMENT_BYTES + _OVERLAP_BYTES
            first, last = low // PAGE_BYTES, np.minimum(-(-high // PAGE_BYTES), _N_PAGES)
            there = fits & segment.has(first, last)
            address[own[there]] = segment.address + _HEAD_BYTES + low[there]
            counts["cached_bytes"] += int((high - low)[there].sum())
            used.append(segment)
        return address, used

    # -- writing

    def add(self, objects: Objects, key: str, stamp: Stamp | None, start: int, data: memoryview) -> None:
        """Keep bytes of an object from `start` on; only whole pages, or up to the object's end."""
        if stamp is None or not stamp.tag or self._is_full:
            return
        name = self._name(objects, key, stamp)
        if name is None:
            return
        stop = start + len(data)
        low = -(-start // PAGE_BYTES) * PAGE_BYTES
        high = stop if stop == stamp.size else stop // PAGE_BYTES * PAGE_BYTES
        try:
            with self._lock:
                for number in range(low // SEGMENT_BYTES, -(-high // SEGMENT_BYTES)):
                    begin = max(low, number * SEGMENT_BYTES)
                    # Also behind the end of the segment: a chunk that begins in it is then all in it.
                    end = min(high, (number + 1) * SEGMENT_BYTES + _OVERLAP_BYTES)
                    if begin < end:
                        self._write(name, number, begin, data[begin - start : end - start])
                if self._n_unsynced > _SYNC_BYTES:
                    self.sync()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            if self._is_full:
                return  # another thread was here meanwhile, and has told
            self._is_full = True
        msg = f"cache {self.folder}: {error}; nothing more is kept there"
        if threading.current_thread().name.startswith("annbatch-"):
            _untold.append(msg)
        else:
            warnings.warn(msg, RuntimeWarning, stacklevel=levels_to_user())

    def _write(self, name: str, number: int, begin: int, data: memoryview) -> None:
        segment = self._segment(name, number, make=True)
        if segment is None or not len(data):
            return
        first = (begin - segment.start) // PAGE_BYTES
        last = -(-(begin - segment.start + len(data)) // PAGE_BYTES)
        if segment.pages[first:last].all():
            return
        handle = os.open(segment.path, os.O_RDWR)
        try:
            if os.fstat(handle).st_ino != segment.inode:
                raise FileNotFoundError(segment.path)
            written = 0
            while written < len(data):
                written += os.pwrite(handle, data[written:], _HEAD_BYTES + begin - segment.start + written)
        except FileNotFoundError:
            self._drop(name, number)
            return
        finally:
            os.close(handle)
        # Not before the bytes are there.
        pages = segment.pages[first:last]
        pages[pages == 0] = _WRITTEN
        segment.unsynced.append((first, last))
        self._n_unsynced += len(data)
        self._n_since_look += len(data)
        if self.size is not None and self._n_since_look > max(self.size // 50, 1 << 20):
            self._make_room()

    def sync(self) -> None:
        """Bring what was written to the disk, so that it counts after the system was started again, too."""
        with self._lock:
            for segment in list(self._segments.values()):
                if segment is None or not segment.unsynced:
                    continue
                done, segment.unsynced = segment.unsynced, []
                try:
                    handle = os.open(segment.path, os.O_RDWR)
                except OSError:
                    continue  # removed meanwhile
                try:
                    getattr(os, "fdatasync", os.fsync)(handle)
                finally:
                    os.close(handle)
                for first, last in done:
                    segment.pages[first:last] = _SYNCED
            self._n_unsynced = 0

    # -- whole objects

    def find_whole(self, objects: Objects, key: str, stamp: Stamp) -> np.ndarray | None:
        """Return an object (uint8), or None where it is not there, or not as it was put there."""
        if not stamp.tag:
            return None
        path = self._whole_path(objects, key, stamp)
        if path is None:
            return None
        try:
            if path.stat().st_size != _CHECKSUM.size + stamp.size:
                return None
            stored = np.fromfile(path, np.uint8)
            if time.time() - path.stat().st_mtime > _LOOK_AGAIN_S:
                os.utime(path)  # used last now
        except OSError:
            return None
        data = stored[_CHECKSUM.size :]
        # A file of an earlier boot of the system may have lost bytes.
        if len(data) != stamp.size or _CHECKSUM.unpack(stored[: _CHECKSUM.size].tobytes())[0] != _engine.crc32c(data):
            return None
        counts["cached_bytes"] += len(data)
        return data

    def add_whole(self, objects: Objects, key: str, stamp: Stamp, data: bytes | bytearray | memoryview) -> None:
        """Keep an object."""
        if not stamp.tag or self._is_full or len(data) != stamp.size:
            return
        path = self._whole_path(objects, key, stamp)
        if path is None:
            return
        new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            if path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with new.open("wb") as file:
                    file.write(_CHECKSUM.pack(_engine.crc32c(np.frombuffer(data, np.uint8))))
                    file.write(data)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
            with self._lock:
                self._n_since_look += len(data)
                if self.size is not None and self._n_since_look > max(self.size // 50, 1 << 20):
                    self._make_room()
        except FileNotFoundError:
            pass  # the folder was removed meanwhile
        except OSError as error:
            self._give_up(error)

    def _whole_path(self, objects: Objects, key: str, stamp: Stamp) -> Path | None:
        name = self._name(objects, key, stamp)
        return None if name is None else self.folder / name[:2] / f"{name}{_WHOLE_SUFFIX}"

    # -- segments

    def _name(self, objects: Objects, key: str, stamp: Stamp) -> str | None:
        identity = objects.identity(key)
        if identity is None:
            return None
        known = (identity, *stamp)
        name = self._names.get(known)
        if name is None:
            name = self._names[known] = hashlib.sha256("\n".join(map(str, known)).encode()).hexdigest()[:40]
        return name

    def _segment(self, name: str, number: int, *, make: bool) -> _Segment | None:
        with self._lock:
            key = (name, number)
            segment = self._segments.get(key)
            now = time.monotonic()
            if segment is not None and now - segment.looked > _LOOK_AGAIN_S:
                segment.looked = now
                try:
                    if os.stat(segment.path).st_ino != segment.inode:  # noqa: PTH116 (quick)
                        segment = None
                    else:
                        os.utime(segment.path)  # used last now
                except OSError:
                    segment = None
            if segment is None:
                segment = self._open(self.folder / name[:2] / f"{name}-{number}{_SUFFIX}", number, make=make)
                if segment is None:
                    self._segments.pop(key, None)
                else:
                    self._segments[key] = segment
            return segment

    def _open(self, path: Path, number: int, *, make: bool) -> _Segment | None:
        try:
            if not path.exists():
                if not make:
                    return None
                self._make(path)
            with path.open("r+b") as file:
                stat = os.fstat(file.fileno())
                if stat.st_size != _FILE_BYTES:
                    path.unlink(missing_ok=True)
                    return None
                memory = mmap.mmap(file.fileno(), _FILE_BYTES)
        except (OSError, ValueError):
            # It was removed meanwhile, or is another user's: then the store has it.
            return None
        whole = np.frombuffer(memory, np.uint8)
        pages = whole[_BOOT_BYTES:_HEAD_BYTES]
        boot = memory[:_BOOT_BYTES].rstrip(b"\0")
        if boot != self._boot:
            pages[pages != _SYNCED] = 0
            memory[:_BOOT_BYTES] = self._boot.ljust(_BOOT_BYTES, b"\0")
        return _Segment(
            path,
            number * SEGMENT_BYTES,
            stat.st_ino,
            memory,
            pages,
            whole.__array_interface__["data"][0],
            time.monotonic(),
        )

    def _make(self, path: Path) -> None:
        """Make an empty segment; whole or not at all, so that nobody maps half of one."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        with new.open("wb") as file:
            # All of the head is stored: what is first written through a mapping on a full disk kills the process.
            file.write(self._boot.ljust(_HEAD_BYTES, b"\0"))
            file.truncate(_FILE_BYTES)
        try:
            os.link(new, path)  # does not take the place of one that another process has just made
        except FileExistsError:
            pass
        except OSError:
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def _drop(self, name: str, number: int) -> None:
        self._segments.pop((name, number), None)

    # -- bounds

    def _make_room(self) -> None:
        """Remove what was used least recently until all that is kept is within its bound."""
        self._n_since_look = 0
        if self.size is None:
            return
        found = []
        paths = (path for suffix in (_SUFFIX, _WHOLE_SUFFIX) for path in self.folder.rglob(f"*{suffix}"))
        for path in paths:
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, _bytes_on_disk(stat), path))
        total = sum(n_bytes for _, n_bytes, _ in found)
        if total <= self.size:
            return
        for _, n_bytes, path in sorted(found):
            if total <= 0.9 * self.size:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= n_bytes
            for key, segment in list(self._segments.items()):
                if segment is not None and segment.path == path:
                    self._segments.pop(key)


def _bytes_on_disk(stat: os.stat_result) -> int:
    return getattr(stat, "st_blocks", stat.st_size // 512) * 512


# Warnings of threads of ours, which have no caller to point at: for who waits for them.
_untold: deque[str] = deque()


def tell_untold() -> None:
    """Warn of what threads of ours could not; called by who takes what they made."""
    with contextlib.suppress(IndexError):  # empty, perhaps since another thread has told the last
        while True:
            warnings.warn(_untold.popleft(), RuntimeWarning, stacklevel=levels_to_user())


_caches: dict[tuple[str, int | None], RangeCache] = {}
_caches_lock = threading.Lock()


def range_cache(folder: str | None, size: int | None) -> RangeCache | None:
    """Return the cache of this process for a folder, or None without one."""
    if folder is None:
        return None
    with _caches_lock:
        found = _caches.get((folder, size))
        if found is None:
            found = _caches[folder, size] = RangeCache(folder, size)
        return found


def _after_fork() -> None:
    """Forget what may have been in the middle of a change; what is mapped stays so."""
    global _caches_lock
    _caches_lock = threading.Lock()
    _inherited.append(dict(_caches))
    _caches.clear()


_inherited: list[object] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
