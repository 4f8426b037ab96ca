"""What a loader reads from: one `Dataset` per AnnData, and the `Table` of all of them."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from annbatch import storage
from annbatch._shared.args import as_numeric, levels_to_user

from .obs_table import ObsTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import anndata as ad

    from .genes import Genes

__all__ = ["Dataset", "Key", "Table", "TableMatrix", "Wanted", "X", "collection_groups"]

Source: TypeAlias = "storage.SparseSource | storage.DenseSource"

# Where a collection records the dtype that its integers had before they were stored compactly.
_SOURCE_DTYPE = "annbatch-source-dtype"


class Key(NamedTuple):
    """Names one matrix of an AnnData: ``("X", "")``, ``("layers", name)`` or ``("obsm", name)``."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}[{self.name!r}]" if self.name else self.kind


X = Key("X")


@dataclass(frozen=True)
class Wanted:
    """What to take out of every AnnData."""

    layers: tuple[str, ...] = ()
    obsm: tuple[str, ...] = ()
    obs_columns: tuple[str, ...] | None = None

    @property
    def keys(self) -> list[Key]:
        """Which matrices."""
        return [X, *(Key("layers", name) for name in self.layers), *(Key("obsm", name) for name in self.obsm)]

    @property
    def needs(self) -> storage.Needs:
        """What is read when an AnnData is opened."""
        paths = [f"{key.kind}/{key.name}" if key.name else key.kind for key in self.keys]
        return storage.Needs({"obs": self.obs_columns, "var": None}, paths)


@dataclass(frozen=True)
class Dataset:
    """One AnnData, checked in itself: its matrices opened but not read.

    Attributes
    ----------
    name
        For error texts.
    kind
        Type of the X that was added.
    sources, dtypes
        Per matrix where its rows are, and the dtype that they are handed out with.
    obs, var
        None when a bare matrix was added.
    """

    name: str
    kind: type
    sources: Mapping[Key, Source]
    dtypes: Mapping[Key, np.dtype[Any]]
    obs: pd.DataFrame | None
    var: pd.DataFrame | None

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return int(self.sources[X].shape[0])

    def close(self) -> None:
        """Close all files; they are opened again when rows are read."""
        for source in self.sources.values():
            source.close()

    @classmethod
    def from_adata(cls, adata: ad.AnnData, wanted: Wanted, name: str) -> Dataset:
        """Take the wanted parts of an in-memory or backed AnnData."""
        if not all(hasattr(adata, part) for part in ("X", "obs", "var", "layers", "obsm")):
            msg = f"{name} must be an AnnData, got {type(adata).__name__}"
            raise TypeError(msg)
        parts = {"X": adata.X, "layers": adata.layers, "obsm": adata.obsm}
        return cls._from_parts(parts, _in_memory(adata.obs), _in_memory(adata.var), wanted, name)

    @classmethod
    def from_group(cls, group: Any, wanted: Wanted, name: str) -> Dataset:
        """Take the wanted parts of an AnnData that lies in a zarr or HDF5 group."""
        missing = [part for part in ("X", "obs", "var") if part not in group]
        if missing:
            msg = f"{name} must be an AnnData with X, obs and var, but it has no {' and no '.join(missing)}"
            raise ValueError(msg)
        columns = None if wanted.obs_columns is None else list(wanted.obs_columns)
        obs, var = storage.read_frame(group["obs"], columns), storage.read_frame(group["var"])
        parts = {kind: group.get(kind, {}) for kind in ("X", "layers", "obsm")}
        return cls._from_parts(parts, obs, var, wanted, name)

    @classmethod
    def from_matrix(cls, matrix: Any, obs: Any, var: Any, wanted: Wanted, name: str) -> Dataset:
        """Take a matrix, with obs and var given beside it."""
        if wanted.layers or wanted.obsm:
            msg = f"{name} is a bare matrix, but the loader was asked for layers or obsm: add an AnnData instead"
            raise ValueError(msg)
        return cls._from_parts({"X": matrix}, obs, var, wanted, name)

    @classmethod
    def _from_parts(cls, parts: Mapping[str, Any], obs: Any, var: Any, wanted: Wanted, name: str) -> Dataset:
        elements = {}
        for key in wanted.keys:
            held = parts[key.kind]
            if key.name and key.name not in held:
                # anndata 0.13 lists X among the layers, under None.
                msg = f"{name} has no {key}; it has {key.kind} {sorted(other for other in held if other is not None)}"
                raise KeyError(msg)
            elements[key] = held[key.name] if key.name else held
        if elements[X] is None:
            msg = f"{name} has no X"
            raise ValueError(msg)
        sources = {key: _opened(element, key, name) for key, element in elements.items()}
        n_obs = sources[X].shape[0]
        for key, source in sources.items():
            if isinstance(source, storage.SparseSource):
                # Read now, not at the first request: forked workers share it then, and damage shows where data is added.
                source.indptr  # noqa: B018
            if len(source.shape) < 2:
                msg = f"{key} of {name} must have at least 2 dimensions, got shape {source.shape}"
                raise ValueError(msg)
            if source.shape[0] != n_obs or (key.kind == "layers" and source.shape[1] != sources[X].shape[1]):
                msg = f"{key} must fit X, got shape {source.shape} beside {sources[X].shape} in {name}"
                raise ValueError(msg)
        return cls(
            name=name,
            kind=_kind(elements[X], sources[X]),
            sources=sources,
            dtypes={key: _handed_out(elements[key], source) for key, source in sources.items()},
            obs=None if obs is None else _checked_obs(obs, n_obs, wanted.obs_columns, name),
            var=None if var is None else _checked_frame("var", var, sources[X].shape[1], name),
        )


