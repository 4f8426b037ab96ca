"""Measure what docs/collections.md says about layout, memory and big builds; benchmarks/layout/draw.py writes and draws it.

    python -m benchmarks.layout.measure [N_CELLS] [--data H5AD ...]

Cells are the first ones of the files, or deep ones made of the bundled real ones (Beta(8, 3) of the counts kept), as raw counts in four h5ad
files. Chunks are measured in one thread on 1,500 of them; MV/s: million values a second, the best of three for reading.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from numcodecs import Blosc, blosc
from zarr.codecs import BloscCodec

from annbatch import DatasetCollection
from annbatch.collection.building.output.shards import default_compressors
from annbatch.collection.building.plan import plan_bytes
from annbatch.collection.collection import _DEFAULT_ROWS_PER_CHUNK
from annbatch.commands.bench import run_bench
from annbatch.commands.demo import real_cells
from annbatch.storage import available_cpus

from .draw import RESULTS, write_page

CODECS = (("lz4", 3), ("lz4hc", 1), ("lz4hc", 2), ("lz4hc", 4), ("zstd", 3))
# The array, how it is called, and what it is stored as.
TYPES = (
    ("data", "values", "uint16"),
    ("data", "values", "float32"),
    ("indices", "column numbers", "uint16"),
    ("indices", "column numbers", "int32"),
)
ROWS_PER_CHUNK = (8, 16, 32, 64)
N_CODEC_CELLS = 1500
N_FILES = 4
ROUNDS = 3
SECONDS = 0.5
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


def cells_of(path, n_cells):
    """Counts of the first cells of a file."""
    return ad.io.sparse_dataset(ad.read_h5ad(path, backed="r").file["X"])[:n_cells]


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
    return {"bytes": sum(map(len, encoded)) / n, "write": n / writing / 1e6, "read": n / reading / 1e6}


def measure_chunks(counts):
    """Each codec on the types that are stored, and the chosen codec on other types."""
    chunk = round(_DEFAULT_ROWS_PER_CHUNK * counts.nnz / counts.shape[0])
    name, level = chosen_codec()
    found = [(*codec, *kind) for codec in CODECS for kind in TYPES if kind[2] == "uint16"]
    found += [(name, level, *kind) for kind in TYPES if kind[2] != "uint16"]
    return [
        {"codec": codec, "level": level, "array": array, "dtype": dtype}
        | measure_codec(getattr(counts, attribute).astype(dtype), chunk, Blosc(codec, level, Blosc.SHUFFLE))
        for codec, level, attribute, array, dtype in found
    ]


def chosen_codec():
    """Name and level of the codec that collections are written with."""
    [codec] = default_compressors()
    return codec.cname.value, codec.clevel


def layouts():
    """Yield (rows per chunk, codec, level, compact): the default, with one thing changed at a time."""
    name, level = chosen_codec()
    yield from ((rows, name, level, True) for rows in ROWS_PER_CHUNK)
    yield from ((_DEFAULT_ROWS_PER_CHUNK, *codec, True) for codec in CODECS if codec != (name, level))
    yield _DEFAULT_ROWS_PER_CHUNK, name, level, False


def measure_layouts(paths, folder):
    """Size of collections that are cut and compressed in different ways, and rows a second read from them."""
    found = []
    for i, (rows, codec, level, compact) in enumerate(layouts()):
        place = folder / f"{i}.zarr"
        DatasetCollection(place).add_adatas(
            paths,
            n_obs_per_chunk=rows,
            zarr_compressor=[BloscCodec(cname=codec, clevel=level, shuffle="shuffle")],
            compact=compact,
            rng=np.random.default_rng(0),
            progress=False,
        )
        stored = DatasetCollection(place, mode="r")
        values = next(iter(stored))["X/data"].dtype.name
        found.append({"rows_per_chunk": rows, "codec": codec, "level": level, "values": values, "rates": {}})
        found[-1]["bytes"] = bytes_in(place)
    for _ in range(ROUNDS):  # in turn, so that a slow minute of the machine meets all of them
        for i, layout in enumerate(found):
            for setting in run_bench([folder / f"{i}.zarr"], 4096, SECONDS, progress=False)["settings"]:
                layout["rates"].setdefault(str(setting["chunk_size"]), []).append(setting["rows_per_second"])
    return found


def measure_build(paths, n_values, folder):
    """What a build took, and what it takes for Tahoe-100M."""
    place = folder / "built.zarr"
    # A process of its own: what it held at most, and its processor time without the import of libraries.
    command = [sys.executable, "-c", BUILD, str(place), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = map(float, result.stdout.split())
    datasets = -(-TAHOE_CELLS * (8 * TAHOE_VALUES + 64) // (20 * 10**9))
    return {
        "values": n_values,
        "given_bytes": sum(path.stat().st_size for path in paths),
        "stored_bytes": bytes_in(place),
        "seconds": seconds,
        "peak_bytes": peak,
        "tahoe": {
            "cells": TAHOE_CELLS,
            "values_a_cell": TAHOE_VALUES,
            "datasets": datasets,
            "plan_bytes": plan_bytes(TAHOE_CELLS, 0),
            "sorted_plan_bytes": plan_bytes(TAHOE_CELLS, -(-TAHOE_CELLS // datasets), 1),
        },
    }


def bytes_in(place):
    """Size on disk."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def main(n_cells, data):
    """Measure, save, and write the measured part of the page."""
    blosc.use_threads = False
    n_each = n_cells // N_FILES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths, n_values = [], 0
        for i in range(N_FILES):
            X = cells_of(data[i % len(data)], n_each) if data else thinned(n_each, i + 1)
            if i == 0:
                chunks = measure_chunks(X[:N_CODEC_CELLS])
            n_values += X.nnz
            obs = pd.DataFrame(index=[f"{i}_{k}" for k in range(X.shape[0])])
            paths.append(folder / f"{i}.h5ad")
            ad.AnnData(X.astype(np.float32), obs=obs).write_h5ad(paths[-1])
            del X
        results = {
            "command": f"python -m benchmarks.layout.measure {n_cells}" + (" --data ..." if data else ""),
            "cells": n_each * N_FILES,
            "cpus": available_cpus(),
            "rounds": ROUNDS,
            "default": {
                "rows_per_chunk": _DEFAULT_ROWS_PER_CHUNK,
                "codec": chosen_codec()[0],
                "level": chosen_codec()[1],
            },
            "codecs_at": _DEFAULT_ROWS_PER_CHUNK,
            "chunks": chunks,
            "layouts": measure_layouts(paths, folder),
            "build": measure_build(paths, n_values, folder),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n_cells", nargs="?", type=int, default=40_000)
    parser.add_argument("--data", nargs="*", default=[], type=Path)
    arguments = parser.parse_args()
    main(arguments.n_cells, arguments.data)
