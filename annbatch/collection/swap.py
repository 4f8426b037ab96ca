"""A new collection in the place of an old one: built beside it, and swapped when it is complete."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from annbatch._shared.collection_format import WORK_FOLDER

from .building.files import Lock, remove, sync
from .building.journal import BusyError, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def overwriting(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to build in; when that went well, it takes the place of what is at ``path``.

    At every moment ``path`` is the old collection or the new one (where the file system cannot exchange two folders in
    one step, there is a moment in which it is neither, and the next call mends that). An interrupted build stays beside it, and
    the same call continues there.

    Raises
    ------
    BusyError
        Another process writes to what is at ``path``.
    """
    path = path.absolute()
    new, old = (path.with_name(f".{path.name}.annbatch-{word}") for word in ("new", "old"))
    if old.exists() and not path.exists():
        old.rename(path)  # a swap that was interrupted
    if read_journal(new) is None:
        remove(new)  # finished by a call that was killed before the swap; this call may ask for something else
    _check_idle(path)
    yield new
    _check_idle(path)
    if path.exists() and not _exchange(new, path):
        remove(old)
        path.rename(old)
        new.rename(path)
    elif not path.exists():
        new.rename(path)
    sync(path.parent)
    for left in (new, old):
        remove(left)


def _check_idle(path: Path) -> None:
    lock = path / WORK_FOLDER / "lock"
    if lock.exists() and Lock.is_held(lock):
        msg = f"{path} is being written to by another process; wait until it is done"
        raise BusyError(msg)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step. Returns whether that can be done here."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0
