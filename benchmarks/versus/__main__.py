"""``python -m benchmarks.versus``: data, environments, measurements, table and plot in one command.

Everything at full size takes about twenty minutes once the data and the environments are made. Some of it:

    python -m benchmarks.versus --list                          the names of the cases
    python -m benchmarks.versus --only sampler import           cases whose names contain one of these
    python -m benchmarks.versus --quick --only loader           small data, one round: does it run?

Results are merged into those that ``--out`` holds, when they were made on the same machine with the same sizes, so that a
table can be made in several sittings; every row tells its commit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .cases import CASES, Case
from .data import Data
from .environments import REPOSITORY, Environments
from .measure import Sizes, Versus
from .report import PEERS, markdown_table, plot, write_into

DEFAULTS = Sizes()
QUICK = Sizes(cells=500, files=2, seconds=0.2, sampler_fraction=0.01, rounds=1)


def commit() -> str:
    """Short hash of the checked-out commit, with a plus sign when tracked files differ from it."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        return answer.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "annbatch", "benchmarks", "setup.py")
    return (git("rev-parse", "--short=9", "HEAD") or "unknown") + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def selected(patterns: list[str]) -> list[Case]:
    """Cases whose names contain one of the patterns; all when there are none."""
    found = [case for case in CASES if not patterns or any(pattern in case.name for pattern in patterns)]
    if not found:
        names = ", ".join(case.name for case in CASES)
        msg = f"--only matches no case, got {patterns}; the cases are {names}"
        raise SystemExit(msg)
    return found


def merged(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add the cases of an earlier run on this machine at these sizes that were not measured now, in the order of CASES."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    same = all(old["machine"][key] == new["machine"][key] for key in ("cpu", "cpus", "memory_gb"))
    # How long a case was measured may differ, since every row says how many rounds it had; what it was measured on may not.
    data = ("cells", "files", "sampler_fraction")
    if not same or any(old["sizes"][key] != new["sizes"][key] for key in data):
        return new
    by_name = {case["name"]: case for case in (*old["cases"], *new["cases"])}
    versions = {**old["versions"], **new["versions"]}
    return {**new, "cases": [by_name[case.name] for case in CASES if case.name in by_name], "versions": versions}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to see that everything runs")
    parser.add_argument("--cells", type=int, help=f"cells a file (default {DEFAULTS.cells})")
    parser.add_argument("--files", type=int, help=f"number of files (default {DEFAULTS.files})")
    parser.add_argument("--seconds", type=float, help=f"time to read for, a round (default {DEFAULTS.seconds})")
    parser.add_argument("--rounds", type=int, help="rounds a case (default: what the case says, 1 to 5)")
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / ".versus", help="for data and environments (default .versus)"
    )
    parser.add_argument("--data", type=Path, help="folder of the data (default: one for these sizes under --work)")
    parser.add_argument(
        "--out", type=Path, help="folder for results.json, table.md and plots (default: --work/results)"
    )
    parser.add_argument(
        "--write", type=Path, action="append", default=[], metavar="FILE.md", help="documents to update"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter for ours, annbatch, ..."
    )
    parser.add_argument(
        "--python", help="interpreter to make environments with where this one is too old (default: python3.12, ...)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cases = selected(options.only)
    if options.list:
        for case in cases:
            print(f"{case.name:20}  {case.title}")
        return 0
    base = QUICK if options.quick else DEFAULTS
    given = {key: getattr(options, key) for key in ("cells", "files", "seconds", "rounds")}
    sizes = Sizes(**{**vars(base), **{key: value for key, value in given.items() if value is not None}})

    work = options.work.resolve()
    folder = (options.data or work / f"data_{sizes.files}x{sizes.cells}").resolve()
    out = (options.out or work / ("results_quick" if options.quick else "results")).resolve()
    for path in (work, folder, out):
        path.mkdir(parents=True, exist_ok=True)
    environments = Environments(work, given=dict(pair.split("=", 1) for pair in options.env), python=options.python)
    versus = Versus(environments, Data(folder, environments, sizes.cells, sizes.files), sizes)

    results: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "sizes": vars(sizes),
        "versions": {},
        "cases": [],
    }
    now = commit()
    started = time.perf_counter()
    by_name = {case.name: case for case in CASES}
    for number, case in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}] {case.name}: {case.title}", flush=True)
        figures = versus.run(case, by_name)
        peer = case.peer.environment
        for name in ("ours", peer):
            if name not in results["versions"]:
                try:
                    results["versions"][name] = environments.versions(name)
                except RuntimeError as error:
                    results["versions"][name] = {"failed": str(error)}
        label = PEERS[peer].format(results["versions"][peer].get(peer, "(not installed)"))
        results["cases"].append({"name": case.name, "title": case.title, "peer": label, "commit": now, **figures})
        for measure in figures["measures"]:
            if measure["ratio"] is not None:
                print(f"    {measure['title'] or measure['key']}: {measure['ratio']:.3g} x", flush=True)

    path = out / "results.json"
    results = merged(results, path)
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = markdown_table(results)
    (out / "table.md").write_text(table)
    plot(results, [out / "plot.svg", out / "plot.png"])
    for document in options.write:
        write_into(document, results, out / "plot.svg")
    print(f"\n{table}\n{time.perf_counter() - started:.0f} s; results in {out}")
    return 1 if any(case["failures"] for case in results["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
