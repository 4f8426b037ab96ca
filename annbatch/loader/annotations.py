"""Labels and covariates of the rows of all datasets: columns of obs as plain numbers, ready to have rows taken from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from annbatch._shared.args import as_choice, as_names
from annbatch._shared.gene_names import some
from annbatch._shared.labels import code_dtype, encode_together, is_missing, kind_of, recode
from annbatch.storage import shared

from .sealing import sealed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from annbatch.storage.frames import FrameReader

__all__ = [
    "Covariates",
    "LabelTables",
    "LabelsOfDataset",
    "WantedLabels",
    "as_wanted_labels",
    "covariates_of",
    "labels_of",
]


class LabelsOfDataset(NamedTuple):
    """One obs column of one dataset as codes.

    Attributes
    ----------
    codes
        One signed integer per row, -1 where the label is missing.
    categories
        The labels that the codes number.
    """

    codes: np.ndarray
    categories: Any


@dataclass(frozen=True)
class WantedLabels:
    """Which obs columns come out as codes.

    Attributes
    ----------
    fixed
        Per column its labels in the order of their codes, or None: those of the data, sorted.
    unknown
        What a label that is not among fixed ones is: an error, or -1.
    """

    fixed: Mapping[str, pd.Index[Any] | None] = field(default_factory=dict)
    unknown: Literal["error", "-1"] = "error"


def as_wanted_labels(labels: Any, unknown: Any) -> WantedLabels:
    """Check ``labels=[...]`` or ``labels={name: [...] or None}``, and ``unknown``."""
    if not hasattr(labels, "items"):
        fixed: dict[str, pd.Index[Any] | None] = dict.fromkeys(as_names("labels", labels))
    else:
        as_names("labels", tuple(labels))
        fixed = {name: None if table is None else _as_table(name, table) for name, table in labels.items()}
    return WantedLabels(fixed, as_choice("unknown", unknown, ("error", "-1")))


def _as_table(name: str, table: Any) -> pd.Index[Any]:
    if isinstance(table, (str, bytes)) or not hasattr(table, "__iter__"):
        msg = f"labels[{name!r}] must be a list of labels, or None for those of the data, got {table!r}"
        raise TypeError(msg)
    if isinstance(table, (set, frozenset)) or (isinstance(table, dict) and [*table.values()] != [*range(len(table))]):
        msg = f"labels[{name!r}] must be a list of labels in the order of their codes, got {table!r}, a {type(table).__name__}"
        raise TypeError(msg)
    values = list(table)
    if any(is_missing(value) for value in values):
        msg = f"labels[{name!r}] must list labels; a missing one has the code -1 and is none, got {values!r}"
        raise ValueError(msg)
    index = pd.Index(values, dtype=object).infer_objects() if values else pd.Index([], dtype=object)
    if index.inferred_type == "string":
        index = index.astype(object)
    if kind_of(index) not in ("", "text", "numbers", "booleans"):
        msg = f"labels[{name!r}] must be all text, all numbers or all booleans, got {values!r}"
        raise TypeError(msg)
    if not index.is_unique:
        msg = (
            f"labels[{name!r}] must list each label once, got {some(index[index.duplicated()].unique())} more than once"
        )
        raise ValueError(msg)
    found: pd.Index[Any] = sealed(index)
    return found


# -- what one dataset has


def labels_of(obs: FrameReader | pd.DataFrame, name: str) -> LabelsOfDataset:
    """Read a column as labels."""
    if not isinstance(obs, pd.DataFrame):
        return LabelsOfDataset(*obs.labels(name))
    values: Any = obs[name].array
    if not isinstance(values, pd.Categorical):
        values = pd.Categorical(values)
    return LabelsOfDataset(np.asarray(values.codes), values.categories)


def covariates_of(obs: FrameReader | pd.DataFrame, names: Sequence[str], n_obs: int, where: str) -> np.ndarray:
    """Read columns of numbers, float32, one row per row and one column each; NaN where a value or a column is missing.

    Raises
    ------
    TypeError
        A column holds no numbers.
    ValueError
        float32 cannot hold a number.
    """
    out = np.full((n_obs, len(names)), np.nan, dtype=np.float32)
    for place, name in enumerate(names):
        if name not in obs.columns:
            continue
        values = _numbers_of(obs[name]) if isinstance(obs, pd.DataFrame) else obs.numbers(name)
        if values is None:
            msg = f"covariates must be columns of numbers, got {name!r}, which {where} holds as something else; use labels"
            raise TypeError(msg)
        with np.errstate(over="ignore"):
            out[:, place] = values
        if (np.isinf(out[:, place]) & np.isfinite(values)).any():
            msg = f"covariates must fit into float32, got {np.abs(values[np.isfinite(values)]).max()} in {name!r} of {where}"
            raise ValueError(msg)
    return out


def _numbers_of(column: pd.Series[Any]) -> np.ndarray | None:
    if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        return None  # booleans count as numbers
    if column.dtype.kind == "c":
        return None
    numbers: np.ndarray = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


# -- all datasets


class _Piece(NamedTuple):
    codes: np.ndarray
    categories: pd.Index[Any]


@dataclass(frozen=True)
class LabelTables:
    """The label columns of all datasets.

    Immutable: :meth:`added` returns another object. Kept as few pieces of geometrically growing size, so that adding datasets one
    at a time does not copy all rows each time; :meth:`take` joins what is left.
    """

    wanted: WantedLabels
    _pieces: Mapping[str, list[_Piece]] = field(default_factory=dict)

    def added(
        self, datasets: Sequence[Mapping[str, LabelsOfDataset | None]], lengths: Sequence[int], names: Sequence[str]
    ) -> LabelTables:
        """Return the tables with the rows of more datasets.

        Raises
        ------
        TypeError
            When labels are of one kind here and of another there.
        ValueError
            When a label is not among the fixed ones, and that is an error.
        """
        pieces = {}
        for name, fixed in self.wanted.fixed.items():
            columns = [dataset[name] for dataset in datasets]
            if fixed is not None:
                piece = self._encoded(name, fixed, columns, lengths, names)
            else:
                piece = _Piece(*encode_together(name, columns, lengths, names))
            known = [*self._pieces.get(name, ()), piece]
            if fixed is None and len(known) > 1:
                # Two kinds that meet must be seen here, where data is added.
                encode_together(
                    name,
                    [(np.empty(0, np.int8), part.categories) for part in known],
                    [0] * len(known),
                    ["what was added before"] * (len(known) - 1) + [names[-1]],
                )
            while len(known) > 1 and len(known[-2].codes) <= 2 * len(known[-1].codes):
                known[-2:] = [_joined(name, known[-2:])]
            pieces[name] = known
        return replace(self, _pieces=pieces)

    def shared(self) -> LabelTables:
        """Return the tables with their codes in memory that all processes of the machine share."""
        pieces = {
            name: [_Piece(shared(own.codes), own.categories) for own in known] for name, known in self._pieces.items()
        }
        return replace(self, _pieces=pieces)

    @property
    def encoders(self) -> dict[str, pd.Index[Any]]:
        """Per column its labels, in the order of their codes; read-only."""
        return {
            name: self._one(name).categories
            if self._pieces
            else (fixed if fixed is not None else pd.Index([], dtype=object))
            for name, fixed in self.wanted.fixed.items()
        }

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Codes (int64) of rows (int64, any order), per column."""
        return {name: self._one(name).codes[rows].astype(np.int64) for name in self.wanted.fixed}

    def codes(self, name: str) -> np.ndarray:
        """Codes of all rows of a column, in the smallest signed integer type."""
        return self._one(name).codes

    def _one(self, name: str) -> _Piece:
        pieces = self._pieces[name]
        if len(pieces) > 1:
            pieces[:] = [_joined(name, pieces)]  # holds what it held, only in one piece
        return pieces[0]

    def _encoded(
        self,
        name: str,
        fixed: pd.Index[Any],
        columns: Sequence[LabelsOfDataset | None],
        lengths: Sequence[int],
        names: Sequence[str],
    ) -> _Piece:
        codes = np.full(sum(lengths), -1, dtype=code_dtype(len(fixed)))
        start = 0
        for column, length, where in zip(columns, lengths, names, strict=True):
            if column is not None:
                kinds = {kind_of(fixed), kind_of(column.categories)} - {""}
                if len(kinds) > 1:
                    msg = f"labels[{name!r}] lists {kind_of(fixed)}, but {where} holds {kind_of(column.categories)}"
                    raise TypeError(msg)
                own = recode(column.codes, column.categories, fixed, out=codes[start : start + length])
                if self.wanted.unknown == "error":
                    unlisted = np.unique(column.codes[(own < 0) & (column.codes >= 0)])
                    if len(unlisted):
                        msg = (
                            f"labels[{name!r}] must list all labels, got {len(unlisted)} others in {where}: "
                            f"{some(pd.Index(np.asarray(column.categories)[unlisted]))}; "
                            'pass unknown="-1" to give them the code -1'
                        )
                        raise ValueError(msg)
            start += length
        return _Piece(codes, fixed)


