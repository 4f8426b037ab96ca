"""Twin of ``stacked`` of ``annbatch/storage/columns.py``: obs of several datasets as one frame, column by column, by pandas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from annbatch._shared.obs_frames import Finish, as_it_is, unite_frames

__all__ = ["concat_frames"]


def concat_frames(frames: Sequence[pd.DataFrame], finish: Finish = as_it_is) -> pd.DataFrame:
    """Put frames below each other; a column that a frame lacks is missing there."""
    return _stacked(unite_frames(frames, finish))


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    data = {
        name: _stack_column([frame.get(name) for frame in frames], [frame.index for frame in frames])
        for name in columns
    }
    stacked = pd.DataFrame(data, index=pd.RangeIndex(sum(map(len, frames))), columns=columns)
    stacked.index = frames[0].index.append([frame.index for frame in frames[1:]])
    return stacked


def _stack_column(columns: Sequence[pd.Series | None], indexes: Sequence[pd.Index]) -> pd.Series:
    present = [column for column in columns if column is not None]
    filled = [
        (pd.Series(np.nan, index=index) if column is None else column)
        for column, index in zip(columns, indexes, strict=True)
        if len(index)
    ]
    return pd.concat(filled or present, ignore_index=True)
