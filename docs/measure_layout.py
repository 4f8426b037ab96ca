"""Measure what docs/collections.md says about layout, memory and big builds, and write it there between its markers.

    python docs/measure_layout.py [N_CELLS]

Cells are made of the bundled real ones, deep ones (Beta(8, 3) of the counts kept), as raw counts in four h5ad files. Sizes of chunks are measured
in one thread on 1,500 of them; MV/s: million values a second, the best of three for reading.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from numcodecs import Blosc, blosc

from annbatch import DatasetCollection
from annbatch._bench import run_bench
from annbatch._build.plan import plan_bytes
from annbatch._demo import real_cells
from annbatch.collection import _DEFAULT_ROWS_PER_CHUNK
from annbatch.storage import available_cpus

PAGE = Path(__file__).with_name("collections.md")
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
CODECS = (("lz4", 3), ("lz4hc", 1), ("lz4hc", 2), ("lz4hc", 4), ("zstd", 3))
ROWS_PER_CHUNK = (8, 16, 32, 64)
N_CODEC_CELLS = 1500
N_FILES = 4
ROUNDS = 2
BUILD = """
import re, sys, time
from pathlib import Path
import anndata, tqdm, zarr
from annbatch import DatasetCollection
began = time.process_time()
DatasetCollection(sys.argv[1]).add_adatas(sys.argv[2:], progress=False)
print(time.process_time() - began)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
# Of Tahoe-100M.
TAHOE_CELLS, TAHOE_VALUES = 100_000_000, 1460


def thinned(n_cells, seed):
    """Deep cells made of real ones."""
    rng = np.random.default_rng(seed)
    real = real_cells().counts
    picked = real[rng.integers(0, real.shape[0], n_cells)]
    picked.data = rng.binomial(picked.data, np.repeat(rng.beta(8, 3, n_cells), np.diff(picked.indptr)))
    picked.eliminate_zeros()
    return picked


def measure_codec(values, chunk, codec):
    """Bytes a value, and million values a second written and read."""
    pieces = [values[i : i + chunk] for i in range(0, len(values) - chunk + 1, chunk)]
    n = chunk * len(pieces)
    began = time.perf_counter()
    encoded = [codec.encode(piece) for piece in pieces]
    writing = time.perf_counter() - began
    out = np.empty(chunk, values.dtype)
    reading = np.inf
    for _ in range(3):
        began = time.perf_counter()
        for piece in encoded:
            codec.decode(piece, out)
        reading = min(reading, time.perf_counter() - began)
    return sum(map(len, encoded)) / n, n / writing / 1e6, n / reading / 1e6


def codecs():
    """Yield lines: each codec with chunks of the default size."""
    counts = thinned(N_CODEC_CELLS, 0)
    arrays = [array.astype(np.uint16) for array in (counts.data, counts.indices)]
    chunk = round(_DEFAULT_ROWS_PER_CHUNK * counts.nnz / N_CODEC_CELLS)
    yield f"Codecs of Blosc with byte shuffle, chunks of {_DEFAULT_ROWS_PER_CHUNK} rows, one thread:\n"
    yield "| codec | bytes a value and its column number | values: write, read MV/s | column numbers: write, read MV/s |"
    yield "|---|---|---|---|"
    for name, level in CODECS:
        found = [measure_codec(array, chunk, Blosc(name, level, Blosc.SHUFFLE)) for array in arrays]
        speeds = " | ".join(f"{write:,.0f}, {read:,.0f}" for _, write, read in found)
        yield f"| {name} {level} | {sum(size for size, *_ in found):.2f} | {speeds} |"


