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

# From a perfect shuffle to nearly sequential reading, in short and in long load requests: the rate depends on their rows more
# than on those of a batch. Whole batches fit in, of whole chunks, of which there are enough to be mixed.
_CHUNK_ROWS = (1, 8, 32, 128, 512)
_REQUEST_ROWS = (1024, 8192)
_FEWEST_CHUNKS = 4
# Not tried: longer ones, where chunks and batches hardly fit each other, and those whose values would take more memory.
_MOST_ROWS = 4 * _REQUEST_ROWS[-1]
_MOST_BYTES = 2**30
# Recommended: of the settings that mix as well as this, the most random one that reaches this share of their best rate.
_WELL_MIXED = 0.95
_GOOD_ENOUGH = 0.8
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
    settings = _settings(batch_size)
    is_far = any(storage.is_url(path) for path in paths)
    far = {"storage_options": storage_options, "prefetch": _FAR_PREFETCH} if is_far else {}
    classes, n_obs = _classes(_open(paths, *settings[0], batch_size, far), labels)
    results: list[dict[str, Any]] = []
    bytes_per_row = 0.0
    for chunk_size, preload_nchunks in tqdm(settings, desc="Measuring", unit="setting", disable=not progress):
        if chunk_size * preload_nchunks * bytes_per_row > _MOST_BYTES:
            continue
        loader = _open(paths, chunk_size, preload_nchunks, batch_size, far)
        rate, per_row = _measure(loader, seconds)
        bytes_per_row = per_row["values"]
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
        found |= {"requests": _requests_tried(paths, best, batch_size, far, seconds, progress=progress)}
        found["recommended"] |= {"max_requests": _enough_requests(found["requests"]), "prefetch": _FAR_PREFETCH}
    return found


def _requests_tried(
    paths: Sequence[Path | str],
    setting: Mapping[str, Any],
    batch_size: int,
    far: Mapping[str, Any],
    seconds: float,
    *,
    progress: bool,
) -> list[dict[str, Any]]:
    """Read with one setting and different numbers of requests at a time: rows per second, and what was asked for."""
    tried = []
    for n_requests in tqdm(_REQUESTS, desc="Measuring", unit="setting", disable=not progress):
        given = {**far, "max_requests": n_requests}
        loader = _open(paths, setting["chunk_size"], setting["preload_nchunks"], batch_size, given)
        rate, per_row = _measure(loader, seconds)
        tried.append(
            {
                "max_requests": n_requests,
                "rows_per_second": rate,
                "requests_per_million_rows": round(1e6 * per_row["requests"]),
                "bytes_per_row": round(per_row["bytes"]),
            }
        )
    return tried


def _enough_requests(tried: list[dict[str, Any]]) -> int:
    """Return the fewest that are nearly as fast as the fastest: others want to ask the store for something, too."""
    quickest = max(result["rows_per_second"] for result in tried)
    return next(int(r["max_requests"]) for r in tried if r["rows_per_second"] >= _ENOUGH_REQUESTS * quickest)


def _settings(batch_size: int) -> list[tuple[int, int]]:
    """Return what is tried, a chunk_size and a preload_nchunks each, by length of the chunks and then of the load request."""
    settings: dict[tuple[int, int], None] = {}
    for chunk_size in _CHUNK_ROWS:
        whole = lcm(chunk_size, batch_size)
        rows = [-(-wanted // whole) * whole for wanted in _REQUEST_ROWS]
        for n in rows:
            has_enough = n // chunk_size >= _FEWEST_CHUNKS or n == rows[-1]
            if chunk_size == 1 or (has_enough and n <= max(_MOST_ROWS, 2 * batch_size)):
                settings[chunk_size, n // chunk_size] = None
    return list(settings)


def _recommended(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the settings that mix well, the most random one that is nearly as fast as the fastest of them."""
    # Single rows mix as well as can be, so there is one; where obs has no labels nothing speaks against a setting.
    mixed = [r for r in results if r["chunk_size"] == 1 or r["entropy"] is None or r["entropy"] >= _WELL_MIXED]
    fastest = max(result["rows_per_second"] for result in mixed)
    quick = [result for result in mixed if result["rows_per_second"] >= _GOOD_ENOUGH * fastest]
    shortest = min(result["chunk_size"] for result in quick)
    # Of load requests of the same chunks the quickest: all of them mix well, and a short one takes less memory.
    return max((r for r in quick if r["chunk_size"] == shortest), key=lambda result: float(result["rows_per_second"]))


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
    """Return rows per second, and per row: requests and bytes of a far store, bytes of the values of a batch."""
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
                per_row["values"] = _bytes_of(batch["X"]) / batch["X"].shape[0]
                return n_rows / (now - began), per_row


def _bytes_of(X: Any) -> int:
    return sum(part.nbytes for part in ((X.data, X.indices, X.indptr) if hasattr(X, "indptr") else (X,)))


def _add_url(loader: Loader, url: str, storage_options: Mapping[str, Any] | None) -> None:
    group = storage.open_group(url, storage.FarOptions(storage_options))
    is_collection = is_marked(group.attrs)
    if hasattr(group, "close"):
        group.close()
    if is_collection:
        loader.use_collection(url)
    else:
        loader.add_paths([url])


def _is_recommended(result: dict[str, Any], found: dict[str, Any]) -> bool:
    return all(result[key] == found["recommended"][key] for key in ("chunk_size", "preload_nchunks"))


def show(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print it for a person."""
    say(f"{found['path']}: batches of {found['batch_size']} rows, {found['cpus']} CPUs")
    say(f"  {'chunk_size':>10} {'preload_nchunks':>16} {'rows per second':>16} {'entropy':>8} {'distance':>9}")
    for result in found["settings"]:
        mark = "  <- use this" if _is_recommended(result, found) else ""
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
    chosen = next(r for r in found["settings"] if _is_recommended(r, found))
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
