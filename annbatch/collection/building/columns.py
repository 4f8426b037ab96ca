"""Columns of obs as fields: one type for all inputs, values fitted to it, and the encoding AnnData gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from annbatch._shared.labels import code_dtype, recode, unite_dtypes
from annbatch.storage.text import numbered

from .fields import Array, Field, Text, encode_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .output.sink import Sink, Stream

Kind = Literal["number", "nullable", "categorical", "text"]

# As pandas infers them.
_KINDS_OF_CATEGORIES = ("string", "empty", "boolean", "integer", "floating", "complex")


@dataclass(frozen=True)
class Column:
    """Type of a column.

    Attributes
    ----------
    kind
        ``number``: every row has one; ``nullable``: with a mask of missing ones; ``categorical``; ``text``.
    dtype
        Of the values of a number or nullable column.
    categories, ordered
        Of a categorical column.
    """

    kind: Kind
    dtype: str = ""
    categories: pd.Index[Any] | None = None
    ordered: bool = False

    def __str__(self) -> str:
        if self.kind == "categorical":
            assert self.categories is not None
            of = "text" if _holds_text(self.categories) else str(self.categories.dtype)
            return f"categorical of {of}"
        return {"number": self.dtype, "nullable": f"nullable {self.dtype}", "text": "text"}[self.kind]


def describe(series: pd.Series[Any]) -> Column:
    """Type of a column in memory.

    Raises
    ------
    TypeError
        AnnData files have no such type.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        of = pd.api.types.infer_dtype(dtype.categories, skipna=True)
        if of not in _KINDS_OF_CATEGORIES:
            msg = f"has categories of a kind that AnnData files do not hold ({of}); make them text, numbers or booleans"
            raise TypeError(msg)
        return Column("categorical", categories=dtype.categories, ordered=bool(dtype.ordered))
    if isinstance(dtype, np.dtype) and dtype.kind in "biufc":
        return Column("number", dtype.newbyteorder("=").name)
    if isinstance(dtype, pd.api.extensions.ExtensionDtype) and hasattr(dtype, "numpy_dtype") and dtype.kind in "biuf":
        return Column("nullable", np.dtype(dtype.numpy_dtype).name)
    if isinstance(dtype, pd.StringDtype) or (isinstance(dtype, np.dtype) and dtype.kind == "U"):
        return Column("text")
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        inferred = pd.api.types.infer_dtype(series, skipna=True)
        if inferred in ("string", "empty"):
            return Column("text")
        if inferred == "boolean":
            return Column("nullable", "bool")
        msg = f"holds Python objects ({inferred}); make it text, categorical or a number"
        raise TypeError(msg)
    msg = f"has dtype {dtype}, which AnnData files do not hold; make it text, categorical or a number"
    raise TypeError(msg)


def unify(columns: Sequence[Column], *, everywhere: bool) -> Column | None:
    """One type for all, or None when there is none; ``everywhere`` is false when some inputs lack the column."""
    kinds = {column.kind for column in columns}
    if kinds == {"text"}:
        return columns[0]
    if "categorical" in kinds:
        if kinds - {"categorical", "text"} or any(column.categories is None for column in columns):
            return None
        # By the rule that all faces share.
        union = unite_dtypes([pd.CategoricalDtype(column.categories, ordered=column.ordered) for column in columns])
        return (
            None if union is None else Column("categorical", categories=union.categories, ordered=bool(union.ordered))
        )
    if "text" in kinds:
        return None
    dtypes = {np.dtype(column.dtype) for column in columns}
    if np.dtype(bool) in dtypes and len(dtypes) > 1:
        return None
    dtype = np.result_type(*dtypes)
    if dtype.kind == "f" and all(each.kind in "iu" for each in dtypes):
        return None  # uint64 and a signed type: no integer type holds both, and a float would round them
    # Floats have a value of their own for "missing".
    nullable = dtype.kind not in "fc" and ("nullable" in kinds or not everywhere)
    return Column("nullable" if nullable else "number", dtype.name)


def _holds_text(categories: pd.Index[Any]) -> bool:
    return pd.api.types.infer_dtype(categories, skipna=True) in ("string", "empty")


def encode(name: str, column: Column, series: pd.Series[Any] | None, n_rows: int) -> dict[str, Field]:
    """Fields of a column; ``series`` None: the input lacks it, all rows are missing."""
    match column.kind:
        case "categorical":
            assert column.categories is not None
            codes = _codes(column.categories, series, n_rows)
            return {f"{name}#codes": codes}
        case "text":
            text, missing = encode_text([None] * n_rows if series is None else list(series.to_numpy(object)))
            return {f"{name}#text": text, f"{name}#mask": missing}
        case "nullable":
            if series is None:
                values, missing = np.zeros(n_rows, column.dtype), np.ones(n_rows, bool)
            else:
                missing = series.isna().to_numpy(bool)
                values = np.zeros(n_rows, column.dtype)
                values[~missing] = (
                    series.to_numpy(object)[~missing]
                    if series.dtype == object
                    else (series[~missing].to_numpy(column.dtype))
                )
            return {f"{name}#values": values, f"{name}#mask": missing}
        case "number":
            if series is None:
                return {f"{name}#values": np.full(n_rows, np.nan, column.dtype)}
            if pd.api.types.is_extension_array_dtype(series.dtype):
                return {f"{name}#values": series.to_numpy(column.dtype, na_value=np.nan)}
            return {f"{name}#values": series.to_numpy().astype(column.dtype, copy=False)}


