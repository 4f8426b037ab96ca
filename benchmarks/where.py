"""Where the time of a pass goes: ``python -m benchmarks.where COLLECTION [--write docs/performance.md]``.

Measures, on the machine it runs on and with the same rows each time, the steps of a ladder: what decoding alone would allow,
what storage reaches when it is only asked for rows, what Loader reaches without and with reading ahead. The difference between
two steps is what the part between them costs. ``--write`` rewrites the section between ``<!-- where:begin -->`` and
``<!-- where:end -->`` of a document.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
from numcodecs import Blosc

from annbatch import DatasetCollection, Loader, storage
from annbatch.samplers import RandomSampler

from .versus.__main__ import commit, machine
from .versus.report import rewrite_section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import zarr

LAYOUTS = ((32, 256), (512, 32), (1, 8192))
BATCH_SIZE = 4096
N_REQUESTS = 8
SAMPLE_VALUES = 8_000_000


@dataclass(frozen=True)
class StoredArray:
    """One of the two big arrays of a sparse matrix: how its chunks decode."""

    array: zarr.Array
    values_per_chunk: int
    seconds_per_chunk: float

    @property
    def bytes_per_second(self) -> float:
        return self.values_per_chunk * self.array.dtype.itemsize / self.seconds_per_chunk


def rate(count_rows: Callable[[], Iterable[int]], seconds: float) -> float:
    """Rows per second over at least ``seconds``, after one warm-up round."""
    for _ in count_rows():
        pass
    rows = 0
    start = time.perf_counter()
    while True:
        for n_rows in count_rows():
            rows += n_rows
        if (elapsed := time.perf_counter() - start) >= seconds:
            return rows / elapsed


def decoding(array: zarr.Array, n_threads: int) -> StoredArray:
    """Time the decoding of chunks like those of ``array``, in all threads at once and from memory to warm memory."""
    values = np.asarray(array[: min(SAMPLE_VALUES, array.shape[0])])
    (codec,) = array.compressors
    blosc = Blosc(cname=codec.cname.value, clevel=codec.clevel, shuffle=getattr(Blosc, codec.shuffle.value.upper()))
    n_values = array.chunks[0]
    encoded = [
        blosc.encode(values[start : start + n_values]) for start in range(0, len(values) - n_values + 1, n_values)
    ]
    shares = [encoded[worker::n_threads] for worker in range(n_threads)]

    def decode(share: list[bytes]) -> None:
        out = np.empty(n_values, dtype=array.dtype)
        for chunk in share:
            blosc.decode(chunk, out=out)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(decode, shares))
        start = time.perf_counter()
        list(pool.map(decode, shares))
        elapsed = time.perf_counter() - start
    return StoredArray(array, n_values, elapsed / len(encoded))


@dataclass
class Rows:
    """The matrices of a collection as one range of rows, and the requests of a layout."""

    sources: list[Any]
    requests: list[tuple[np.ndarray, list[np.ndarray]]]

    @classmethod
    def draw(cls, sources: list[Any], chunk_size: int, preload_nchunks: int, n_requests: int) -> Rows:
        n_obs = sum(source.shape[0] for source in sources)
        sampler = RandomSampler(chunk_size, preload_nchunks, BATCH_SIZE, rng=np.random.default_rng(0))
        requests = []
        for request in sampler.sample(n_obs):
            wanted = request["requests"]
            rows = (
                np.concatenate([np.arange(part.start, part.stop) for part in wanted])
                if isinstance(wanted, list)
                else wanted
            )
            requests.append((np.asarray(rows, dtype=np.int64), request["splits"]))
            if len(requests) == n_requests:
                break
        return cls(sources, requests)

    def parts(self, rows: np.ndarray, dest: np.ndarray) -> list[storage.Part]:
        starts = np.cumsum([0, *(source.shape[0] for source in self.sources)])
        home = np.searchsorted(starts, rows, side="right") - 1
        return [
            storage.Part(source=source, rows=rows[home == i] - starts[i], dest=dest[home == i], columns=None)
            for i, source in enumerate(self.sources)
            if (home == i).any()
        ]

    def read(self, pool: storage.BufferPool, n_var: int) -> Iterator[int]:
        for rows, splits in self.requests:
            order = np.concatenate(splits)
            dest = np.empty(len(order), dtype=np.int64)
            dest[order] = np.arange(len(order))
            edges = np.cumsum([0, *(len(split) for split in splits)])
            storage.read_csr(self.parts(rows, dest), edges, n_var=n_var, dtype="float32", pool=pool)
            yield len(order)

    def chunks_touched(self, values_per_chunk: int) -> float:
        """Chunks that a row costs on average, each counted once a request."""
        n_chunks = n_rows = 0
        for rows, _ in self.requests:
            for part in self.parts(rows, np.arange(len(rows), dtype=np.int64)):
                first = part.source.indptr[part.rows] // values_per_chunk
                last = (part.source.indptr[part.rows + 1] - 1) // values_per_chunk
                wide = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])
                n_chunks += len(np.unique(wide))
            n_rows += len(rows)
        return n_chunks / n_rows


def loader_rate(path: Path, layout: tuple[int, int], seconds: float, *, prefetch: int) -> float:
    loader = Loader(
        chunk_size=layout[0],
        preload_nchunks=layout[1],
        batch_size=BATCH_SIZE,
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
        prefetch=prefetch,
    ).use_collection(DatasetCollection(path, mode="r"))
    n_batches = N_REQUESTS * layout[0] * layout[1] // BATCH_SIZE
    return rate(lambda: (batch["X"].shape[0] for batch in islice(loader, n_batches)), seconds)


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


def section(path: Path, seconds: float) -> str:
    """Measure everything and write it as Markdown."""
    n_threads = storage.available_cpus()
    groups = list(DatasetCollection(path, mode="r"))
    matrices = [ad.io.sparse_dataset(group["X"]) for group in groups]
    sources = [storage.open_matrix(matrix) for matrix in matrices]
    n_var = sources[0].shape[1]
    values_per_row = sum(int(source.indptr[-1]) for source in sources) / sum(source.shape[0] for source in sources)
    arrays = {name: decoding(groups[0]["X"][name], n_threads) for name in ("data", "indices")}
    warm, fresh = memory_rates()
    lines = [
        f"Measured at commit {commit()} on {machine()['cpu']}, {n_threads} threads: {values_per_row:,.0f} stored values a row.",
        "",
        "| array | dtype | values a chunk | decoded, all threads |",
        "| --- | --- | --- | --- |",
    ]
    for name, stored in arrays.items():
        lines.append(
            f"| X/{name} | {stored.array.dtype} | {stored.values_per_chunk:,} | {stored.bytes_per_second / 1e9:.2f} GB/s |"
        )
    copies = f"Copies run at {warm / 1e9:.1f} GB/s into memory in use and at {fresh / 1e9:.1f} GB/s into memory first touched."
    lines += [
        "",
        copies,
        "",
        "| layout | decoding whole chunks (rows/s) | storage | Loader, prefetch=0 | Loader | Loader / decoding |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for layout in LAYOUTS:
        rows = Rows.draw(sources, *layout, N_REQUESTS)
        limit = 1 / sum(
            rows.chunks_touched(stored.values_per_chunk) * stored.seconds_per_chunk for stored in arrays.values()
        )
        pool = storage.BufferPool()
        reading = rate(lambda rows=rows, pool=pool: rows.read(pool, n_var), seconds)
        alone = loader_rate(path, layout, seconds, prefetch=0)
        ahead = loader_rate(path, layout, seconds, prefetch=1)
        lines.append(
            f"| {layout[0]} x {layout[1]:,} | {limit:,.0f} | {reading:,.0f} | {alone:,.0f} | {ahead:,.0f} | {ahead / limit:.0%} |"
        )
    for source in sources:
        source.close()
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.where", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collection", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each step (default 2)")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="document to update")
    options = parser.parse_args()
    text = section(options.collection, options.seconds)
    if options.write is None:
        print(text)
    else:
        rewrite_section(options.write, "where", text)


if __name__ == "__main__":
    main()
