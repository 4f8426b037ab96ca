"""Big arrays that all processes of a machine have once: in files of a folder, from which each process maps them.

What a loader knows of every row (how long it is, which label it has) is read-only, and the same for every worker and every rank
of a node. The first process that has it writes it to a file; that one and all others map the file, so that the pages are in
memory once. A file is named by what it holds:

- what was read from stored data, by the data's identity (:func:`kept`): path, size, times and inode of their files;
- any other array, by a digest of its bytes (:func:`shared`, and pickles: :func:`reduced`).

So a file is never wrong, only useless; the least recently used ones go when the folder holds too much. A file is written under
another name and then renamed, has a checksum, and must belong to this user. Where the folder cannot be used, is full, or was
removed, nothing is kept there and everything works without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import secrets
import stat
import tempfile
import time
import weakref
from math import prod
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from annbatch._shared.args import as_bytes

from .chunks.arrays import MemoryArray
from .engine import _engine, _mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["is_settled", "is_spawning", "kept", "packed_state", "reduced", "shared", "unpacked_state"]

FOLDER_VARIABLE = "ANNBATCH_CACHE_DIR"
SIZE_VARIABLE = "ANNBATCH_CACHE_SIZE"
_DEFAULT_SIZE = "8GB"
_VERSION = 1
_SUFFIX = ".arrays"
_HEAD_BYTES = _ALIGNED = 4096
# What is smaller is not worth a file: of an array that travels to another process, and of what is read from stored data.
_SMALLEST_SENT = 1 << 18
_SMALLEST_KEPT = 1 << 16
# A file that changed so short a time ago may change again without its times showing it.
_SETTLED_NS = 2 * 10**9
_ABANDONED_NS = 3600 * 10**9
_IN_USE_NS = 300 * 10**9

# Where a state has what was packed.
_PACKED = "_packed"

T = TypeVar("T")


# -- the folder


def _folder() -> Path | None:
    """Return the folder, made if need be; None where there is none that only this user can write to."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given == "" or not _mapping.can_map_files:
        return None
    folder = Path(tempfile.gettempdir() if given is None else given).absolute() / f"annbatch-{os.geteuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return folder if is_ours else None


def _limit() -> int:
    return as_bytes(SIZE_VARIABLE, os.environ.get(SIZE_VARIABLE) or _DEFAULT_SIZE)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _name(key: str) -> str:
    return _digest(key)[:40] + _SUFFIX


def _path(key: str) -> Path | None:
    folder = _folder()
    return None if folder is None else folder / _name(key)


def _make_room(folder: Path, needed: int, limit: int) -> bool:
    """Remove what was used least recently until `needed` more bytes fit, and what a killed process left; say whether they fit.

    What was used just now stays: a process that is being started may be about to map it.
    """
    found = []
    now = time.time_ns()
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            there = entry.stat(follow_symlinks=False)
            if entry.name.endswith(_SUFFIX):
                found.append((there.st_mtime_ns, there.st_size, entry.path))
            elif entry.name.startswith(".") and now - there.st_mtime_ns > _ABANDONED_NS:
                os.unlink(entry.path)  # noqa: PTH108
    left = limit - needed - sum(size for _, size, _ in found)
    for used_ns, size, path in sorted(found):
        if left >= 0 or now - used_ns < _IN_USE_NS:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 (whoever has it mapped keeps it)
        left += size
    return left >= 0


# -- one file


