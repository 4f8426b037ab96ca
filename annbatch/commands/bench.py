"""What ``annbatch bench`` measures."""

from __future__ import annotations

import time
from itertools import islice
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from annbatch import storage
from annbatch._shared.args import as_count
from annbatch._shared.collection_format import is_h5ad_collection, is_marked
from annbatch.collection import DatasetCollection
from annbatch.loader import Loader
from annbatch.samplers import RandomSampler

from .quality import rows_of_batches, shuffle_quality

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

# From a perfect shuffle to nearly sequential reading; a load request is two batches where they can be cut into chunks.
_CHUNK_ROWS = (1, 8, 32, 128, 512)
# Recommended: of the settings that mix as well as this, the most random one that reaches this share of their best rate.
_WELL_MIXED = 0.95
_GOOD_ENOUGH = 0.7
# Columns with more labels than this are names, not classes; so many batches tell how well they are mixed.
_MOST_LABELS = 1000
_BATCHES_LOOKED_AT = 100
# At URLs: requests at a time that are tried, the share of the best rate that is enough, and load requests read ahead.
_REQUESTS = (16, 32, 64, 128, 256)
_ENOUGH_REQUESTS = 0.9
_FAR_PREFETCH = 4


def run_bench(
    paths: Sequence[Path | str],
    batch_size: int,
    seconds: float,
    *,
    progress: bool,
    storage_options: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Rows per second of a few settings, each read for ``seconds`` after a warm-up, and how well they mix the rows.

    ``labels`` names the obs columns whose labels are to be mixed; None: all categorical ones. At a URL, also rows per second of
    some numbers of requests at a time, with the recommended one of these settings.
    """
    as_count("batch_size", batch_size)
    if seconds <= 0:
        msg = f"seconds must be > 0, got {seconds}"
        raise ValueError(msg)
    settings = [(chunk, lcm(chunk, 2 * batch_size) // chunk) for chunk in _CHUNK_ROWS]
    is_far = any(storage.is_url(path) for path in paths)
    far = {"storage_options": storage_options, "prefetch": _FAR_PREFETCH} if is_far else {}
    classes, n_obs = _classes(_open(paths, *settings[0], batch_size, far), labels)
    results: list[dict[str, Any]] = []
    for chunk_size, preload_nchunks in tqdm(settings, desc="Measuring", unit="setting", disable=not progress):
        loader = _open(paths, chunk_size, preload_nchunks, batch_size, far)
        rate, _ = _measure(loader, seconds)
        sampler = RandomSampler(chunk_size, preload_nchunks, batch_size, rng=np.random.default_rng(0))
        mixed = _mixed(sampler, classes, n_obs)
        results.append({"chunk_size": chunk_size, "preload_nchunks": preload_nchunks, "rows_per_second": rate, **mixed})
    best = _recommended(results)
    found: dict[str, Any] = {
        "path": " ".join(map(str, paths)),
        "batch_size": batch_size,
        "cpus": storage.available_cpus(),
        "settings": results,
        "recommended": {key: best[key] for key in ("chunk_size", "preload_nchunks")},
    }
    if is_far:
        requests: list[dict[str, Any]] = []
        for n_requests in tqdm(_REQUESTS, desc="Measuring", unit="setting", disable=not progress):
            given = {**far, "max_requests": n_requests}
            loader = _open(paths, best["chunk_size"], best["preload_nchunks"], batch_size, given)
            rate, per_row = _measure(loader, seconds)
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


def _recommended(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the settings that mix well, the most random one that is nearly as fast as the fastest of them."""
    # Single rows mix as well as can be, so there is one; where obs has no labels nothing speaks against a setting.
    mixed = [r for r in results if r["chunk_size"] == 1 or r["entropy"] is None or r["entropy"] >= _WELL_MIXED]
    fastest = max(result["rows_per_second"] for result in mixed)
    return next(result for result in mixed if result["rows_per_second"] >= _GOOD_ENOUGH * fastest)


def _classes(loader: Loader, labels: Sequence[str] | None) -> tuple[dict[str, npt.NDArray[np.integer[Any]]], int]:
    """Return the codes of the columns that are looked at, and the number of rows."""
    obs = loader.obs(list(labels) if labels is not None else None)
    found = {}
    for name in obs.columns:
        column = obs[name]
        if labels is not None:
            column = column.astype("category")
        if column.dtype == "category" and (labels is not None or 1 < len(column.cat.categories) <= _MOST_LABELS):
            found[str(name)] = column.cat.codes.to_numpy()
    return found, len(obs)


def _mixed(sampler: RandomSampler, classes: dict[str, npt.NDArray[np.integer[Any]]], n_obs: int) -> dict[str, Any]:
    """Tell how well a setting mixes: of the column that it mixes worst. Nothing is read: a sampler knows the rows."""
    batches = list(islice(rows_of_batches(sampler.sample(n_obs), n_obs), _BATCHES_LOOKED_AT))
    found: dict[str, Any] = {"label": None, "entropy": None, "gap": shuffle_quality(batches, None, n_obs).gap}
    for name, codes in classes.items():
        share = shuffle_quality(batches, codes, n_obs).entropy
        if share is not None and (found["entropy"] is None or share < found["entropy"]):
            found |= {"label": name, "entropy": share}
    return found


def _open(
    paths: Sequence[Path | str], chunk_size: int, preload_nchunks: int, batch_size: int, given: dict[str, Any]
) -> Loader:
    loader = Loader(
        chunk_size=chunk_size,
        preload_nchunks=preload_nchunks,
        batch_size=batch_size,
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
        **given,
    )
    for path in paths:
        if isinstance(path, str):
            _add_url(loader, path, given.get("storage_options"))
        elif (is_h5ad_folder := is_h5ad_collection(path)) or (
            path.is_dir() and is_marked(storage.open_group(path).attrs)
        ):
            loader.use_collection(DatasetCollection(path, mode="r", is_collection_h5ad=is_h5ad_folder))
        else:
            loader.add_paths([path])
    return loader


def _measure(loader: Loader, seconds: float) -> tuple[float, dict[str, float]]:
    """Return rows per second, and requests and bytes per row of a far store."""
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
    say(f"  {'chunk_size':>10} {'preload_nchunks':>16} {'rows per second':>16} {'entropy':>8} {'distance':>9}")
    for result in found["settings"]:
        mark = "  <- use this" if result["chunk_size"] == found["recommended"]["chunk_size"] else ""
        shares = " ".join(
            f"{'' if result[key] is None else format(result[key], '.2f'):>{width}}"
            for key, width in (("entropy", 8), ("gap", 9))
        )
        say(
            f"  {result['chunk_size']:>10} {result['preload_nchunks']:>16} {result['rows_per_second']:>16,.0f} "
            f"{shares}{mark}"
        )
    labels = sorted({result["label"] for result in found["settings"] if result["label"] is not None})
    if labels:
        say(f"  entropy: of {' or '.join(labels)} in a batch, the worst mixed column; 1.00 is a random draw")
    say("  distance: between neighbouring rows of a batch, in the order of the data; 1.00 is a random draw")
    well = f"with entropy {_WELL_MIXED} or more, " if labels else ""
    say(f"  (the most random setting {well}with at least {_GOOD_ENOUGH:.0%} of the best rate of these)")
    fastest = max(result["rows_per_second"] for result in found["settings"])
    chosen = next(r for r in found["settings"] if r["chunk_size"] == found["recommended"]["chunk_size"])
    if chosen["rows_per_second"] < fastest / 2:
        say(
            "  Faster settings mix too little here: a larger preload_nchunks mixes more, and a collection of these rows"
        )
        say("  (annbatch build) lies shuffled.")
    if "requests" in found:
        say(f"  with that, and prefetch={_FAR_PREFETCH}:")
        say(f"  {'max_requests':>12} {'rows per second':>16} {'requests per million rows':>26} {'bytes a row':>12}")
        for result in found["requests"]:
            mark = "  <- use this" if result["max_requests"] == found["recommended"]["max_requests"] else ""
            say(
                f"  {result['max_requests']:>12} {result['rows_per_second']:>16,.0f} "
                f"{result['requests_per_million_rows']:>26,} {result['bytes_per_row']:>12,}{mark}"
            )
