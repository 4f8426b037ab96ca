"""``python -m benchmarks.versus.public``: every loader that could be had, on one task, with how well it shuffles beside its speed.

The task: shuffled batches of 128 rows with one column of labels, of h5ad files that are sorted by that column, as files that were
put together from several samples are. One command makes the data, the environments, the runs, the table and the plot:

    python -m benchmarks.versus.public --out docs/comparison --write docs/comparison.md

It takes less than ten minutes once the environments are made. ``--only NAME ...`` runs some, ``--quick`` tiny sizes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np

from annbatch.commands.quality import shuffle_quality
from benchmarks.suites.counts import thinned_cells

from .__main__ import commit, machine
from .data import read_through
from .environments import REPOSITORY, Environments
from .report import figure_text, rewrite_section
from .running import WorkerError, run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_SIZE = 128
N_BATCHES = 200  # looked at to say how well they are mixed
TIMEOUT = 600.0


@dataclass(frozen=True)
class Candidate:
    """A loader with a setting, and the environment that it lives in.

    ``rows_per_request`` rows are read together, so that the clock starts and stops between such.
    """

    name: str
    title: str
    environment: str
    batches: str
    converts: bool = False
    rows_per_request: int = BATCH_SIZE
    options: dict[str, Any] = field(default_factory=dict)


def _ours(chunk_size: int, preload_nchunks: int, *, collection: bool = False) -> Candidate:
    where = "its own collection" if collection else "the h5ad files"
    return Candidate(
        f"ours-{chunk_size}x{preload_nchunks}" + ("-collection" if collection else ""),
        f"**annbatch (this)**, {chunk_size} x {preload_nchunks:,}, {where}",
        "ours",
        "CSR",
        converts=collection,
        rows_per_request=chunk_size * preload_nchunks,
        options={"chunk_size": chunk_size, "preload_nchunks": preload_nchunks},
    )


CANDIDATES = (
    _ours(1, 8192),
    _ours(32, 256),
    _ours(512, 32),
    _ours(32, 256, collection=True),
    Candidate("annbatch", "annbatch {}, its own collection", "annbatch", "CSR", converts=True, rows_per_request=16384),
    Candidate("scdataset", "scDataset {}, blocks of 8, fetch factor 16", "scdataset", "CSR", rows_per_request=2048),
    Candidate("lamindb", "lamindb {} `MappedCollection`", "lamindb", "dense"),
    Candidate("annloader", "anndata {} `AnnLoader`, backed", "annloader", "sparse tensor"),
    # An I/O batch of 65,536 rows is read ahead; a pass over fewer rows is one.
    Candidate("tiledbsoma", "tiledbsoma-ml {}", "tiledbsoma", "CSR", converts=True, rows_per_request=65536),
    Candidate("scdl", "bionemo-scdl {}", "scdl", "sparse tensor", converts=True),
)

# What is no row of the table, and why.
ABSENT = {
    "cell-load 0.10.4": (
        "a row of its batches is a perturbed cell with a control cell of the same file, which is another task "
        "(see docs/migrate/cell_load.md)"
    ),
    "slafdb": "pip had found no set of its requirements after ten minutes",
    "protoplast 0.1.3": "its documented interface hands batches to a training run of Ray only, not to a loop",
}

PACKAGE = {
    "ours": "annbatch", "annbatch": "annbatch", "scdataset": "scdataset", "lamindb": "lamindb", "annloader": "anndata",
    "tiledbsoma": "tiledbsoma-ml", "scdl": "bionemo-scdl",
}  # fmt: skip


def make_files(folder: Path, n_files: int, n_cells: int) -> list[Path]:
    """Write the files, once: cells sorted by cell_type within each, and the column ``row``, their number among all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"cells_{number}.h5ad" for number in range(n_files)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        print(f"making {path}", flush=True)
        cells = thinned_cells(n_cells, seed=number)
        cells = cells[np.argsort(cells.obs["cell_type"].cat.codes, kind="stable")].copy()
        cells.obs["row"] = np.arange(n_cells) + number * n_cells
        unfinished = path.with_name(f".unfinished_{path.name}")
        cells.write_h5ad(unfinished)
        unfinished.replace(path)
    return paths


def codes_of(paths: Sequence[Path]) -> np.ndarray:
    """Return the class of every row; the files were made with the same categories."""
    return np.concatenate([ad.read_h5ad(path, backed="r").obs["cell_type"].cat.codes.to_numpy() for path in paths])


