"""Running tasks here or elsewhere, a window of them at a time."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tqdm import tqdm

T = TypeVar("T")

# Enough to keep a cluster busy, few enough that the tasks of a big build are not all made at once.
_WINDOW = 256


def run_all(executor: Executor | None, function: Callable[[T], Any], tasks: Iterable[T], bar: tqdm[Any]) -> None:
    """Run ``function`` on every task; the first error stops what has not begun and is raised."""
    with bar:
        if executor is None:
            for task in tasks:
                function(task)
                bar.update()
            return
        waiting = iter(tasks)
        running: set[Future[Any]] = set()
        try:
            while True:
                running |= {executor.submit(function, task) for task in islice(waiting, _WINDOW - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    bar.update()
        finally:
            for future in running:
                future.cancel()
            wait(running)
