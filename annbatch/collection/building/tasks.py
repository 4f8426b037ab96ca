"""Running tasks here or elsewhere, a window of them at a time."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .generation import Generation
    from .options import Options
    from .plan import Budget
    from .schema import Schema
    from .schema_file import SchemaFile


class RowsTask(Protocol):
    """A task that deals with rows ``[start, stop)``."""

    @property
    def start(self) -> int:
        """First row."""

    @property
    def stop(self) -> int:
        """Row after the last."""


@dataclass(frozen=True)
class Work:
    """What all tasks of a call are made of; ``executor`` None: they run here."""

    generation: Generation
    schema: Schema
    schema_file: SchemaFile
    budget: Budget
    options: Options
    executor: Executor | None


T = TypeVar("T", bound=RowsTask)

# Enough to keep a cluster busy, few enough that the tasks of a big build are not all made at once.
_WINDOW = 256


def run_all(executor: Executor, function: Callable[[T], Any], tasks: Iterable[T], bar: tqdm[Any]) -> None:
    """Run ``function`` on every task; the first error stops what has not begun and is raised. The bar counts rows."""
    with bar:
        waiting = iter(tasks)
        running: set[Future[Any]] = set()
        rows: dict[Future[Any], int] = {}
        try:
            while True:
                for task in islice(waiting, _WINDOW - len(running)):
                    future = executor.submit(function, task)
                    running.add(future)
                    rows[future] = task.stop - task.start
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    bar.update(rows.pop(future))
        finally:
            for future in running:
                future.cancel()
            wait(running)


def bar_of(what: str, n_rows: int, *, shown: bool) -> tqdm[Any]:
    """Progress bar of a step."""
    return tqdm(total=n_rows, desc=what, unit="row", unit_scale=True, disable=not shown)
