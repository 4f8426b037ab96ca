"""obs by columns: numbers, codes, and text without an object per row.

A DataFrame of many rows is what annotations cost in memory: its names and texts are a Python object each. Here a table is
a `CompactFrame`: few NumPy arrays, from which the rows of a batch are taken as the DataFrame that pandas would have made.

- numbers, booleans, dates: one array for all columns of a dtype, row by row, so that those of a row lie together
- nullable numbers: values and a mask
- categories: codes
- text with few distinct values: codes
- other text, and the names of rows: :class:`annbatch.storage.text.CompactText`
- whatever else pandas holds: as pandas holds it

Every kind of column has a `dtype` (what pandas says that it is), a length, ``take(rows)``, which copies out rows (int64, in range,
any order), and ``whole()``, which copies out all of them: as an array of which pandas makes a column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from annbatch._shared.labels import code_dtype, recode, unite_dtypes

from .text import ROWS_AT_ONCE, CompactText, TextWriter, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "CategoryColumn",
    "CodedText",
    "CompactFrame",
    "LongText",
    "MaskedColumn",
    "NumberBlocks",
    "OtherColumn",
    "PlainColumn",
    "are_few",
    "column_of",
    "names_of",
    "natural_text_dtype",
    "stacked",
]

# Text of so many distinct values is always kept as codes; of more, where each comes this many times on average.
_ALWAYS_FEW = 4096
_ROWS_PER_VALUE = 16

_ROWS_IN_CACHE = 1 << 12

_Finish: TypeAlias = "Callable[[pd.CategoricalDtype], pd.CategoricalDtype]"


@dataclass(frozen=True, eq=False)
class PlainColumn:
    """Values of a NumPy dtype.

    Attributes
    ----------
    block
        One row per row, one column per column that shares it.
    place
        Which of them.
    """

    block: np.ndarray
    place: int

    @property
    def values(self) -> np.ndarray:
        """The values: a view with a stride."""
        values: np.ndarray = self.block[:, self.place]
        return values

    @property
    def dtype(self) -> np.dtype[Any]:
        """See above."""
        return self.block.dtype

    def __len__(self) -> int:
        return len(self.block)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See above."""
        taken: np.ndarray = self.block[rows, self.place]
        return taken

    def whole(self) -> np.ndarray:
        """See above."""
        return self.values.copy()


@dataclass(frozen=True, eq=False)
class MaskedColumn:
    """Nullable numbers or booleans; a value counts where the mask is False."""

    values: np.ndarray
    mask: np.ndarray
    dtype: Any

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Any:
        """See above."""
        return self.dtype.construct_array_type()(self.values[rows], self.mask[rows])

    def whole(self) -> Any:
        """See above."""
        return self.dtype.construct_array_type()(self.values.copy(), self.mask.copy())


@dataclass(frozen=True, eq=False)
class CategoryColumn:
    """Codes of categories, -1 where the value is missing."""

    codes: np.ndarray
    dtype: pd.CategoricalDtype

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> pd.Categorical:
        """See above."""
        return pd.Categorical.from_codes(self.codes[rows], dtype=self.dtype, validate=False)

    def whole(self) -> pd.Categorical:
        """See above."""
        return pd.Categorical.from_codes(self.codes.copy(), dtype=self.dtype, validate=False)