def _joined(name: str, pieces: Sequence[_Piece]) -> _Piece:
    if all(piece.categories is pieces[0].categories for piece in pieces):
        return _Piece(np.concatenate([piece.codes for piece in pieces]), pieces[0].categories)
    codes, categories = encode_together(name, pieces, [len(piece.codes) for piece in pieces], [""] * len(pieces))
    return _Piece(codes, sealed(categories))


@dataclass(frozen=True)
class Covariates:
    """The covariates of all datasets: float32, one row each.

    Immutable: :meth:`added` returns another object; pieces grow as those of :class:`LabelTables` do.
    """

    names: tuple[str, ...]
    _pieces: list[np.ndarray] = field(default_factory=list)

    def added(self, datasets: Sequence[np.ndarray]) -> Covariates:
        """Return the covariates with the rows of more datasets."""
        pieces = [*self._pieces, np.concatenate(datasets)]
        while len(pieces) > 1 and len(pieces[-2]) <= 2 * len(pieces[-1]):
            pieces[-2:] = [np.concatenate(pieces[-2:])]
        return replace(self, _pieces=pieces)

    def shared(self) -> Covariates:
        """Return the covariates in memory that all processes of the machine share."""
        return replace(self, _pieces=[shared(piece) for piece in self._pieces])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy out rows (int64, any order): float32, one column per covariate."""
        taken: np.ndarray = self.all[rows]
        return taken

    @property
    def all(self) -> np.ndarray:
        """All rows."""
        if len(self._pieces) > 1:
            self._pieces[:] = [np.concatenate(self._pieces)]
        return self._pieces[0]
