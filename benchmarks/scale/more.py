"""What does not grow with rows alone: thousands of files, additions one after the other, obs of a batch, where memory of obs goes.

``python -m benchmarks.scale.more WHAT FOLDER`` makes what it needs in the folder, and prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from annbatch import DatasetCollection, Loader
from benchmarks.suites.counts import thinned_cells

from .measure import make, memory
from .stores import LABEL, N_VAR, write_collection, write_h5ad, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MORE"]

N_FILES = 2_000
ROWS_OF_A_FILE = 500
N_ADDITIONS = 100


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def files(folder: Path) -> list[dict[str, Any]]:
    """Open thousands of small files, and count the handles that a pass has open."""
    found = []
    for source, write, copy in (("h5ad", write_h5ad, shutil.copy), ("zarr", write_zarr, shutil.copytree)):
        first = folder / f"first.{source}"
        if not first.exists():
            write(first, ROWS_OF_A_FILE)
        paths = [folder / f"{number}.{source}" for number in range(N_FILES)]
        for path in paths:
            if not path.exists():
                copy(first, path)  # type: ignore[operator]
        for face in ("labels", "all columns"):
            options: dict[str, Any] = {"obs_columns": [], "labels": [LABEL]} if face == "labels" else {}

            def loader(paths: list[Path], options: dict[str, Any] = options) -> Loader:
                made = Loader(chunk_size=1, preload_nchunks=1024, batch_size=32, shuffle=True, **options)
                return made.add_paths(paths)

            loader(paths[:3])
            wall, processor = time.perf_counter(), time.process_time()
            opened = loader(paths)
            case = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
            handles = []
            for number, _ in enumerate(opened):
                handles.append(len(list(Path("/proc/self/fd").iterdir())))
                if number == 64:
                    break
            found.append({"face": face, "source": source, "files": N_FILES, **case, "handles": max(handles)})
    return found


def additions(folder: Path) -> list[dict[str, Any]]:
    """Processor time of additions of equal inputs to one collection, and of one with many inputs."""
    small, many = folder / "small.h5ad", folder / "many.zarr"
    write_h5ad(small, ROWS_OF_A_FILE)
    inputs = [folder / f"input {number}.h5ad" for number in range(N_FILES // 2)]
    for path in inputs:
        shutil.copy(small, path)

    def add(place: Path, paths: list[Path]) -> float:
        used = _processor()
        DatasetCollection(place).add_adatas(paths, rng=np.random.default_rng(0), progress=False, if_exists="add")
        return _processor() - used

    add(folder / "warm.zarr", [small])
    found = [add(many, [small]) for _ in range(N_ADDITIONS)]
    first = [add(folder / f"new {number}.zarr", [small]) for number in range(10)]
    return [
        {"what": "1st addition", "inputs": 1, "processor": median(first)},
        {"what": "2nd to 11th", "inputs": 1, "processor": median(found[1:11])},
        {"what": f"the last ten of {N_ADDITIONS}", "inputs": 1, "processor": median(found[-10:])},
        {"what": "one call", "inputs": 10, "processor": add(folder / "ten.zarr", inputs[:10])},
        {"what": "one call", "inputs": len(inputs), "processor": add(folder / "all.zarr", inputs)},
    ]


def small_rows(folder: Path) -> list[dict[str, Any]]:
    """Processor time, of all processes, that ``add_adatas`` takes for rows of about ten values and ten columns of obs."""
    n_obs = 10_000_000
    few, many = folder / "few rows.h5ad", folder / "small rows.h5ad"
    for path, n in ((few, ROWS_OF_A_FILE), (many, n_obs)):
        write_h5ad(path, n)
        _fill_values(path)
    DatasetCollection(folder / "few rows.zarr").add_adatas([few], progress=False)
    used, wall = _processor(), time.perf_counter()
    DatasetCollection(folder / "small rows.zarr").add_adatas([many], rng=np.random.default_rng(0), progress=False)
    return [{"rows": n_obs, "seconds": time.perf_counter() - wall, "processor": _processor() - used}]


def _fill_values(path: Path) -> None:
    """Give the matrix of a file counts and column numbers: a row has at most 15, which ascend."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        matrix, step = file["X"], N_VAR // 15
        pointers = matrix["indptr"][:]
        for first in range(0, len(pointers) - 1, 1 << 20):
            rows = pointers[first : first + (1 << 20) + 1]
            low, high = int(rows[0]), int(rows[-1])
            number = np.arange(low, high) - np.repeat(rows[:-1], np.diff(rows))
            matrix["indices"][low:high] = number * step + rng.integers(0, step, high - low)
            matrix["data"][low:high] = rng.integers(1, 10, high - low)


