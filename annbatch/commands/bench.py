"""What ``annbatch bench`` measures."""

from __future__ import annotations

import time
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from annbatch import storage
from annbatch._shared.collection_format import is_h5ad_collection, is_marked
from annbatch.collection import DatasetCollection
from annbatch.collection.building.sizes import positive_int
from annbatch.loader import Loader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# From a perfect shuffle to nearly sequential reading; a load request is two batches where they can be cut into chunks.
_CHUNK_ROWS = (1, 8, 32, 128, 512)
# The most random setting that is at least this share of the fastest is recommended.
_GOOD_ENOUGH = 0.7


def run_bench(path: Path, batch_size: int, seconds: float, *, progress: bool) -> dict[str, Any]:
    """Rows per second of a few settings; each reads for ``seconds`` after a warm-up."""
    positive_int("batch_size", batch_size)
    if seconds <= 0:
        msg = f"seconds must be > 0, got {seconds}"
        raise ValueError(msg)
    settings = [(chunk, lcm(chunk, 2 * batch_size) // chunk) for chunk in _CHUNK_ROWS]
    results = []
    for chunk_size, preload_nchunks in tqdm(settings, desc="Measuring", unit="setting", disable=not progress):
        rate = _measure(path, chunk_size, preload_nchunks, batch_size, seconds)
        results.append({"chunk_size": chunk_size, "preload_nchunks": preload_nchunks, "rows_per_second": rate})
    fastest = max(result["rows_per_second"] for result in results)
    best = next(result for result in results if result["rows_per_second"] >= _GOOD_ENOUGH * fastest)
    return {
        "path": str(path),
        "batch_size": batch_size,
        "cpus": storage.available_cpus(),
        "settings": results,
        "recommended": {key: best[key] for key in ("chunk_size", "preload_nchunks")},
    }


def _measure(path: Path, chunk_size: int, preload_nchunks: int, batch_size: int, seconds: float) -> float:
    loader = Loader(
        chunk_size=chunk_size,
        preload_nchunks=preload_nchunks,
        batch_size=batch_size,
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
    )
    is_h5ad_folder = is_h5ad_collection(path)
    if is_h5ad_folder or (path.is_dir() and is_marked(storage.open_group(path).attrs)):
        loader.use_collection(DatasetCollection(path, mode="r", is_collection_h5ad=is_h5ad_folder))
    else:
        loader.add_paths([path])
    n_rows = 0
    began: float | None = None
    start = time.perf_counter()
    while True:
        for batch in loader:
            now = time.perf_counter()
            if began is None:
                # The first load request pays for opening files and for the first touch of memory.
                if now - start > min(1.0, seconds / 2):
                    began = now
                continue
            n_rows += int(batch["X"].shape[0])
            if now - began >= seconds:
                return n_rows / (now - began)


def show(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print it for a person."""
    say(f"{found['path']}: batches of {found['batch_size']} rows, {found['cpus']} CPUs")
    say(f"  {'chunk_size':>10} {'preload_nchunks':>16} {'rows per second':>16}")
    for result in found["settings"]:
        mark = "  <- use this" if result["chunk_size"] == found["recommended"]["chunk_size"] else ""
        say(f"  {result['chunk_size']:>10} {result['preload_nchunks']:>16} {result['rows_per_second']:>16,.0f}{mark}")
    say(f"  (the most random setting with at least {_GOOD_ENOUGH:.0%} of the best rate)")
