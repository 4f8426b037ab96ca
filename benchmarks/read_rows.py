"""How fast storage reads CSR rows: python benchmarks/read_rows.py [--threads 2] [--cold] STORE...

A store is an .h5ad or .zarr path with the matrix X, or a collection of such groups. For each way of choosing rows it prints
rows per second of wall time and rows per second of CPU time (summed over threads; what other programs on the machine do
changes it less), and the bytes of batches that go with them. "in order" reads neighbouring rows, so each chunk is decoded once
and nothing of it is thrown away: what the other lines lose against it, they lose to chunks of which they need a part.

With --cold the system is asked to forget the files before each request, so that they come from the disk (Linux; a virtual
machine's host may still remember them); --silent then keeps the engine from announcing its reads.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from annbatch import storage
from annbatch.storage.engine import _engine

BATCH = 4096
WAYS = {"in order": (16_384, 1), "512 x 32": (512, 32), "32 x 256": (32, 256), "1 x 8192": (1, 8192)}


def open_sources(paths):
    groups = [storage.open_group(path) for path in paths]
    matrices = [group["X"] for group in groups if "X" in group]
    matrices += [group[name]["X"] for group in groups if "X" not in group for name in sorted(group)]
    return [storage.open_matrix(matrix) for matrix in matrices]


def requests(sources, chunk_size, n_chunks, rng):
    first_row = np.cumsum([0] + [source.shape[0] for source in sources])
    while True:
        starts = rng.permutation(first_row[-1] // chunk_size)[:n_chunks] * chunk_size
        rows = (starts[:, None] + np.arange(chunk_size)).ravel()
        rows = rows if n_chunks == 1 else rng.permutation(rows)
        source_of = np.searchsorted(first_row, rows, side="right") - 1
        parts = []
        for i, source in enumerate(sources):
            dest = np.flatnonzero(source_of == i)
            if len(dest):
                parts.append(storage.Part(source, rows[dest] - first_row[i], dest))
        yield parts, np.append(np.arange(0, len(rows), BATCH), len(rows))


def forget(stores):
    for store in stores:
        root = Path(store)
        for path in [root] if root.is_file() else root.rglob("*"):
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--threads", type=int, default=storage.available_cpus())
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--silent", action="store_true")
    args = parser.parse_args()
    if args.silent:
        _engine.waiting_ns = 1 << 60
    sources = open_sources(args.stores)
    n_var, pool = sources[0].shape[1], storage.BufferPool()
    print(f"{sources[0]!r}; chunks of {sources[0].data.chunk_shape[0]} values; {args.threads} threads")
    for name, (chunk_size, n_chunks) in WAYS.items():
        source_of_requests = requests(sources, chunk_size, n_chunks, np.random.default_rng(0))
        n_rows = n_bytes = wall = cpu = 0
        for k, (parts, edges) in zip(range(-2, args.requests), source_of_requests, strict=False):
            if args.cold:
                forget(args.stores)
            wall_before, cpu_before = time.perf_counter(), time.process_time()
            blocks = storage.read_csr(parts, edges, n_var=n_var, num_threads=args.threads, pool=pool)
            if k >= 0:
                wall += time.perf_counter() - wall_before
                cpu += time.process_time() - cpu_before
                n_rows += int(edges[-1])
                n_bytes += sum(block.data.nbytes + block.indices.nbytes for block in blocks)
        print(
            f"{name:>9}: {n_rows / wall:10,.0f} rows/s  {n_rows / cpu:10,.0f} rows/CPU s  {n_bytes / cpu / 1e9:5.2f} GB/CPU s"
        )


if __name__ == "__main__":
    main()
