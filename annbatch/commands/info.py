"""What ``annbatch info`` shows of a collection or an AnnData file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch import storage
from annbatch._shared.collection_format import SOURCE_DTYPE, is_h5ad_collection, is_marked, sorted_datasets
from annbatch.collection import DatasetCollection
from annbatch.collection.building.journal import unfinished_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_MOST_CLASSES_SHOWN = 25


def describe(
    path: Path | str, labels: Sequence[str] | None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Look at a collection, an h5ad file or an AnnData in Zarr; no matrix is read.

    ``labels``: the columns of obs whose runs are counted; None: every categorical column but src_path.
    ``storage_options``: for a URL.
    """
    if storage.is_url(path):
        return _describe_url(str(path), labels, storage.FarOptions(storage_options))
    path = Path(path)
    if not path.exists():
        msg = f"{path} does not exist"
        raise FileNotFoundError(msg)
    unfinished = unfinished_call(path) if path.is_dir() else None
    # Of a first build, there may be nothing yet but its work.
    nothing = unfinished is not None and DatasetCollection(path, mode="r").is_empty
    kind, names, groups = ("collection", [], []) if nothing else _groups(path)
    common = {"path": str(path), "kind": kind, "unfinished": unfinished}
    if not groups:
        return {**common, "datasets": [], "n_obs": 0, "n_var": 0, "bytes_on_disk": _size(path)}
    return _described(common, names, groups, labels, _size(path))


def _describe_url(url: str, labels: Sequence[str] | None, far: storage.FarOptions) -> dict[str, Any]:
    group = storage.open_group(url, far)
    if is_marked(group.attrs):
        kind, names = "collection", sorted_datasets(storage.find_datasets(group))
        groups = [group[name] for name in names]
    else:
        kind, names, groups = "AnnData", [url.rstrip("/").rpartition("/")[2]], [group]
        if "obs" not in group:
            msg = f"{url} is neither a collection nor an AnnData file: it has no obs"
            raise ValueError(msg)
    with storage.fetched_ahead(groups, storage.Needs({"obs": None, "var": None}, ["X"])):
        return _described({"path": url, "kind": kind, "unfinished": None}, names, groups, labels, None)


def _described(
    common: dict[str, Any], names: list[str], groups: list[Any], labels: Sequence[str] | None, size: int | None
) -> dict[str, Any]:
    frames = [storage.read_frame(group["obs"]) for group in groups]
    datasets = [
        {"name": name, "n_obs": len(frame), "matrices": dict(_matrices(group, len(frame)))}
        for name, group, frame in zip(names, groups, frames, strict=True)
    ]
    # A dataset may lack a column that another one has: its rows have no label then.
    dtypes: dict[str, Any] = {}
    for frame in frames:
        for name in frame:
            dtypes.setdefault(str(name), frame[name].dtype)
    if labels is None:
        categorical = [name for name, dtype in dtypes.items() if isinstance(dtype, pd.CategoricalDtype)]
        labels = [name for name in categorical if name != "src_path"]
    unknown = [name for name in labels if name not in dtypes]
    if unknown:
        msg = f"obs has no column {unknown[0]!r}; it has {', '.join(dtypes)}"
        raise KeyError(msg)
    return {
        **common,
        "n_obs": sum(map(len, frames)),
        "n_var": len(storage.read_frame(groups[0]["var"])),
        "bytes_on_disk": size,
        "datasets": datasets,
        "obs": {name: str(dtype) for name, dtype in dtypes.items()},
        "labels": {name: _runs([frame.reindex(columns=[name])[name] for frame in frames]) for name in labels},
    }


def _groups(path: Path) -> tuple[str, list[str], list[Any]]:
    h5ad = is_h5ad_collection(path)
    if h5ad or is_marked(storage.open_group(path).attrs):
        collection = DatasetCollection(path, mode="r", is_collection_h5ad=h5ad)
        return "collection of h5ad files" if h5ad else "collection", collection.names, list(collection)
    group = storage.open_group(path)
    if "obs" not in group:
        msg = f"{path} is neither a collection nor an AnnData file: it has no obs"
        raise ValueError(msg)
    return "AnnData", [path.name], [group]


