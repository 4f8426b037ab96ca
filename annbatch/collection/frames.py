"""One data frame of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from .building.columns import unite_categories

if TYPE_CHECKING:
    from collections.abc import Sequence


def concat_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all frames; a column that is categorical in all of them stays so, with the categories of all."""
    fitted = [frame.copy(deep=False) for frame in frames]
    for name in dict.fromkeys(column for frame in frames for column in frame.columns):
        having = [frame for frame in fitted if name in frame]
        if all(isinstance(frame[name].dtype, pd.CategoricalDtype) for frame in having):
            united = unite_categories([frame[name].cat.categories for frame in having])
            if united is None:
                continue
            ordered = all(frame[name].cat.ordered and united.equals(frame[name].cat.categories) for frame in having)
            dtype: Any = pd.CategoricalDtype(united, ordered=ordered)
            for frame in fitted:
                frame[name] = (
                    frame[name].astype(dtype) if name in frame else pd.Categorical([None] * len(frame), dtype=dtype)
                )
    return pd.concat(fitted)