def encode_text_column(name: str, column: Column, text: Text) -> dict[str, Field]:
    """As :func:`encode`, of text without Python objects, which is text or labels elsewhere."""
    if column.kind == "text":
        return {f"{name}#text": text.letters, f"{name}#mask": text.missing}
    assert column.categories is not None
    numbers, distinct = numbered(text.letters.values[0], np.diff(text.letters.indptr))
    codes = recode(numbers, pd.Index(distinct, dtype=object), column.categories)
    codes[text.missing] = -1
    return {f"{name}#codes": codes}


def _codes(categories: pd.Index[Any], series: pd.Series[Any] | None, n_rows: int) -> Array:
    if series is None:
        return np.full(n_rows, -1, code_dtype(len(categories)))
    values: Any = series.array
    if not isinstance(values, pd.Categorical):
        return categories.get_indexer(pd.Index(series.to_numpy(object))).astype(code_dtype(len(categories)))
    # Not by `series.cat`: pandas looks first whether a row has that name, and for that hashes the names of all rows.
    return recode(np.asarray(values.codes), values.categories, categories)


class ColumnWriter:
    """Writes one column of a frame, rows appended as they come."""

    def __init__(self, sink: Sink, path: str, name: str, column: Column, n_rows: int, *, has_missing: bool) -> None:
        self._column = column
        self._name = name
        array = {"encoding-type": "array", "encoding-version": "0.2.0"}
        text = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        mask_type = np.dtype(bool)
        self._streams: dict[str, Stream] = {}
        match column.kind:
            case "categorical":
                assert column.categories is not None
                codes = code_dtype(len(column.categories))
                sink.group(path, "categorical", "0.2.0", ordered=column.ordered)
                sink.element(f"{path}/categories", column.categories.to_numpy())
                self._streams["codes"] = sink.column(f"{path}/codes", codes, n_rows, array)
            case "number":
                self._streams["values"] = sink.column(path, np.dtype(column.dtype), n_rows, array)
            case "nullable":
                of = "boolean" if column.dtype == "bool" else "integer"
                sink.group(path, f"nullable-{of}")
                self._streams["values"] = sink.column(f"{path}/values", np.dtype(column.dtype), n_rows, array)
                self._streams["mask"] = sink.column(f"{path}/mask", mask_type, n_rows, array)
            case "text" if has_missing:
                sink.group(path, "nullable-string-array")
                self._streams["text"] = sink.text(f"{path}/values", n_rows, text)
                self._streams["mask"] = sink.column(f"{path}/mask", mask_type, n_rows, array)
            case "text":
                self._streams["text"] = sink.text(path, n_rows, text)

    def append(self, fields: Mapping[str, Field]) -> None:
        """Add rows."""
        for part, stream in self._streams.items():
            value = fields[f"{self._name}#{part}"]
            stream.append(value)

    def close(self) -> None:
        """Write what is left."""
        for stream in self._streams.values():
            stream.close()


def sort_keys(inputs: Sequence[Sequence[pd.Categorical[Any]]], unions: Sequence[pd.Index[Any]]) -> Array:
    """One integer a row over all inputs that sorts as their columns do, first column first, missing values last.

    ``inputs`` holds the columns of each input, ``unions`` the sorted (or ordered) values of each column in all of them.
    """
    keys: Array = np.zeros(sum(len(columns[0]) for columns in inputs), np.uint8)
    n_keys = 1
    for i, union in enumerate(unions):
        n_labels = len(union) + 1
        if n_keys * n_labels >= 2**63:  # more than an integer tells apart, but not more than there are rows
            distinct, keys = np.unique(keys, return_inverse=True)
            n_keys = len(distinct)
        n_keys *= n_labels
        keys = keys.astype(np.min_scalar_type(n_keys))
        keys *= keys.dtype.type(n_labels)
        start = 0
        for columns in inputs:
            # The last entry is what code -1 finds.
            ranks = np.append(union.get_indexer(columns[i].categories.astype(union.dtype)), -1)
            ranks[ranks < 0] = len(union)
            keys[start : start + len(columns[i])] += ranks.astype(keys.dtype)[columns[i].codes]
            start += len(columns[i])
    return keys
