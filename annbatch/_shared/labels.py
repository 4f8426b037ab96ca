"""Labels of rows: one meaning over all datasets, whichever face reads them.

The rule, for Loader, MappedCollection and DatasetCollection alike:

- The labels of a column are those of all datasets, **sorted**, and a label's code is its place among them. So codes depend on
  which labels there are, not on the order in which datasets come. They may shift when data with new labels is added.
- Labels are of one kind: text, numbers, or booleans. ``1``, ``True`` and ``"1"`` are not the same label, so a column that is of
  one kind here and of another there has no labels. Numbers of different types are brought to the type that holds all.
- A missing value (None, NaN, pandas.NA) is no label; its code is -1.
- Codes are integers of the smallest signed type.
- The order of an *ordered* categorical is part of its values: it stays where all datasets agree about the categories and their
  order, else the categories are sorted like all others, and not ordered any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["code_dtype", "encode_together", "is_missing", "kind_of", "recode", "unite_categories", "unite_dtypes"]


def code_dtype(n_labels: int) -> np.dtype[Any]:
    """Return the smallest signed integer type that numbers so many labels, and -1."""
    return np.min_scalar_type(-max(n_labels, 1))


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing label: None, NaN or pandas.NA."""
    return (
        value is None or type(value).__name__ == "NAType" or (isinstance(value, float | np.floating) and value != value)
    )


def kind_of(categories: Any) -> str:
    """Return "text", "numbers" or "booleans", or what pandas calls the kind of other labels; "" when there are none."""
    if not len(categories):
        return ""
    inferred = pd.api.types.infer_dtype(categories, skipna=True)
    kinds = {"string": "text", "empty": "", "boolean": "booleans"}
    numbers = ("integer", "floating", "mixed-integer-float", "complex")
    return "numbers" if inferred in numbers else kinds.get(inferred, inferred)


def unite_categories(tables: Sequence[Any]) -> pd.Index[Any] | None:
    """All labels, sorted.

    Parameters
    ----------
    tables
        Distinct labels of each dataset, as an Index or array. Tables without any say nothing about the kind.

    Returns
    -------
    Index or None
        The sorted labels, text as Python strings. None when they have no common kind, or no type holds them all (uint64 and
        negative numbers).
    """
    filled = [table for table in {id(table): table for table in tables}.values() if len(table)]
    if not filled:
        return pd.Index([], dtype=object)
    kinds = {kind_of(table) for table in filled}
    if len(kinds) > 1:
        return None
    (kind,) = kinds
    united: pd.Index[Any]
    if kind == "text":
        return pd.Index(sorted({str(label) for table in filled for label in table}))
    if kind == "booleans":
        united = pd.Index(np.unique(np.concatenate([np.asarray(table, dtype=bool) for table in filled])))
        return united
    if kind == "numbers":
        values = [np.asarray(table) for table in filled]
        values = [np.asarray(each.tolist()) if each.dtype == object else each for each in values]
        dtype = np.result_type(*values)
        if dtype.kind == "f" and all(each.dtype.kind in "iu" for each in values):
            return None
        united = pd.Index(np.unique(np.concatenate(values, dtype=dtype)))
        return united
    try:
        united = pd.Index(filled[0])
        for table in filled[1:]:
            united = united.union(pd.Index(table), sort=False)
        united = united.sort_values()
    except TypeError:  # labels that cannot be compared, such as text and numbers in one categorical
        return None
    return united


def unite_dtypes(dtypes: Sequence[pd.CategoricalDtype]) -> pd.CategoricalDtype | None:
    """One categorical type for all; None when the categories have no common kind."""
    first = dtypes[0].categories
    if all(dtype.ordered and dtype.categories.equals(first) for dtype in dtypes):
        return pd.CategoricalDtype(first, ordered=True)
    united = unite_categories([dtype.categories for dtype in dtypes])
    same_kind = len({kind_of(dtype.categories) for dtype in dtypes}) == 1  # or True would be taken for 1
    if united is None and same_kind and all(dtype.categories.equals(first) for dtype in dtypes):
        united = first  # what cannot be sorted, such as text and numbers in one categorical
    return None if united is None else pd.CategoricalDtype(united, ordered=False)


def recode(codes: np.ndarray, categories: Any, united: pd.Index[Any], out: np.ndarray | None = None) -> np.ndarray:
    """Turn codes among `categories` into codes among `united`.

    Parameters
    ----------
    codes
        Integers; -1: missing.
    categories
        The labels that `codes` number.
    united
        The labels that the result numbers; one that is not among them becomes -1.
    out
        Where to put the result; None: a new array of :func:`code_dtype`.
    """
    dtype = code_dtype(len(united)) if out is None else out.dtype
    if categories is united or (len(categories) == len(united) and united.equals(_like(categories, united))):
        if out is None:
            return codes.astype(dtype, copy=False)
        out[:] = codes
        return out
    # The last entry is what code -1 picks: missing stays missing.
    places = np.append(united.get_indexer(_like(categories, united)), -1).astype(dtype)
    return np.take(places, codes, out=out, mode="wrap")


def encode_together(
    name: str, per_dataset: Sequence[tuple[np.ndarray, Any] | None], n_rows: Sequence[int], where: Sequence[str]
) -> tuple[np.ndarray, pd.Index[Any]]:
    """Join the labels of several datasets under one table.

    Parameters
    ----------
    name
        The column, for error texts.
    per_dataset
        Codes and categories of each dataset; None for one without the column, whose rows all count as missing.
    n_rows
        Rows of each dataset.
    where
        Name of each dataset, for error texts.

    Returns
    -------
    codes
        One signed integer per row of all datasets, of the smallest type, -1 where the label is missing.
    categories
        The labels, sorted.

    Raises
    ------
    TypeError
        If the labels are of one kind here and of another there.
    """
    categories = unite_categories([labels[1] for labels in per_dataset if labels is not None])
    if categories is None:
        kinds: dict[str, str] = {}
        for labels, place in zip(per_dataset, where, strict=True):
            if labels is not None and len(labels[1]):
                kinds.setdefault(kind_of(labels[1]), place)
        found = " but ".join(f"{kind} in {place}" for kind, place in kinds.items())
        msg = f"obs key {name!r} holds {found}: make it one kind in all files"
        raise TypeError(msg)
    codes = np.full(sum(n_rows), -1, dtype=code_dtype(len(categories)))
    start = 0
    for labels, n in zip(per_dataset, n_rows, strict=True):
        if labels is not None:
            recode(*labels, categories, out=codes[start : start + n])
        start += n
    return codes, categories


def _like(categories: Any, united: pd.Index[Any]) -> pd.Index[Any]:
    """Labels as the kind of Index that `united` is, so that equal ones are found equal."""
    if united.dtype == object and len(categories) and kind_of(united) == "text":
        return pd.Index([str(label) for label in categories])
    index: pd.Index[Any] = pd.Index(np.asarray(categories))
    return index.infer_objects() if index.dtype == object else index
