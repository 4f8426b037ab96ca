"""The work folder of a build: the lock, what is finished, and what a crash left behind.

    OUT/.annbatch/lock           held (by the kernel, so it ends with its process) while someone writes
    OUT/.annbatch/journal.json   which call this is, its seed, and, from the moment of commit, the names it puts in place
    OUT/.annbatch/blocks/        temporary files of the first task
    OUT/.annbatch/ready/         finished datasets, moved to OUT when all are there

A call is committed when its journal says "publishing": from then on it is only ever finished. Readers take no notice of
the names listed there until the journal is gone, so they see the collection as it was before or as it is after.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annbatch._shared.collection_format import WORK_FOLDER

from .files import remove, replace_text
from .warn import warn_user

# What is in blocks and journal; an interrupted call is continued by the same version only.
JOURNAL_VERSION = 2

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

# How often a folder that is removed in between is made again.
_TRIES = 100


class BusyError(RuntimeError):
    """Another process writes to the collection."""


@dataclass(frozen=True)
class Call:
    """What a call asks for; ``seed`` None: any order of the rows."""

    fingerprint: str
    seed: int | None

    def is_that_of(self, journal: dict[str, Any]) -> bool:
        """Whether an interrupted call asked for the same."""
        return bool(journal["call"] == self.fingerprint and self.seed in (None, journal["seed"]))


class WorkFolder:
    """The work folder below ``root``, locked while entered.

    Raises
    ------
    BusyError
        On entering, when another process or thread holds it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / WORK_FOLDER
        self.blocks = self.path / "blocks"
        self.ready = self.path / "ready"
        self._journal = self.path / "journal.json"
        self._lock: int | None = None
        self._made_root = False

    def __enter__(self) -> Self:
        self._made_root = not self.root.exists()
        tries = 0
        while self._lock is None:
            tries += 1
            lock = self.path / "lock"
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                if tries < _TRIES:
                    continue  # whoever held it removed the folder in between
                raise
            try:
                _lock(descriptor)
                # Whoever held it may have removed the folder after we opened the file.
                if lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor)):
                    self._lock = descriptor
            except BlockingIOError:
                msg = f"{self.root} is being written to by another process; wait until it is done"
                raise BusyError(msg) from None
            finally:
                if self._lock is None:
                    os.close(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        if not self._journal.exists():
            remove(self.path)
            if self._made_root and not any(self.root.iterdir()):
                self.root.rmdir()
        elif error is not None:
            error.add_note(
                f"What was finished is kept in {self.path}: the same call continues from there, any other call removes it."
            )
        os.close(self._lock)
        self._lock = None

    def read(self) -> dict[str, Any] | None:
        """The journal, if there is one."""
        return read_journal(self.root)

    def finish_interrupted(self, call: Call, mark: Callable[[], None]) -> bool:
        """Put datasets in place that an interrupted call had decided to add.

        Returns whether this call asks for just those.
        """
        journal = self.read()
        if journal is None or journal["state"] != "publishing":
            return False
        self.finish(journal["names"], mark)
        same = call.is_that_of(journal)
        rest = (
            "this call asked for the same and adds nothing more"
            if same
            else "it had asked for something else than this call"
        )
        warn_user(f"{self.root}: finished an interrupted call, which only had to put its datasets in place; {rest}")
        return same

    def begin(self, call: Call, existing: list[str]) -> int:
        """Open the journal, or go on with that of an interrupted call. Returns the seed."""
        journal = self.read()
        if journal is not None and journal["existing"] == existing and call.is_that_of(journal):
            self._drop_unfinished(journal)
            blocks, datasets = len(list(self.blocks.glob("*.json"))), len(list(self.ready.glob("dataset_*")))
            warn_user(
                f"{self.root}: continuing an interrupted call; {blocks} blocks and {datasets} datasets were finished"
            )
        else:
            if journal is not None:
                warn_user(
                    f"{self.root}: removed the unfinished work of an interrupted call with other inputs or arguments"
                )
            self.discard()
            seed = secrets.randbits(63) if call.seed is None else call.seed
            journal = {"version": JOURNAL_VERSION, "call": call.fingerprint, "seed": seed, "existing": existing}
        for folder in (self.blocks, self.ready):
            folder.mkdir(parents=True, exist_ok=True)
        self._write({**journal, "state": "building", "boot": boot_id()})
        return int(journal["seed"])

    def commit(self, names: list[str]) -> None:
        """Decide that these datasets become part of the collection."""
        self._write({**(self.read() or {}), "state": "publishing", "names": names})

    def finish(self, names: list[str], mark: Callable[[], None]) -> None:
        """Do what was decided: put the datasets in place, make the folder a collection, and forget the call."""
        self.publish(names)
        mark()
        self._journal.unlink()
        self.discard()

    def publish(self, names: list[str]) -> None:
        """Move finished datasets to their place; those that are there already stay."""
        for name in names:
            if (self.ready / name).exists():
                (self.ready / name).rename(self.root / name)

    def discard(self) -> None:
        """Remove all that a call left, except the lock."""
        remove(self._journal)
        for path in self.path.iterdir():
            if path.name != "lock":
                remove(path)

    def _drop_unfinished(self, journal: dict[str, Any]) -> None:
        """Remove what an interrupted call has not finished, or may not have finished.

        Blocks are not synced to the disk: after a restart of the machine none can be trusted.
        """
        if not journal.get("boot") or journal["boot"] != boot_id():
            remove(self.blocks)
        for path in self.blocks.glob("*"):
            if path.suffix != ".json" and not path.with_suffix(".json").exists():
                remove(path)
        for path in self.ready.glob("unfinished-*"):
            remove(path)
        for path in self.path.glob("*.pickle"):
            remove(path)

    def _write(self, journal: dict[str, Any]) -> None:
        replace_text(self._journal, json.dumps(journal, indent=1), self.path)


def read_journal(root: Path) -> dict[str, Any] | None:
    """Journal of the call that writes, or wrote, to ``root``."""
    try:
        journal: dict[str, Any] = json.loads((root / WORK_FOLDER / "journal.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return journal


def unpublished(root: Path) -> frozenset[str]:
    """Names that may stand in ``root`` but do not belong to the collection yet."""
    journal = read_journal(root)
    return frozenset(journal.get("names", ())) if journal else frozenset()


def boot_id() -> str:
    """What changes when the machine restarts ("" where that cannot be told)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _lock(descriptor: int) -> None:
    """Take the lock, or raise BlockingIOError when somebody has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError from error
        # Some network file systems have no locks.
        warn_user(f"writers cannot be kept apart here ({error}): see to it that nothing else writes to this collection")
