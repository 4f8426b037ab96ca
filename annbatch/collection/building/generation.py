"""The folder of one call, which no other call writes to.

    OUT/.annbatch/generation-TOKEN/open       held (by the kernel) while the caller lives; gone when the generation is closed
                                  schema.h5   what the datasets hold
                                  drafts/     what tasks are writing
                                  blocks/     finished blocks
                                  ready/      finished datasets, each in a folder with its receipt

A task writes below ``drafts`` under a name that it makes up, and is done by one rename of something complete. Workers may
outlive their caller, and may go on while the same call is made again. They find their generation closed: renamed by
whoever came next, or its caller gone. What they do then reaches nobody, and they stop at their next step.
"""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .files import Lock, remove, sync, sync_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "generation-"
_CLOSED = "closed-"
_OPEN = "open"
_RECEIPT = "receipt.json"


class ClosedError(RuntimeError):
    """The call that a task belongs to has ended; nobody waits for the task."""


@dataclass(frozen=True)
class Generation:
    """Where the tasks of one call write; travels with them.

    Attributes
    ----------
    path
        Its folder.
    host
        The machine whose kernel says whether the caller lives; "": none does.
    """

    path: Path
    host: str = ""

    @classmethod
    def make(cls, parent: Path) -> Generation:
        """A new one below ``parent``, whose caller is not watched."""
        generation = cls(parent / f"{_PREFIX}{secrets.token_hex(8)}")
        for folder in (generation.path, generation.drafts, generation.blocks, generation.ready):
            folder.mkdir()
        (generation.path / _OPEN).touch()
        return generation

    @property
    def name(self) -> str:
        """Its name, which no other has."""
        return self.path.name

    @property
    def drafts(self) -> Path:
        """Folder of what is not finished."""
        return self.path / "drafts"

    @property
    def blocks(self) -> Path:
        """Folder of finished blocks."""
        return self.path / "blocks"

    @property
    def ready(self) -> Path:
        """Folder of finished datasets, with their receipts."""
        return self.path / "ready"

    def dataset(self, name: str) -> Path:
        """Where a finished dataset lies."""
        return self.ready / name / name

    def watch_caller(self) -> tuple[Generation, Lock | None]:
        """The same, whose tasks end when this process has ended; and the lock to hold until then."""
        try:
            lock = Lock(self.path / _OPEN)
        except OSError:
            return self, None  # some file systems have no locks
        return Generation(self.path, this_host()), lock

    def check_open(self) -> None:
        """Refuse to go on with a task that nobody waits for.

        Raises
        ------
        ClosedError
            Another call has taken over, or the caller has died.
        """
        mark = self.path / _OPEN
        if not mark.exists():
            msg = f"{self.path} was closed: another call has taken over from the one that this task belongs to"
            raise ClosedError(msg)
        if self.host and self.host == this_host() and not Lock.is_held(mark):
            msg = f"{self.path}: the call that this task belongs to has ended"
            raise ClosedError(msg)

    def draft(self) -> Path:
        """A place for something new, under a name that no other task has."""
        self.check_open()
        return self.drafts / secrets.token_hex(8)

    def keep_block(self, draft: Path, name: str) -> None:
        """A block is complete."""
        self.check_open()
        draft.replace(self.blocks / name)

    def keep_dataset(self, draft: Path, name: str, n_obs: int) -> None:
        """The dataset ``draft / name`` is complete: it gets a receipt, is on the disk, and moves to its place in one step."""
        files = dict(_files(draft / name))
        (draft / _RECEIPT).write_text(json.dumps({"n_obs": n_obs, "files": files}))
        sync_tree(draft)
        self.check_open()
        try:
            draft.rename(self.ready / name)
        except OSError:
            if not self.dataset(name).exists():
                raise
            remove(draft)  # the same task was run twice, as some executors do when a worker is slow to answer
        sync(self.ready)

    def drop(self, draft: Path) -> None:
        """Remove what was not finished, and folders that were made anew after all had been removed."""
        remove(draft)
        if not (self.path / _OPEN).exists():
            for folder in (self.drafts, self.path, self.path.parent):
                with suppress(OSError):
                    folder.rmdir()

    def problems(self, name: str, n_obs: int | None = None, at: Path | None = None) -> list[str]:
        """What is wrong with a finished dataset, which may have been moved to ``at``; nothing when it is as it was written."""
        path = self.dataset(name) if at is None else at
        try:
            receipt = json.loads((self.ready / name / _RECEIPT).read_text())
            expected, rows = dict(receipt["files"]), receipt["n_obs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [f"{name} has no receipt ({error})"]
        found = dict(_files(path))
        said = [f"{path}/{file} is missing" for file in sorted(expected.keys() - found.keys())]
        said += [f"{path}/{file} is not of this build" for file in sorted(found.keys() - expected.keys())]
        said += [
            f"{path}/{file} has {found[file]} bytes instead of {expected[file]}"
            for file in sorted(expected.keys() & found.keys())
            if expected[file] != found[file]
        ]
        if n_obs is not None and rows != n_obs:
            said.append(f"{name} has {rows} rows instead of {n_obs}")
        return said

    def close(self) -> Path:
        """Let no task reach this generation any more. Returns where what it held is now."""
        closed = self.path.with_name(f"{_CLOSED}{secrets.token_hex(8)}")
        self.path.rename(closed)
        (closed / _OPEN).unlink(missing_ok=True)
        return closed


def is_generation(name: str) -> bool:
    """Whether a folder of a work folder may have this name; "" is that of a call of version 0.4."""
    return not name or (name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isalnum())


def generations(work: Path) -> Iterator[Generation]:
    """Those that stand in a work folder."""
    for path in work.glob(f"{_PREFIX}*"):
        yield Generation(path)


def _files(path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every file of a dataset, which may be one file."""
    if not path.is_dir():
        if path.exists():
            yield ".", path.stat().st_size
        return
    for file in path.rglob("*"):
        if not file.is_dir():
            yield file.relative_to(path).as_posix(), file.stat().st_size


def this_host() -> str:
    """What tells this machine, since it was started, from all others ("" where that cannot be told)."""
    try:
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return ""


def owner(path: Path) -> int:
    """Number of the user who wrote a file."""
    return path.lstat().st_uid
