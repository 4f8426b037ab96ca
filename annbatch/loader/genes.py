"""Which variables a loader yields, and which column of each dataset each of them is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from annbatch._shared.gene_names import check_known, check_unique, join_names, some

from .sealing import sealed_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Genes", "Join"]

Join = Literal["inner", "outer"]


@dataclass(frozen=True)
class Genes:
    """The variables of all datasets.

    Immutable: :meth:`added` returns another object.

    Attributes
    ----------
    join
        None: all var are identical. Otherwise datasets are aligned by name.
    wanted
        The names to yield, in this order, or None for all.
    frames
        The distinct var frames, in order of appearance.
    frame_of_dataset
        For each dataset the number of its frame in `frames`.
    joined
        Names after the join: in the order of the first dataset, except that an outer join of names that differ sorts
        them, as anndata.concat and MappedCollection do.
    """

    join: Join | None = None
    wanted: pd.Index | None = None
    frames: tuple[pd.DataFrame, ...] = ()
    frame_of_dataset: tuple[int, ...] = ()
    joined: pd.Index | None = None
    _columns: dict[int, np.ndarray | None] = field(default_factory=dict, repr=False, compare=False)

    def emptied(self) -> Genes:
        """Return the variables before any dataset was added."""
        return Genes(join=self.join, wanted=self.wanted)

    def added(self, var: Sequence[pd.DataFrame], names: Sequence[str]) -> Genes:
        """Return the variables with those of more datasets; `names` are for error texts.

        Raises
        ------
        ValueError
            When var differ and there is no join, a name occurs twice, or an inner join leaves nothing.
        KeyError
            When wanted names are missing.
        """
        frames, frame_of_dataset, joined = list(self.frames), list(self.frame_of_dataset), self.joined
        for frame, name in zip(var, names, strict=True):
            known = next((number for number in {0, len(frames) - 1} if frames and _same(frames[number], frame)), None)
            if known is not None:
                frame_of_dataset.append(known)
                continue
            if frames and self.join is None:
                msg = f"all var must be identical without join; {name}: {_difference(frames[0], frame)}"
                raise ValueError(msg)
            if self.join is not None or self.wanted is not None:
                check_unique(frame.index, name)
            frame_of_dataset.append(len(frames))
            frames.append(frame)
            joined = (
                frame.index if joined is None or self.join is None else join_names([joined, frame.index], self.join)
            )
        if joined is not None and len(joined) == 0 and any(len(frame) for frame in frames):
            msg = f"join='inner' must leave at least one variable, but {names[-1]} shares none with the other datasets"
            raise ValueError(msg)
        if self.wanted is not None and joined is not None and self.join != "outer":
            check_known(self.wanted, joined, self.join)
        return replace(self, frames=tuple(frames), frame_of_dataset=tuple(frame_of_dataset), joined=joined, _columns={})

    @property
    def names(self) -> pd.Index:
        """Names of the variables that are yielded, in order."""
        assert self.joined is not None
        if self.wanted is None:
            return self.joined
        if self.join == "outer":
            # A name may come with any dataset, so it can only be missed once all are there.
            check_known(self.wanted, self.joined, self.join)
        return self.wanted

    def columns(self, dataset: int) -> np.ndarray | None:
        """For each variable of `dataset` its number among the yielded ones (int64), or -1; None: nothing changes."""
        number = self.frame_of_dataset[dataset]
        if number not in self._columns:
            own, names = self.frames[number].index, self.names
            same = own.equals(names)
            self._columns[number] = None if same else np.asarray(names.get_indexer(own), dtype=np.int64)
        return self._columns[number]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Annotations of the yielded variables: the columns that all datasets have and that agree where they overlap."""
        return sealed_frame(self._joined_frame())

    def _joined_frame(self) -> pd.DataFrame:
        names = self.names
        if len(self.frames) == 1:
            return self.frames[0] if names.equals(self.frames[0].index) else self.frames[0].loc[names]
        shared = [name for name in self.frames[0].columns if all(name in frame.columns for frame in self.frames[1:])]
        columns = {}
        for name in shared:
            values = pd.concat([frame[name] for frame in self.frames if len(frame)])
            values = values[values.index.isin(names)]
            key = values.index.name or "index"
            values = values.rename_axis(key).rename("value").reset_index().drop_duplicates().set_index(key)["value"]
            if values.index.is_unique:
                columns[name] = values.reindex(names).array
        return pd.DataFrame(columns, index=names.rename(self.frames[0].index.name))


def _same(first: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two var hold the same, whatever string dtype each was read with."""
    if first is other:
        return True
    if not (first.index.equals(other.index) and first.columns.equals(other.columns)):
        return False
    return all(
        first[name].equals(other[name]) or first[name].astype(object).equals(other[name].astype(object))
        for name in first.columns
    )


def _difference(first: pd.DataFrame, other: pd.DataFrame) -> str:
    if first.index.equals(other.index):
        columns = sorted(
            {str(name) for name in first.columns.symmetric_difference(other.columns)}
            | {str(name) for name in first.columns.intersection(other.columns) if not first[name].equals(other[name])}
        )
        what = f"has the same names as the first dataset, but other columns ({', '.join(columns[:5])})"
    else:
        missing, new = first.index.difference(other.index), other.index.difference(first.index)
        if len(missing) or len(new):
            what = f"lacks {len(missing)} names of the first dataset ({some(missing)}) and has {len(new)} others ({some(new)})"
        else:
            what = "has the names of the first dataset in another order"
    return f"its var {what}. Pass join='inner' or join='outer' to align datasets by name"