@dataclass(frozen=True)
class TableMatrix:
    """One matrix over all datasets."""

    key: Key
    sources: tuple[Source, ...]
    dtype: np.dtype[Any]

    @property
    def is_sparse(self) -> bool:
        """Whether all datasets hold it as CSR; otherwise all hold it dense."""
        return bool(self.sources[0].is_sparse)

    @property
    def has_genes(self) -> bool:
        """Whether axis 1 is the variables, so that joins and subsets apply to it."""
        return self.key.kind != "obsm"

    def added(self, datasets: Sequence[Dataset], *, join: bool) -> TableMatrix:
        """Return the matrix with the rows of more datasets."""
        first = (*self.sources, datasets[0].sources[self.key])[0]
        dtype, first_shape = self.dtype, first.shape
        for dataset in datasets:
            source, its_dtype = dataset.sources[self.key], dataset.dtypes[self.key]
            if source.is_sparse != first.is_sparse:
                kinds = ("sparse" if first.is_sparse else "dense", "sparse" if source.is_sparse else "dense")
                msg = f"{self.key} must be sparse in all datasets or dense in all, got {kinds[0]}, and {kinds[1]} in {dataset.name}"
                raise ValueError(msg)
            first_axis = 2 if join and self.has_genes else 1
            if len(source.shape) != len(first_shape) or source.shape[first_axis:] != first_shape[first_axis:]:
                what = "number of variables" if self.has_genes and len(source.shape) == 2 else "shape of a row"
                msg = (
                    f"{self.key} must have the same {what} in all datasets, got {first_shape[1:]}, "
                    f"and {source.shape[1:]} in {dataset.name}"
                )
                if self.has_genes:
                    msg += ". Pass join='inner' or join='outer' to align datasets by name"
                raise ValueError(msg)
            if its_dtype != dtype:
                promoted = np.result_type(dtype, its_dtype)
                warnings.warn(
                    f"{self.key} has dtype {dtype}, and {its_dtype} in {dataset.name}; batches will have {promoted}",
                    UserWarning,
                    stacklevel=levels_to_user(),
                )
                dtype = promoted
        return TableMatrix(self.key, self.sources + tuple(dataset.sources[self.key] for dataset in datasets), dtype)


