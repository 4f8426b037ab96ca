"""obs without an object per row: text and the names of rows as bytes or codes, all else as pandas has it.

In a DataFrame of many rows the names of rows and text are a Python object each, which is most of what it costs. A
`CompactFrame` is the same table, from which the rows of a batch are taken as the DataFrame that pandas would have made. Numbers,
dates and categories cost no more in pandas than in NumPy, and are taken several times as fast as they could be put together.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_object_dtype

from annbatch._shared.labels import code_dtype, recode
from annbatch._shared.obs_frames import Finish, as_it_is, stack_frames, unite_frames

from .shared_arrays import shared
from .text import ROWS_AT_ONCE, CompactText, TextWriter, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CodedText", "CompactFrame", "LongText", "are_few", "natural_text_dtype", "row_names", "stacked"]

# Text of so many distinct values is always kept as codes; of more, where each comes this many times on average.
_ALWAYS_FEW = 4096
_ROWS_PER_VALUE = 16
# A frame of more separate columns than 100 is one that pandas warns of.
_INSERTED_AT_ONCE = 64
# Of an array of objects that are all text, a frame makes a column of another dtype; of a series it does not.
_OBJECTS_ARE_LOOKED_AT = int(pd.__version__.partition(".")[0]) >= 3


@dataclass(frozen=True, eq=False)
class CodedText:
    """A column of text with few distinct values.

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

    def shared(self) -> CodedText:
        """Return the same, of arrays that processes share."""
        return replace(self, codes=shared(self.codes))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def misses_any(self) -> bool:
        """Whether a value is missing."""
        return bool((self.codes < 0).any())

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Values of rows (int64, in range, any order): an object array."""
        taken: np.ndarray = np.take(self._by_code, self.codes[rows], mode="wrap")
        return taken

    def whole(self) -> np.ndarray:
        """Values of all rows."""
        values: np.ndarray = np.take(self._by_code, self.codes, mode="wrap")
        return values

    def as_long_text(self) -> LongText:
        """Return the same column, with every text on its own."""
        text = self.write_to(TextWriter(len(self))).written()
        return LongText(text, read_only(self.codes < 0) if self.misses_any else None, self.missing, self.dtype)

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
    """A column of text with many distinct values, or the names of rows.

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

    def shared(self) -> LongText:
        """Return the same, of arrays that processes share."""
        is_missing = None if self.is_missing is None else shared(self.is_missing)
        return replace(self, text=self.text.shared(), is_missing=is_missing)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def misses_any(self) -> bool:
        """Whether a value is missing."""
        return self.is_missing is not None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Values of rows (int64, in range, any order): an object array."""
        texts = self.text.take(rows)
        if self.is_missing is not None:
            texts[self.is_missing[rows]] = self.missing
        return texts

    def whole(self) -> np.ndarray:
        """Values of all rows."""
        texts = np.empty(len(self), dtype=object)
        for start in range(0, len(self), ROWS_AT_ONCE):
            texts[start : start + ROWS_AT_ONCE] = self.take(np.arange(start, min(start + ROWS_AT_ONCE, len(self))))
        return texts


_Text: TypeAlias = CodedText | LongText


@dataclass(frozen=True, eq=False)
class CompactFrame:
    """A table without an object per row, as far as there need not be one.

    Attributes
    ----------
    axis
        Names of the columns.
    values
        The columns that are no text, each named by its place among all columns, in their order.
    texts
        The columns of text, by their places.
    names
        Names of the rows; None: they are not kept. An Index where they are not plain text.
    index_name
        What the names of the rows are called.
    """

    axis: pd.Index[Any]
    values: pd.DataFrame
    texts: Mapping[int, _Text]
    names: LongText | pd.Index[Any] | None = None
    index_name: Any = None

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, *, names: bool = True) -> CompactFrame:
        """Take in a DataFrame, whose columns have distinct names; memory may be shared."""
        found = {place: _text_of(frame.iloc[:, place]) for place in range(frame.shape[1])}
        texts = {place: text for place, text in found.items() if text is not None}
        rest = [place for place in range(frame.shape[1]) if place not in texts]
        values = frame.iloc[:, rest] if texts else frame.copy(deep=False)
        values.columns = pd.Index(rest, dtype=np.int64)
        values.index = pd.RangeIndex(len(frame))
        return cls(
            frame.columns, values, texts, row_names(frame.index) if names else None, frame.index.name if names else None
        )

    def shared(self) -> CompactFrame:
        """Return the same, of arrays that processes share; columns of Python objects stay as they are."""
        names = self.names.shared() if isinstance(self.names, LongText) else self.names
        texts = {place: text.shared() for place, text in self.texts.items()}
        if any(is_object_dtype(dtype) for dtype in self.values.dtypes):
            return replace(self, texts=texts, names=names)
        layout, buffers = self._values_as_bytes
        known = [shared(buffer) for buffer in buffers]
        is_new = any(one is not other for one, other in zip(known, buffers, strict=True))
        values = pickle.loads(layout, buffers=known) if is_new else self.values  # noqa: S301 (what was made just now)
        table = replace(self, values=values, texts=texts, names=names)
        table.__dict__["_values_as_bytes"] = layout, known  # so that a pickle finds the very same arrays
        return table

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.values)

    @property
    def columns(self) -> list[Any]:
        """Names of the columns."""
        return list(self.axis)

    def take(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out rows (int64, in range, any order). Categories and the names of the columns are shared with this table."""
        frame = self._with_texts(_taken(self.values, rows), rows)
        frame.index, frame.columns = self.index(rows), self.axis
        return frame

    def frame(
        self, rows: np.ndarray | None = None, columns: Sequence[Any] | None = None, *, copy: bool = True
    ) -> pd.DataFrame:
        """Copy out many rows (None: all) of some columns (None: all), with little more memory than the result takes.

        It shares nothing with this table; with ``copy=False`` it may, for a table that is not used any more.
        """
        table = self if columns is None else self._only(columns)
        values = table.values.copy(deep=copy) if rows is None else _taken(table.values, rows)
        for number, dtype in enumerate(values.dtypes):
            if isinstance(dtype, pd.CategoricalDtype):
                own = pd.CategoricalDtype(dtype.categories.copy(deep=True), ordered=dtype.ordered)
                codes = values.iloc[:, number].array.codes
                values.isetitem(number, pd.Categorical.from_codes(codes, dtype=own, validate=False))
        frame = table._with_texts(values, rows)  # noqa: SLF001
        frame.index = self.index(rows)
        frame.columns = table.axis.copy(deep=True)
        return frame

    def labels(self, name: Any) -> tuple[np.ndarray, Any]:
        """Codes of a column (-1: missing), and the labels that they number."""
        place = self.place(name)
        text = self.texts.get(place)
        if isinstance(text, CodedText):
            used = np.zeros(len(text.texts) + 1, dtype=bool)
            used[text.codes] = True
            labels = pd.Index(sorted(text.texts[used[:-1]]), dtype=object)
            return recode(text.codes, text.texts, labels), labels
        values: Any = self.values[place].array if text is None else text.whole()
        if not isinstance(values, pd.Categorical):
            values = pd.Categorical(values)
        return values.codes, values.categories

    def place(self, name: Any) -> int:
        """Place of a column among all."""
        place: int = self.axis.get_loc(name)  # type: ignore[assignment]
        return place

    def _only(self, columns: Sequence[Any]) -> CompactFrame:
        """Return a table of some columns, whose values are shared."""
        places = [self.place(name) for name in columns]
        values = pd.DataFrame(
            {number: self.values[place].array for number, place in enumerate(places) if place not in self.texts},
            index=self.values.index,
            copy=False,
        )
        texts = {number: self.texts[place] for number, place in enumerate(places) if place in self.texts}
        return replace(self, axis=pd.DataFrame(columns=list(columns)).columns, values=values, texts=texts)

    def _with_texts(self, frame: pd.DataFrame, rows: np.ndarray | None) -> pd.DataFrame:
        for number, (place, text) in enumerate(self.texts.items()):
            if number % _INSERTED_AT_ONCE == _INSERTED_AT_ONCE - 1:
                frame = frame.copy()
            values = _as_pandas(text.whole() if rows is None else text.take(rows), text.dtype, frame.index)
            frame.insert(place, place, values)
        return frame

    def index(self, rows: np.ndarray | None) -> pd.Index[Any]:
        """Names of rows (None: all); their numbers where names are not kept."""
        if self.names is None:
            return pd.RangeIndex(self.n_rows) if rows is None else pd.Index(rows)
        if not isinstance(self.names, LongText):
            index: pd.Index[Any] = self.names.copy(deep=True) if rows is None else self.names.take(rows)
            return index
        names = self.names.whole() if rows is None else self.names.take(rows)
        found: pd.Index[Any] = pd.Index(names, dtype=self.names.dtype, name=self.index_name)
        return found

    @cached_property
    def _values_as_bytes(self) -> tuple[bytes, list[np.ndarray]]:
        """The values as arrays of bytes, which share their memory: who sends them need not know how pandas keeps columns."""
        buffers: list[pickle.PickleBuffer] = []
        layout = pickle.dumps(self.values, protocol=5, buffer_callback=buffers.append)
        return layout, [read_only(np.frombuffer(buffer.raw(), np.uint8)) for buffer in buffers]

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "values": self._values_as_bytes}
        state.pop("_values_as_bytes", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        layout, buffers = state["values"]
        self.__dict__["_values_as_bytes"] = state["values"]
        self.__dict__.update({**state, "values": pickle.loads(layout, buffers=buffers)})  # noqa: S301 (a part of a pickle)


def _taken(values: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Copy out rows. All of them in their order pandas 3 would hand out without a copy until somebody writes, not always noticed."""
    taken = values.take(rows)
    return taken.copy(deep=True) if len(rows) == len(values) else taken


@cache
def natural_text_dtype() -> Any:
    """Return the dtype that pandas gives to text: object, or str from pandas 3 on."""
    return pd.Series(np.array(["a"], dtype=object)).dtype


def are_few(n_distinct: int, n_rows: int) -> bool:
    """Whether text with so many distinct values among so many rows is kept as codes."""
    return n_distinct <= _ALWAYS_FEW or n_distinct * _ROWS_PER_VALUE <= n_rows


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view of an array through which it cannot be changed."""
    view = array.view()
    view.flags.writeable = False
    return view


def row_names(index: pd.Index[Any]) -> LongText | pd.Index[Any]:
    """Return the names of rows without an object each, where they are plain text."""
    kind = infer_dtype(index, skipna=False)
    if type(index) is not pd.Index or kind not in ("string", "empty"):
        return index
    # pandas 3 makes its own kind of text of objects, when it puts indexes below each other.
    is_natural = is_object_dtype(index.dtype) and kind == "string"
    writer = TextWriter(len(index))
    for start in range(0, len(index), ROWS_AT_ONCE):
        _write(writer, np.asarray(index[start : start + ROWS_AT_ONCE], dtype=object))
    return LongText(writer.written(), None, np.nan, natural_text_dtype() if is_natural else index.dtype)


def _text_of(column: pd.Series[Any]) -> _Text | None:
    """Return a column of text; None where there is anything else in it, or more than one kind of missing values."""
    dtype = column.dtype
    if not len(column) or not (is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype)):
        return None
    values = np.asarray(column, dtype=object)
    if infer_dtype(values, skipna=True) not in ("string", "empty"):
        return None
    codes, texts = pd.factorize(values)
    missing = {type(value): value for value in values[codes < 0]}
    # pandas takes texts that differ only after a NUL for the same.
    is_there = codes >= 0
    if len(missing) > 1 or not np.array_equal(np.asarray(texts, dtype=object)[codes[is_there]], values[is_there]):
        return None
    codes = read_only(codes.astype(code_dtype(len(texts))))
    text = CodedText(codes, texts, next(iter(missing.values()), np.nan), dtype)
    return text if are_few(len(texts), len(values)) else text.as_long_text()


def _write(writer: TextWriter, texts: np.ndarray) -> None:
    pair = packed(texts)
    assert pair is not None
    writer.write(*pair)


def _as_pandas(texts: np.ndarray, dtype: Any, index: pd.Index[Any]) -> Any:
    if isinstance(dtype, pd.StringDtype):
        return pd.array(texts, dtype=dtype)
    return pd.Series(texts, index=index, dtype=dtype, copy=False) if _OBJECTS_ARE_LOOKED_AT else texts


# -- below each other


def stacked(frames: Sequence[CompactFrame], finish: Finish = as_it_is) -> CompactFrame:
    """Put tables below each other; a column that a table lacks is missing there.

    Categorical columns stay categorical, with the sorted categories of all tables (see :mod:`annbatch._shared.labels`). A
    column that is categorical in one table and plain in another becomes categorical. One that holds text here and numbers
    there holds Python objects.

    Parameters
    ----------
    frames
        At least one.
    finish
        Has the last word about the dtype of a categorical column.
    """
    names = dict.fromkeys(name for frame in frames for name in frame.axis)
    found = {name: _stacked_text(name, frames) for name in names}
    texts = {name: text for name, text in found.items() if text is not None}
    rest = [name for name in names if name not in texts]
    stops = np.cumsum([frame.n_rows for frame in frames]).tolist()
    parts = []
    for frame, stop in zip(frames, stops, strict=True):
        part = _values(frame, rest)
        part.index = pd.RangeIndex(stop - frame.n_rows, stop)
        parts.append(part)
    parts = unite_frames(parts, finish)
    # Where a table lacked a column of categories, it has it now, at its end.
    names = dict.fromkeys(
        name for pair in zip(frames, parts, strict=True) for name in (*pair[0].axis, *pair[1].columns)
    )
    places = {name: place for place, name in enumerate(names)}
    values = stack_frames(parts)
    values.columns = pd.Index([places[name] for name in values.columns], dtype=np.int64)
    axis = frames[0].axis if len(frames) == 1 else pd.DataFrame(columns=list(names)).columns
    by_place = {places[name]: texts[name] for name in names if name in texts}
    return CompactFrame(axis, values, by_place, *_stacked_names(frames))


def _values(frame: CompactFrame, wanted: Iterable[Any]) -> pd.DataFrame:
    """Return those of some columns that a table has, by their names; text among them as pandas has it. Values are shared."""
    wanted = set(wanted)
    places = {name: place for place, name in enumerate(frame.axis) if name in wanted}
    if len(places) == frame.values.shape[1] and not frame.texts.keys() & set(places.values()):
        values = frame.values.copy(deep=False)
        values.columns = pd.Index(list(places), dtype=object)
        return values
    columns = {
        name: pd.Series(frame.texts[place].whole(), index=frame.values.index, dtype=frame.texts[place].dtype)
        if place in frame.texts
        else frame.values[place]
        for name, place in places.items()
    }
    return pd.DataFrame(columns, index=frame.values.index, columns=list(places), copy=False)


def _stacked_text(name: Any, frames: Sequence[CompactFrame]) -> _Text | None:
    """Return a column of text; None where a table has something else for it, or not all have one kind of missing value."""
    parts: list[_Text] = []
    for frame in frames:
        part: _Text | None = _nothing(frame.n_rows)
        if name in frame.axis:
            place = frame.place(name)
            part = frame.texts.get(place)
            # Without rows only categories have a say.
            if part is None and (frame.n_rows or isinstance(frame.values[place].dtype, pd.CategoricalDtype)):
                return None
        if frame.n_rows and part is not None:
            parts.append(part)
    dtypes = [part.dtype for part in parts if part.dtype is not None]
    if not dtypes or any(dtype != dtypes[0] for dtype in dtypes):
        return None
    if any(part.dtype is None for part in parts) and not is_object_dtype(dtypes[0]):
        return None
    if len(frames) == 1:
        return parts[0]
    missing = {type(part.missing): part.missing for part in parts if part.misses_any}
    return None if len(missing) > 1 else _joined_text(parts, next(iter(missing.values()), np.nan), dtypes[0])


def _nothing(n_rows: int) -> CodedText:
    """Rows of a table that lacks the column."""
    return CodedText(np.full(n_rows, -1, np.int8), np.empty(0, dtype=object), np.nan, None)


def _joined_text(parts: Sequence[_Text], missing: Any, dtype: Any) -> _Text:
    coded = [part for part in parts if isinstance(part, CodedText)]
    if len(coded) == len(parts):
        found: dict[str, int] = {}
        numbers = [[found.setdefault(text, len(found)) for text in part.texts] for part in coded]
        if are_few(len(found), sum(map(len, parts))):
            code = code_dtype(len(found))
            # The last is what code -1 picks.
            tables = [np.array([*table, -1], dtype=code) for table in numbers]
            codes = [np.take(table, part.codes, mode="wrap") for table, part in zip(tables, coded, strict=True)]
            texts = np.empty(len(found), dtype=object)
            texts[:] = list(found)
            return CodedText(read_only(np.concatenate(codes)), texts, missing, dtype)
    long = [part.as_long_text() if isinstance(part, CodedText) else part for part in parts]
    masks = [np.zeros(len(part), dtype=bool) if part.is_missing is None else part.is_missing for part in long]
    is_missing = np.concatenate(masks) if any(part.misses_any for part in long) else None
    text = CompactText.stacked([part.text for part in long])
    return LongText(text, None if is_missing is None else read_only(is_missing), missing, dtype)


def _stacked_names(frames: Sequence[CompactFrame]) -> tuple[LongText | pd.Index[Any] | None, Any]:
    names = [frame.names for frame in frames]
    if len(frames) == 1 or any(name is None for name in names):
        return names[0], frames[0].index_name
    long = [name for name in names if isinstance(name, LongText)]
    if len(long) == len(names) and all(name.dtype == long[0].dtype for name in long):
        same = all(frame.index_name == frames[0].index_name for frame in frames)
        text = CompactText.stacked([name.text for name in long])
        return replace(long[0], text=text), frames[0].index_name if same else None
    first, *rest = [frame.index(None) for frame in frames]
    index = first.append(rest)
    return row_names(index), index.name
