"""``python -m benchmarks.far.settings``: what the settings for far stores were chosen by.

    python -m benchmarks.far.settings gap DATA.h5ad ... --latencies 5 15 50 --bandwidth 125
    python -m benchmarks.far.settings requests DATA.h5ad ...
    python -m benchmarks.far.settings layout DATA.h5ad ...
    python -m benchmarks.far.settings cost DATA.h5ad ...

``gap``: bytes between two ranges up to which they are fetched as one. ``requests``: ``max_requests``. ``layout``: rows a chunk of
the collection. ``cost``: requests per million rows, counted by the server over a whole pass, of a collection and of the
files themselves. Collections are built from the files into a temporary folder (``--folder``), and served from another
process, each answer late (``--latencies``, ms; with ``--bandwidth``, MB/s, once more at the middle one). Every round measures all
values of a setting in turn; the table has the median of their rates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from annbatch import DatasetCollection, Loader
from annbatch.storage import far_counts
from annbatch.storage.far import ranges, reading

from .server import RangeServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHAPES = ((32, 256), (1, 8192), (512, 16))
GAPS = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
REQUESTS = (16, 32, 64, 128, 256)
ROWS_PER_CHUNK = (8, 32, 128)
COST_SIZES = (512, 128, 32, 8, 1)
ROWS_PER_REQUEST = 8192


def loader_at(paths: Sequence[str], chunk_size: int, **settings: Any) -> Loader:
    given = {"preload_nchunks": max(1, ROWS_PER_REQUEST // chunk_size), "batch_size": 4096, "prefetch": 4, **settings}
    loader = Loader(chunk_size=chunk_size, shuffle=True, rng=np.random.default_rng(0), obs_columns=[], **given)
    return loader.use_collection(paths[0]) if paths[0].endswith(".zarr") else loader.add_paths(list(paths))


class Sample:
    """A whole pass: what a request at its start costs is in it, and all that was read ahead is used."""

    def __init__(self, loader: Loader) -> None:
        rows, start, before = 0, time.perf_counter(), dict(far_counts)
        for batch in loader:
            rows += batch["X"].shape[0]
        self.rate = rows / (time.perf_counter() - start)
        self.requests, self.bytes = ((far_counts[name] - before[name]) / rows for name in ("requests", "bytes"))


def compared(loaders: dict[Any, Callable[[], Any]], n_rounds: int) -> dict[Any, list[Sample]]:
    """Take samples in turn; each value gives a context in which its loader is read."""
    samples: dict[Any, list[Sample]] = {value: [] for value in loaders}
    for _ in range(n_rounds):
        for value, reading_with in loaders.items():
            with reading_with() as loader:
                samples[value].append(Sample(loader))
    return samples


def narrowed(loader: Loader, chunk_size: int, n_load_requests: int) -> Loader:
    """Return a loader of random runs of rows: a pass of few load requests that are as scattered as those of all rows."""
    n_runs = loader.n_obs // chunk_size
    wanted = min(n_runs, n_load_requests * ROWS_PER_REQUEST // chunk_size)
    runs = np.sort(np.random.default_rng(0).choice(n_runs, wanted, replace=False))
    return loader.subset((runs[:, None] * chunk_size + np.arange(chunk_size)).reshape(-1))


def with_gap(loader: Loader, gap: int) -> Any:
    @contextmanager
    def go() -> Iterator[Loader]:
        with patch.object(reading, "merged", lambda places: ranges.merged(places, gap)):
            yield loader

    return go


def as_it_is(loader: Loader) -> Any:
    @contextmanager
    def go() -> Iterator[Loader]:
        yield loader

    return go


def build(folder: Path, files: Sequence[Path], rows_per_chunk: int) -> Path:
    path = folder / f"rows_{rows_per_chunk}.zarr"
    if not path.exists():
        DatasetCollection(path).add_adatas(list(files), n_obs_per_chunk=rows_per_chunk, progress=False)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in ([*header], ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def rates(what: str, folder: Path, files: Sequence[Path], args: argparse.Namespace) -> str:
    """Rates for the values of one setting: a row for each network and shape of load requests, a column for each value."""
    values = {"gap": GAPS, "requests": REQUESTS, "layout": ROWS_PER_CHUNK}[what]
    collections = {value: build(folder, files, value if what == "layout" else 8) for value in values}
    networks: list[tuple[float | None, float | None]] = [(latency, None) for latency in args.latencies]
    if args.bandwidth:
        networks.append((sorted(args.latencies)[len(args.latencies) // 2], args.bandwidth))
    if what == "layout":
        networks.append((None, None))
    rows = []
    for latency, bandwidth in networks:
        network = "local" if latency is None else f"{latency:g} ms" + (f", {bandwidth:g} MB/s" if bandwidth else "")
        with serving(folder, latency or 0.0, bandwidth) as url:
            for chunk_size, preload_nchunks in SHAPES:
                loaders = {}
                for value in values:
                    path = str(collections[value]) if latency is None else f"{url}/{collections[value].name}"
                    given = {"max_requests": value} if what == "requests" else {}
                    given |= {"prefetch": 1} if latency is None else {}
                    loader = loader_at([path], chunk_size, preload_nchunks=preload_nchunks, **given)
                    loader = narrowed(loader, chunk_size, args.requests)
                    loaders[value] = with_gap(loader, value) if what == "gap" else as_it_is(loader)
                found = compared(loaders, args.rounds)
                cells = []
                for value in values:
                    rate = statistics.median(sample.rate for sample in found[value])
                    last = found[value][-1]
                    seen = "" if latency is None else f" ({1e6 * last.requests:,.0f}; {last.bytes / 1e3:.1f})"
                    cells.append(f"{rate:,.0f}{seen}")
                rows.append([network, f"{chunk_size} x {preload_nchunks:,}", *cells])
                print(rows[-1], file=sys.stderr, flush=True)
    note = "Rows a second (requests per million rows; kB a row), by "
    named = {"gap": "the gap in kB", "requests": "max_requests", "layout": "rows a chunk"}[what]
    shown = [f"{value >> 10}" if what == "gap" else f"{value}" for value in values]
    return f"{note}{named}:\n\n" + table(["network", "rows read", *shown], rows)


def cost(folder: Path, files: Sequence[Path]) -> str:
    """Requests per million rows of a whole pass, as the server counted them; opening, and indexes of shards, apart."""
    build(folder, files, 8)
    for file in files:
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    sources = {"collection": ["rows_8.zarr"], "h5ad": [file.name for file in files]}
    rows = []
    for name, paths in sources.items():
        for chunk_size in COST_SIZES:
            with RangeServer(folder) as server:
                loader = loader_at([f"{server.url}/{path}" for path in paths], chunk_size)
                n_opening = len(server.requests)
                n_rows = sum(batch["X"].shape[0] for batch in loader)
                indexes = sum(bounds is not None and bounds[0] < 0 for _, _, bounds in server.requests[n_opening:])
                n_data = len(server.requests) - n_opening - indexes
                ends = [bounds for _, _, bounds in server.requests[n_opening:] if bounds]
                n_bytes = sum(stop - start if start >= 0 else -start for start, stop in ends)
            rows.append([name, f"{chunk_size}", f"{1e6 * n_data / n_rows:,.0f}", f"{n_bytes / n_rows / 1e3:.1f}"])
            rows[-1] += [f"{n_opening}", f"{indexes}"]
            print(rows[-1], file=sys.stderr, flush=True)
    return table(
        ["source", "chunk_size", "requests per million rows", "kB a row", "to open", "indexes of shards"], rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gap", "requests", "layout", "cost"])
    parser.add_argument("files", type=Path, nargs="+", help="h5ad files")
    parser.add_argument("--folder", type=Path, help="where collections are built, and kept (default: nowhere)")
    parser.add_argument("--latencies", type=float, nargs="+", default=[5.0, 15.0, 50.0], help="ms before each answer")
    parser.add_argument("--bandwidth", type=float, default=125.0, help="MB/s of all answers together; 0: without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8, help="load requests of a pass (default 8)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="annbatch-settings-", dir=args.folder) as temporary:
        folder = Path(temporary) if args.folder is None else args.folder
        print(cost(folder, args.files) if args.what == "cost" else rates(args.what, folder, args.files, args))


if __name__ == "__main__":
    main()
