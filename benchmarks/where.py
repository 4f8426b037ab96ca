"""Where the time of a pass goes: ``python -m benchmarks.where STORE... [--write docs/performance.md]``.

A store is a compressed collection, an AnnData file, or a pattern in quotes that several of them match ("gzip_*.h5ad"); each gets a table. The
steps of a ladder are measured on the machine it runs on and with the same rows each time: what reading and decoding alone would
allow, what storage reaches when it is only asked for rows, what Loader reaches without and with reading ahead. The difference
between two steps is what the part between them costs. ``--write`` rewrites the section between ``<!-- where:begin -->`` and
``<!-- where:end -->`` of a document.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from annbatch.storage.reading.request.jobs import Job

from annbatch import DatasetCollection, Loader, storage
from annbatch.samplers import RandomSampler
from annbatch.storage.engine import _engine, _rows
from annbatch.storage.engine._plan import PIECE, Plan

from .versus.__main__ import commit, machine
from .versus.data import read_through
from .versus.report import rewrite_section

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUTS = ((32, 256), (512, 32), (1, 8192))
BATCH_SIZE = 4096
N_REQUESTS = 8


def rate(rows_of_request: Iterator[int], seconds: float) -> float:
    """Rows per second over at least ``seconds`` and whole requests, after two of them."""
    next(rows_of_request)
    next(rows_of_request)
    rows = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        rows += next(rows_of_request)
    return rows / elapsed


@dataclass
class Store:
    """The matrices of some AnnData as one range of rows."""

    paths: list[str]
    sources: list[storage.SparseSource]

    @classmethod
    def open(cls, pattern: str) -> Store:
        paths = sorted(map(str, Path(pattern).parent.glob(Path(pattern).name)))
        if not paths:
            msg = f"store must be a path, or a pattern that paths match, got {pattern!r}"
            raise FileNotFoundError(msg)
        groups = [storage.open_group(path) for path in paths]
        if groups[0].attrs.get("encoding-type") == "annbatch-preshuffled":
            groups = list(DatasetCollection(paths[0], mode="r"))
        return cls(paths, [storage.open_matrix(group["X"]) for group in groups])

    def read_through(self) -> None:
        """Bring the files into the page cache, which they may have left since the last step."""
        for path in self.paths:
            read_through(Path(path))

    @property
    def n_obs(self) -> int:
        return sum(source.shape[0] for source in self.sources)

    def requests(self, chunk_size: int, preload_nchunks: int) -> list[tuple[list[storage.Part], np.ndarray]]:
        """Draw load requests: where their rows lie, and where batches begin and end."""
        sampler = RandomSampler(chunk_size, preload_nchunks, BATCH_SIZE, rng=np.random.default_rng(0))
        drawn = []
        for request in sampler.sample(self.n_obs):
            wanted = request["requests"]
            numbers = wanted if isinstance(wanted, np.ndarray) else np.concatenate([np.r_[part] for part in wanted])
            rows = numbers[np.concatenate(request["splits"])]
            drawn.append((self._parts(rows), np.cumsum([0, *(len(split) for split in request["splits"])])))
            if len(drawn) == N_REQUESTS:
                break
        return drawn

    def _parts(self, rows: np.ndarray) -> list[storage.Part]:
        starts = np.cumsum([0, *(source.shape[0] for source in self.sources)])
        home = np.searchsorted(starts, rows, side="right") - 1
        return [
            storage.Part(source, rows[home == i] - starts[i], np.flatnonzero(home == i))
            for i, source in enumerate(self.sources)
            if (home == i).any()
        ]

    def loader(self, chunk_size: int, preload_nchunks: int, prefetch: int) -> Loader:
        loader = Loader(
            chunk_size=chunk_size,
            preload_nchunks=preload_nchunks,
            batch_size=BATCH_SIZE,
            shuffle=True,
            rng=np.random.default_rng(0),
            preload_to_gpu=False,
            prefetch=prefetch,
        )
        if len(self.sources) != len(self.paths) or "dataset_" in self.sources[0].location:
            return loader.use_collection(DatasetCollection(self.paths[0], mode="r"))
        return loader.add_paths(self.paths)


def whole_chunks(parts: list[storage.Part]) -> list[tuple[Any, ...]]:
    """Return jobs for the engine that read and decode each chunk that a request touches, and use nothing of it."""
    jobs = []
    for part in parts:
        rows = np.sort(part.rows)
        for array in (part.source.data, part.source.indices):
            address = np.zeros(len(rows), np.int64)
            extents = part.source.row_pointers.extents(rows)
            tasks = _rows.plan_ranges(rows, *extents, address, 1, array.chunk_shape[0]).tasks.copy()
            for name in ("first_piece", "stop_piece", "low", "high"):
                tasks[name] = 0
            plan = Plan(tasks, np.zeros(1, PIECE))
            jobs.append(Job(array, plan, array.chunk_shape[0], array.dtype).for_engine())
    return jobs


def decoding_rate(requests: list[tuple[list[storage.Part], np.ndarray]], n_threads: int, seconds: float) -> float:
    jobs = [(whole_chunks(parts), int(edges[-1])) for parts, edges in requests]

    def rows_of_request() -> Iterator[int]:
        for job, n_rows in chain.from_iterable(repeat(jobs)):
            _engine.run(job, n_threads)
            yield n_rows

    return rate(rows_of_request(), seconds)


def storage_rate(requests: list[tuple[list[storage.Part], np.ndarray]], n_var: int, seconds: float) -> float:
    pool = storage.BufferPool()

    def rows_of_request() -> Iterator[int]:
        for parts, edges in chain.from_iterable(repeat(requests)):
            storage.read_csr(parts, edges, n_var=n_var, dtype="float32", pool=pool)
            yield int(edges[-1])

    return rate(rows_of_request(), seconds)


def loader_rate(loader: Loader, rows_per_request: int, seconds: float) -> float:
    def rows_of_request() -> Iterator[int]:
        while True:
            rows = 0
            for batch in loader:
                rows += batch["X"].shape[0]
                if rows >= rows_per_request:
                    yield rows
                    rows = 0
            if rows:
                yield rows

    return rate(rows_of_request(), seconds)


def memory_rates() -> tuple[float, float]:
    """Bytes per second of a copy into warm memory, and into memory that was never touched."""
    source = np.ones(1 << 27, dtype=np.uint8)
    warm = np.ones_like(source)
    start = time.perf_counter()
    np.copyto(warm, source)
    copied = time.perf_counter()
    np.copyto(np.empty_like(source), source)
    touched = time.perf_counter()
    return source.nbytes / (copied - start), source.nbytes / (touched - copied)


def codec_names(array: Any) -> str:
    return ", ".join(kind for kind, _ in array.table.codecs) or "none"


def table(store: Store, seconds: float, n_threads: int) -> list[str]:
    """Measure the ladder of one store."""
    first = store.sources[0]
    values_per_row = sum(source.row_pointers.n_values for source in store.sources) / store.n_obs
    arrays = [
        f"{name} as {array.dtype} in chunks of {array.chunk_shape[0]:,} (codecs: {codec_names(array)})"
        for name, array in (("values", first.data), ("column numbers", first.indices))
    ]
    lines = [
        f"`{Path(store.paths[0]).name}`"
        + (f" and {len(store.paths) - 1} more" if len(store.paths) > 1 else "")
        + f": {store.n_obs:,} rows of {values_per_row:,.0f} stored values; {', '.join(arrays)}.",
        "",
        "| layout | reading and decoding whole chunks | storage | Loader, prefetch=0 | Loader | Loader / decoding |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for chunk_size, preload_nchunks in LAYOUTS:
        requests = store.requests(chunk_size, preload_nchunks)
        steps = [
            partial(decoding_rate, requests, n_threads, seconds),
            partial(storage_rate, requests, first.shape[1], seconds),
            *(
                partial(
                    loader_rate, store.loader(chunk_size, preload_nchunks, ahead), chunk_size * preload_nchunks, seconds
                )
                for ahead in (0, 1)
            ),
        ]
        figures = []
        for step in steps:
            store.read_through()
            figures.append(step())
        limit, ahead = figures[0], figures[-1]
        cells = " | ".join(f"{figure:,.0f}" for figure in figures)
        lines.append(f"| {chunk_size} x {preload_nchunks:,} | {cells} | {ahead / limit:.0%} |")
    return lines


def section(patterns: list[str], seconds: float) -> str:
    """Measure everything and write it as Markdown."""
    n_threads = storage.available_cpus()
    warm, fresh = memory_rates()
    lines = [
        f"Measured at commit {commit()} on {machine()['cpu']}, {n_threads} threads, in rows per second.",
        f"Copies run at {warm / 1e9:.1f} GB/s into memory in use and at {fresh / 1e9:.1f} GB/s into memory first touched.",
    ]
    for pattern in patterns:
        lines += ["", *table(Store.open(pattern), seconds, n_threads)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.where", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", nargs="+", help="a collection, an AnnData file, or a pattern in quotes")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each step (default 2)")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="document to update")
    options = parser.parse_args()
    text = section(options.store, options.seconds)
    if options.write is None:
        print(text)
    else:
        rewrite_section(options.write, "where", text)


if __name__ == "__main__":
    main()
