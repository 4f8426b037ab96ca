"""Size and speed of chunks of counts, for docs/collections.md: a Markdown table on stdout.

    python docs/measure_layout.py [N_CELLS]

One thread; cells made of the bundled real ones, deep ones (Beta(8, 3) of the counts kept, about 1,340 values a cell) as uint16 values and
uint16 column numbers, rows in random order. MV/s: million values a second, the best of three for reading.
"""

import sys
import time

import numpy as np
from numcodecs import Blosc, blosc

from annbatch._demo import real_cells

ROWS_PER_CHUNK = (8, 16, 32, 64)
CODECS = (("lz4", 3), ("lz4", 9), ("lz4hc", 1), ("lz4hc", 2), ("lz4hc", 4), ("zstd", 1), ("zstd", 3))


def thinned(n_cells):
    """Deep cells made of real ones."""
    rng = np.random.default_rng(0)
    real = real_cells().counts
    picked = real[rng.integers(0, real.shape[0], n_cells)]
    picked.data = rng.binomial(picked.data, np.repeat(rng.beta(8, 3, n_cells), np.diff(picked.indptr)))
    picked.eliminate_zeros()
    return picked


def measure(values, chunk, codec):
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


def main(n_cells):
    """Print the table."""
    blosc.use_threads = False
    counts = thinned(n_cells)
    arrays = [array.astype(np.uint16) for array in (counts.data, counts.indices)]
    print("| rows a chunk | codec | bytes a value | values: write, read MV/s | column numbers: write, read MV/s |")
    print("|---|---|---|---|---|")
    for rows in ROWS_PER_CHUNK:
        for name, level in CODECS:
            codec = Blosc(name, level, Blosc.SHUFFLE)
            found = [measure(array, round(rows * counts.nnz / n_cells), codec) for array in arrays]
            speeds = " | ".join(f"{write:,.0f}, {read:,.0f}" for _, write, read in found)
            print(f"| {rows} | {name} {level} | {sum(size for size, *_ in found):.3f} | {speeds} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
