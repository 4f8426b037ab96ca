"""``obs`` columns of many files as one column: codes for labels, plain arrays for numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.labels import encode_together, is_missing
from annbatch.storage import shared
from annbatch.storage.frames import Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LabelColumn",
    "NumberColumn",
    "label_weights",
    "merge_labels",
    "merge_numbers",
    "number_labels",
]


class LabelColumn:
    """One column over all rows, as codes.

    Attributes
    ----------
    codes
        Per row the number of its category, -1 where the value is missing. Integers of the smallest type that fits.
    categories
        The merged categories, sorted, as plain Python objects.
    """

    def __init__(self, codes: np.ndarray, categories: list[Any]) -> None:
        self.codes = shared(codes)
        self.categories = categories
        # Code -1 picks the last entry.
        self._objects: list[Any] = [*categories, np.nan]
        self._numbers: np.ndarray | None = None
        self._has_missing = bool((codes < 0).any())
        if categories and not isinstance(categories[0], str):
            self._set_numbers(np.asarray(categories))

    def encode(self, unknown: Any = None) -> dict[Any, int]:
        """Hand out integers instead of labels from now on.

        Parameters
        ----------
        unknown
            This label becomes -1 and takes no number. NaN or NA: the missing one does. None: no label does.

        Returns
        -------
        dict
            The integer of each label.
        """
        missing_too = unknown is not None and is_missing(unknown)
        known = [label for label in self.categories if unknown is None or missing_too or label != unknown]
        encoder = {label: number for number, label in enumerate(known)}
        if unknown is not None:
            encoder[np.nan if missing_too else unknown] = -1
        numbers = [encoder[label] for label in self.categories]
        self._objects = [*numbers, -1 if missing_too else np.nan]
        if missing_too:
            self._numbers = np.array(self._objects, dtype=np.int64)
        else:
            self._set_numbers(np.array(numbers, dtype=np.int64))
        return encoder

    def values(self, rows: np.ndarray) -> list[Any]:
        """Per row its label, or its integer once encoded; numpy.nan where it is missing."""
        return list(map(self._objects.__getitem__, self.codes[rows].tolist()))

    def numbers(self, rows: np.ndarray) -> np.ndarray | None:
        """Return :meth:`values` as an array; None when they are text.

        The dtype is float64 when the column misses values anywhere, so that it is the same in every batch.
        """
        return None if self._numbers is None else np.take(self._numbers, self.codes[rows], mode="wrap")

    def labels(self) -> np.ndarray:
        """Per row the label itself, also once encoded: one reference a row, no new objects."""
        if self.categories and not isinstance(self.categories[0], str):
            labels = _with_missing(np.asarray(self.categories), missing=self._has_missing)
        else:
            labels = np.array([*self.categories, np.nan], dtype=object)
        return np.take(labels, self.codes, mode="wrap")

    def _set_numbers(self, numbers: np.ndarray) -> None:
        self._numbers = _with_missing(numbers, missing=self._has_missing)


class NumberColumn:
    """One column of numbers over all rows; ``array`` has NaN where a value is missing."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = shared(array)

    def values(self, rows: np.ndarray) -> list[Any]:
        """Per row its value, a NumPy scalar."""
        return list(self.array[rows])

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Return :meth:`values` as an array."""
        numbers: np.ndarray = self.array[rows]
        return numbers


def merge_labels(
    key: str, per_file: Sequence[Labels | None], n_rows: Sequence[int], paths: Sequence[str]
) -> LabelColumn:
    """Join the labels of all files under one sorted list of categories.

    Parameters
    ----------
    key
        Name of the column, for error texts.
    per_file
        Codes and categories of each file; None for a file without the column, whose rows all count as missing.
    n_rows
        Number of rows of each file.
    paths
        Name of each file, for error texts.

    Raises
    ------
    TypeError
        If the labels are of one kind (text, numbers, booleans) in one file and of another in another.
    """
    codes, categories = encode_together(key, per_file, n_rows, paths)
    return LabelColumn(codes, categories.tolist())


def number_labels(numbers: np.ndarray) -> Labels:
    """Take numbers for labels; NaN is missing."""
    codes, categories = pd.factorize(numbers, sort=True)
    return Labels(codes, np.asarray(categories))


def merge_numbers(per_file: Sequence[np.ndarray | None], n_rows: Sequence[int]) -> NumberColumn:
    """Join the numbers of all files in the dtype that holds them all; NaN for the rows of a file without the column."""
    dtypes = [np.dtype(np.float64) if numbers is None else numbers.dtype for numbers in per_file]
    array = np.empty(sum(n_rows), dtype=np.result_type(*dtypes))
    start = 0
    for numbers, n in zip(per_file, n_rows, strict=True):
        array[start : start + n] = np.nan if numbers is None else numbers
        start += n
    return NumberColumn(array)


def label_weights(columns: Sequence[LabelColumn], scaler: float | None) -> tuple[np.ndarray, dict[Any, float]]:
    """Weigh each row by how rare its label is.

    Parameters
    ----------
    columns
        One column, or several whose labels are taken together. Missing values form a label of their own.
    scaler
        None: a weight is ``1 / count``; else ``scaler / (count + scaler)``.

    Returns
    -------
    weights
        float64, one per row.
    by_label
        The weight of each label that occurs.
    """
    group = np.zeros(len(columns[0].codes), dtype=np.int64)
    for column in columns:
        # Numbered afresh after each column: the product of many categories would outgrow int64.
        group, _ = pd.factorize(group * (len(column.categories) + 1) + column.codes + 1)
    counts = np.bincount(group)
    weight = 1.0 / counts if scaler is None else scaler / (counts + scaler)
    example = np.empty(len(counts), dtype=np.int64)
    example[group[::-1]] = np.arange(len(group))[::-1]
    labels = [tuple([*column.categories, np.nan][column.codes[row]] for column in columns) for row in example]
    return weight[group], dict(zip(_joint_names(labels), weight.tolist(), strict=True))


def _joint_names(labels: list[tuple[Any, ...]]) -> list[Any]:
    if labels and len(labels[0]) == 1:
        return [label for (label,) in labels]
    names = ["__".join(map(str, together)) for together in labels]
    n_same = Counter(names)
    return [name if n_same[name] == 1 else together for name, together in zip(names, labels, strict=True)]


def _with_missing(numbers: np.ndarray, *, missing: bool) -> np.ndarray:
    """Append the entry that code -1 picks; without missing values it is never picked and keeps the dtype."""
    return np.append(numbers.astype(np.float64), np.nan) if missing else np.append(numbers, numbers[-1:])
