"""Rate and quality of the shuffle against chunk_size and preload_nchunks, with the plot of docs/howto/settings.md.

    python -m benchmarks.settings [--cells 40000] [--write docs/howto/settings.md]

Two h5ad files that are sorted by cell type, as files of several samples often are, and a collection made of them; batches of 128 rows.
Rates are measured in turn. The quality is that of the sampler's batches (``annbatch.commands.quality``): nothing is read for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from annbatch import DatasetCollection, Loader, RandomSampler
from annbatch.commands.quality import rows_of_batches, shuffle_quality
from benchmarks.versus.__main__ import commit
from benchmarks.versus.public import codes_of, make_files
from benchmarks.versus.report import rewrite_section

DOCS = Path(__file__).resolve().parents[1] / "docs"
CHUNK_SIZES = (1, 4, 16, 64, 256, 1024)
LOAD_ROWS = (1024, 4096, 16384)  # rows of a load request; rates are those of the middle one
BATCH_SIZE = 128
N_BATCHES = 400


def qualities(codes: np.ndarray) -> dict[str, list[float | None]]:
    """Entropy of the labels of a batch, by rows of a load request, for every chunk size; None where a chunk is too long."""
    found: dict[str, list[float | None]] = {}
    for rows in LOAD_ROWS:
        found[str(rows)] = [
            None if chunk_size > rows else entropy_of(chunk_size, rows // chunk_size, codes)
            for chunk_size in CHUNK_SIZES
        ]
    return found


def entropy_of(chunk_size: int, preload_nchunks: int, codes: np.ndarray) -> float | None:
    sampler = RandomSampler(chunk_size, preload_nchunks, BATCH_SIZE, rng=np.random.default_rng(0))
    batches = islice(rows_of_batches(sampler.sample(len(codes)), len(codes)), N_BATCHES)
    return shuffle_quality(batches, codes, len(codes)).entropy


def rate(paths: list[str], chunk_size: int, seconds: float) -> float:
    """Rows per second after the first load request."""
    loader = Loader(
        chunk_size=chunk_size,
        preload_nchunks=LOAD_ROWS[1] // chunk_size,
        batch_size=BATCH_SIZE,
        shuffle=True,
        obs_columns=[],
        rng=np.random.default_rng(0),
    )
    loader = loader.use_collection(paths[0]) if paths[0].endswith(".zarr") else loader.add_paths(paths)
    n_rows, began = 0, None
    while True:
        for number, batch in enumerate(loader):
            if began is None:
                if (number + 1) * BATCH_SIZE >= LOAD_ROWS[1]:
                    began = time.perf_counter()
                continue
            n_rows += batch["X"].shape[0]
            if time.perf_counter() - began > seconds:
                return n_rows / (time.perf_counter() - began)


def plot(results: dict[str, Any], paths: list[Path]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "settings"
    import matplotlib.pyplot as plt

    panels = 2 if results["rates"] else 1
    figure, found = plt.subplots(1, panels, figsize=(4.5 * panels, 3.6), layout="constrained", squeeze=False)
    left, right = found[0][0], found[0][-1]
    for name, rates in results["rates"].items():
        left.plot(CHUNK_SIZES, [statistics.median(each) for each in rates], "o-", label=name)
    if results["rates"]:
        left.set_ylabel("rows per second (log scale)")
        left.set_yscale("log")
    for rows, entropies in results["entropy"].items():
        points = [(c, e) for c, e in zip(CHUNK_SIZES, entropies, strict=True) if e is not None]
        right.plot(*zip(*points, strict=True), "o-", label=f"load requests of {int(rows):,} rows")
    right.set_ylabel("entropy of labels (1: random draw)")
    right.set_ylim(0, 1.05)
    for axes in found[0]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(CHUNK_SIZES, [str(size) for size in CHUNK_SIZES])
        axes.set_xlabel("chunk_size")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    for path in paths:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def table(results: dict[str, Any]) -> str:
    names = list(results["rates"])
    loads = list(results["entropy"])
    lines = [
        " | ".join(["| `chunk_size`", *(f"rows/s, {name}" for name in names), *(f"entropy, {int(n):,}" for n in loads)])
        + " |",
        "|---|" + "---|" * (len(names) + len(loads)),
    ]
    for position, chunk_size in enumerate(CHUNK_SIZES):
        medians = [statistics.median(results["rates"][name][position]) for name in names]
        rates = [f"{float(f'{median:.2g}'):,.0f}" for median in medians]
        found = [results["entropy"][rows][position] for rows in loads]
        entropies = ["" if value is None else f"{value:.2f}" for value in found]
        lines.append(f"| {chunk_size} | {' | '.join([*rates, *entropies])} |")
    data = f"{results['cells']:,} cells of 40 types, sorted by type in each of two files"
    entropy = "entropy of the types in a batch of 128 as a share of that of random draws, by rows of a load request, in the sorted files"
    command = f"`python -m benchmarks.settings --cells {results['cells']}{'' if names else ' --seconds 0'}` at commit {results['commit']}"
    if names:
        machine = f"{results['cpus']} CPUs, load {results['load']:.1f} at the start"
        rates = f"rates of load requests of {LOAD_ROWS[1]:,} rows, files in the page cache"
        caption = f"{command}, {machine}: {data}; {rates}; {entropy}."
    else:
        caption = (
            f"{command}: {data}; {entropy}. No rates: they depend on disk and data; `annbatch bench` measures yours."
        )
    return "\n".join([*lines, "", caption])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each rate; 0: quality only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="document with the lines <!-- settings:begin -->")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder) / "h5ad", 2, options.cells // 2)
        codes = codes_of(files)
        own = Path(folder) / "own.zarr"
        if options.seconds:
            DatasetCollection(own).add_adatas(files, rng=np.random.default_rng(0), progress=False)
        sources = {"h5ad": [str(path) for path in files], "collection": [str(own)]} if options.seconds else {}
        rates: dict[str, list[list[float]]] = {name: [[] for _ in CHUNK_SIZES] for name in sources}
        for _ in range(options.rounds):
            for position, chunk_size in enumerate(CHUNK_SIZES):
                for name, paths in sources.items():
                    rates[name][position].append(rate(paths, chunk_size, options.seconds))
    results = {"cells": options.cells, "commit": commit(), "cpus": os.cpu_count(), "load": load, "rates": rates}
    results["entropy"] = qualities(codes)
    (DOCS / "settings").mkdir(exist_ok=True)
    (DOCS / "settings" / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, [DOCS / "settings" / "plot.svg", DOCS / "settings" / "plot.png"])
    print(table(results))
    if options.write:
        rewrite_section(options.write, "settings", table(results))


if __name__ == "__main__":
    main()
