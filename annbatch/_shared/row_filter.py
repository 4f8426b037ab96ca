"""Which rows a filter of obs values lets pass: one meaning for all faces."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .labels import is_missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Found", "as_conditions", "filtered", "found_in", "passing", "what_is_not_there"]

# Rows that are looked at together; labels that an error text shows.
_ROWS_AT_ONCE = 1 << 20
_MOST_SHOWN = 5


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


class Found(NamedTuple):
    """Which of the wanted values of a column some row has.

    Attributes
    ----------
    values
        For each wanted value whether a row has it.
    labels
        As text, the first few labels that there are; none where all wanted values were found.
    """

    values: tuple[bool, ...]
    labels: tuple[str, ...] = ()


def found_in(codes: np.ndarray, categories: Any, wanted: Sequence[Any]) -> Found:
    """Look for wanted values among labels; the arguments are those of :func:`passing`."""
    labels = np.asarray(categories).tolist()
    place = {label: number for number, label in enumerate(labels)}
    # The last one is the missing label, which code -1 picks; one that is no label at all has no place.
    places = [len(labels) if is_missing(value) else place.get(value) for value in wanted]
    seen = np.zeros(len(labels) + 1, dtype=bool)
    known = [number for number in places if number is not None]
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        if seen[known].all():
            break
        seen[codes[start : start + _ROWS_AT_ONCE]] = True
    values = tuple(number is not None and bool(seen[number]) for number in places)
    shown = () if all(values) else tuple(map(repr, labels[: _MOST_SHOWN + 1]))
    return Found(values, shown)


def filtered(
    conditions: Mapping[str, Sequence[Any]], labels_of: Callable[[str], tuple[np.ndarray, Any] | None], n_rows: int
) -> tuple[np.ndarray, dict[str, Found]]:
    """Filter the rows of a dataset.

    Parameters
    ----------
    conditions
        Per column the wanted values.
    labels_of
        Returns codes and labels of a column, or None where the dataset lacks it: it has no such rows then, whichever values are
        asked for.
    n_rows
        Rows of the dataset.

    Returns
    -------
    keep
        bool, whether each row passes all conditions.
    found
        Per column that there is, which of its wanted values there are.
    """
    keep = np.ones(n_rows, dtype=bool)
    found = {}
    for column, wanted in conditions.items():
        labels = labels_of(column)
        if labels is None:
            keep[:] = False
            continue
        keep &= passing(*labels, wanted)
        found[column] = found_in(*labels, wanted)
    return keep, found


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def what_is_not_there(conditions: Mapping[str, Sequence[Any]], found: Iterable[Mapping[str, Found]]) -> str:
    """Name the wanted values that no row of any dataset has, and some that there are.

    Parameters
    ----------
    conditions
        Per column the wanted values.
    found
        Per dataset what :func:`found_in` returned for each column that it has.

    Returns
    -------
    str
        Empty when every value occurs.
    """
    parts = list(found)
    texts = []
    for column, wanted in conditions.items():
        here = [part[column] for part in parts if column in part]
        missing = [
            _shown(value) for number, value in enumerate(wanted) if not any(each.values[number] for each in here)
        ]
        if missing and here:
            labels = list(dict.fromkeys(label for each in here for label in each.labels))
            there = ", ".join([*labels[:_MOST_SHOWN], *(["..."] if len(labels) > _MOST_SHOWN else [])]) or "none"
            lost = ", ".join([*missing[:_MOST_SHOWN], *(["..."] if len(missing) > _MOST_SHOWN else [])])
            texts.append(f"no row has {lost} in {column!r}, there is {there}")
    return "; ".join(texts)
