"""Which rows a filter of obs values lets pass: one meaning for all faces."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .labels import is_missing

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_conditions", "passing"]


def as_conditions(name: str, obs_filter: Any) -> dict[str, list[Any]]:
    """Return ``{column: value}`` or ``{column: [values]}`` as a dict of lists.

    Raises
    ------
    TypeError
        If it is no dict, or a value cannot be a label.
    """
    if obs_filter is None:
        return {}
    if not hasattr(obs_filter, "items"):
        msg = f"{name} must be a dict of column: value or values, got {type(obs_filter).__name__}"
        raise TypeError(msg)
    conditions = {}
    for column, values in obs_filter.items():
        one = isinstance(values, str | bytes) or not isinstance(values, Iterable)
        conditions[column] = [values] if one else list(values)
        for value in conditions[column]:
            if not isinstance(value, Hashable):
                msg = f"{name}[{column!r}] must be a value or a list of values, got {value!r} for a value"
                raise TypeError(msg)
    return conditions


def passing(codes: np.ndarray, categories: Any, wanted: Sequence[Any]) -> np.ndarray:
    """Return a mask of the rows whose label is among ``wanted``.

    Parameters
    ----------
    codes
        Integers, one per row; -1: the label is missing.
    categories
        The labels that ``codes`` number.
    wanted
        Labels; NaN, None or pandas.NA stand for a missing one.
    """
    keep = np.zeros(len(categories) + 1, dtype=bool)
    values = {value for value in wanted if not is_missing(value)}
    keep[:-1] = [label in values for label in np.asarray(categories).tolist()]
    keep[-1] = any(is_missing(value) for value in wanted)  # what code -1 picks
    return np.take(keep, codes, mode="wrap")
