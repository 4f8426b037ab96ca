"""What every worker needs: its parameters, a clock over whole load requests, and the one line of JSON it prints."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def parameters() -> dict[str, Any]:
    """Return the JSON object given on the command line."""
    return json.loads(sys.argv[1])


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(**figures: Any) -> None:
    """Print the result as the last line of standard output."""
    print(json.dumps({"peak_memory": peak_memory(), **figures}), flush=True)


def count_rows(passes: Callable[[], Iterable[int]], *, rows_per_request: int, seconds: float) -> tuple[int, float]:
    """Run passes until ``seconds`` are over; return (rows, seconds).

    ``passes()`` starts a pass and yields the number of rows of each batch. The clock starts when two load requests of the first
    pass are done, and the pass goes on: leaving it would throw away the memory and the rows read ahead that a long run has at
    all times but its first. It stops between two load requests or at the end of a pass: a loader yields the batches of
    one request in a burst, and to stop within one would favour whoever happens to be inside it.
    """
    rows, start = 0, None
    while True:
        rows_of_pass = 0
        for n_rows in passes():
            rows_of_pass += n_rows
            rows += n_rows
            if rows_of_pass % rows_per_request:
                continue
            if start is None:
                if rows_of_pass >= 2 * rows_per_request:
                    rows, start = 0, time.perf_counter()
            elif time.perf_counter() - start >= seconds:
                return rows, time.perf_counter() - start
        if rows_of_pass == 0:
            msg = "a pass yielded no rows"
            raise RuntimeError(msg)
        if start is None:
            rows, start = 0, time.perf_counter()
        elif time.perf_counter() - start >= seconds:
            return rows, time.perf_counter() - start


def rows_per_second(passes: Callable[[], Iterable[int]], *, rows_per_request: int, seconds: float) -> None:
    """Measure and report."""
    rows, elapsed = count_rows(passes, rows_per_request=rows_per_request, seconds=seconds)
    report(rows=rows, seconds=elapsed, rate=rows / elapsed)
