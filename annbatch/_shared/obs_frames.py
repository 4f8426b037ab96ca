"""obs of several datasets as one frame: columns are stacked, and their categories united, in one way for all faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import is_object_dtype

from .labels import recode, unite_dtypes

__all__ = ["Finish", "as_it_is", "stack_frames", "unite_frames"]

Finish: TypeAlias = Callable[[pd.CategoricalDtype], pd.CategoricalDtype]


def as_it_is(dtype: pd.CategoricalDtype) -> pd.CategoricalDtype:
    """Return the dtype."""
    return dtype


def stack_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate frames whose categories are united already."""
    if len(frames) == 1:
        return frames[0]
    # What makes pandas look closer: frames without rows, and objects.
    layouts = {(*frame.columns, *map(id, frame.dtypes)) for frame in frames}
    if len(layouts) == 1 and all(map(len, frames)) and not any(map(is_object_dtype, frames[0].dtypes)):
        # All at once: columns of a dtype lie together, and are copied once.
        return pd.concat(frames)
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    # Column by column, because concatenating whole frames takes the dtype of empty ones into account (and warns).
    indexes = [frame.index for frame in frames]
    data = {name: _stack_column([frame.get(name) for frame in frames], indexes) for name in columns}
    stacked = pd.DataFrame(data, index=pd.RangeIndex(sum(map(len, frames))), columns=columns)
    stacked.index = indexes[0].append(indexes[1:])
    return stacked


def _stack_column(columns: Sequence[pd.Series | None], indexes: Sequence[pd.Index]) -> pd.Series:
    """Put a column's parts below each other: a series, as pandas 3 takes an array of texts for another kind than objects."""
    present = [column for column in columns if column is not None]
    filled = [
        (pd.Series(np.nan, index=index) if column is None else column)
        for column, index in zip(columns, indexes, strict=True)
        if len(index)
    ]
    return pd.concat(filled or present, ignore_index=True)


def unite_frames(frames: Sequence[pd.DataFrame], finish: Finish = as_it_is) -> list[pd.DataFrame]:
    """Give every frame all categorical columns, with the same categories; `finish` has the last word about their dtype."""
    frames = list(frames)
    categorical = dict.fromkeys(
        name for frame in frames for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.CategoricalDtype)
    )
    for name in categorical:
        dtype = unite_dtypes([_dtype_of(frame[name]) for frame in frames if name in frame.columns])
        if dtype is not None:
            dtype = finish(dtype)
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
