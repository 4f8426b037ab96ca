"""Counts in a model's scale: which matrices are scaled, to which total, and where a median of totals is kept."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from annbatch import storage
from annbatch._shared.args import as_bool, as_names
from annbatch._shared.collection_format import dataset_number
from annbatch.storage.reading.median import (
    as_normalize_total,
    check_scaled_dtype,
    median_total,
    totals_with_progress,
)

from .datasets import Key, X

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .datasets import Table, TableMatrix

__all__ = ["BatchScaling", "KeptMedian", "as_scaling"]


@dataclass(frozen=True)
class BatchScaling:
    """What is done to the values of which matrices.

    Immutable: :meth:`added` returns another object.

    Attributes
    ----------
    keys
        The matrices that are scaled; the first one's totals are the library size.
    target_sum
        What the values of a row add up to, before the logarithm. "median": the median of the totals of all rows.
    log1p
        Whether the logarithm is taken.
    library_size
        Whether batches carry the totals.
    """

    keys: tuple[Key, ...] = ()
    target_sum: float | Literal["median"] | None = None
    log1p: bool = False
    library_size: bool = False
    _medians: tuple[float, ...] = ()
    # Per matrix and dataset the totals of its rows, as far as they were added up.
    _totals: tuple[tuple[np.ndarray | None, ...], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        # Added up again should data be added there; nothing that a worker needs.
        return {**self.__dict__, "_totals": ()}

    def __bool__(self) -> bool:
        """Whether values are changed."""
        return self.target_sum is not None or self.log1p

    def scale_of(self, key: Key) -> storage.Scale | None:
        """What is done to the values of a matrix; None: nothing."""
        if not self or key not in self.keys:
            return None
        target_sum = self._medians[self.keys.index(key)] if self.target_sum == "median" else self.target_sum
        return storage.Scale(target_sum=target_sum, log1p=self.log1p)

    def handed_out(self, matrix: TableMatrix, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
        """Dtype of batches of a matrix when the loader was asked for `dtype`."""
        if self and matrix.key in self.keys:
            return np.dtype(np.float32) if dtype is None else dtype
        return matrix.handed_out(dtype)

    def added(self, table: Table, kept: KeptMedian | None, num_threads: int | None) -> BatchScaling:
        """Return what holds for `table`; `kept` is where the medians of its data are kept, if that is known to be all of it."""
        if self.target_sum != "median":
            return self
        medians, totals = [], []
        for number, key in enumerate(self.keys):
            sources = table.matrices[key].sources
            known = list(self._totals[number]) if self._totals else []
            known += [None] * (len(sources) - len(known))
            median = None if kept is None else kept.read(key, sources)
            if median is None:
                todo = [place for place, own in enumerate(known) if own is None]
                found = totals_with_progress([sources[place] for place in todo], num_threads=num_threads)
                for place, own in zip(todo, found, strict=True):
                    known[place] = own
                median = median_total([own for own in known if own is not None])
                if kept is not None:
                    kept.write(key, sources, median)
            medians.append(median)
            totals.append(tuple(known))
        return replace(self, _medians=tuple(medians), _totals=tuple(totals))


def as_scaling(
    normalize_total: Any,
    log1p: Any,
    library_size: Any,
    normalize_layers: Sequence[str] | None,
    keys: Sequence[Key],
    dtype: np.dtype[Any] | None,
) -> BatchScaling:
    """Check the arguments that concern scale; `keys` are the matrices that are read."""
    found = BatchScaling(
        target_sum=as_normalize_total(normalize_total),
        log1p=as_bool("log1p", log1p),
        library_size=as_bool("library_size", library_size),
    )
    if normalize_layers is None:
        chosen: tuple[Key, ...] = (X,)
    else:
        chosen = tuple(Key("layers", name) for name in as_names("normalize_layers", normalize_layers))
        if not chosen or not (found or found.library_size):
            msg = f"normalize_layers must name layers that normalize_total, log1p or library_size is about, got {normalize_layers!r}"
            raise ValueError(msg)
    if not (found or found.library_size):
        return found
    unread = [key for key in chosen if key not in keys]
    if unread:
        msg = (
            f"normalize_layers must name layers that are read, got {', '.join(map(str, unread))}: add them to layers"
            if normalize_layers is not None
            else "normalize_total, log1p and library_size are about X, which x=False does not read: pass normalize_layers"
        )
        raise ValueError(msg)
    if found:
        check_scaled_dtype(dtype)
    return replace(found, keys=chosen)


@dataclass(frozen=True)
class KeptMedian:
    """A file beside a collection on this machine that remembers medians of totals.

    It is told by the datasets that were there: one more, or one that was written anew, and it no longer holds.

    Attributes
    ----------
    folder
        The collection.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder.with_name(f"{self.folder.name}.totals.json")

    @classmethod
    def beside(cls, groups: Sequence[Any]) -> KeptMedian | None:
        """Where the medians of the datasets of a collection are kept; None: nowhere, for they are not in one folder here."""
        folders = {_folder_of(group) for group in groups}
        folder = folders.pop() if len(folders) == 1 else None
        # Inside another store there is no place beside it that readers of that store would not stumble over.
        return None if folder is None or (folder.parent / "zarr.json").exists() else cls(folder)

    def read(self, key: Key, sources: Sequence[Any]) -> float | None:
        """Return the median that is kept for these matrices, or None."""
        try:
            entry = json.loads(self.path.read_text())[str(key)]
            median = float(entry["median"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return median if entry.get("datasets") == _identity(sources, self.folder) and 0 < median < np.inf else None

    def write(self, key: Key, sources: Sequence[Any], median: float) -> None:
        """Keep a median; where that is not possible it is computed again next time."""
        datasets = _identity(sources, self.folder)
        if datasets is None:
            return
        try:
            entries = json.loads(self.path.read_text())
        except (OSError, ValueError):
            entries = {}
        entries = entries if isinstance(entries, dict) else {}
        entries[str(key)] = {"median": median, "datasets": datasets}
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".annbatch-", delete=False) as file:
                json.dump(entries, file)
            Path(file.name).replace(self.path)
        except OSError:
            return


def _folder_of(group: Any) -> Path | None:
    """Folder of the collection that a dataset's group lies in."""
    if hasattr(group, "file"):
        place: Path | None = Path(group.file.filename).absolute()
    else:
        root = getattr(getattr(group, "store", None), "root", None)
        place = (root / group.path.strip("/")).absolute() if isinstance(root, Path) else None
    is_dataset = place is not None and dataset_number(place.name, place.suffix) is not None
    return place.parent if place is not None and is_dataset else None


def _newest(file: Path) -> int:
    """Return when the file, or any file below the folder of a Zarr document, was changed last, in ns."""
    if file.name != "zarr.json":
        return file.stat().st_mtime_ns
    return max(path.stat().st_mtime_ns for path in file.parent.rglob("*"))


def _identity(sources: Sequence[Any], folder: Path) -> list[Any] | None:
    """What tells these matrices from others, and from what they were before they were written anew."""
    facts: list[Any] = []
    for source in sources:
        where, _, inside = source.location.partition(" :: ")
        file = Path(where) if Path(where).is_file() else Path(where) / inside.strip("/") / "zarr.json"
        try:
            status, newest = file.stat(), _newest(file)
            name = str(file.absolute().relative_to(folder))
        except (OSError, ValueError):
            return None
        n_values = source.row_pointers.n_values if source.is_sparse else -1
        facts.append([name, list(source.shape), n_values, status.st_size, newest])
    return facts