@dataclass(frozen=True, eq=False)
class CodedText:
    """Text with few distinct values.

    Attributes
    ----------
    codes
        Signed integers, -1 where the value is missing.
    texts
        The distinct texts, in any order: an object array of str.
    missing
        What stands for a missing value.
    dtype
        object, or one of pandas' string dtypes.
    """

    codes: np.ndarray
    texts: np.ndarray
    missing: Any
    dtype: Any

    @cached_property
    def _by_code(self) -> np.ndarray:
        # Code -1 picks the last.
        values = np.empty(len(self.texts) + 1, dtype=object)
        values[:-1], values[-1] = self.texts, self.missing
        return values

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> Any:
        """See above."""
        return np.take(self._by_code, self.codes[rows], mode="wrap")

    def whole(self) -> Any:
        """See above."""
        return np.take(self._by_code, self.codes, mode="wrap")

    def as_long_text(self) -> LongText:
        """Return the same column, with every text on its own."""
        text = self.write_to(TextWriter(len(self))).written()
        is_missing = self.codes < 0
        return LongText(text, is_missing if is_missing.any() else None, self.missing, self.dtype)

    def write_to(self, writer: TextWriter) -> TextWriter:
        """Write the text of all rows; nothing where it is missing."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            codes = self.codes[start : start + ROWS_AT_ONCE]
            texts = np.take(self._by_code, codes, mode="wrap")
            texts[codes < 0] = ""
            _write(writer, texts)
        return writer


@dataclass(frozen=True, eq=False)
class LongText:
    """Text with many distinct values.

    Attributes
    ----------
    text
        A text per row; any where the value is missing.
    is_missing
        bool, one per row; None: no value is missing.
    missing, dtype
        As those of :class:`CodedText`.
    """

    text: CompactText
    is_missing: np.ndarray | None
    missing: Any
    dtype: Any

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See above."""
        texts = self.text.take(rows)
        if self.is_missing is not None:
            texts[self.is_missing[rows]] = self.missing
        return texts

    def whole(self) -> np.ndarray:
        """See above."""
        texts = np.empty(len(self), dtype=object)
        for start in range(0, len(self), ROWS_AT_ONCE):
            texts[start : start + ROWS_AT_ONCE] = self.take(np.arange(start, min(start + ROWS_AT_ONCE, len(self))))
        return texts


