"""``python -m benchmarks.versus.far``: the rows of far stores, side by side, from one command.

A server on this machine holds the data and answers late (``--latencies``, in ms) or at a limited rate (``--bandwidth``, in
MB/s). Each side runs in a process of its own, in turn, on the collection that it built itself. Writes a table and the raw
figures to ``--out``, beside rows of earlier runs that were not measured again, and the table into ``--write``.

    python -m benchmarks.versus.far --data /tmp/versus --out docs/versus
    python -m benchmarks.versus.far --data /tmp/versus --out /tmp/out --cells 2000 --files 2 --rounds 1 --seconds 0.5 --latencies 15
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.far.server import serving

from .__main__ import commit
from .data import Data
from .environments import Environments
from .report import rewrite_section
from .running import WorkerError, run_worker

_CONSOLIDATE = "import sys, warnings, zarr; warnings.simplefilter('ignore'); zarr.consolidate_metadata(sys.argv[1])"
_SETTINGS = ((32, 256), (1, 8192), (512, 16))


@dataclass(frozen=True)
class FarCase:
    """One row: our side and its peer, each an environment, a side of the worker, a source, and the data served."""

    title: str
    chunk_size: int
    preload_nchunks: int
    goal: float | None
    ours: tuple[str, str, str]
    peer: tuple[str, str, str]
    cache: bool = False


_OURS = ("ours", "ours", "collection")
_PEER = ("annbatch", "peer", "collection")
_LOCAL = ("ours", "local", "collection")
_OUR_H5AD = ("ours", "ours", "h5ad")
_SCDATASET = ("scdataset", "scdataset", "h5ad")


def far_cases() -> list[FarCase]:
    goals = {32: 10.0, 1: 10.0, 512: 4.0}
    cases = [
        FarCase(f"{chunk} x {n:,}, each on its own collection", chunk, n, goals[chunk], _OURS, _PEER)
        for chunk, n in _SETTINGS
    ]
    return [
        *cases,
        FarCase(
            "32 x 256, second pass with cache; peer: our own local files", 32, 256, 1 / 1.3, _OURS, _LOCAL, cache=True
        ),
        FarCase("32 x 256, plain h5ad; peer: our own collection", 32, 256, 0.5, _OUR_H5AD, _OURS),
        FarCase("32 x 256, plain h5ad; peer: scDataset, blocks of 32", 32, 256, None, _OUR_H5AD, _SCDATASET),
    ]


class FarVersus:
    """Runs the cases against one server."""

    def __init__(self, data: Data, environments: Environments, *, seconds: float, rounds: int, prefetch: int) -> None:
        self.data, self.environments = data, environments
        self.seconds, self.rounds, self.prefetch = seconds, rounds, prefetch

    def paths(self, side: tuple[str, str, str]) -> list[Path]:
        name = "h5ad" if side[2] == "h5ad" else "peer collection" if side[1] == "peer" else "own collection"
        return [Path(path) for path in self.data.paths(name)]

    def once(self, case: FarCase, side: tuple[str, str, str], url: str) -> float:
        environment, worker_side, source = side
        is_local = worker_side == "local"
        urls = [str(path) if is_local else f"{url}/{path.name}" for path in self.paths(side)]
        given: dict[str, Any] = {
            "side": "ours" if is_local else worker_side,
            "source": source,
            "urls": urls,
            "chunk_size": case.chunk_size,
            "preload_nchunks": case.preload_nchunks,
            "batch_size": 4096,
            "prefetch": 1 if is_local else self.prefetch,
            "seconds": self.seconds,
            "cache": None,
        }
        if not (case.cache and not is_local):
            return run_worker(self.environments, environment, "far.py", given, 900.0)["rate"]
        with tempfile.TemporaryDirectory(dir=self.data.folder) as cache:
            given |= {"cache": cache, "warm": True}
            return run_worker(self.environments, environment, "far.py", given, 900.0)["rate"]

    def run(self, case: FarCase, url: str) -> dict[str, Any]:
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        failures: dict[str, str] = {}
        for _ in range(self.rounds):
            for name, side in (("ours", case.ours), ("peer", case.peer)):
                if name not in failures:
                    try:
                        rates[name].append(self.once(case, side, url))
                    except WorkerError as error:
                        failures[name] = str(error)
                        print(f"  {name} failed: {error}", file=sys.stderr, flush=True)
        ratio = statistics.median(rates["ours"]) / statistics.median(rates["peer"]) if all(rates.values()) else None
        return {"title": case.title, "goal": case.goal, "rates": rates, "ratio": ratio, "failures": failures}


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a markdown table."""
    lines = [
        "| network | what | ours, rows/s | peer, rows/s | ratio | goal | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        shown = []
        for name in ("ours", "peer"):
            rates = result["rates"][name]
            spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})" if rates else "failed"
            shown.append(spread)
        ratio = "" if result["ratio"] is None else f"{result['ratio']:.2f} x"
        goal = "" if result["goal"] is None else f"{result['goal']:.2f} x"
        cells = [result["network"], result["title"], *shown, ratio, goal, result["commit"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def beside_earlier(results: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run with those measured now in their places, and the rest after them."""
    earlier = json.loads(path.read_text()) if path.exists() else []
    rows = {(row["network"], row["title"]): row for row in (*earlier, *results)}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for the data and the environments")
    parser.add_argument("--out", type=Path, required=True, help="folder for far.md and far.json")
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefetch", type=int, default=4, help="of our side (default 4, what `annbatch bench` says)")
    parser.add_argument("--latencies", type=float, nargs="*", default=[5.0, 15.0, 50.0], help="ms before each answer")
    parser.add_argument("--bandwidth", type=float, default=125.0, help="MB/s of one more round at 15 ms; 0: without it")
    parser.add_argument("--only", default="", help="cases whose title contains this")
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="document with the lines <!-- versus-far:begin --> and end"
    )
    parser.add_argument("--python", help="interpreter for the environments where this one is too old")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="an environment that is there"
    )
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    given = dict(pair.split("=", 1) for pair in args.env)
    environments = Environments(args.data, given, args.python)
    data = Data(args.data, environments, args.cells, args.files)
    versus = FarVersus(data, environments, seconds=args.seconds, rounds=args.rounds, prefetch=args.prefetch)
    cases = [case for case in far_cases() if args.only in case.title]
    # A web server cannot list what it holds, so the peer's collection needs its metadata in one place.
    for case in cases:
        for side in (case.ours, case.peer):
            try:
                for path in versus.paths(side):
                    if side is _PEER:
                        subprocess.run(
                            [environments.interpreter("annbatch"), "-c", _CONSOLIDATE, str(path)], check=True
                        )
            except (WorkerError, RuntimeError) as error:
                print(f"{side[0]}: {error}", file=sys.stderr, flush=True)
    networks = [(latency, None) for latency in args.latencies] + ([(15.0, args.bandwidth)] if args.bandwidth else [])
    results = []
    for latency, bandwidth in networks:
        network = f"{latency:g} ms" + (f", {bandwidth:g} MB/s" if bandwidth else "")
        with serving(args.data, latency, bandwidth) as url:
            for case in cases:
                result = {"network": network, "commit": commit(), **versus.run(case, url)}
                results.append(result)
                print(f"{network}: {result['title']}: {result['rates']} {result['ratio']}", flush=True)
        rows = beside_earlier(results, args.out / "far.json")
        (args.out / "far.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "far.md").write_text(table(rows))
        if args.write:
            rewrite_section(args.write, "versus-far", table(rows))
    print(table(results))
    shutil.rmtree(args.data / "cache", ignore_errors=True)


if __name__ == "__main__":
    main()
