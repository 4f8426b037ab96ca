"""Measure the training loop of docs/from_other_loaders.md with AnnLoader and with MappedCollection.

    python docs/examples/compare_annloader.py FILE.h5ad [FILE.h5ad ...] [--update docs/from_other_loaders.md]

Each candidate is a process of its own and reads shuffled batches for some seconds; the candidates take turns (A B C A B C).
Prints a table of medians; --update puts it in place of the one between the markers of the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def annloader(paths: list[str], batch_size: int) -> Any:
    """Anndata's own: backed files, concatenated lazily."""
    import anndata as ad
    from anndata.experimental import AnnCollection, AnnLoader

    collection = AnnCollection([ad.read_h5ad(path, backed="r") for path in paths], join_vars="inner", join_obs="inner")
    for batch in AnnLoader(collection, batch_size=batch_size, shuffle=True):
        yield batch.X


def mapped(paths: list[str], batch_size: int) -> Any:
    """The same loop over a MappedCollection."""
    from torch.utils.data import DataLoader

    from annbatch import MappedCollection

    cells = MappedCollection(paths, obs_keys="cell_type")
    for batch in DataLoader(cells, batch_size=batch_size, shuffle=True):
        yield batch["X"]


def mapped_genes(paths: list[str], batch_size: int) -> Any:
    """The same, for 2,000 genes."""
    from torch.utils.data import DataLoader

    from annbatch import MappedCollection

    with MappedCollection(paths[:1]) as first:
        genes = list(first.var_joint[:: max(1, first.n_vars // 2000)][:2000])
    cells = MappedCollection(paths, obs_keys="cell_type", var_names=genes)
    for batch in DataLoader(cells, batch_size=batch_size, shuffle=True, collate_fn=cells.collate):
        yield batch["X"]


CANDIDATES = {
    "`AnnLoader`, backed": annloader,
    "`MappedCollection` in a `DataLoader`": mapped,
    "the same, 2,000 genes, `collate_fn=m.collate`": mapped_genes,
}


def rows_per_second(name: str, paths: list[str], batch_size: int, seconds: float) -> float:
    """Read for some seconds after a few batches of warm-up."""
    batches = CANDIDATES[name](paths, batch_size)
    for _ in range(5):
        next(batches)
    n_rows, start = 0, time.perf_counter()
    for batch in batches:
        n_rows += len(batch)
        if time.perf_counter() - start > seconds:
            break
    return n_rows / (time.perf_counter() - start)


def table(paths: list[str], batch_size: int, seconds: float, rounds: int) -> str:
    """Run all candidates in turn and return their medians as Markdown."""
    rates: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for _ in range(rounds):
        for name, found in rates.items():
            command = [sys.executable, __file__, *paths, "--one", name, "--batch-size", str(batch_size)]
            out = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True)
            found.append(float(out.stdout.split()[-1]))
    base = statistics.median(next(iter(rates.values())))
    lines = ["| training loop | rows per second | lowest to highest | ratio |", "|---|---|---|---|"]
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        lines.append(f"| {name} | {middle:,.0f} | {spread} | {middle / base:.1f} x |")
    versions = ", ".join(f"{package} {version(package)}" for package in ("anndata", "torch", "h5py", "numpy"))
    size = sum(Path(path).stat().st_size for path in paths) / 1e9
    run = f"batches of {batch_size}, no workers, {rounds} rounds of {seconds:g} s each"
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines += ["", f"{len(paths)} files, {size:.1f} GB, {run}; {machine}, {versions}."]
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="FILE.h5ad")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update", type=Path, metavar="PAGE")
    parser.add_argument("--one", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(rows_per_second(args.one, args.paths, args.batch_size, args.seconds))
        return
    figures = table(args.paths, args.batch_size, args.seconds, args.rounds)
    print(figures)
    if args.update:
        before, _, rest = args.update.read_text().partition(BEGIN)
        args.update.write_text(f"{before}{BEGIN}\n{figures}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
