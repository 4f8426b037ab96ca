"""Annotations of the rows of several datasets as one table.

Labels must mean the same in every batch, whichever dataset its rows come from. So the categories of a column are united
over all datasets, by the rule that all faces share (:mod:`annbatch._shared.labels`): sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.labels import recode, unite_dtypes

from .sealing import own_rows, sealed_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ObsTable", "concat_obs"]


def concat_obs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames below each other; a column that a frame lacks is missing there.

    Categorical columns stay categorical, with the sorted categories of all frames. A column that is categorical in one frame
    and plain in another becomes categorical. One that holds text here and numbers there holds Python objects.
    """
    return _stack(_unite(frames))


@dataclass(frozen=True)
class ObsTable:
    """The obs of all datasets, ready to have rows taken from.

    Kept as few frames of geometrically growing size, so that adding datasets one at a time does not copy the whole table
    each time. All of them have the same columns and dtypes.

    Attributes
    ----------
    frames
        Consecutive pieces of the table.
    lengths
        Rows of every dataset.
    """

    frames: tuple[pd.DataFrame, ...] = ()
    lengths: tuple[int, ...] = ()

    def added(self, obs: Sequence[pd.DataFrame]) -> ObsTable:
        """Return a table with the rows of more datasets at its end."""
        pieces = _unite([*self.frames, _stack(_unite(obs))])
        if any(_layout(piece) != _layout(pieces[0]) for piece in pieces):
            pieces = [_stack(pieces)]
        while len(pieces) > 1 and len(pieces[-2]) <= 2 * len(pieces[-1]):
            pieces[-2:] = [_stack(pieces[-2:])]
        return ObsTable(tuple(pieces), self.lengths + tuple(len(frame) for frame in obs))

    def take(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out `rows` (int64, any order)."""
        if len(self.frames) == 1:
            return own_rows(self.frames[0], rows)
        starts = np.cumsum([0, *(len(frame) for frame in self.frames)])
        piece_of_row = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(piece_of_row, kind="stable")
        pieces = [
            frame.take(rows[piece_of_row == number] - starts[number])
            for number, frame in enumerate(self.frames)
            if len(frame)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return _stack(pieces).take(back)

    def datasets(self) -> list[pd.DataFrame]:
        """Cut the table into one frame per dataset."""
        table = _stack(self.frames)
        stops = np.cumsum(self.lengths)
        return [table.iloc[stop - length : stop] for stop, length in zip(stops, self.lengths, strict=True)]


def _layout(frame: pd.DataFrame) -> tuple[object, ...]:
    return (*frame.columns, *frame.dtypes, frame.index.dtype)


def _stack(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate frames whose categories are united already."""
    if len(frames) == 1:
        return frames[0]
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    # Column by column, because concatenating whole frames takes the dtype of empty ones into account (and warns).
    data = {
        name: _stack_column([frame.get(name) for frame in frames], [frame.index for frame in frames])
        for name in columns
    }
    index = frames[0].index.append([frame.index for frame in frames[1:]])
    return pd.DataFrame(data, index=index, columns=columns)


def _stack_column(columns: Sequence[pd.Series | None], indexes: Sequence[pd.Index]) -> object:
    present = [column for column in columns if column is not None]
    filled = [
        (pd.Series(np.nan, index=index) if column is None else column)
        for column, index in zip(columns, indexes, strict=True)
        if len(index)
    ]
    return pd.concat(filled or present, ignore_index=True).array


def _unite(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Give every frame all categorical columns, with the same categories."""
    frames = list(frames)
    categorical = dict.fromkeys(
        name for frame in frames for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.CategoricalDtype)
    )
    for name in categorical:
        dtype = unite_dtypes([_dtype_of(frame[name]) for frame in frames if name in frame.columns])
        if dtype is not None:
            dtype = sealed_dtype(dtype)
            frames = [_with_dtype(frame, name, dtype) for frame in frames]
    return frames


def _dtype_of(column: pd.Series) -> pd.CategoricalDtype:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.dtype
    return pd.CategoricalDtype(pd.Index(column.dropna().unique()))


def _with_dtype(frame: pd.DataFrame, name: Any, dtype: pd.CategoricalDtype) -> pd.DataFrame:
    codes: np.ndarray
    if name not in frame.columns:
        codes = np.full(len(frame), -1, dtype=np.int8)
    else:
        values = frame[name].array
        if not isinstance(values, pd.Categorical):
            values = pd.Categorical(values)
        elif values.ordered == dtype.ordered and values.categories is dtype.categories:
            return frame
        codes = recode(values.codes, values.categories, dtype.categories)
    frame = frame.copy(deep=False)
    frame[name] = pd.Categorical.from_codes(codes, dtype=dtype)
    return frame
