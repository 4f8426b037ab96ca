"""Twin of ``stacked`` of ``annbatch/storage/columns.py``: obs of several datasets as one frame, by pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from annbatch._shared.labels import recode, unite_dtypes

__all__ = ["concat_frames", "stack_frames", "unite_frames"]

Finish: TypeAlias = Callable[[pd.CategoricalDtype], pd.CategoricalDtype]


def _as_it_is(dtype: pd.CategoricalDtype) -> pd.CategoricalDtype:
    return dtype


def concat_frames(frames: Sequence[pd.DataFrame], finish: Finish = _as_it_is) -> pd.DataFrame:
    """Put frames below each other; a column that a frame lacks is missing there.

    Categorical columns stay categorical, with the sorted categories of all frames. A column that is categorical in one frame
    and plain in another becomes categorical. One that holds text here and numbers there holds Python objects.

    Parameters
    ----------
    frames
        At least one.
    finish
        Has the last word about the dtype of a categorical column.
    """
    return stack_frames(unite_frames(frames, finish))


def stack_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
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


def unite_frames(frames: Sequence[pd.DataFrame], finish: Finish = _as_it_is) -> list[pd.DataFrame]:
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
