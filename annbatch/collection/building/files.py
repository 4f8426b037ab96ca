"""Files that are on the disk when we say so, are replaced in one step, or are held by one process."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# So often, and so long, is tried to remove a folder in which workers of a call that has ended still write.
_TRIES = 20
_WAIT_SECONDS = 0.05


def replace_text(path: Path, text: str, scratch: Path) -> None:
    """Give a file new content: after a crash it has the old one or the new one, never a part.

    ``scratch``: a folder on the same file system that may be left with half a file in it.
    """
    part = scratch / f"{path.name}.part"
    part.write_text(text)
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders and writes their entries by itself.
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until everything below a path is on the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync_tree(child)
    sync(path)


def remove(path: Path) -> None:
    """Remove a file or folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_eventually(path: Path) -> None:
    """Remove a folder in which somebody may still be writing. What cannot be removed now stays, which does no harm."""
    for _ in range(_TRIES):
        with suppress(OSError):
            remove(path)
        if not path.exists():
            return
        time.sleep(_WAIT_SECONDS)


# Locks belong to the process that took them. A forked child has a copy of the open file, which would keep the lock for as
# long as the child lives, longer than its parent perhaps: it is closed there.
_descriptors: set[int] = set()


def _forget_locks() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


class Lock:
    """A lock on a file, which ends with this process, however it ends.

    Raises
    ------
    BlockingIOError
        Somebody has it.
    OSError
        There are no locks on this file system.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _descriptors.add(self._descriptor)
        try:
            _lock(self._descriptor, shared=False)
        except OSError:
            self.release()
            raise

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether any process holds the lock on a file, or may."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return False
        try:
            _lock(descriptor, shared=True)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still the one that stands under its name."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        """Let go."""
        if self._descriptor in _descriptors:
            _descriptors.discard(self._descriptor)
            # Not only closed: a child that is being forked has the same file open until it has closed it, too.
            _unlock(self._descriptor)
            os.close(self._descriptor)


def _lock(descriptor: int, *, shared: bool) -> None:
    """Take a lock, or raise BlockingIOError when somebody has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError from error
        raise


def _unlock(descriptor: int) -> None:
    """Let go of a lock that this process may have."""
    with suppress(OSError):
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_UN)