def obs_of_batches(folder: Path) -> list[dict[str, Any]]:
    """Processor time of a batch of 128 rows with 30 columns of obs, and of one with none: 2,000 genes of thinned real cells."""
    rng = np.random.default_rng(0)
    cells = thinned_cells(20_000, seed=0)
    n_obs, genes = cells.n_obs, rng.choice(cells.var_names, 2_000, replace=False)
    kinds: list[Callable[[], Any]] = [
        lambda: pd.Categorical.from_codes(rng.integers(0, 30, n_obs), [f"type {number}" for number in range(30)]),
        lambda: rng.random(n_obs, dtype=np.float32),
        lambda: np.array([f"batch {number}" for number in range(200)], dtype=object)[rng.integers(0, 200, n_obs)],
    ]
    obs = pd.DataFrame(
        {f"column {number}": kinds[number % len(kinds)]() for number in range(30)},
        index=cells.obs_names,
    )
    place = folder / "obs.zarr"
    DatasetCollection(place).add_adatas([ad.AnnData(cells.X, obs=obs, var=cells.var)], progress=False, rng=rng)
    options = {
        "var_names": list(genes),
        "chunk_size": 32,
        "preload_nchunks": 64,
        "batch_size": 128,
        "num_threads": 1,
        "prefetch": 0,
    }
    loaders = {
        name: Loader(shuffle=True, obs_columns=columns, **options).use_collection(place)  # type: ignore[arg-type]
        for name, columns in (("matrix", []), ("matrix and obs", None))
    }
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(7):  # in turn, so that what else the machine does meets both
        for name, loader in loaders.items():
            used = time.process_time()
            n_batches = sum(1 for _ in loader)
            times[name].append((time.process_time() - used) / n_batches)
    alone, both = (median(times[name][1:]) for name in loaders)
    return [{"matrix": alone, "obs": max(0.0, both - alone)}]


def obs_whole(folder: Path) -> list[dict[str, Any]]:
    """Most memory that ``collection.obs()`` takes, against the DataFrame."""
    n_obs = 2_000_000
    place = folder / "whole.zarr"
    write_collection(place, n_obs)
    write_collection(folder / "few.zarr", 1000)
    DatasetCollection(folder / "few.zarr", mode="r").obs()
    before = memory()["resident"]
    frame = DatasetCollection(place, mode="r").obs()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return [{"rows": n_obs, "peak": peak, "frame": _bytes_of(frame)}]


def _bytes_of(frame: pd.DataFrame) -> int:
    """Bytes of a table; what is text many times in it counts once, as it is there once."""
    n_bytes, seen = int(frame.memory_usage(deep=False).sum()), {}
    for values in (frame.index, *(frame[name] for name in frame)):
        if values.dtype == object:
            seen.update({id(value): sys.getsizeof(value) for value in values})
    return n_bytes + sum(seen.values())


def kinds_of_memory(folder: Path) -> list[dict[str, Any]]:
    """Bytes a row of what a Loader with all of ten columns holds, by kind."""
    n_obs, found = 1_000_000, []
    for source, write in (("collection", write_collection), ("h5ad", write_h5ad)):
        path = folder / f"kinds.{'h5ad' if source == 'h5ad' else 'zarr'}"
        write(path, n_obs)
        table = make("all columns", str(path), n_obs)._table  # noqa: SLF001 (there is no other way to ask)
        held = {"row pointers": table.first_matrix.sources[0].row_pointers.nbytes, "codes": 0, "numbers": 0, "names": 0}
        held["text of many values"] = 0
        for piece in table.obs.pieces:
            held["names"] += piece.names.text.nbytes
            for text in piece.texts.values():
                is_coded = hasattr(text, "codes")
                held["codes" if is_coded else "text of many values"] += (
                    text.codes.nbytes if is_coded else text.text.nbytes
                )
            for column in piece.values:
                values = piece.values[column].array
                is_coded = isinstance(values, pd.Categorical)
                held["codes" if is_coded else "numbers"] += values.codes.nbytes if is_coded else values.nbytes
        found.append({"source": source, "rows": n_obs, **held})
    return found


MORE = {
    "files": files,
    "additions": additions,
    "small rows": small_rows,
    "obs of batches": obs_of_batches,
    "obs whole": obs_whole,
    "kinds of memory": kinds_of_memory,
}


if __name__ == "__main__":
    print(json.dumps(MORE[sys.argv[1]](Path(sys.argv[2]))))
