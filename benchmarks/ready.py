"""What batches that a model can eat cost: paired runs in one process, each pair in turn, medians of ratios.

``python -m benchmarks.ready`` makes a collection of thinned real cells, and prints a table: rows per second as batches are, rows per
second with what is named, and the median, lowest and highest ratio of the times of a pair. ``--update docs/performance.md`` writes it there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.versus.report import rewrite_section

if TYPE_CHECKING:
    from collections.abc import Callable


def make_collection(folder: Path, n_cells: int) -> str:
    """A collection with 30 obs columns: a third of each of labels, numbers and whole numbers."""
    from annbatch import DatasetCollection
    from benchmarks.suites.counts import thinned_cells

    rng = np.random.default_rng(0)
    adata = thinned_cells(n_cells, seed=0)
    for i in range(10):
        adata.obs[f"label_{i}"] = pd.Categorical(rng.choice(list("abcdefgh"), n_cells))
        adata.obs[f"number_{i}"] = rng.random(n_cells)
        adata.obs[f"count_{i}"] = rng.integers(0, 100, n_cells)
    adata.write_h5ad(folder / "cells.h5ad")
    DatasetCollection(folder / "cells.zarr").add_adatas([folder / "cells.h5ad"], rng=rng, progress=False)
    return str(folder / "cells.zarr")


def columns(n_columns: int) -> list[str]:
    return [f"{kind}_{i}" for i in range(n_columns // 3) for kind in ("label", "number", "count")]


def pairs(batch_size: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What is compared: a name, the loader as it is, and the loader with more."""
    bare: dict[str, Any] = {"batch_size": batch_size, "obs_columns": []}
    scale = {"normalize_total": 1e4, "log1p": True}
    return [
        ("3 obs columns", bare, {**bare, "obs_columns": columns(3)}),
        ("30 obs columns", bare, {**bare, "obs_columns": columns(30)}),
        ("2 labels, 1 covariate", bare, {**bare, "labels": columns(3)[::2], "covariates": columns(3)[1:2]}),
        ("normalize_total, log1p; CSR", bare, {**bare, **scale}),
        (
            "normalize_total, log1p; dense torch",
            {**bare, "dense": True, "to": "torch"},
            {**bare, "dense": True, "to": "torch", **scale},
        ),
        ("library_size", bare, {**bare, "library_size": True}),
    ]


def seconds(place: str, n_rows: int, settings: dict[str, Any], clock: Callable[[], float]) -> float:
    from annbatch import Loader

    # Load requests of four batches, or of one that is larger: what is read ahead is little beside what is timed.
    loader = Loader(
        chunk_size=32,
        preload_nchunks=max(16, settings["batch_size"] // 32),
        shuffle=True,
        rng=np.random.default_rng(0),
        **settings,
    ).use_collection(place)
    seen, began = 0, clock()
    while seen < n_rows:
        for batch in loader:
            seen += batch["X"].shape[0]
    return (clock() - began) / seen


def table(place: str, n_rows: int, n_rounds: int, clock: Callable[[], float]) -> list[str]:
    lines = [
        "| batch | with | rows/s as it is | rows/s with it | times the time, median (lowest to highest) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for batch_size in (128, 4096):
        for name, plain, more in pairs(batch_size):
            for settings in (plain, more):
                seconds(place, n_rows, settings, clock)  # warm
            runs = [
                (seconds(place, n_rows, plain, clock), seconds(place, n_rows, more, clock)) for _ in range(n_rounds)
            ]
            ratios = sorted(after / before for before, after in runs)
            speeds = [f"{1 / np.median([run[side] for run in runs]):,.0f}" for side in (0, 1)]
            ratio = f"**{np.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {batch_size:,} | {name} | {speeds[0]} | {speeds[1]} | {ratio} |")
            print(lines[-1], flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ready", description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="time of the processor instead of the clock: for a machine that has other work",
    )
    parser.add_argument("--collection", help="one that this command made before; its folder is not removed")
    parser.add_argument("--update", type=Path, help="page to write the table into")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.collection or make_collection(Path(folder), options.cells)
        found = table(place, options.rows, options.rounds, time.process_time if options.cpu else time.perf_counter)
    cpu = " --cpu" if options.cpu else ""
    head = (
        f"`python -m benchmarks.ready --cells {options.cells} --rounds {options.rounds}{cpu}`, {os.cpu_count()} CPUs:"
    )
    if options.update:
        rewrite_section(options.update, "ready", "\n".join([head, "", *found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
