"""Annotations of the rows of several datasets as one table.

Labels must mean the same in every batch, whichever dataset its rows come from. So the categories of a column are united
over all datasets, by the rule that all faces share (:mod:`annbatch._shared.labels`): sorted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.labels import encode_together
from annbatch.storage.columns import CompactFrame, stacked

from .annotations import labels_of
from .sealing import sealed_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ObsTable", "stacked_obs"]


def stacked_obs(frames: Sequence[CompactFrame]) -> CompactFrame:
    """Put the obs of datasets below each other, see :func:`annbatch.storage.columns.stacked`; categories are sealed."""
    return stacked(frames, sealed_dtype)


@dataclass(frozen=True)
class ObsTable:
    """The obs of all datasets, ready to have rows taken from.

    Immutable: :meth:`added` returns another table. Kept as few pieces of geometrically growing size, so that adding datasets
    one at a time does not copy the whole table each time; what asks for rows joins what is left.

    Attributes
    ----------
    pieces
        Consecutive pieces of the table, each with columns and categories of its own.
    lengths
        Rows of every dataset.
    """

    pieces: list[CompactFrame] = field(default_factory=list)
    lengths: tuple[int, ...] = ()

    def added(self, obs: Sequence[CompactFrame]) -> ObsTable:
        """Return a table with the rows of more datasets at its end."""
        pieces = [*self.pieces, stacked_obs(obs)]
        while len(pieces) > 1 and pieces[-2].n_rows <= 2 * pieces[-1].n_rows:
            pieces[-2:] = [stacked_obs(pieces[-2:])]
        return ObsTable(pieces, self.lengths + tuple(frame.n_rows for frame in obs))

    def shared(self) -> ObsTable:
        """Return the table in memory that all processes of the machine share."""
        return ObsTable([_sealed_again(piece.shared()) for piece in self.pieces], self.lengths)

    @property
    def _whole(self) -> CompactFrame:
        pieces = tuple(self.pieces)  # another thread may be about the same
        if len(pieces) > 1:
            self.pieces[:] = [stacked_obs(pieces)]  # holds what it held, only in one piece
        return self.pieces[0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "pieces": [_sealed_again(piece) for piece in state["pieces"]]})

    def take(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out `rows` (int64, any order); categories and the names of the columns are shared with other batches."""
        return self._whole.take(rows)

    @property
    def columns(self) -> list[Any]:
        """Names of the columns."""
        return self._whole.columns

    def frame(self, columns: Sequence[str] | None, rows: np.ndarray | None) -> pd.DataFrame:
        """Copy out columns (None: all) of many rows (None: all of them); the result is the caller's."""
        return self._whole.frame(rows, columns)

    def labels(self, name: str, where: Sequence[str]) -> tuple[np.ndarray, pd.Index[Any]]:
        """Codes (-1: missing) of all rows of a column, and the labels that they number, sorted.

        Parameters
        ----------
        name
            The column.
        where
            Name of each dataset, for error texts.

        Raises
        ------
        TypeError
            When the column holds text here and numbers there.
        """
        table = self._whole
        try:
            return encode_together(name, [table.labels(name)], [table.n_rows], [""])
        except TypeError:
            # Once more, by datasets, so that the error can name them.
            columns = [labels_of(frame, name) for frame in self.datasets([name])]
            return encode_together(name, columns, self.lengths, where)

    def datasets(self, columns: Sequence[str] | None = None) -> list[pd.DataFrame]:
        """Cut columns (None: all) of the table into one frame per dataset."""
        table = self._whole.frame(None, columns)
        stops = np.cumsum(self.lengths)
        return [table.iloc[stop - length : stop] for stop, length in zip(stops, self.lengths, strict=True)]


def _sealed_again(piece: CompactFrame) -> CompactFrame:
    """Seal the categories of a table that came out of a pickle, which nobody else has; others are sealed already."""
    for dtype in piece.values.dtypes:
        if isinstance(dtype, pd.CategoricalDtype) and type(dtype.categories) is pd.Index:
            values: Any = dtype.categories.values
            if isinstance(values, np.ndarray):
                # In place: a column of other categories would be a copy of its codes, beside those that processes share.
                values.flags.writeable = False
    return piece
