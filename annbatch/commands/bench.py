"""What ``annbatch bench`` measures."""

from __future__ import annotations

import time
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from annbatch import storage
from annbatch._shared.args import as_count
from annbatch._shared.collection_format import is_h5ad_collection, is_marked
from annbatch.collection import DatasetCollection
from annbatch.loader import Loader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# From a perfect shuffle to nearly sequential reading; a load request is two batches where they can be cut into chunks.
_CHUNK_ROWS = (1, 8, 32, 128, 512)
# The most random setting that is at least this share of the fastest is recommended.
_GOOD_ENOUGH = 0.7
# At URLs: requests at a time that are tried, the share of the best rate that is enough, and load requests read ahead.
_REQUESTS = (16, 32, 64, 128, 256)
_ENOUGH_REQUESTS = 0.9
_FAR_PREFETCH = 4


def run_bench(
    path: Path | str,
    batch_size: int,
    seconds: float,
    *,
    progress: bool,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Rows per second of a few settings; each reads for ``seconds`` after a warm-up.

    At a URL, also of some numbers of requests at a time, with the recommended one of these settings.
    """
    as_count("batch_size", batch_size)
    if seconds <= 0:
        msg = f"seconds must be > 0, got {seconds}"
        raise ValueError(msg)
    settings = [(chunk, lcm(chunk, 2 * batch_size) // chunk) for chunk in _CHUNK_ROWS]
    is_far = storage.is_url(path)
    far = {"storage_options": storage_options, "prefetch": _FAR_PREFETCH} if is_far else {}
    results: list[dict[str, Any]] = []
    for chunk_size, preload_nchunks in tqdm(settings, desc="Measuring", unit="setting", disable=not progress):
        rate, _ = _measure(path, chunk_size, preload_nchunks, batch_size, seconds, far)
        results.append({"chunk_size": chunk_size, "preload_nchunks": preload_nchunks, "rows_per_second": rate})
    fastest = max(result["rows_per_second"] for result in results)
    best = next(result for result in results if result["rows_per_second"] >= _GOOD_ENOUGH * fastest)
    found: dict[str, Any] = {
        "path": str(path),
        "batch_size": batch_size,
        "cpus": storage.available_cpus(),
        "settings": results,
        "recommended": {key: best[key] for key in ("chunk_size", "preload_nchunks")},
    }
    if is_far:
        requests: list[dict[str, Any]] = []
        for n_requests in tqdm(_REQUESTS, desc="Measuring", unit="setting", disable=not progress):
            given = {**far, "max_requests": n_requests}
            rate, per_row = _measure(path, best["chunk_size"], best["preload_nchunks"], batch_size, seconds, given)
            requests.append(
                {
                    "max_requests": n_requests,
                    "rows_per_second": rate,
                    "requests_per_million_rows": round(1e6 * per_row["requests"]),
                    "bytes_per_row": round(per_row["bytes"]),
                }
            )
        quickest = max(result["rows_per_second"] for result in requests)
        # No more than are of use: others want to ask the store for something, too.
        enough = next(r for r in requests if r["rows_per_second"] >= _ENOUGH_REQUESTS * quickest)
        found["requests"] = requests
        found["recommended"] |= {"max_requests": enough["max_requests"], "prefetch": _FAR_PREFETCH}
    return found


def _measure(
    path: Path | str, chunk_size: int, preload_nchunks: int, batch_size: int, seconds: float, given: dict[str, Any]
) -> tuple[float, dict[str, float]]:
    """Return rows per second, and requests and bytes per row of a far store."""
    loader = Loader(
        chunk_size=chunk_size,
        preload_nchunks=preload_nchunks,
        batch_size=batch_size,
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
        **given,
    )
    if isinstance(path, str):
        _add_url(loader, path, given.get("storage_options"))
    elif (is_h5ad_folder := is_h5ad_collection(path)) or (path.is_dir() and is_marked(storage.open_group(path).attrs)):
        loader.use_collection(DatasetCollection(path, mode="r", is_collection_h5ad=is_h5ad_folder))
    else:
        loader.add_paths([path])
    n_rows = 0
    before: dict[str, int] = {}
    began: float | None = None
    start = time.perf_counter()
    while True:
        for batch in loader:
            now = time.perf_counter()
            if began is None:
                # The first load request pays for opening files and for the first touch of memory.
                if now - start > min(1.0, seconds / 2):
                    began, before = now, dict(storage.far_counts)
                continue
            n_rows += int(batch["X"].shape[0])
            if now - began >= seconds:
                per_row = {name: (storage.far_counts[name] - before[name]) / n_rows for name in ("requests", "bytes")}
                return n_rows / (now - began), per_row


def _add_url(loader: Loader, url: str, storage_options: Mapping[str, Any] | None) -> None:
    group = storage.open_group(url, storage.FarOptions(storage_options))
    is_collection = is_marked(group.attrs)
    if hasattr(group, "close"):
        group.close()
    if is_collection:
        loader.use_collection(url)
    else:
        loader.add_paths([url])


def show(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print it for a person."""
    say(f"{found['path']}: batches of {found['batch_size']} rows, {found['cpus']} CPUs")
    say(f"  {'chunk_size':>10} {'preload_nchunks':>16} {'rows per second':>16}")
    for result in found["settings"]:
        mark = "  <- use this" if result["chunk_size"] == found["recommended"]["chunk_size"] else ""
        say(f"  {result['chunk_size']:>10} {result['preload_nchunks']:>16} {result['rows_per_second']:>16,.0f}{mark}")
    say(f"  (the most random setting with at least {_GOOD_ENOUGH:.0%} of the best rate)")
    if "requests" in found:
        say(f"  with that, and prefetch={_FAR_PREFETCH}:")
        say(f"  {'max_requests':>12} {'rows per second':>16} {'requests per million rows':>26} {'bytes a row':>12}")
        for result in found["requests"]:
            mark = "  <- use this" if result["max_requests"] == found["recommended"]["max_requests"] else ""
            say(
                f"  {result['max_requests']:>12} {result['rows_per_second']:>16,.0f} "
                f"{result['requests_per_million_rows']:>26,} {result['bytes_per_row']:>12,}{mark}"
            )