def _matrices(group: Any, n_obs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    places = {"X": group["X"]} if "X" in group else {}
    for kind in ("layers", "obsm"):
        if kind in group:
            places |= {f"{kind}/{name}": group[kind][name] for name in group[kind]}
    for name, elem in places.items():
        attributes = dict(elem.attrs)
        sparse = hasattr(elem, "keys") and "indptr" in elem
        if not sparse and not hasattr(elem, "shape"):
            continue
        values = elem["data"] if sparse else elem
        chunks = getattr(values, "chunks", None)
        per_row = values.shape[0] / max(n_obs, 1) if sparse else 1.0
        found: dict[str, Any] = {
            "encoding": str(attributes.get("encoding-type", "array")),
            "dtype": str(values.dtype),
            "source_dtype": str(attributes.get(SOURCE_DTYPE, values.dtype.str)),
            "rows_per_chunk": round(chunks[0] / per_row, 1) if chunks and per_row else None,
        }
        stored = (
            [storage.storage_of(elem[part]) for part in ("data", "indices")] if sparse else [storage.storage_of(elem)]
        )
        found["library"] = "h5py" if type(values).__module__.startswith("h5py") else "zarr-python"
        found["codecs"] = list(stored[0].codecs)
        # An array without values is not read at all.
        found["not_direct"] = next((part.obstacle for part in stored if part.obstacle), None) if values.size else None
        if found["encoding"].startswith("csc"):
            found["not_direct"] = "it is stored by columns (CSC): no loader reads it"
        if sparse:
            found |= {
                "indices_codecs": list(stored[1].codecs),
                "indices_dtype": str(elem["indices"].dtype),
                "values": int(values.shape[0]),
                "values_per_row": round(per_row, 1),
            }
        shards = getattr(values, "shards", None)
        if shards:
            # A shard is made of whole chunks, so the last one may reach beyond the last row.
            found["rows_per_shard"] = min(round(shards[0] / per_row, 1), n_obs) if per_row else None
        yield name, found


def _runs(columns: Sequence[pd.Series[Any]]) -> dict[str, Any]:
    """Per class: rows, runs, the shortest and the longest run. A run goes on over the edge between two datasets."""
    classes = pd.Categorical(pd.concat([column.astype(object) for column in columns], ignore_index=True))
    codes = classes.codes.astype(np.int64)
    starts = np.flatnonzero(np.diff(codes, prepend=-2))
    lengths = np.diff(starts, append=len(codes))
    of = codes[starts]
    rows = [
        {
            "class": str(name),
            "rows": int(lengths[of == i].sum()),
            "runs": int((of == i).sum()),
            "shortest_run": int(lengths[of == i].min()),
            "longest_run": int(lengths[of == i].max()),
        }
        for i, name in enumerate(classes.categories)
    ]
    return {
        "classes": rows,
        "rows_without_label": int((codes < 0).sum()),
        "largest_chunk_size": int(lengths[of >= 0].min()) if (of >= 0).any() else 0,
    }


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _way(matrix: Mapping[str, Any]) -> str:
    """Say how values are encoded and who reads them."""
    values = ", ".join(matrix["codecs"]) or "not compressed"
    indices = ", ".join(matrix.get("indices_codecs", matrix["codecs"])) or "not compressed"
    encoded = values if indices == values else f"values {values}; indices {indices}"
    if matrix["not_direct"] is None:
        return f"{encoded}: read directly"
    if matrix["encoding"].startswith("csc"):
        return f"{encoded}: {matrix['not_direct']}"
    return f"{encoded}: read through {matrix['library']}, which is slower: {matrix['not_direct']}"


def show(found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print it for a person."""
    say(f"{found['path']}: {found['kind']}")
    if found["unfinished"] == "was interrupted":
        say(
            "  a build was interrupted: the same `annbatch build` (or add_adatas) continues it, any other one to this place removes "
            "what it left; until then the collection is as it was before"
        )
    elif found["unfinished"]:
        say("  a build is going on; until it is done, the collection is as it was before")
    # What all objects of a store together take, few stores tell.
    size = "" if found["bytes_on_disk"] is None else f", {found['bytes_on_disk'] / 1e6:,.1f} MB on disk"
    say(f"  {found['n_obs']:,} rows x {found['n_var']:,} genes{size}")
    for dataset in found["datasets"]:
        say(f"  {dataset['name']}: {dataset['n_obs']:,} rows")
        for name, matrix in dataset["matrices"].items():
            details = [matrix["dtype"]]
            if np.dtype(matrix["source_dtype"]) != np.dtype(matrix["dtype"]):
                details.append(f"given back as {np.dtype(matrix['source_dtype'])}")
            if "values_per_row" in matrix:
                details += [f"indices {matrix['indices_dtype']}", f"{matrix['values_per_row']:,} values a row"]
            for key, what in (("rows_per_chunk", "chunk"), ("rows_per_shard", "shard")):
                if matrix.get(key):
                    details.append(f"{matrix[key]:,.1f}".removesuffix(".0") + f" rows a {what}")
            say(f"    {name}: {matrix['encoding']}, {', '.join(details)}")
            say(f"      {_way(matrix)}")
    if not found["datasets"]:
        return
    say("  obs: " + ", ".join(f"{name} ({dtype})" for name, dtype in found["obs"].items()))
    for label, runs in found["labels"].items():
        classes = runs["classes"]
        say(f"  {label}: {len(classes)} classes; ClassSampler can use chunk_size up to {runs['largest_chunk_size']:,}")
        width = max((len(row["class"]) for row in classes), default=5)
        say(f"    {'class':{width}} {'rows':>12} {'runs':>9} {'shortest':>9} {'longest':>9}")
        shown = sorted(classes, key=lambda row: row["shortest_run"])[:_MOST_CLASSES_SHOWN]
        for row in shown:
            numbers = f"{row['rows']:>12,} {row['runs']:>9,} {row['shortest_run']:>9,} {row['longest_run']:>9,}"
            say(f"    {row['class']:{width}} {numbers}")
        if len(classes) > len(shown):
            say(f"    ... and {len(classes) - len(shown)} classes with longer runs")
        if runs["rows_without_label"]:
            say(f"    {runs['rows_without_label']:,} rows have no label: ClassSampler needs one for every row")
