"""Inputs that the tasks of this process share while they read from them."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from pathlib import Path

    from .inputs import Input, InputSpec


class _OpenInput:
    """An input that tasks have open."""

    def __init__(self) -> None:
        self.users = 0
        self.source: Input | None = None
        self.opening = threading.Lock()


# Blocks of one input follow each other, and its row pointers are in memory once, however many threads read from it.
_held: dict[Hashable, _OpenInput] = {}
_held_lock = threading.Lock()
_inherited: list[object] = []


def _after_fork() -> None:
    """Forget the inputs of the parent: threads that are not here use them, or were opening them.

    They are not closed: the files, and where each is read, are the parent's, too.
    """
    global _held_lock
    _held_lock = threading.Lock()
    _inherited.append(dict(_held))
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def held_input(key: Hashable, spec: InputSpec, scratch: Path) -> Iterator[Input]:
    """Open an input, or take the one that is open under this key; others that nobody uses are closed.

    ``scratch``: a folder for temporary files.
    """
    with _held_lock:
        idle = [_held.pop(other) for other, held in list(_held.items()) if other != key and not held.users]
        held = _held.setdefault(key, _OpenInput())
        held.users += 1
    try:
        _close(idle)
        with held.opening:
            if held.source is None:
                held.source = spec.open(scratch)
        yield held.source
    finally:
        with _held_lock:
            held.users -= 1


def close_inputs() -> None:
    """Close the inputs that this process holds open and no task uses."""
    with _held_lock:
        idle = [_held.pop(key) for key, held in list(_held.items()) if not held.users]
    _close(idle)


def _close(held: list[_OpenInput]) -> None:
    for each in held:
        if each.source is not None:
            each.source.close()
