"""Annotations that are handed out with every batch: the caller may change what they got, and no later batch shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

__all__ = ["own_copy", "own_slice", "sealed", "sealed_dtype", "sealed_frame"]


def own_copy(frame: pd.DataFrame) -> pd.DataFrame:
    """Copy what can be changed in place; the rest, which is most of it where there is text, is shared. Takes a sealed frame."""
    frame = _with_own_columns(frame.copy(deep=True))
    if not _is_sealed(frame.index):
        frame.index = frame.index.copy(deep=True)
    return frame


def own_slice(frame: pd.DataFrame, start: int, stop: int) -> pd.DataFrame:
    """Cut rows out of a frame that is nobody else's, so that no two slices overlap: each is its taker's own."""
    # The copy, of no values, is one that pandas does not take for a part of another frame.
    return _with_own_columns(frame.iloc[start:stop].copy(deep=False))


def sealed_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the same frame, with sealed names and categories."""
    frame = frame.set_axis(sealed(frame.index), axis=0)
    for name, dtype in frame.dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(sealed_dtype(dtype))
    return frame


def sealed_dtype(dtype: pd.CategoricalDtype) -> pd.CategoricalDtype:
    """Return the same dtype, with sealed categories."""
    return pd.CategoricalDtype(sealed(dtype.categories), ordered=dtype.ordered)


def sealed(names: pd.Index) -> pd.Index:
    """Return the same names, read-only.

    An Index is immutable by its contract, so batches share it; but before pandas 3, ``index.values[0] = ...`` writes to it.
    """
    # Other kinds of index (text of dtype "string", dates) cannot be made read-only; they are rare, and left as they are.
    if type(names) is not pd.Index or not isinstance(names.values, np.ndarray) or _is_sealed(names):
        return names
    values = names.values.copy()
    values.flags.writeable = False
    index: pd.Index[Any] = pd.Index(values, dtype=names.dtype, name=names.name)
    return index


def _is_sealed(names: pd.Index) -> bool:
    values: Any = names.values
    return isinstance(values, np.ndarray) and not values.flags.writeable


def _with_own_columns(frame: pd.DataFrame) -> pd.DataFrame:
    # Here sealing is not enough: ``frame.columns.values[0] = ...`` is how some rename a column.
    frame.columns = frame.columns.copy(deep=True)
    return frame