@dataclass
class Comparison:
    """One run over the candidates."""

    environments: Environments
    folder: Path
    paths: list[Path]
    seconds: float
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def worker(self, candidate: Candidate, task: str, **more: Any) -> dict[str, Any]:
        """Run one task of a candidate in a fresh process, with what it reads in the page cache."""
        made = self.folder / f"made_by_{candidate.environment}"
        for path in (made if candidate.converts else self.paths[0].parent,):
            if path.exists():
                read_through(path)
        given = {
            "side": candidate.environment,
            "task": task,
            "paths": [str(path) for path in self.paths],
            "folder": str(made) if candidate.converts else "",
            "batch_size": BATCH_SIZE,
            "options": candidate.options,
            "rows_per_request": candidate.rows_per_request,
            "seconds": self.seconds,
            **more,
        }
        return run_worker(self.environments, candidate.environment, "shuffled.py", given, TIMEOUT)

    def run(self, candidates: Sequence[Candidate], rounds: int) -> None:
        """Convert, look at batches, then measure in turn."""
        codes = codes_of(self.paths)
        for candidate in candidates:
            row = self.found[candidate.name] = {"rates": [], "peak_memory": [], "conversion": None}
            try:
                if candidate.converts:
                    print(f"{candidate.name}: converting", flush=True)
                    row["conversion"] = self.worker(candidate, "convert")
                row["quality"] = self.quality(candidate, codes)
                row["version"] = self.environments.version_of(candidate.environment, PACKAGE[candidate.environment])
            except (WorkerError, RuntimeError) as error:
                row["failed"] = str(error)
                print(f"{candidate.name} failed: {error}", file=sys.stderr, flush=True)
        for number in range(rounds):
            for candidate in candidates:
                row = self.found[candidate.name]
                if "failed" in row:
                    continue
                try:
                    figures = self.worker(candidate, "rate")
                except WorkerError as error:
                    row["failed"] = str(error)
                    print(f"{candidate.name} failed: {error}", file=sys.stderr, flush=True)
                    continue
                row["rates"].append(figures["rate"])
                row["peak_memory"].append(figures["peak_memory"])
                print(f"round {number + 1}: {candidate.name}: {figures['rate']:,.0f} rows/s", flush=True)

    def quality(self, candidate: Candidate, codes: np.ndarray) -> dict[str, float | None]:
        """Say how well batches are mixed; a row number that does not exist, or that comes twice in a pass, is an error."""
        out = self.folder / f"rows_of_{candidate.name}.npz"
        self.worker(candidate, "rows", out=str(out), n_batches=min(N_BATCHES, len(codes) // BATCH_SIZE))
        with np.load(out) as file:
            batches = [file[f"arr_{number}"] for number in range(len(file.files))]
        rows = np.concatenate(batches)
        if len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= len(codes):
            msg = "its batches repeat rows within a pass"
            raise WorkerError(msg)
        return shuffle_quality(batches, codes, len(codes))._asdict()


def markdown(results: dict[str, Any]) -> str:
    """Write the table, with what is best in each column in bold, what failed or is absent, and how it came about."""
    rows = [row for row in results["rows"] if row["rates"] and "failed" not in row]

    def best(key: Any, *, most: bool) -> Any:
        values = [key(row) for row in rows if key(row) is not None]
        return (max if most else min)(values) if values else None

    def rate(row: dict[str, Any]) -> float:
        return statistics.median(row["rates"])

    def memory(row: dict[str, Any]) -> float:
        return statistics.median(row["peak_memory"])

    def bold(text: str, *, yes: bool) -> str:
        return f"**{text}**" if yes else text

    lines = [
        "| loader | batch as | rows/s, median (lowest to highest) | peak memory | entropy | distance | conversion |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    fastest, leanest = best(rate, most=True), best(memory, most=False)
    for row in rows:
        shares = [row["quality"]["entropy"], row["quality"]["gap"]]
        made = row["conversion"]
        conversion = "none"
        if made is not None:
            conversion = f"{figure_text(made['seconds'], 's')}, {figure_text(made['size_on_disk'], 'bytes')}"
        spread = f" ({figure_text(min(row['rates']), 'rows/s')} to {figure_text(max(row['rates']), 'rows/s')})"
        lines.append(
            f"| {row['title'].format(row['version'])} | {row['batches']} "
            f"| {bold(figure_text(rate(row), 'rows/s'), yes=rate(row) == fastest)}{spread} "
            f"| {bold(figure_text(memory(row), 'bytes'), yes=memory(row) == leanest)} "
            f"| {' | '.join('' if share is None else f'{share:.2f}' for share in shares)} | {conversion} |"
        )
    failed = [f"- {row['title'].format('')}: failed: {row['failed']}" for row in results["rows"] if "failed" in row]
    absent = [f"- {name}: {reason}" for name, reason in results["absent"].items()]
    machine_, sizes = results["machine"], results["sizes"]
    caption = (
        f"Measured {results['date']} at commit {results['commit']} on {machine_['cpu']}, {machine_['cpus']} cores, load "
        f"{machine_['load']} at the start; {sizes['files']} files of {sizes['cells']:,} cells, in the page cache, batches of "
        f"{BATCH_SIZE}, {sizes['rounds']} rounds of {sizes['seconds']:g} s, by `python -m benchmarks.versus.public`. Bold: the best."
    )
    verdict = winners(rows, rate=rate, memory=memory)
    outside = ["", "Not in the table:", "", *failed, *absent] if failed or absent else []
    return "\n".join([*lines, "", verdict, *outside, "", caption, ""])


def winners(rows: list[dict[str, Any]], **figures: Any) -> str:
    """Say in words where a peer is better than ours at 32 x 256 on the same files."""
    ours = next((row for row in rows if row["name"] == "ours-32x256"), None)
    if ours is None:
        return ""
    said = []
    for row in rows:
        if row["environment"] == "ours":
            continue
        better = []
        if figures["rate"](row) > figures["rate"](ours):
            better.append("is faster")
        if figures["memory"](row) < figures["memory"](ours):
            better.append("takes less memory")
        for key, text in (("entropy", "mixes labels better"), ("gap", "spreads rows better")):
            one, other = row["quality"][key], ours["quality"][key]
            if one is not None and other is not None and one > other + 0.03:
                better.append(text)
        if better:
            said.append(f"{row['title'].format(row['version'])} {', '.join(better)}")
    if not said:
        return "No peer is better than annbatch at 32 x 256 on the h5ad files in any of these figures."
    return f"Where a peer is better than annbatch at 32 x 256 on the h5ad files: {'; '.join(said)}."


def plot(results: dict[str, Any], paths: list[Path]) -> None:
    """Draw rate against entropy: the upper right corner is where to be."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "public"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for row in results["rows"]:
        if "failed" in row or not row["rates"] or row["quality"]["entropy"] is None:
            continue
        is_ours = row["environment"] == "ours"
        place = (row["quality"]["entropy"], statistics.median(row["rates"]))
        axes.plot(*place, "o", color="#c44e52" if is_ours else "#4878a8", markersize=9 if is_ours else 7)
        # Names of neighbours on one side of the points each.
        axes.annotate(
            f"  {row['name']}  ", place, fontsize=8, va="center", ha="right" if place[0] > 0.5 else "left"
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(0, 1.06)
    axes.set_xlabel("entropy of the labels of a batch; 1 is a random draw")
    axes.set_ylabel("rows per second (log scale)")
    axes.grid(visible=True, alpha=0.3)
    for path in paths:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versus.public",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="candidates whose names contain one of these"
    )
    parser.add_argument("--quick", action="store_true", help="2 files of 1,500 cells, one round of 0.3 s")
    parser.add_argument("--cells", type=int, default=25_000, help="cells a file (default 25000)")
    parser.add_argument("--files", type=int, default=2, help="number of files (default 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to read for, a round (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turn (default 3)")
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / ".versus", help="for data and environments (default .versus)"
    )
    parser.add_argument("--out", type=Path, help="folder for results.json and the plot (default: in --work)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="document with the lines <!-- comparison:begin -->"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter for ours, annbatch, ..."
    )
    parser.add_argument("--python", help="interpreter to make environments with (default: python3.12, ...)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.quick:
        options.cells, options.files, options.seconds, options.rounds = 1_500, 2, 0.3, 1
    chosen = [c for c in CANDIDATES if not options.only or any(pattern in c.name for pattern in options.only)]
    if not chosen:
        msg = f"--only matches none of {', '.join(candidate.name for candidate in CANDIDATES)}, got {options.only}"
        raise SystemExit(msg)
    started = time.perf_counter()
    work = options.work.resolve()
    folder = work / f"public_{options.files}x{options.cells}"
    out = (options.out or folder / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    environments = Environments(work, given=dict(pair.split("=", 1) for pair in options.env), python=options.python)
    now, computer = commit(), machine()
    paths = make_files(folder / "h5ad", options.files, options.cells)
    comparison = Comparison(environments, folder, paths, options.seconds)
    comparison.run(chosen, options.rounds)
    results = {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "commit": now,
        "machine": computer,
        "sizes": {key: getattr(options, key) for key in ("cells", "files", "seconds", "rounds")},
        "rows": [{**vars(candidate), **comparison.found[candidate.name]} for candidate in chosen],
        "absent": ABSENT,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, [out / "plot.svg", out / "plot.png"])
    table = markdown(results)
    if options.write:
        rewrite_section(options.write, "comparison", table)
    print(f"\n{table}\n{time.perf_counter() - started:.0f} s; results in {out}")
    return 1 if any("failed" in row for row in results["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