def rows_per_chunk(paths, folder):
    """Yield lines: thousand rows a second of collections that are cut in different ways."""
    places = {rows: folder / f"{rows}.zarr" for rows in ROWS_PER_CHUNK}
    for rows, place in places.items():
        DatasetCollection(place).add_adatas(paths, n_obs_per_chunk=rows, rng=np.random.default_rng(0), progress=False)
    rates = {rows: {} for rows in places}
    for _ in range(ROUNDS):  # in turn, so that a slow minute of the machine meets all of them
        for rows, place in places.items():
            for found in run_bench(place, 4096, 1.0, progress=False)["settings"]:
                rates[rows].setdefault(found["chunk_size"], []).append(found["rows_per_second"])
    yield f"\nRows per chunk, thousand rows a second in batches of 4,096 ({ROUNDS} rounds, lowest to highest; where ranges overlap nothing is shown):\n"
    yield "| rows per chunk | MB | " + " | ".join(f"chunk_size {size}" for size in rates[ROWS_PER_CHUNK[0]]) + " |"
    yield "|---|---|" + "---|" * len(rates[ROWS_PER_CHUNK[0]])
    for rows, place in places.items():
        cells = " | ".join(f"{min(each) / 1e3:,.0f} to {max(each) / 1e3:,.0f}" for each in rates[rows].values())
        mark = " (default)" if rows == _DEFAULT_ROWS_PER_CHUNK else ""
        yield f"| {rows}{mark} | {bytes_in(place) / 1e6:,.0f} | {cells} |"


def big_build(paths, n_values, folder):
    """Yield lines: what a build took, and what it takes for Tahoe-100M."""
    place = folder / "built.zarr"
    # A process of its own: what it held at most, and its processor time without the import of libraries.
    command = [sys.executable, "-c", BUILD, str(place), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own command
    seconds, peak = map(float, result.stdout.split())
    given = sum(path.stat().st_size for path in paths)
    yield (
        f"\nA build: {n_values / 1e6:,.0f} million values ({given / 1e9:.2f} GB of h5ad) took {seconds:.1f} s of processor time and a peak of "
        f"{peak / 1e9:.2f} GB of resident memory, Python and its libraries included."
    )
    values = TAHOE_CELLS * TAHOE_VALUES
    spilled, stored = 4 * values, bytes_in(place) / n_values * values
    datasets = -(-TAHOE_CELLS * (8 * TAHOE_VALUES + 64) // (20 * 10**9))
    hours = seconds / n_values * values / 3600
    plans = [plan_bytes(TAHOE_CELLS, TAHOE_CELLS // datasets, key_bytes) / 1e9 for key_bytes in (0, 1)]
    yield (
        f"\nThe same rates for {TAHOE_CELLS / 1e6:,.0f} million cells of {TAHOE_VALUES:,} values (Tahoe-100M), {values / 1e9:,.0f} billion values:\n\n"
        f"- disk: {spilled / 1e9:,.0f} GB of temporary files (4 bytes a value) and {stored / 1e9:,.0f} GB of collection "
        f"({stored / values:.2f} bytes a value), both until the end: {(spilled + stored) / 1e9:,.0f} GB must be free;\n"
        f'- workers: `dataset_size="20GB"` (8 bytes a value and 64 a row in the inputs) gives {datasets} datasets, so up to {datasets} write at a time;\n'
        f"- memory: `max_memory` in each worker; the plan takes {plans[0]:.1f} GB in the process that calls, {plans[1]:.1f} GB with `groupby`;\n"
        f"- time: {hours:.1f} hours of processor time in all, {hours * 60 / datasets:.1f} minutes for each of {datasets} workers: the disk decides. "
        f"It reads {8 * values / 1e12:.2f} TB of inputs (8 bytes a value), writes and reads the temporary files, and writes the collection."
    )


def bytes_in(place):
    """Size on disk."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def main(n_cells):
    """Write the measured part of the page."""
    blosc.use_threads = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths, n_values = [], 0
        for i in range(N_FILES):
            X = thinned(n_cells // N_FILES, i + 1).astype(np.float32)
            n_values += X.nnz
            obs = pd.DataFrame(index=[f"{i}_{k}" for k in range(X.shape[0])])
            paths.append(folder / f"{i}.h5ad")
            ad.AnnData(X, obs=obs).write_h5ad(paths[-1])
            del X
        lines = [
            f"*Written by `python docs/measure_layout.py {n_cells}` on a machine with {available_cpus()} CPUs; compare the ratios, not the figures.*\n",
            *codecs(),
            *rows_per_chunk(paths, folder),
            *big_build(paths, n_values, folder),
        ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
