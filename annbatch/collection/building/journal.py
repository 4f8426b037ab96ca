"""The work folder of a collection: the lock, which call writes, and what a crash left behind.

    OUT/.annbatch/lock               held (by the kernel, so it ends with its process) while someone writes
    OUT/.annbatch/journal.json       which call this is, its seed and its generation, and, from the moment of commit, the
                                     names it puts in place
    OUT/.annbatch/generation-TOKEN/  what this call writes, and no other: blocks, and finished datasets, moved to OUT when
                                     all are there

A call is committed when its journal says "publishing": from then on it is only ever finished. Readers take no notice of
the names listed there until the journal is gone, so they see the collection as it was before or as it is after.

All that is read back here is data, never code, and only what the same user wrote is taken over.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from annbatch._shared.collection_format import H5AD_SUFFIX, JOURNAL, WORK_FOLDER, dataset_number
from annbatch.storage.errors import CorruptDataError

from .files import Lock, remove_eventually, replace_text, sync
from .generation import Generation, generations, is_generation, owner
from .spill import is_intact
from .warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

# What is in blocks and journal; an interrupted call is continued by the same version only.
JOURNAL_VERSION = 3
_WITHOUT_GENERATIONS = 2
_LOCK = "lock"
# How often a folder that is removed in between is made again.
_TRIES = 100
# A caller that was killed has let go of its lock in less; its forked workers never hold it.
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.05


class BusyError(RuntimeError):
    """Another process writes to the collection."""


@dataclass(frozen=True)
class Call:
    """What a call asks for; ``seed`` None: any order of the rows."""

    fingerprint: str
    seed: int | None

    def is_that_of(self, journal: Mapping[str, Any]) -> bool:
        """Whether an interrupted call asked for the same."""
        return bool(
            journal.get("version") == JOURNAL_VERSION
            and journal["call"] == self.fingerprint
            and self.seed in (None, journal["seed"])
        )


class WorkFolder:
    """The work folder below ``root``, locked while entered.

    Attributes
    ----------
    generation
        Where this call writes; made by :meth:`begin`.

    Raises
    ------
    BusyError
        On entering, when another process or thread holds it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / WORK_FOLDER
        self.generation = Generation(self.path)
        self._journal = self.path / JOURNAL
        self._lock: Lock | None = None
        self._watch: Lock | None = None
        self._made_root = False
        self._uid = -1

    def __enter__(self) -> Self:
        self._made_root = not self.root.exists()
        self._lock = self._locked()
        try:
            self.generation = Generation.make(self.path)
            self._uid = owner(self.generation.path)
            if self._lock is not None:
                self.generation, self._watch = self.generation.watch_caller()
        except BaseException:
            self._release()
            raise
        return self

    def _locked(self) -> Lock | None:
        """Take the lock; None where the file system has none."""
        path = self.path / _LOCK
        until = time.monotonic() + _PATIENCE_SECONDS
        tries = 0
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = Lock(path)
                # Whoever held it may have removed the folder after we opened the file.
                if lock.is_in_place:
                    return lock
                lock.release()
            except FileNotFoundError:
                tries += 1
                if tries == _TRIES:  # else: whoever held it removed the folder in between
                    raise
            except BlockingIOError:
                if time.monotonic() > until:
                    msg = f"{self.root} is being written to by another process; wait until it is done"
                    raise BusyError(msg) from None
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                if not path.exists():
                    raise
                warn_user(
                    f"writers cannot be kept apart here ({error}): see to it that nothing else writes to this collection"
                )
                return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._journal.exists():
                self._remove()
                if self._made_root and self.root.exists() and not any(self.root.iterdir()):
                    self.root.rmdir()
                return
            if error is not None:
                error.add_note(
                    f"What was finished is kept in {self.path}: the same call continues from there, any other call removes it."
                )
            journal = read_journal(self.root)
            if journal is None or journal["generation"] != self.generation.name:
                remove_eventually(self.generation.path)  # this call has not begun
        finally:
            self._release()

    def _remove(self) -> None:
        """Remove the work folder. The lock goes last: as soon as it is gone, the next caller may be writing here."""
        for path in self.path.iterdir():
            if path.name != _LOCK:
                remove_eventually(path)
        with suppress(OSError):  # not empty: what could not be removed stays, and so does what the next caller makes
            (self.path / _LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    def _release(self) -> None:
        for lock in (self._watch, self._lock):
            if lock is not None:
                lock.release()
        self._watch = self._lock = None

    def finish_interrupted(self, call: Call, mark: Callable[[], None]) -> bool:
        """Put datasets in place that an interrupted call had decided to add.

        Returns whether this call asks for just those.
        """
        journal = self._own_journal()
        if journal is None or journal["state"] != "publishing":
            return False
        self._finish(journal, mark)
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
        journal = self._own_journal()
        old = [other for other in generations(self.path) if other.name != self.generation.name]
        if journal is not None and journal["existing"] == existing and call.is_that_of(journal):
            closed = {other.name: other.close() for other in old}
            n_blocks, n_datasets = self._take_over(closed.get(journal["generation"]))
            warn_user(
                f"{self.root}: continuing an interrupted call; {n_blocks} blocks and {n_datasets} datasets were finished"
            )
            seed = int(journal["seed"])
        else:
            if journal is not None:
                warn_user(
                    f"{self.root}: removed the unfinished work of an interrupted call with other inputs or arguments"
                )
            seed = secrets.randbits(63) if call.seed is None else call.seed
        self._write(
            {
                "version": JOURNAL_VERSION,
                "call": call.fingerprint,
                "seed": seed,
                "existing": existing,
                "generation": self.generation.name,
                "state": "building",
            }
        )
        self._tidy()
        return seed

    def _take_over(self, closed: Path | None) -> tuple[int, int]:
        """Take blocks and datasets of a closed generation that are as they were written. Returns how many."""
        if closed is None or owner(closed) != self._uid:
            return 0, 0
        from_there = Generation(closed)
        blocks = [path for path in _children(from_there.blocks) if self._is_own(path) and is_intact(path)]
        datasets = [
            path for path in _children(from_there.ready) if self._is_own(path) and not from_there.problems(path.name)
        ]
        for path in blocks:
            path.rename(self.generation.blocks / path.name)
        for path in datasets:
            path.rename(self.generation.ready / path.name)
        return len(blocks), len(datasets)

    def _is_own(self, path: Path) -> bool:
        """Whether this user made it and everything in it, and no link leads out of it: others may write in a shared folder."""
        if path.is_symlink() or owner(path) != self._uid:
            return False
        return not path.is_dir() or all(self._is_own(child) for child in path.iterdir())

    def commit(self, n_obs: Mapping[str, int]) -> None:
        """Decide that datasets become part of the collection, if all are complete; ``n_obs``: rows of each by name.

        Raises
        ------
        RuntimeError
            One is not, or another call has taken over.
        """
        self._check_ours()
        problems = [said for name, rows in n_obs.items() for said in self.generation.problems(name, rows)]
        _raise_any(problems, f"what was built for {self.root} is not complete; run the same call again")
        for folder in (self.generation.ready, self.generation.path, self.path, self.root, self.root.parent):
            sync(folder)
        self._write({**(self._own_journal() or {}), "state": "publishing", "names": dict(n_obs)})

    def finish(self, mark: Callable[[], None]) -> None:
        """Do what was decided: put the datasets in place, make the folder a collection, and forget the call."""
        journal = self._own_journal()
        assert journal is not None
        self._finish(journal, mark)

    def _finish(self, journal: Mapping[str, Any], mark: Callable[[], None]) -> None:
        if journal["version"] == _WITHOUT_GENERATIONS:
            self._publish_old(journal["names"])
        else:
            self.publish(Generation(self.path / journal["generation"]), journal["names"])
        mark()
        self._journal.unlink()
        sync(self.path)
        self._tidy()

    def publish(self, generation: Generation, n_obs: Mapping[str, int]) -> None:
        """Move finished datasets to their place, those that are there already stay; and look that all is there.

        Raises
        ------
        RuntimeError
            Something is missing. The journal stays, so that readers see the collection as it was.
        """
        for name in n_obs:
            dataset, place = generation.dataset(name), self.root / name
            # After a power cut a file system without a journal may show one dataset in both places.
            is_there = place.exists() and not generation.problems(name, at=place)
            if dataset.exists() and not is_there:
                dataset.rename(place)
        sync(self.root)
        problems = [
            said for name, rows in n_obs.items() for said in generation.problems(name, rows, at=self.root / name)
        ]
        _raise_any(
            problems,
            f"what was put in place in {self.root} is not what was built; its new datasets stay hidden. To begin anew, remove "
            f"{', '.join(n_obs)} and {WORK_FOLDER} there",
        )

    def _publish_old(self, names: Iterable[str]) -> None:
        """What an interrupted call of version 0.4 had decided."""
        for name in names:
            if (self.path / "ready" / name).exists():
                (self.path / "ready" / name).rename(self.root / name)
        sync(self.root)

    def _check_ours(self) -> None:
        """See that nobody has taken this folder over, or removed it."""
        journal = read_journal(self.root)
        in_place = self._lock is None or self._lock.is_in_place
        if not in_place or journal is None or journal["generation"] != self.generation.name:
            msg = f"{self.path} was removed or taken over by another call while this one was working; it adds nothing"
            raise RuntimeError(msg)

    def _own_journal(self) -> dict[str, Any] | None:
        """The journal, if there is one that this user may go on with.

        Raises
        ------
        RuntimeError
            Another user's call has decided to put datasets in place, and only they can finish it.
        """
        journal = read_journal(self.root)
        if journal is None or owner(self._journal) == self._uid:
            return journal
        if journal["state"] == "publishing":
            msg = (
                f"{self.root} holds datasets that a call of another user ({owner(self._journal)}) was putting in place when it was "
                f"interrupted; let them run it again, or remove {self._journal} and {', '.join(journal['names'])}"
            )
            raise RuntimeError(msg)
        return {**journal, "call": ""}

    def _tidy(self) -> None:
        """Remove all that calls left, except the lock, the journal and the generation of this one."""
        for generation in generations(self.path):
            if generation.name != self.generation.name:
                generation.close()
        for path in self.path.iterdir():
            if path.name not in (_LOCK, JOURNAL, self.generation.name):
                remove_eventually(path)

    def _write(self, journal: dict[str, Any]) -> None:
        replace_text(self._journal, json.dumps(journal, indent=1), self.path)


def _children(path: Path) -> Iterable[Path]:
    return sorted(path.iterdir()) if path.is_dir() else ()


def _raise_any(problems: list[str], what: str) -> None:
    if problems:
        msg = f"{what} ({len(problems)} differences, e.g. {'; '.join(problems[:3])})"
        raise RuntimeError(msg)


def read_journal(root: Path) -> dict[str, Any] | None:
    """Journal of the call that writes, or wrote, to ``root``.

    Raises
    ------
    CorruptDataError
        It is damaged.
    """
    path = root / WORK_FOLDER / JOURNAL
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        journal = json.loads(text)
        names = journal.get("names", ()) if journal["state"] == "publishing" else ()
        is_known = (
            journal["state"] in ("building", "publishing")
            and {"version", "call", "seed", "existing"} <= journal.keys()
            and is_generation(journal.setdefault("generation", ""))
            and all(dataset_number(name, H5AD_SUFFIX * name.endswith(H5AD_SUFFIX)) is not None for name in names)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        is_known = False
    if not is_known:
        msg = f"{path} is damaged; remove {path.parent}, and run the call that wrote it again"
        raise CorruptDataError(msg)
    return dict(journal)


def unfinished_call(root: Path) -> str | None:
    """What a call that has not finished does to ``root``: "is being written to", or "was interrupted"; None: there is none."""
    if read_journal(root) is None:
        return None
    return "is being written to" if Lock.is_held(root / WORK_FOLDER / _LOCK) else "was interrupted"
