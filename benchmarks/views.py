"""What rows that one chooses cost: views, and a pass over a billion rows.

``python -m benchmarks.views [--write docs/performance.md]`` prints a table: processor time of a pass over a view as a ratio to a pass
over all rows, pairs in turn in one process; memory and time of views of 10^8 rows that exist in no file; and what it takes to
begin, to resume, and to begin as one of 64 ranks, a pass over 10^9 rows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.paired import ratios
from benchmarks.versus.__main__ import commit
from benchmarks.versus.report import rewrite_section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from annbatch import Loader

CHUNK, BATCH = 32, 4096


def passes(loader: Loader) -> Callable[[int], None]:
    """What reads one pass, told by its number."""

    def read(number: int) -> None:
        loader.set_epoch(number)
        for _ in loader:
            pass

    return read


def costs(n_cells: int, n_rounds: int) -> Iterator[tuple[str, str]]:
    """Passes over views, against passes over all rows of the same collection."""
    from annbatch import DatasetCollection, Loader, RandomSampler
    from benchmarks.suites.counts import thinned_cells

    def sampler() -> RandomSampler:
        return RandomSampler(CHUNK, 256, BATCH, rng=np.random.default_rng(0))

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cells.zarr"
        DatasetCollection(place).add_adatas([thinned_cells(n_cells, seed=0)], progress=False)
        options = {"prefetch": 0, "num_threads": 1, "preload_to_gpu": False, "obs_columns": []}
        whole = Loader(batch_sampler=sampler(), **options).use_collection(place)
        rng = np.random.default_rng(1)
        half = rng.random(n_cells) < 0.5
        views = {
            "all rows, as a range": np.arange(n_cells),
            "all rows, as row numbers in chunks of 32 that are shuffled": _shuffled_chunks(n_cells, rng),
            "a random half": half,
        }
        for name, rows in views.items():
            view = whole.subset(rows, batch_sampler=sampler())
            found = ratios([passes(view), passes(whole)], n_rounds) * n_cells / view.n_obs
            low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
            yield (
                f"view of {name}: time of a row, as a ratio to no view (quarters)",
                f"**{median:.3f}** ({low:.3f} to {high:.3f})",
            )


def _shuffled_chunks(n_obs: int, rng: np.random.Generator) -> np.ndarray:
    chunks = rng.permutation(n_obs // CHUNK)
    rows = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    return np.append(rows, np.arange(len(rows), n_obs))


def sizes(n_obs: int) -> Iterator[tuple[str, str]]:
    """Views of many rows; the matrix is memory that nothing ever touches."""
    from annbatch import Loader

    loader = Loader(chunk_size=1, preload_nchunks=BATCH, batch_size=256, preload_to_gpu=False)
    loader.add_dataset(np.zeros((n_obs, 1), np.int8))
    views: dict[str, Callable[[], np.ndarray | slice]] = {
        "a random half, as booleans": lambda: np.random.default_rng(0).random(n_obs) < 0.5,
        "all rows, backwards, as numbers": lambda: np.arange(n_obs)[::-1],
        "a range": lambda: slice(5, n_obs),
    }
    for name, make in views.items():
        rows = make()
        start = time.process_time()
        view = loader.subset(rows)
        took = time.process_time() - start
        del view
        tracemalloc.start()
        view = loader.subset(rows)
        now, peak = (each / view.n_obs for each in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        yield f"`subset` of {n_obs:,} rows to {name}", f"{took:.2f} s; {now:.2f} bytes a row, {peak:.2f} at the peak"


def starts(n_obs: int, n_ranks: int) -> Iterator[tuple[str, str]]:
    """First requests of passes over single rows."""
    from annbatch import DistributedSampler, RandomSampler

    def sampler() -> RandomSampler:
        return RandomSampler(1, BATCH, 256, rng=np.random.default_rng(0))

    def first(state: dict | None = None, *, rank: int | None = None) -> None:
        used = sampler() if rank is None else DistributedSampler(sampler(), dist_info=lambda: (rank, n_ranks))
        if state is not None:
            used.load_state_dict(state)
        next(iter(used.sample(n_obs)))

    near_end = sampler()
    near_end.sample(n_obs)
    state = {**near_end.state_dict(), "request": n_obs // BATCH - 1}
    for name, call in {
        "the first request": lambda: first(),
        "the last request, after resuming there": lambda: first(state),
        f"the first request of the last of {n_ranks} ranks": lambda: first(rank=n_ranks - 1),
    }.items():
        took = []
        for _ in range(9):
            start = time.process_time()
            call()
            took.append(time.process_time() - start)
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield (
            f"RandomSampler, 1 x {BATCH:,}, {n_obs:,} rows: {name}",
            f"{np.median(took) * 1e3:.2f} ms, {peak / 1024:.0f} KiB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.views", description=__doc__)
    parser.add_argument("--cells", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=25, help="pairs of passes")
    parser.add_argument("--view-rows", type=int, default=10**8)
    parser.add_argument("--pass-rows", type=int, default=10**9)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="document with the lines <!-- views:begin -->")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    lines = ["| what | figure |", "| --- | --- |"]
    print("\n".join(lines))
    for part in (
        costs(options.cells, options.rounds),
        sizes(options.view_rows),
        starts(options.pass_rows, 64),
    ):
        for what, figure in part:
            lines.append(f"| {what} | {figure} |")
            print(lines[-1], flush=True)
    if options.write:
        caption = (
            f"`python -m benchmarks.views` at commit {commit()}, {options.cells:,} cells, {options.rounds} pairs, load {load:.1f} at "
            "the start; processor time, one thread."
        )
        rewrite_section(options.write, "views", "\n".join([*lines, "", caption]))


if __name__ == "__main__":
    main()