class _Stored(NamedTuple):
    """What a file holds: arrays, and facts that are plain data."""

    facts: Any
    arrays: list[np.ndarray]


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _write(key: str, facts: Any, arrays: Sequence[np.ndarray]) -> bool:
    """Write a file, all of it or nothing; say whether it is there."""
    path = _path(key)
    if path is None:
        return False
    places, at = [], _HEAD_BYTES
    for array in arrays:
        places.append(at)
        at += -(-array.nbytes // _ALIGNED) * _ALIGNED
    new = path.parent / f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        room = os.statvfs(path.parent)
        if 2 * at > room.f_bavail * room.f_frsize or not _make_room(path.parent, at, _limit()):
            return False
        sums = [_engine.crc32c(_bytes_of(array)) for array in arrays]
        parts = [(a.dtype.str, a.shape, place, sum_) for a, place, sum_ in zip(arrays, places, sums, strict=True)]
        head = json.dumps(
            {"version": _VERSION, "key": _digest(key), "facts": facts, "arrays": parts, "size": at}
        ).encode()
        if len(head) > _HEAD_BYTES:
            return False
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as file:
            _write_all(file, head.ljust(_HEAD_BYTES))
            for array, place in zip(arrays, places, strict=True):
                file.seek(place)
                _write_all(file, _bytes_of(array).data)
            file.truncate(at)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        return False
    return True


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


def _mapped(key: str, *, writable: bool = False, folder: Path | None = None) -> _Stored | None:
    """Map a file of our folder, or of another one; None where it is not there, or not to be trusted."""
    path = _path(key) if folder is None or not _mapping.can_map_files else folder / _name(key)
    if path is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return None
        head = json.loads(os.read(handle, _HEAD_BYTES))
        if (head["version"], head["key"], head["size"]) != (_VERSION, _digest(key), found.st_size):
            return None
        memory = np.frombuffer(_mapping.FileMap(handle, found.st_size, writable), np.uint8)
        arrays = []
        for dtype, shape, place, expected in head["arrays"]:
            part = memory[place : place + prod(shape) * np.dtype(dtype).itemsize]
            if _engine.crc32c(part) != expected:
                path.unlink()
                return None
            arrays.append(part.view(dtype).reshape(shape))
        with contextlib.suppress(OSError):
            os.utime(path)  # used last now
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    finally:
        os.close(handle)
    return _Stored(head["facts"], arrays)


# -- what was read from stored data


def is_settled(newest_ns: int) -> bool:
    """Whether a file that changed last at this time shows every later change by its times."""
    return newest_ns + _SETTLED_NS < time.time_ns()


def kept(
    key: str, make: Callable[[], tuple[Any, Sequence[np.ndarray]]], n_arrays: int
) -> tuple[Any, Sequence[np.ndarray]]:
    """Return what was read from stored data, mapped from its file if another process has read it before.

    Parameters
    ----------
    key
        Says what it is and names the identity of the data that it was read from.
    make
        Reads it: facts that are plain data, and C-contiguous arrays.
    n_arrays
        How many of them.

    Returns
    -------
    facts
        Plain data.
    arrays
        Read-only where they are mapped.
    """
    found = _mapped(key)
    if found is None or len(found.arrays) != n_arrays:
        facts, arrays = make()
        if sum(array.nbytes for array in arrays) < _SMALLEST_KEPT or not _write(key, facts, arrays):
            return facts, arrays
        found = _mapped(key)
        if found is None:
            return facts, arrays
    return found


# -- any array


class _Known(NamedTuple):
    """That an array is in a file."""

    array: weakref.ref[np.ndarray]
    key: str
    checksum: int | None


# By id. An array may have changed since; its checksum tells.
_known: dict[int, _Known] = {}


class ArrayGoneError(RuntimeError):
    """The file of an array that a pickle refers to is not there any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is gone, or was changed: this process was to map an array from it that the one which started it had written "
            f"there. Start the workers again, and leave files of {FOLDER_VARIABLE} alone while workers start; "
            f'with {FOLDER_VARIABLE}="" arrays are sent, and no files are needed'
        )


def _key_of(array: np.ndarray) -> str | None:
    """Return the key of a file that holds an array, written if need be; None where there can be none."""
    data = _bytes_of(array)
    known = _known.get(id(array))
    checksum = None
    if known is not None and known.array() is array:
        checksum = None if known.checksum is None else _engine.crc32c(data)
        if checksum == known.checksum and _use(known.key):
            return known.key
    key = f"content {hashlib.blake2b(data, digest_size=20).hexdigest()} {array.dtype.str} {array.shape}"
    if not (_use(key) or _write(key, None, [array])):
        return None
    if array.flags.writeable and not _is_true(key):
        return None
    _note(array, key, _engine.crc32c(data) if checksum is None else checksum)
    return key


def _is_true(key: str) -> bool:
    """Say whether a file holds what its key says; it goes if not: somebody changed the array while it was written."""
    found = _mapped(key)
    if found is not None and hashlib.blake2b(_bytes_of(found.arrays[0]), digest_size=20).hexdigest() in key:
        return True
    path = _path(key)
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()
    return False


def _use(key: str) -> bool:
    """Say whether a file is there, and that it is wanted now."""
    path = _path(key)
    try:
        if path is not None:
            os.utime(path)
    except OSError:
        return False
    return path is not None


def _note(array: np.ndarray, key: str, checksum: int | None) -> None:
    number = id(array)
    _known[number] = _Known(weakref.ref(array, lambda _: _known.pop(number, None)), key, checksum)


def _array_of(key: str, folder: str, writable: bool, transposed: bool) -> np.ndarray:  # noqa: FBT001
    # The folder of the process that it comes from, which this one may not have heard of.
    found = _mapped(key, writable=writable, folder=Path(folder))
    if found is None:
        raise ArrayGoneError(Path(folder) / _name(key))
    (array,) = found.arrays
    # What cannot be written to needs no second look.
    _note(array, key, _engine.crc32c(_bytes_of(array)) if writable else None)
    return array.T if transposed else array


def _is_big(value: Any) -> bool:
    """Whether a value is an array that is worth a file."""
    return type(value) is np.ndarray and value.nbytes >= _SMALLEST_SENT and value.dtype.kind in "biufcSU"


class _Referring:
    """Part of a pickler: big arrays are not written, but where they are."""

    _not_shared: int | None = None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MemoryArray):
            self._not_shared = id(
                value.array
            )  # a matrix that the user holds in memory, who may change it: sent as ever
        if not _is_big(value):
            return NotImplemented
        transposed = not value.flags.c_contiguous
        if id(value) == self._not_shared or (transposed and not value.flags.f_contiguous):
            return NotImplemented
        key = _key_of(value.T if transposed else value)
        if key is None:
            return NotImplemented
        return _array_of, (key, str(_folder()), value.flags.writeable, transposed)


class _Pickler(_Referring, pickle.Pickler):
    """For any process of this machine."""


class _SpawningPickler(_Referring, ForkingPickler):
    """For a process that is being started."""


def _dumps(value: Any) -> bytes:
    to = io.BytesIO()
    (_SpawningPickler if is_spawning() else _Pickler)(to, pickle.HIGHEST_PROTOCOL).dump(value)
    return to.getvalue()


def is_spawning() -> bool:
    """Whether what is being pickled goes to a process of this machine that this one is starting."""
    return get_spawning_popen() is not None


def packed_state(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the state of an object for its pickle. A process that is being started maps big arrays below `names` from files.

    The values of these names may refer to each other.
    """
    if not is_spawning():
        return state
    rest = {name: value for name, value in state.items() if name not in names}
    return {**rest, _PACKED: _dumps({name: state[name] for name in names})}


def unpacked_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return what :func:`packed_state` was given."""
    rest = dict(state)
    data = rest.pop(_PACKED, None)
    return rest if data is None else {**rest, **pickle.loads(data)}  # noqa: S301 (part of a pickle that is being read)


def reduced(
    build: Callable[[Any], T], state: Any, remake: Callable[[], T] | None
) -> tuple[Callable[..., T], tuple[Any, ...]]:
    """Return what ``__reduce__`` of an object shall, so that its big arrays are not in its pickles.

    Parameters
    ----------
    build
        Makes the object of its state.
    state
        What it is made of.
    remake
        Makes it anew where a file is gone when the pickle is read: on another machine, or much later. None: it cannot be made
        anew, so that only processes which are being started get references.
    """
    if remake is None and not is_spawning():
        return build, (state,)
    return _rebuilt, (build, _dumps(state), remake)


def _rebuilt(build: Callable[[Any], T], data: bytes, remake: Callable[[], T] | None) -> T:
    try:
        return build(pickle.loads(data))  # noqa: S301 (part of a pickle that is being read)
    except ArrayGoneError:
        if remake is None:
            raise
    return remake()


def shared(array: np.ndarray) -> np.ndarray:
    """Return an array as it is or, where it is big, read-only from a file, from which other processes have it, too.

    Its memory is then that of the file: in the machine once, and given back when there is need of it.
    """
    if not _is_big(array) or not array.flags.c_contiguous:
        return array
    known = _known.get(id(array))
    if known is not None and known.array() is array and known.checksum is None:
        return array  # it is from a file already
    key = _key_of(array)
    try:
        return array if key is None else _array_of(key, str(_folder()), writable=False, transposed=False)
    except ArrayGoneError:
        return array