@dataclass(frozen=True)
class Table:
    """All datasets of a loader below each other.

    Immutable: :meth:`added` returns another table, so that an addition that fails adds nothing, and a copy of a loader can
    share it.
    """

    genes: Genes
    lengths: tuple[int, ...] = ()
    kind: type | None = None
    matrices: Mapping[Key, TableMatrix] = field(default_factory=dict)
    obs: ObsTable | None = None
    has_var: bool = False

    def added(self, datasets: Sequence[Dataset]) -> Table:
        """Return the table with more datasets, after checking that all fit together."""
        if not datasets:
            return self
        first, names = datasets[0], [dataset.name for dataset in datasets]
        has_obs = self.obs is not None if self.lengths else first.obs is not None
        has_var = self.has_var if self.lengths else first.var is not None
        for dataset in datasets:
            for part, is_there, expected in (("obs", dataset.obs, has_obs), ("var", dataset.var, has_var)):
                if (is_there is not None) != expected:
                    ours, theirs = ("with", "has none") if expected else ("without", "has one")
                    msg = f"either all datasets have {part} or none has: the first was added {ours} {part}, {dataset.name} {theirs}"
                    raise ValueError(msg)
        if not has_var and (self.genes.join is not None or self.genes.wanted is not None):
            msg = f"join and var_names need var, but {first.name} has none"
            raise ValueError(msg)
        join = self.genes.join is not None
        if len(first.sources[X].shape) > 2 and (join or self.genes.wanted is not None):
            msg = f"join and var_names need an X with 2 dimensions, got shape {first.sources[X].shape} in {first.name}"
            raise ValueError(msg)
        matrices = {key: self.matrices.get(key, TableMatrix(key, (), first.dtypes[key])) for key in first.sources}
        genes = self.genes.added([d.var for d in datasets if d.var is not None], names) if has_var else self.genes
        obs = (self.obs or ObsTable()).added([d.obs for d in datasets if d.obs is not None]) if has_obs else None
        return replace(
            self,
            genes=genes,
            lengths=self.lengths + tuple(dataset.n_obs for dataset in datasets),
            kind=self.kind or first.kind,
            matrices={key: matrix.added(datasets, join=join) for key, matrix in matrices.items()},
            obs=obs,
            has_var=has_var,
        )

    @cached_property
    def offsets(self) -> np.ndarray:
        """Global number of the first row of each dataset, and of the row after the last (int64)."""
        return np.cumsum([0, *self.lengths], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data, and from the same in another order, without reading rows."""
        sources = self.matrices[X].sources
        n_values = [int(source.indptr[-1]) if isinstance(source, storage.SparseSource) else 0 for source in sources]
        first_rows = self.offsets[:-1][np.diff(self.offsets) > 0]
        names = [] if self.obs is None else self.obs.take(first_rows).index.astype(str).tolist()
        facts = repr((self.lengths, n_values, names))
        digest = hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()
        return {"n_obs": self.n_obs, "n_datasets": len(self.lengths), "datasets_sha256": digest}

    @property
    def is_far(self) -> bool:
        """Whether rows come through a network."""
        return any(source.is_far for matrix in self.matrices.values() for source in matrix.sources)

    @property
    def n_obs(self) -> int:
        """Number of rows of all datasets."""
        return int(self.offsets[-1])

    @property
    def n_var(self) -> int:
        """Number of variables of a batch."""
        return len(self.genes.names) if self.has_var else int(self.matrices[X].sources[0].shape[1])

    @property
    def var(self) -> pd.DataFrame | None:
        """Annotations of the variables of a batch, sealed; None when the data has none."""
        return self.genes.frame if self.has_var else None

    def locate(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Split global row numbers by dataset: its number, rows within it, and where they stand in `rows`."""
        if len(self.lengths) == 1:
            yield 0, rows, np.arange(len(rows))
            return
        dataset_of_row = np.searchsorted(self.offsets, rows, side="right") - 1
        if len(self.lengths) < 2**15:
            dataset_of_row = dataset_of_row.astype(np.int16)  # sorted four times as fast
        order = np.argsort(dataset_of_row, kind="stable")
        edges = np.searchsorted(dataset_of_row[order], np.arange(len(self.lengths) + 1))
        for dataset in np.flatnonzero(np.diff(edges)).tolist():
            places = order[edges[dataset] : edges[dataset + 1]]
            yield dataset, rows[places] - self.offsets[dataset], places


def collection_groups(collection: Any, far: storage.FarOptions) -> list[Any]:
    """List the AnnData groups of a collection, given as such, as its zarr group, or as a path or URL of it."""
    if isinstance(collection, (str, os.PathLike)):
        collection = storage.open_group(collection, far)
    if hasattr(collection, "attrs") and hasattr(collection, "keys"):
        if hasattr(collection, "store"):
            collection = storage.far_group(collection, far)
        if collection.attrs.get("encoding-type") != "annbatch-preshuffled":
            msg = (
                "collection must be a DatasetCollection, or a zarr group or path that holds one, got a group without "
                "the attribute 'encoding-type': 'annbatch-preshuffled'; use add_paths for a single AnnData"
            )
            raise ValueError(msg)
        numbered = [
            (int(match[1]), match[0])
            for name in storage.find_datasets(collection)
            if (match := re.fullmatch(r"dataset_(\d+)", name))
        ]
        return [collection[name] for _, name in sorted(numbered)]
    return list(collection)


def _in_memory(frame: Any) -> Any:
    # anndata's lazy reader holds obs and var as an xarray Dataset.
    return frame.to_memory() if hasattr(frame, "to_memory") else frame


def _opened(element: Any, key: Key, name: str) -> Source:
    try:
        return storage.open_matrix(element)
    except TypeError as error:
        msg = f"{key} of {name}: {error}"
        raise TypeError(msg) from None


def _kind(element: Any, source: Source) -> type:
    from anndata.abc import CSRDataset

    # A group that holds a matrix says nothing about what it is; anndata's name for that does.
    return CSRDataset if source.is_sparse and hasattr(element, "keys") else type(element)


def _handed_out(element: Any, source: Source) -> np.dtype[Any]:
    holder = getattr(element, "group", element)
    recorded = holder.attrs.get(_SOURCE_DTYPE) if hasattr(holder, "attrs") else None
    if recorded is None:
        return source.dtype
    try:
        return as_numeric(str(recorded))
    except (TypeError, ValueError):
        msg = f"attribute {_SOURCE_DTYPE} of {source.location} must name a number type, got {recorded!r}"
        raise ValueError(msg) from None


def _checked_frame(part: str, frame: Any, length: int, name: str) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        msg = f"{part} must be a pandas DataFrame, got {type(frame).__name__} for {name}"
        raise TypeError(msg)
    if len(frame) != length:
        msg = f"{part} must have {length} rows to fit X, got {len(frame)} for {name}"
        raise ValueError(msg)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        msg = f"{part} must have unique column names, got {twice} more than once in {name}"
        raise ValueError(msg)
    # The caller may add and remove columns of theirs.
    return frame.copy(deep=False)


def _checked_obs(obs: Any, n_obs: int, columns: tuple[str, ...] | None, name: str) -> pd.DataFrame:
    frame = _checked_frame("obs", obs, n_obs, name)
    if columns is None:
        return frame
    unknown = [column for column in columns if column not in frame.columns]
    if unknown:
        msg = f"obs_columns must be columns of obs, got {unknown}, which {name} lacks; it has {list(frame.columns)}"
        raise KeyError(msg)
    return frame[list(columns)]