@dataclass(frozen=True, eq=False)
class OtherColumn:
    """Anything else that pandas holds: a pandas array, or objects."""

    array: Any

    @property
    def dtype(self) -> Any:
        """See above."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> Any:
        """See above."""
        return self.array.take(rows)

    def whole(self) -> Any:
        """See above."""
        return self.take(np.arange(len(self)))


class NumberBlocks:
    """Room for the columns of plain numbers of one table: an array for those of each dtype.

    Parameters
    ----------
    dtypes
        Name and dtype of each column.
    n_rows
        Number of rows.
    """

    def __init__(self, dtypes: Mapping[Any, np.dtype[Any]], n_rows: int) -> None:
        together: dict[np.dtype[Any], list[Any]] = {}
        for name, dtype in dtypes.items():
            together.setdefault(dtype, []).append(name)
        self.columns: dict[Any, PlainColumn] = {}
        for dtype, names in together.items():
            block = np.empty((n_rows, len(names)), dtype)
            self.columns |= {name: PlainColumn(block, place) for place, name in enumerate(names)}

    def sealed(self) -> dict[Any, PlainColumn]:
        """Return the columns, which are filled by now."""
        for column in self.columns.values():
            column.block.flags.writeable = False
        return self.columns


@dataclass(frozen=True, eq=False)
class CompactFrame:
    """A table without an object per row.

    Attributes
    ----------
    n_rows
        Number of rows.
    axis
        Names of the columns.
    columns
        The columns, in their order.
    names
        Names of the rows; None: they are not kept.
    index_name
        What the names of the rows are called.
    """

    n_rows: int
    axis: pd.Index[Any]
    columns: Mapping[Any, Any]
    names: LongText | OtherColumn | None = None
    index_name: Any = None

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, *, names: bool = True) -> CompactFrame:
        """Take in a DataFrame, whose columns have distinct names."""
        plain, columns = {}, {}
        for name in frame.columns:
            array = frame[name].array
            columns[name] = column_of(array)
            if isinstance(columns[name], PlainColumn):
                plain[name] = [columns[name]]
        columns |= _stacked_numbers(plain, len(frame))
        kept = names_of(frame.index) if names else None
        return cls(len(frame), frame.columns, columns, kept, frame.index.name if names else None)

    def take(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out rows (int64, in range, any order); the names of the columns are shared with this table."""
        index = self.index(rows)
        if not self.columns:
            return pd.DataFrame(index=index, columns=self.axis)
        blocks, rest, back = self._plan
        parts = [pd.DataFrame(_rows_of(block, places, rows), index=index, copy=False) for block, places in blocks]
        if rest:
            parts.append(_frame_of([(column, column.take(rows)) for column in rest], index))
        frame = parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)
        if back is not None:
            frame = frame.take(back, axis=1)
        frame.columns = self.axis
        return frame

    @cached_property
    def _plan(self) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], list[Any], np.ndarray | None]:
        """Arrays of numbers with the places of columns in each (None: all); the other columns; where they all belong."""
        columns = list(self.columns.values())
        together: dict[int, list[int]] = {}
        for number, column in enumerate(columns):
            if isinstance(column, PlainColumn):
                together.setdefault(id(column.block), []).append(number)
        blocks, order = [], []
        for numbers in together.values():
            block = columns[numbers[0]].block
            places = np.array([columns[number].place for number in numbers])
            blocks.append((block, None if np.array_equal(places, np.arange(block.shape[1])) else places))
            order += numbers
        rest = [number for number, column in enumerate(columns) if not isinstance(column, PlainColumn)]
        order += rest
        back = None if order == sorted(order) else np.argsort(order)
        return blocks, [columns[number] for number in rest], back

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}

    def index(self, rows: np.ndarray) -> pd.Index[Any]:
        """Names of rows; their numbers where names are not kept."""
        if self.names is None:
            return pd.Index(rows)
        taken = self.names.take(rows)
        return taken if isinstance(taken, pd.Index) else pd.Index(taken, dtype=self.names.dtype, name=self.index_name)

    def whole(self) -> pd.DataFrame:
        """Return all rows as a DataFrame that shares nothing with this table; a column at a time, to need little memory."""
        return self._frame([column.whole() for column in self.columns.values()], self.whole_index())

    def rows(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out rows as :meth:`take` does, but as :meth:`whole` does it: for many rows."""
        return self._frame([column.take(rows) for column in self.columns.values()], self.index(rows))

    def whole_index(self) -> pd.Index[Any]:
        """Names of all rows."""
        if self.names is None:
            return pd.RangeIndex(self.n_rows)
        if isinstance(self.names, OtherColumn):
            index: pd.Index[Any] = self.names.array
            return index
        return pd.Index(self.names.whole(), dtype=self.names.dtype, name=self.index_name)

    def labels(self, name: Any) -> tuple[np.ndarray, Any]:
        """Codes of a column (-1: missing), and the labels that they number."""
        column = self.columns[name]
        if isinstance(column, CategoryColumn):
            return column.codes, column.dtype.categories
        if isinstance(column, CodedText):
            order = sorted(range(len(column.texts)), key=column.texts.__getitem__)
            used = np.bincount(column.codes[column.codes >= 0], minlength=len(order)).astype(bool)
            order = [code for code in order if used[code]]
            return recode(column.codes, column.texts, pd.Index(column.texts[order], dtype=object)), column.texts[order]
        values = pd.Categorical(_series_of(column))
        return values.codes, values.categories

    def _frame(self, values: Sequence[Any], index: pd.Index[Any]) -> pd.DataFrame:
        if not values:
            return pd.DataFrame(index=index, columns=self.axis)
        frame = _frame_of(zip(self.columns.values(), values, strict=True), index)
        frame.columns = self.axis.copy(deep=True)
        return frame

    def only(self, names: Sequence[Any]) -> CompactFrame:
        """Return a table of some columns, in this order."""
        return replace(self, axis=_axis(names), columns={name: self.columns[name] for name in names})


def natural_text_dtype() -> Any:
    """Return the dtype that pandas gives to text: object, or str from pandas 3 on."""
    return pd.Series(np.array(["a"], dtype=object)).dtype


def are_few(n_distinct: int, n_rows: int) -> bool:
    """Whether text with so many distinct values among so many rows is kept as codes."""
    return n_distinct <= _ALWAYS_FEW or n_distinct * _ROWS_PER_VALUE <= n_rows


# -- from pandas


def column_of(array: Any) -> Any:
    """Return the column of a pandas array; the memory may be that of the array."""
    dtype = array.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return CategoryColumn(_read_only(array.codes), dtype)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufcmM":
        return PlainColumn(_read_only(np.asarray(array))[:, None], 0)
    if isinstance(array, pd.arrays.IntegerArray | pd.arrays.FloatingArray | pd.arrays.BooleanArray):
        values = array.to_numpy(dtype=dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0))
        return MaskedColumn(_read_only(values), _read_only(np.asarray(array.isna())), dtype)
    if dtype == object or isinstance(dtype, pd.StringDtype):
        values = np.asarray(array, dtype=object)
        return _text_of(values, dtype) or OtherColumn(values if dtype == object else array)
    return OtherColumn(array)


def _text_of(values: np.ndarray, dtype: Any) -> CodedText | LongText | None:
    """Return a column of texts; None where there is anything else, or more than one kind of missing values."""
    if not len(values) or pd.api.types.infer_dtype(values, skipna=True) not in ("string", "empty"):
        return None
    codes, texts = pd.factorize(values)
    missing = {type(value): value for value in values[codes < 0]}
    if len(missing) > 1:
        return None
    column = CodedText(
        _read_only(codes.astype(code_dtype(len(texts)))), texts, next(iter(missing.values()), np.nan), dtype
    )
    return column if are_few(len(texts), len(values)) else column.as_long_text()


def names_of(index: pd.Index[Any]) -> LongText | OtherColumn:
    is_text = pd.api.types.infer_dtype(index, skipna=False) in ("string", "empty")
    if type(index) is not pd.Index or not is_text:
        return OtherColumn(index)
    writer = TextWriter(len(index))
    for start in range(0, len(index), ROWS_AT_ONCE):
        _write(writer, np.asarray(index[start : start + ROWS_AT_ONCE], dtype=object))
    return LongText(writer.written(), None, np.nan, index.dtype)


def _write(writer: TextWriter, texts: np.ndarray) -> None:
    pair = packed(texts)
    assert pair is not None
    writer.write(*pair)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


# -- to pandas


def _rows_of(block: np.ndarray, places: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    taken: np.ndarray = np.take(block, rows, axis=0)
    return taken if places is None else taken[:, places]


def _frame_of(columns: Iterable[tuple[Any, Any]], index: pd.Index[Any]) -> pd.DataFrame:
    """Make a frame of columns and their values; its own columns are numbered."""
    series: dict[int, Any] = {}
    for number, (column, values) in enumerate(columns):
        if column.dtype == object:  # or pandas would see what else these objects may be
            series[number] = pd.Series(values, index=index, dtype=object, copy=False)
        else:
            series[number] = pd.array(values, dtype=column.dtype) if values.dtype == object else values
    return pd.DataFrame(series, index=index, copy=False)


def _axis(names: Sequence[Any]) -> pd.Index[Any]:
    return pd.DataFrame(columns=list(names)).columns


# -- below each other


def stacked(frames: Sequence[CompactFrame], finish: _Finish = lambda dtype: dtype) -> CompactFrame:
    """Put tables below each other; a column that a table lacks is missing there.

    Categorical columns stay categorical, with the sorted categories of all tables (see :mod:`annbatch._shared.labels`). A
    column that is categorical in one table and plain in another becomes categorical. One that holds text here and numbers
    there holds Python objects. All else is as :func:`pandas.concat` has it.

    Parameters
    ----------
    frames
        At least one.
    finish
        Has the last word about the dtype of a categorical column.
    """
    lengths = [frame.n_rows for frame in frames]
    columns: dict[Any, Any] = {}
    plain: dict[Any, list[PlainColumn]] = {}
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        parts = _united([frame.columns.get(name) for frame in frames], lengths, finish)
        found = _stacked_column(parts, lengths)
        columns[name] = found
        if isinstance(found, list):
            plain[name] = found
    columns |= _stacked_numbers(plain, sum(lengths)) if len(frames) > 1 else {name: plain[name][0] for name in plain}
    axis = frames[0].axis if len(frames) == 1 else _axis(list(columns))
    return CompactFrame(sum(lengths), axis, columns, *_stacked_names(frames))


def _united(parts: list[Any], lengths: Sequence[int], finish: _Finish) -> list[Any]:
    """Give all parts of a column the same categories, if one of them has any and they can be united."""
    if not any(isinstance(part, CategoryColumn) for part in parts):
        return parts
    dtype = unite_dtypes([_categories_of(part) for part in parts if part is not None])
    if dtype is None:
        return parts
    dtype = finish(dtype)
    return [_as_categories(part, n_rows, dtype) for part, n_rows in zip(parts, lengths, strict=True)]


def _categories_of(part: Any) -> pd.CategoricalDtype:
    if isinstance(part, CategoryColumn):
        return part.dtype
    return pd.CategoricalDtype(pd.Index(_series_of(part).dropna().unique()))


def _as_categories(part: Any, n_rows: int, dtype: pd.CategoricalDtype) -> CategoryColumn:
    if part is None:
        return CategoryColumn(_read_only(np.full(n_rows, -1, code_dtype(len(dtype.categories)))), dtype)
    if isinstance(part, CategoryColumn):
        if part.dtype.ordered == dtype.ordered and part.dtype.categories is dtype.categories:
            return part
        codes, categories = part.codes, part.dtype.categories
    elif isinstance(part, CodedText):
        codes, categories = part.codes, part.texts
    else:
        values = pd.Categorical(_series_of(part))
        codes, categories = values.codes, values.categories
    return CategoryColumn(_read_only(recode(codes, categories, dtype.categories)), dtype)


def _series_of(part: Any) -> pd.Series[Any]:
    series: pd.Series[Any] = _frame_of([(part, part.whole())], pd.RangeIndex(len(part)))[0]
    return series


def _stacked_column(parts: list[Any], lengths: Sequence[int]) -> Any:
    """Return a column; of plain numbers a list of their parts, because several columns share an array."""
    there = [(part, n_rows) for part, n_rows in zip(parts, lengths, strict=True) if n_rows]
    if not there:
        there = [(part, 0) for part in parts if part is not None]
    filled, rows = [part for part, _ in there], [n_rows for _, n_rows in there]
    first = next((part for part in filled if part is not None), None)
    kinds = {type(part) for part in filled}
    if first is not None and len(kinds) == 1 and all(part.dtype == first.dtype for part in filled):
        if kinds == {PlainColumn}:
            return filled
        if len(filled) == 1:
            return first
        if kinds == {CategoryColumn}:
            return CategoryColumn(_joined([part.codes for part in filled]), first.dtype)
        if kinds == {MaskedColumn}:
            masks = _joined([part.mask for part in filled])
            return MaskedColumn(_joined([part.values for part in filled]), masks, first.dtype)
    if first is not None and kinds <= {CodedText, LongText, type(None)}:
        text = _stacked_text(filled, rows, first.dtype)
        if text is not None:
            return text
    series = [
        pd.Series(np.nan, index=range(n_rows)) if part is None else _series_of(part)
        for part, n_rows in zip(filled, rows, strict=True)
    ]
    # In a frame, because there pandas sees what objects may be all the same: dates.
    column = column_of(pd.DataFrame({0: pd.concat(series, ignore_index=True).array})[0].array)
    return [column] if isinstance(column, PlainColumn) else column


def _stacked_text(parts: list[Any], lengths: Sequence[int], dtype: Any) -> CodedText | LongText | None:
    """Return the column of parts that hold text; None when a column has no such dtype, or not one kind of missing value."""
    if any(part is not None and part.dtype != dtype for part in parts) or (None in parts and dtype != object):
        return None
    empty = CodedText(np.empty(0, np.int8), np.empty(0, object), np.nan, dtype)
    parts = [
        replace(empty, codes=np.full(n_rows, -1, np.int8)) if part is None else part
        for part, n_rows in zip(parts, lengths, strict=True)
    ]
    missing = {type(part.missing): part.missing for part in parts if _misses_any(part)}
    if len(missing) > 1:
        return None
    stands_for_missing = next(iter(missing.values()), np.nan)
    if all(isinstance(part, CodedText) for part in parts):
        found: dict[str, int] = {}
        tables = [np.array([found.setdefault(text, len(found)) for text in part.texts] + [-1]) for part in parts]
        if are_few(len(found), sum(lengths)):
            code = code_dtype(len(found))
            codes = [
                np.take(table.astype(code), part.codes, mode="wrap") for table, part in zip(tables, parts, strict=True)
            ]
            return CodedText(_joined(codes), _objects(list(found)), stands_for_missing, dtype)
    long = [part.as_long_text() if isinstance(part, CodedText) else part for part in parts]
    is_missing = None
    if missing:
        is_missing = _joined([np.zeros(len(part), bool) if part.is_missing is None else part.is_missing for part in long])
    return LongText(CompactText.stacked([part.text for part in long]), is_missing, stands_for_missing, dtype)


def _misses_any(part: CodedText | LongText) -> bool:
    return bool((part.codes < 0).any()) if isinstance(part, CodedText) else part.is_missing is not None


def _stacked_numbers(parts: Mapping[Any, list[PlainColumn]], n_rows: int) -> dict[Any, PlainColumn]:
    blocks = NumberBlocks({name: of_column[0].dtype for name, of_column in parts.items()}, n_rows)
    together: dict[int, list[Any]] = {}
    for name, column in blocks.columns.items():
        together.setdefault(id(column.block), []).append(name)
    for names in together.values():
        block = blocks.columns[names[0]].block
        start = 0
        # Columns that no table made anew have the same parts.
        for of_columns in zip(*(parts[name] for name in names), strict=True) if _alike(parts, names) else ():
            stop = start + len(of_columns[0])
            _fill(block[start:stop], of_columns)
            start = stop
        for place, name in enumerate(names) if not _alike(parts, names) else ():
            block[:, place] = np.concatenate([part.values for part in parts[name]])
    return blocks.sealed()


def _alike(parts: Mapping[Any, list[PlainColumn]], names: Sequence[Any]) -> bool:
    return len({tuple(map(len, parts[name])) for name in names}) == 1


def _fill(block: np.ndarray, columns: Sequence[PlainColumn]) -> None:
    first = columns[0]
    same = all(column.block is first.block and column.place == place for place, column in enumerate(columns))
    if same and first.block.shape == block.shape:
        block[:] = first.block
        return
    # A few rows at a time, so that they stay in the cache while column after column is put beside the others.
    for start in range(0, len(block), _ROWS_IN_CACHE):
        for place, column in enumerate(columns):
            block[start : start + _ROWS_IN_CACHE, place] = column.values[start : start + _ROWS_IN_CACHE]


def _stacked_names(frames: Sequence[CompactFrame]) -> tuple[LongText | OtherColumn | None, Any]:
    names = [frame.names for frame in frames]
    same_name = all(frame.index_name == frames[0].index_name for frame in frames)
    index_name = frames[0].index_name if same_name else None
    if len(frames) == 1 or any(name is None for name in names):
        return names[0], index_name
    long = [name for name in names if isinstance(name, LongText)]
    if len(long) == len(names) and all(name.dtype == long[0].dtype for name in long):
        return replace(long[0], text=CompactText.stacked([name.text for name in long])), index_name
    first, *rest = [frame.whole_index() for frame in frames]
    index = first.append(rest)
    return names_of(index), index.name


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return _read_only(np.concatenate(arrays))


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
