"""``python -m benchmarks.scale --write docs/scale.md``: how memory and time grow with the number of rows.

Writes stores row by row into a folder, opens each in a process of its own, twice, and writes the page and its plot.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .measure import FACES, SAMPLERS
from .more import MORE
from .report import PLOT, more_pages, page, plot
from .stores import write_collection, write_h5ad

BASE_ROWS = 100_000
# HDF5 does not compress text: the names of more rows take tens of gigabytes.
MOST_OF_H5AD = 10**8
WRITERS = {"collection": write_collection, "h5ad": write_h5ad}


def run(what: str, small: Path | str, path: Path | str, n_obs: int, cache: Path) -> dict[str, Any]:
    """Take one measurement."""
    command = [sys.executable, "-m", "benchmarks.scale.measure", what, str(small), str(path), str(n_obs)]
    variables = {**os.environ, "ANNBATCH_CACHE_DIR": str(cache)}
    answer = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(what, path, found, flush=True)
    return found


def more(what: str, folder: Path, cache: Path) -> list[dict[str, Any]]:
    """Take measurements of what does not grow with rows alone, in a process of their own."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "benchmarks.scale.more", what, scratch]
        variables = {**os.environ, "ANNBATCH_CACHE_DIR": str(cache)}
        answer = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(answer.stdout.splitlines()[-1])
    print(what, found, flush=True)
    return found


def measure_more(folder: Path, wanted: list[str]) -> dict[str, Any]:
    """Measure what does not grow with rows alone."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return {what: more(what, folder, Path(cache)) for what in wanted}


def machine() -> dict[str, Any]:
    """Describe the machine."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    return {"cpu": names[0] if names else "?", "cpus": os.cpu_count(), "memory_gb": round(memory / 1e9), "load": load}


def measure_all(folder: Path, rows: list[int], most_of_all: int) -> dict[str, Any]:
    """Write what is missing of the stores, and measure everything."""
    cases: list[dict[str, Any]] = []
    stores = {}
    sizes_of = {source: [n for n in rows if source != "h5ad" or n <= MOST_OF_H5AD] for source in WRITERS}
    for source, write in WRITERS.items():
        for n_obs in {BASE_ROWS, *sizes_of[source]}:
            path = folder / f"{n_obs}{'.h5ad' if source == 'h5ad' else '.zarr'}"
            if not path.exists():
                write(path, n_obs, only_labels=n_obs > most_of_all)
            stores[source, n_obs] = path
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for face in FACES:
            for source in ("h5ad",) if face == "MappedCollection" else WRITERS:
                for n_obs in sizes_of[source]:
                    if face != "labels" and n_obs > most_of_all:
                        continue
                    arguments = (face, stores[source, BASE_ROWS], stores[source, n_obs], n_obs, Path(cache))
                    found = run(*arguments)
                    again = run(*arguments)
                    cases.append({"face": face, "source": source, "rows": n_obs, **found, "again": again["seconds"]})
        for face in SAMPLERS:
            most = max(most_of_all, 3 * 10**7)  # codes and their index are in memory several times while it is made
            sizes = [n for n in rows if n <= most or face == "RandomSampler"]
            cases += [{"face": face, "source": "", "rows": n, **run(face, "-", "-", n, Path(cache))} for n in sizes]
        workers = []
        largest = max(rows)
        for method in ("fork", "spawn"):
            base, found = (
                run(f"{method} labels", "-", stores["collection", n_obs], n_obs, Path(cache))
                for n_obs in (BASE_ROWS, largest)
            )
            more = {key: max(0, found[key] - base[key]) for key in ("own", "pss")}
            workers.append({"method": method, "rows": largest, "start_seconds": found["start_seconds"], **more})
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": machine(), "cases": cases, "workers": workers, "workers_base_rows": BASE_ROWS,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=lambda text: int(float(text)), nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument(
        "--most-of-all",
        type=lambda text: int(float(text)),
        default=10**7,
        help="rows up to which stores have all columns, and names that differ",
    )
    parser.add_argument("--folder", type=Path, help="where stores are kept; a temporary folder by default")
    parser.add_argument("--results", type=Path, help="write what was measured to this file, or read it with --no-run")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument(
        "--only",
        choices=("rows", *MORE),
        nargs="+",
        default=("rows", *MORE),
        help="what is measured; the rest comes from the file of --results. 'rows': all that grows with --rows",
    )
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    known = options.results is not None and options.results.exists()
    results = json.loads(options.results.read_text()) if known else {}
    if not options.no_run:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.folder or Path(scratch)
            if "rows" in options.only:
                results |= measure_all(folder, sorted(options.rows), options.most_of_all)
            wanted = [what for what in options.only if what in MORE]
            results["more"] = results.get("more", {}) | measure_more(folder, wanted)
            if wanted:
                results["more_machine"] = machine()
        if options.results:
            options.results.write_text(json.dumps(results, indent=1))
    if "cases" not in results:
        print(more_pages(results))
    elif options.write:
        options.write.write_text(page(results))
        plot(results, options.write.parent / PLOT)
    else:
        print(page(results))


if __name__ == "__main__":
    main()
