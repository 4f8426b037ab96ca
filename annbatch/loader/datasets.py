"""What a loader reads from: one `Dataset` per AnnData, and the `Table` of all of them."""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from annbatch import storage
from annbatch._shared.args import as_numeric, levels_to_user
from annbatch._shared.collection_format import MARKER, SOURCE_DTYPE, is_marked
from annbatch._shared.labels import encode_together
from annbatch._shared.row_filter import Found, filtered
from annbatch.storage.columns import CompactFrame
from annbatch.storage.frames import FrameReader

from .annotations import Covariates, LabelsOfDataset, LabelTables, covariates_of, labels_of
from .obs_table import ObsTable, stacked_obs
from .views import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import anndata as ad

    from .genes import Genes

__all__ = ["RAW", "Dataset", "Key", "ObsHome", "Table", "TableMatrix", "Wanted", "X", "collection_groups"]

Source: TypeAlias = "storage.SparseSource | storage.DenseSource"


class Key(NamedTuple):
    """Names one matrix of an AnnData: ``("X", "")``, ``("layers", name)`` or ``("obsm", name)``.

    ``("layers", "raw.X")`` is ``.raw.X``, which has genes of its own.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}[{self.name!r}]" if self.name else self.kind

    @property
    def has_genes(self) -> bool:
        """Whether axis 1 is the variables, so that joins and subsets apply to it."""
        return self.kind != "obsm" and self != RAW

    @property
    def has_counts(self) -> bool:
        """Whether it is X or a layer: what `dtype` is meant for."""
        return self.kind != "obsm"


X = Key("X")
RAW = Key("layers", "raw.X")


@dataclass(frozen=True)
class Wanted:
    """What to take out of every AnnData.

    Attributes
    ----------
    x
        Whether X is.
    layers, obsm
        Names.
    obs_columns
        Names; None: all; (): no obs at all.
    obs_index
        Whether the names of rows come out with obs.
    labels, covariates
        Names of obs columns.
    may_lack
        Whether a dataset may lack a label or covariate column: its rows are missing then.
    """

    x: bool = True
    layers: tuple[str, ...] = ()
    obsm: tuple[str, ...] = ()
    obs_columns: tuple[str, ...] | None = None
    obs_index: bool = True
    labels: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    may_lack: bool = False
    obs_filter: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """Which matrices."""
        layers, obsm = (
            [Key(kind, name) for name in names] for kind, names in (("layers", self.layers), ("obsm", self.obsm))
        )
        return [*([X] if self.x else []), *layers, *obsm]

    @property
    def needs(self) -> storage.Needs:
        """What is read when an AnnData is opened."""
        paths = ["raw/X" if key == RAW else f"{key.kind}/{key.name}" if key.name else key.kind for key in self.keys]
        more = [*self.labels, *self.covariates]
        columns = None if self.obs_columns is None else [*self.obs_columns, *more]
        frames = {"obs": columns, "var": None, **({"raw/var": []} if RAW in self.keys else {})}
        return storage.Needs(frames, paths, without_index=() if self.reads_names else ("obs",))

    @property
    def reads_names(self) -> bool:
        """Whether the names of rows are kept."""
        return self.obs_index and self.obs_columns != ()


@dataclass(frozen=True)
class ObsHome:
    """Where more columns of a dataset's obs are, should they be asked for later.

    Attributes
    ----------
    place
        A DataFrame, a zarr group, or (where the HDF5 file is, name of the group in it).
    """

    place: Any

    @classmethod
    def of_group(cls, group: Any) -> ObsHome:
        """Remember the obs of a group, which may be closed afterwards."""
        return cls((storage.home_of(group.file), group.name) if hasattr(group, "file") else group)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        with self._opened() as obs:
            return list(obs.columns)

    def labels(self, name: str) -> LabelsOfDataset | None:
        """Read a column as labels; None when there is no such column."""
        with self._opened() as obs:
            return labels_of(obs, name) if name in obs.columns else None

    def frame(self, columns: list[str], *, names: bool) -> CompactFrame:
        """Read columns, those that are there, and the names of rows."""
        with self._opened() as obs:
            return _compact(obs, [name for name in columns if name in obs.columns], names=names)

    @contextmanager
    def _opened(self) -> Iterator[pd.DataFrame | FrameReader]:
        if isinstance(self.place, pd.DataFrame):
            yield self.place
        else:
            with self.group() as group:
                yield FrameReader(group["obs"])

    @property
    def is_stored(self) -> bool:
        """Whether the whole AnnData can be opened again."""
        return not isinstance(self.place, pd.DataFrame)

    @contextmanager
    def group(self) -> Iterator[Any]:
        """Open the group of a stored AnnData again."""
        if isinstance(self.place, tuple):
            path, name = self.place
            file: Any = storage.open_group(path)
            with file:
                yield file[name]
        else:
            yield self.place


@dataclass(frozen=True)
class Dataset:
    """One AnnData, checked in itself: its matrices opened but not read.

    Attributes
    ----------
    name
        For error texts.
    kind
        Type of the first matrix that was added.
    sources, dtypes
        Per matrix where its rows are, and the dtype that they are handed out with.
    obs, var
        None when a bare matrix was added, and obs also when none of it comes out.
    obs_home
        Where the rest of obs is; None: there is no obs.
    labels, covariates
        The columns that come out as numbers; labels are None where the dataset lacks the column.
    first_name
        Name of the first row; None when there are no names or no rows.
    raw_names
        Names of the genes of ``.raw``, when that comes out.
    passing
        Rows that the filter lets pass.
    filtered_by
        Per column of the filter which of its values there are; without columns that the dataset lacks.
    """

    name: str
    kind: type
    sources: Mapping[Key, Source]
    dtypes: Mapping[Key, np.dtype[Any]]
    obs: CompactFrame | None
    var: pd.DataFrame | None
    passing: View
    filtered_by: Mapping[str, Found] = field(default_factory=dict)
    obs_home: ObsHome | None = None
    labels: Mapping[str, LabelsOfDataset | None] = field(default_factory=dict)
    covariates: np.ndarray | None = None
    first_name: str | None = None
    raw_names: pd.Index | None = None

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return int(next(iter(self.sources.values())).shape[0])

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
        raw = getattr(adata, "raw", None)
        obs = _in_memory(adata.obs)
        return cls._from_parts(
            lambda kind: getattr(adata, kind),
            None if raw is None else lambda: (raw.X, raw.var_names),
            obs=obs,
            home=ObsHome(obs) if isinstance(obs, pd.DataFrame) else None,
            var=_in_memory(adata.var),
            wanted=wanted,
            name=name,
        )

    @classmethod
    def from_group(cls, group: Any, wanted: Wanted, name: str) -> Dataset:
        """Take the wanted parts of an AnnData that lies in a zarr or HDF5 group."""
        with storage.damage_named(name):
            missing = [part for part in (*(["X"] if wanted.x else []), "obs", "var") if part not in group]
        if missing:
            msg = f"{name} must be an AnnData with X, obs and var, but it has no {' and no '.join(missing)}"
            if is_marked(group.attrs):
                msg += ": it is a collection, pass it to use_collection"
            raise ValueError(msg)
        # The second is how AnnData wrote it before 0.7.
        with storage.damage_named(name):
            raw = next((where for where in ("raw/", "raw.") if f"{where}X" in group), None)
            tables = {part: group[part] for part in ("obs", "var")}

        def element(kind: str) -> Any:
            with storage.damage_named(f"{kind} of {name}"):
                return group.get(kind, {})

        return cls._from_parts(
            element,
            None if raw is None else lambda: (group[f"{raw}X"], FrameReader(group[f"{raw}var"]).index()),
            obs=FrameReader(tables["obs"]),
            home=ObsHome.of_group(group),
            var=storage.read_frame(tables["var"]),
            wanted=wanted,
            name=name,
        )

    @classmethod
    def from_matrix(cls, matrix: Any, obs: Any, var: Any, wanted: Wanted, name: str) -> Dataset:
        """Take a matrix, with obs and var given beside it."""
        if wanted.layers or wanted.obsm or not wanted.x:
            what = "layers or obsm" if wanted.x else "no X"
            msg = f"{name} is a bare matrix, but the loader was asked for {what}: add an AnnData instead"
            raise ValueError(msg)
        home = ObsHome(obs) if isinstance(obs, pd.DataFrame) else None
        return cls._from_parts(lambda _: matrix, None, obs=obs, home=home, var=var, wanted=wanted, name=name)

    @classmethod
    def _from_parts(
        cls,
        part: Callable[[str], Any],
        raw: Callable[[], tuple[Any, pd.Index]] | None,
        *,
        obs: Any,
        home: ObsHome | None,
        var: Any,
        wanted: Wanted,
        name: str,
    ) -> Dataset:
        elements, raw_names = {}, None
        for key in wanted.keys:
            if key == RAW:
                if raw is None:
                    msg = f"{name} has no raw.X"
                    raise KeyError(msg)
                elements[key], raw_names = raw()
                continue
            held = part(key.kind)
            is_there = True
            with storage.damage_named(f"{key} of {name}"):
                if not key.name:
                    elements[key] = held
                elif is_there := key.name in held:
                    elements[key] = held[key.name]
            if not is_there:
                # anndata 0.13 lists X among the layers, under None.
                msg = f"{name} has no {key}; it has {key.kind} {sorted(other for other in held if other is not None)}"
                raise KeyError(msg)
        if X in elements and elements[X] is None:
            msg = f"{name} has no X; pass x=False to read layers or obsm without it"
            raise ValueError(msg)
        sources = {key: _opened(element, key, name) for key, element in elements.items()}
        first = wanted.keys[0]
        n_obs = sources[first].shape[0]
        with_genes = [source.shape[1] for key, source in sources.items() if key.has_genes and len(source.shape) > 1]
        n_var = with_genes[0] if with_genes else None
        for key, source in sources.items():
            if isinstance(source, storage.SparseSource):
                # Read now, not at the first request: forked workers share it then, and damage shows where data is added.
                source.row_pointers  # noqa: B018
            if len(source.shape) < 2:
                msg = f"{key} of {name} must have at least 2 dimensions, got shape {source.shape}"
                raise ValueError(msg)
            if source.shape[0] != n_obs or (key.has_genes and source.shape[1] != n_var):
                msg = f"{key} must fit {first}, got shape {source.shape} beside {sources[first].shape} in {name}"
                raise ValueError(msg)
        return cls(
            name=name,
            kind=_kind(elements[first], sources[first]),
            sources=sources,
            dtypes={key: _handed_out(elements[key], source) for key, source in sources.items()},
            var=None if var is None else _checked_frame("var", var, n_var, name),
            obs_home=home,
            raw_names=raw_names,
            **_annotations(obs, n_obs, wanted, name),
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
        return self.key.has_genes

    def handed_out(self, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
        """Dtype of batches when the loader was asked for `dtype`."""
        return self.dtype if dtype is None or not self.key.has_counts else dtype

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
    labels: LabelTables | None = None
    covariates: Covariates | None = None
    obs_homes: tuple[ObsHome | None, ...] = ()
    first_names: tuple[str, ...] = ()
    raw_names: pd.Index | None = None
    passing_parts: tuple[View, ...] = ()
    filtered_by: tuple[Mapping[str, Found], ...] = ()
    names: tuple[str, ...] = ()
    wanted: Wanted = field(default_factory=Wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave what there is per row in files that all processes of the machine map; see storage/shared_arrays.py."""
        names = {each.name for each in fields(self)}
        state = {name: value for name, value in self.__dict__.items() if name in names}
        is_stored = bool(self.lengths) and all(home is not None and home.is_stored for home in self.obs_homes)
        homes = state.pop("obs_homes")
        remake = partial(_opened_again, self._emptied(), homes, self.fingerprint) if is_stored else None
        return storage.reduced(partial(_table_of, homes), state, remake)

    def _emptied(self) -> Table:
        """Return the table before anything was added."""
        return Table(
            genes=self.genes.emptied(),
            labels=None if self.labels is None else LabelTables(self.labels.wanted),
            covariates=None if self.covariates is None else Covariates(self.covariates.names),
            wanted=self.wanted,
        )

    def shared(self) -> Table:
        """Return the table with what there is per row in memory that all processes of the machine share."""
        return replace(
            self,
            obs=None if self.obs is None else self.obs.shared(),
            labels=None if self.labels is None else self.labels.shared(),
            covariates=None if self.covariates is None else self.covariates.shared(),
        )

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
        for key, source in first.sources.items():
            if key.has_genes and len(source.shape) > 2 and (join or self.genes.wanted is not None):
                msg = f"join and var_names need an {key} with 2 dimensions, got shape {source.shape} in {first.name}"
                raise ValueError(msg)
        raw_names = self.raw_names if self.raw_names is not None else first.raw_names
        for dataset in datasets:
            if raw_names is not None and dataset.raw_names is not None and not raw_names.equals(dataset.raw_names):
                msg = f"raw.X is not aligned by name, so all datasets must have the same genes in raw.var; {dataset.name} has others"
                raise ValueError(msg)
        matrices = {key: self.matrices.get(key, TableMatrix(key, (), first.dtypes[key])) for key in first.sources}
        genes = self.genes.added([d.var for d in datasets if d.var is not None], names) if has_var else self.genes
        obs = (self.obs or ObsTable()).added([d.obs for d in datasets if d.obs is not None]) if has_obs else None
        lengths = tuple(dataset.n_obs for dataset in datasets)
        labels, covariates = self.labels, self.covariates
        if labels is not None:
            labels = labels.added([dataset.labels for dataset in datasets], lengths, names)
        if covariates is not None:
            covariates = covariates.added(
                [dataset.covariates for dataset in datasets if dataset.covariates is not None]
            )
        return replace(
            self,
            genes=genes,
            lengths=self.lengths + lengths,
            kind=self.kind or first.kind,
            matrices={key: matrix.added(datasets, join=join) for key, matrix in matrices.items()},
            obs=obs,
            has_var=has_var,
            labels=labels,
            covariates=covariates,
            obs_homes=self.obs_homes + tuple(dataset.obs_home for dataset in datasets),
            first_names=self.first_names + tuple(d.first_name for d in datasets if d.first_name is not None),
            raw_names=raw_names,
            passing_parts=self.passing_parts + tuple(dataset.passing for dataset in datasets),
            filtered_by=self.filtered_by + tuple(dataset.filtered_by for dataset in datasets if dataset.filtered_by),
            names=self.names + tuple(names),
        )

    @cached_property
    def offsets(self) -> np.ndarray:
        """Global number of the first row of each dataset, and of the row after the last (int64)."""
        return np.cumsum([0, *self.lengths], dtype=np.int64)

    @cached_property
    def passing(self) -> View:
        """Rows that the filter lets pass."""
        return View.joined(self.passing_parts)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data, and from the same in another order, without reading rows."""
        sources = self.first_matrix.sources
        n_values = [
            source.row_pointers.n_values if isinstance(source, storage.SparseSource) else 0 for source in sources
        ]
        names = list(self.first_names)
        facts = repr((self.lengths, n_values, names))
        digest = hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()
        return {"n_obs": self.n_obs, "n_datasets": len(self.lengths), "datasets_sha256": digest}

    @property
    def is_far(self) -> bool:
        """Whether rows come through a network."""
        return any(source.is_far for matrix in self.matrices.values() for source in matrix.sources)

    @property
    def first_matrix(self) -> TableMatrix:
        """X, or what comes first where X is not read."""
        return next(iter(self.matrices.values()))

    def obs_frame(self, columns: Sequence[str] | None, view: View, *, names: bool) -> pd.DataFrame:
        """Return obs of the rows of a view, by their names if these are wanted; what is not kept in memory is read again.

        Raises
        ------
        ValueError
            When the data has no obs.
        KeyError
            When a column is in no dataset.
        """
        rows = None if view.is_all else view.take(np.arange(view.n_obs))
        if self.obs is not None and all(name in self.obs.columns for name in columns or ()):
            return self.obs.frame(columns, rows)
        homes = [home for home in self.obs_homes if home is not None]
        if not homes:
            msg = "the data has no obs: bare matrices were added without"
            raise ValueError(msg)
        if columns is None:
            columns = list(dict.fromkeys(name for home in homes for name in home.columns))
        frame = stacked_obs([home.frame(list(columns), names=names) for home in homes])
        unknown = [name for name in columns if name not in frame.columns]
        if unknown:
            there = list(dict.fromkeys(name for home in homes for name in home.columns))
            msg = f"columns must be columns of obs, got {unknown}, which no dataset has; there is {there}"
            raise KeyError(msg)
        is_callers = any(isinstance(home.place, pd.DataFrame) for home in homes)
        return frame.frame(rows, columns, copy=is_callers)

    def obs_columns(self) -> list[str]:
        """Name the columns of obs that any dataset has, whether or not batches have them. Opens the files."""
        return list(dict.fromkeys(name for home in self.obs_homes if home is not None for name in home.columns))

    def labels_of_rows(self, name: str, parameter: str) -> tuple[np.ndarray, pd.Index]:
        """Codes (-1: missing) of all rows of an obs column, and the labels that they number, sorted.

        Raises
        ------
        ValueError
            When the data has no obs.
        KeyError
            When no dataset has the column; names `parameter`.
        TypeError
            When it holds labels of one kind here and of another there.
        """
        if self.obs is not None and name in self.obs.columns:
            return self.obs.labels(name, self.names)
        homes = [home for home in self.obs_homes if home is not None]
        if not homes:
            msg = f"{parameter} names a column of obs, but the data has no obs: bare matrices were added without"
            raise ValueError(msg)
        columns = [home.labels(name) for home in homes]
        if all(column is None for column in columns):
            there = list(dict.fromkeys(name for home in homes for name in home.columns))
            msg = f"{parameter} must be columns of obs, got {name!r}, which no dataset has; there is {there}"
            raise KeyError(msg)
        return encode_together(name, columns, self.lengths, self.names)

    @property
    def n_obs(self) -> int:
        """Number of rows of all datasets."""
        return int(self.offsets[-1])

    @property
    def n_var(self) -> int:
        """Number of variables of a batch."""
        return len(self.genes.names) if self.has_var else int(self.first_matrix.sources[0].shape[1])

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


def _table_of(homes: tuple[ObsHome | None, ...], state: dict[str, Any]) -> Table:
    return Table(**state, obs_homes=homes)


def _opened_again(empty: Table, homes: Sequence[ObsHome], fingerprint: Mapping[str, Any]) -> Table:
    """Read everything again."""
    datasets = []
    for home in homes:
        with home.group() as group:
            dataset = Dataset.from_group(group, empty.wanted, str(home.place))
            dataset.close()
        datasets.append(dataset)
    table = empty.added(datasets)
    if table.fingerprint != fingerprint:
        msg = (
            f"the data were changed after the loader was made: it had {dict(fingerprint)}, and now {table.fingerprint}"
        )
        raise storage.CorruptDataError(msg)
    return table


def collection_groups(collection: Any, far: storage.FarOptions, *, quick: bool) -> list[Any]:
    """List the AnnData groups of a collection, given as such, as its zarr group, or as a path or URL of it.

    With `quick`, they may be of a kind that anndata does not know, see :func:`annbatch.storage.open_group`.
    """
    if isinstance(collection, (str, os.PathLike)):
        collection = storage.open_group(collection, far, quick=quick)
    if hasattr(collection, "attrs") and hasattr(collection, "keys"):
        if hasattr(collection, "store"):
            (collection,) = storage.far_groups([collection], far)
        if not is_marked(collection.attrs):
            msg = (
                "collection must be a DatasetCollection, or a zarr group or path that holds one, got a group without "
                f"the attribute 'encoding-type': {MARKER['encoding-type']!r}; use add_paths for a single AnnData"
            )
            raise ValueError(msg)
        return storage.open_datasets(collection)
    if not hasattr(collection, "__iter__"):
        msg = (
            "collection must be a DatasetCollection, or a zarr group, path or URL that holds one, got "
            f"{collection!r} ({type(collection).__name__}); of a store, pass its group: zarr.open_group(store, mode='r')"
        )
        raise TypeError(msg)
    groups = list(collection)
    for group in groups:
        if not hasattr(group, "attrs"):
            msg = (
                "collection must be one DatasetCollection, or a zarr group or path that holds one, got "
                f"{type(collection).__name__} with {group!r} ({type(group).__name__}) in it"
            )
            raise TypeError(msg)
    return storage.far_groups(groups, far)


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
    return CSRDataset if source.is_sparse and hasattr(element, "keys") else storage.public_type(element)


def _handed_out(element: Any, source: Source) -> np.dtype[Any]:
    holder = getattr(element, "group", element)
    recorded = holder.attrs.get(SOURCE_DTYPE) if hasattr(holder, "attrs") else None
    if recorded is None:
        return source.dtype
    try:
        return as_numeric(str(recorded))
    except (TypeError, ValueError):
        msg = f"attribute {SOURCE_DTYPE} of {source.location} must name a number type, got {recorded!r}"
        raise ValueError(msg) from None


def _checked_frame(part: str, frame: Any, length: int | None, name: str) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        msg = f"{part} must be a pandas DataFrame, got {type(frame).__name__} for {name}"
        raise TypeError(msg)
    _check_rows_and_columns(part, len(frame), frame.columns, length, name)
    # The caller may add and remove columns of theirs.
    return frame.copy(deep=False)


def _check_rows_and_columns(part: str, n_rows: int, columns: pd.Index, length: int | None, name: str) -> None:
    if length is not None and n_rows != length:
        msg = f"{part} must have {length} rows to fit X, got {n_rows} for {name}"
        raise ValueError(msg)
    if not columns.is_unique:
        twice = columns[columns.duplicated()].unique().tolist()
        msg = f"{part} must have unique column names, got {twice} more than once in {name}"
        raise ValueError(msg)


def _compact(obs: FrameReader | pd.DataFrame, columns: Sequence[str] | None, *, names: bool) -> CompactFrame:
    if isinstance(obs, FrameReader):
        return obs.compact(columns, names=names)
    return CompactFrame.of_frame(obs if columns is None else obs[list(columns)], names=names)


def _passing(
    obs: FrameReader | pd.DataFrame | None, conditions: Mapping[str, Sequence[Any]], n_obs: int
) -> tuple[View, dict[str, Found]]:
    """Return the rows that pass a filter, and which of its values there are."""
    if not conditions:
        return View.of_all(n_obs), {}

    def labels(column: str) -> Any:
        return None if obs is None or column not in obs.columns else labels_of(obs, column)

    keep, found = filtered(conditions, labels, n_obs)
    return View.of_mask(keep), found


def _annotations(obs: Any, n_obs: int, wanted: Wanted, name: str) -> dict[str, Any]:
    """Take the wanted columns of obs: a frame, or the reader of a stored one."""
    if obs is None:
        if wanted.labels or wanted.covariates:
            msg = f"labels and covariates are columns of obs, but {name} has no obs"
            raise ValueError(msg)
        passing_rows, _ = _passing(None, wanted.obs_filter, n_obs)
        return {"obs": None, "covariates": np.empty((n_obs, 0), np.float32), "passing": passing_rows}
    if not isinstance(obs, FrameReader):
        obs = _checked_frame("obs", obs, n_obs, name)
    else:
        _check_rows_and_columns("obs", obs.n_rows, pd.Index(obs.columns), n_obs, name)
    for parameter, columns in (
        ("obs_columns", wanted.obs_columns or ()),
        ("labels", () if wanted.may_lack else wanted.labels),
        ("covariates", () if wanted.may_lack else wanted.covariates),
    ):
        unknown = [column for column in columns if column not in obs.columns]
        if unknown:
            msg = f"{parameter} must be columns of obs, got {unknown}, which {name} lacks; it has {list(obs.columns)}"
            if parameter != "obs_columns":
                msg += ". With join='outer' its rows count as missing"
            raise KeyError(msg)
    passing_rows, filtered_by = _passing(obs, wanted.obs_filter, n_obs)
    frame = None if wanted.obs_columns == () else _compact(obs, wanted.obs_columns, names=wanted.reads_names)
    return {
        "obs": frame,
        "labels": {column: labels_of(obs, column) if column in obs.columns else None for column in wanted.labels},
        "covariates": covariates_of(obs, wanted.covariates, n_obs, name),
        "first_name": _first_name(obs) if n_obs else None,
        "passing": passing_rows,
        "filtered_by": filtered_by,
    }


def _first_name(obs: Any) -> str:
    names = obs.index(slice(0, 1)) if isinstance(obs, FrameReader) else obs.index[:1]
    return str(names.astype(str)[0])
