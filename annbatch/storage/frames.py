"""``obs`` and ``var`` as they lie on disk, read column by column.

AnnData has written its tables in four ways, and files of all four are in use:

- one compound array, categories in ``uns["<column>_categories"]`` (before 0.7)
- a group of arrays, categories in ``__categories/<column>`` (0.7)
- a group in which a categorical column is itself a group of ``codes`` and ``categories`` (since 0.8)
- the same, with groups of ``values`` and ``mask`` for columns that may hold missing values

A :class:`FrameReader` hides the differences. It hands out a column as pandas would hold it, or, without a Python object
per row, as integer codes and the categories that they number; and a whole table as a :class:`annbatch.storage.columns.CompactFrame`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import h5py
import numpy as np
import pandas as pd
import zarr

from annbatch._shared.labels import code_dtype
from annbatch._shared.running_sum import starts_of

from .chunks.bounded import readable
from .chunks.hdf5_text import HeapTexts
from .chunks.straight import read_straight
from .chunks.zarr_table import zarr_table
from .chunks.zarr_text import TextChunks
from .claims import check_chunk_shape, check_claim, check_folder
from .columns import CodedText, CompactFrame, LongText, are_few, natural_text_dtype, read_only, row_names
from .documents import read_by_anndata
from .dtypes import native
from .engine._ragged import decode_texts
from .errors import CorruptDataError, damage_named
from .local_zarr import location_of
from .pages import is_worth_pages, own_pages
from .text import TextSource, TextWriter, numbered, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .chunks.tables import ChunkTable

__all__ = ["FrameReader", "Labels", "read_frame"]

# Text is turned into codes in pieces, so that a column of many rows never exists as that many Python strings.
_ROWS_AT_ONCE = 1 << 16
# Texts of which others are looked for that are the same.
_MOST_ALIKE = 1 << 17
_ALL = slice(None)

T = TypeVar("T")


class Labels(NamedTuple):
    """A column as codes.

    Attributes
    ----------
    codes
        One signed integer per row, of the smallest type that fits, -1 where the value is missing.
    categories
        The distinct values that the codes number: text, bool or numeric. The categories of a categorical column
        come in their stored order and include those that no row uses; values of any other column are sorted.
    """

    codes: np.ndarray
    categories: np.ndarray | pd.Index[Any]


@dataclass(frozen=True)
class _StoredColumn:
    """Where a column lies: ``values`` alone, numbered ``categories``, or ``values`` under a ``mask``."""

    values: Any
    field: str | None = None
    categories: Any = None
    ordered: bool = False
    mask: Any = None
    na_is_nan: bool = False

    @cached_property
    def table(self) -> ChunkTable | None:
        """Where the values are that the engine reads; None: they are read through their library."""
        values = self.values
        return zarr_table(values) if self.field is None and _is_row_of_numbers(values) else None

    @cached_property
    def readable(self) -> Any:
        """The values as their library may read them."""
        return readable(self.values)

    @cached_property
    def texts(self) -> TextSource | None:
        """What reads text without a Python object each; None: it is read through its library."""
        values = self.values
        if self.field is not None or not _may_be_text(self):
            return None
        if isinstance(values, h5py.Dataset):
            return HeapTexts.of(values)
        if isinstance(values, zarr.Array):
            return TextChunks.of(values)
        return values if isinstance(values, TextSource) else None


class FrameReader:
    """Columns of one stored table.

    Parameters
    ----------
    elem
        ``obs`` or ``var``: an ``h5py`` or Zarr group, or a compound array of either kind.
    readable
        Turns a stored array of text into one from which rows are read, of the same shape, and a :class:`annbatch.storage.text.TextSource`
        if it can; None: text is read as it lies.

    Attributes
    ----------
    columns
        Names of the columns in their stored order, without the index.
    index_name
        Name of the index, or None.
    n_rows
        Number of rows.

    Raises
    ------
    TypeError
        If ``elem`` is not a stored table.
    """

    def __init__(self, elem: Any, readable: Callable[[Any], Any] | None = None) -> None:
        self._elem = elem
        self._readable = readable
        self._found: dict[str, _StoredColumn] = {}
        if _is_group(elem):
            with damage_named(_location(elem)):
                # Only these: of HDF5, each is read by itself.
                attributes = {name: elem.attrs[name] for name in ("_index", "column-order") if name in elem.attrs}
            if len(attributes) < 2:
                msg = f"not a table (it has no _index or column-order attribute): {_location(elem)}"
                raise TypeError(msg)
            with damage_named(_location(elem)):
                self._index_key = _text(attributes["_index"])
                self.columns = tuple(_text(name) for name in attributes["column-order"])
            self.index_name = None if self._index_key == "_index" else self._index_key
        else:
            names = getattr(getattr(elem, "dtype", None), "names", None)
            if names is None:
                msg = f"not a table (neither a group nor a compound array): {_location(elem)}"
                raise TypeError(msg)
            self._index_key, *columns = names
            self.columns = tuple(columns)
            self.index_name = self._index_key

    @cached_property
    def n_rows(self) -> int:
        """Number of rows."""
        if not _is_group(self._elem):
            return int(self._elem.shape[0])
        with damage_named(f"the index of {_location(self._elem)}"):
            return int(self._stored(self._index_key).values.shape[0])

    def index(self, rows: slice = _ALL) -> pd.Index[Any]:
        """Read the row names.

        Parameters
        ----------
        rows
            Which rows, half open.

        Returns
        -------
        Index
            The names as stored: usually text.
        """
        column = self._column(self._index_key)
        is_plain = column.categories is None and column.mask is None
        with self._naming(self._index_key):
            pair = _read_texts_of(column, rows) if is_plain else None
        values = self._read(self._index_key, rows) if pair is None else _one_of_alike(_texts, pair, lambda texts: texts)
        names: pd.Index[Any] = pd.Index(values, name=self.index_name)
        return names

    def column(self, name: str, rows: slice = _ALL) -> Any:
        """Read one column as pandas would hold it.

        Parameters
        ----------
        name
            Name of the column.
        rows
            Which rows, half open. The dtype, with all categories, is that of the whole column.

        Returns
        -------
        ndarray, Categorical or masked pandas array
            One value per row; text as an object array of str.

        Raises
        ------
        KeyError
            If there is no such column.
        CorruptDataError
            If the column is listed but not stored, has not one value per row, or a code numbers no category.
        """
        self._check_name(name)
        return self._read(name, rows, may_share=False)

    def texts(self, name: str | None, rows: slice = _ALL) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Read a column of text, or row names, without a Python object per row.

        Parameters
        ----------
        name
            Name of the column; None: row names.
        rows
            Which rows, half open.

        Returns
        -------
        The UTF-8 bytes of all texts (uint8), how many each has (int64), and which are missing (bool), which have none. None where there
        are no rows, it is no text, or text that only its library can read.
        """
        column = self._column(self._index_key if name is None else name)
        start, stop, _ = rows.indices(self.n_rows)
        pair = _read_texts(column, start, stop) if column.categories is None else None
        if pair is None:
            return None
        data, lengths = pair
        if column.mask is None:
            return data, lengths, np.zeros(len(lengths), dtype=bool)
        is_missing = _read_raw(_StoredColumn(column.mask), rows).astype(bool)
        return data[np.repeat(~is_missing, lengths)], np.where(is_missing, 0, lengths), is_missing

    def frame(self, columns: Iterable[str] | None = None, rows: slice = _ALL) -> pd.DataFrame:
        """Read columns and row names; see :func:`read_frame`."""
        names = list(self.columns if columns is None else columns)
        index = self.index(rows)
        if not pd.api.types.is_string_dtype(index.dtype):
            index = index.astype(str)
        return pd.DataFrame({name: self.column(name, rows) for name in names}, index=index, columns=names or None)

    def compact(self, columns: Iterable[str] | None = None, *, names: bool = True) -> CompactFrame:
        """Read columns and row names without an object per row.

        Parameters
        ----------
        columns
            Which columns, in this order. None: all, in their stored order.
        names
            Whether row names are read.

        Returns
        -------
        CompactFrame
            Whose rows are those of :meth:`frame`.

        Raises
        ------
        KeyError, CorruptDataError
            As :meth:`column`.
        """
        wanted = list(self.columns if columns is None else columns)
        # Looked at in any case: what claims more rows than it has names is refused before memory is taken for them.
        self._column(self._index_key)
        kept_names = self._compact_names() if names else None
        texts, values = {}, {}
        for place, name in enumerate(wanted):
            self._check_name(name)
            column = self._column(name)
            text = self._compact_text(column, name) if column.categories is None and _may_be_text(column) else None
            if text is None:
                values[place] = self._read(name, _ALL)
            else:
                texts[place] = text
        axis = pd.DataFrame(columns=wanted or None).columns
        frame = pd.DataFrame(values, index=pd.RangeIndex(self.n_rows))
        return CompactFrame(axis, frame, texts, kept_names, self.index_name if names else None)

    def _compact_names(self) -> Any:
        column = self._column(self._index_key)
        if column.categories is None and column.mask is None and _may_be_text(column):
            with self._naming(self._index_key):
                writer = _write_text(column, TextWriter(self.n_rows), 0)
            if writer is not None:
                return LongText(writer.written(), None, np.nan, natural_text_dtype())
        index = self.index()
        return row_names(index if pd.api.types.is_string_dtype(index.dtype) else index.astype(str))

    def _compact_text(self, column: _StoredColumn, name: str) -> CodedText | LongText | None:
        """Read text, in pieces; None when there is something else among it."""
        missing: Any
        dtype, missing = natural_text_dtype(), np.nan
        if column.mask is not None and not column.na_is_nan:
            dtype, missing = pd.StringDtype(), pd.NA
        is_missing = None
        if column.mask is not None:
            is_missing = _read_raw(_StoredColumn(column.mask)).astype(bool)
            is_missing = is_missing if is_missing.any() else None
        with self._naming(name):
            found: dict[str, int] = {}
            codes = _Codes(self.n_rows)
            for _, pair in _packed_text(column):
                if pair is None:
                    return None
                codes.write(*numbered(*pair), found)
                if not are_few(len(found), codes.n_written):
                    break
            texts = np.empty(len(found), dtype=object)
            texts[:] = list(found)
            n_numbered = codes.n_written
            if n_numbered == self.n_rows and are_few(len(found), n_numbered):
                if is_missing is not None:
                    codes.values[is_missing] = -1
                return CodedText(read_only(codes.values), texts, missing, dtype)
            begun = CodedText(codes.values[:n_numbered], texts, missing, dtype).write_to(TextWriter(self.n_rows))
            del found, texts, codes
            writer = _write_text(column, begun, n_numbered)
        return None if writer is None else LongText(writer.written(), is_missing, missing, dtype)

    def labels(self, name: str) -> Labels:
        """Read one column as codes and categories, without a Python object per row.

        Parameters
        ----------
        name
            Name of the column.

        Returns
        -------
        Labels
            Codes (-1: missing) and the categories that they number.

        Raises
        ------
        KeyError
            If there is no such column.
        TypeError
            If the column holds neither text nor numbers.
        CorruptDataError
            If the column is listed but not stored, has not one value per row, or a code numbers no category.
        """
        self._check_name(name)
        column = self._column(name)
        if column.categories is not None:
            categories = self._categories(column, name)
            codes = _read_raw(column)
            self._check_codes(codes, categories, name)
            return Labels(codes.astype(code_dtype(len(categories)), copy=False), categories)
        if _is_group(column.values):
            msg = f"column {name!r} of {_location(self._elem)} is not a plain column: it cannot serve as labels"
            raise TypeError(msg)
        if _holds_numbers(column):
            return _factorize_numbers(
                _read_raw(column), None if column.mask is None else _read_raw(_StoredColumn(column.mask))
            )
        with self._naming(name):
            return _factorize_text(column)

    def numbers(self, name: str) -> np.ndarray | None:
        """Read one column of numbers.

        Parameters
        ----------
        name
            Name of the column.

        Returns
        -------
        ndarray or None
            One number or bool per row, float64 with NaN when values are missing; None for a column of any other kind.

        Raises
        ------
        KeyError
            If there is no such column.
        CorruptDataError
            If the column is listed but not stored, or has not one value per row.
        """
        self._check_name(name)
        column = self._column(name)
        if column.categories is not None or not _holds_numbers(column):
            return None
        values = _read_raw(column)
        if column.mask is None:
            return values
        mask = _read_raw(_StoredColumn(column.mask)).astype(bool)
        return np.where(mask, np.nan, values) if mask.any() else values

    def check(self, name: str) -> None:
        """See that a column is complete, and that its codes number its categories; nothing is made of its values.

        Raises
        ------
        CorruptDataError
            It is not so.
        """
        column = self._column(name)
        if column.categories is None:
            return
        n_categories = int(np.prod(column.categories.shape))
        for start in range(0, self.n_rows, _ROWS_AT_ONCE):
            codes = _read_raw(column, slice(start, min(start + _ROWS_AT_ONCE, self.n_rows)))
            if not _number(codes, n_categories):
                raise CorruptDataError(self._bad_codes(codes, n_categories, name))

    def _check_name(self, name: str) -> None:
        if name not in self.columns:
            msg = f"no column {name!r} in {_location(self._elem)}; columns: {', '.join(self.columns) or 'none'}"
            raise KeyError(msg)

    def _column(self, name: str) -> _StoredColumn:
        """Find a column and see that it has one value per row: NumPy would stretch a single one over all rows."""
        if name in self._found:
            return self._found[name]
        with damage_named(f"column {name!r} of {_location(self._elem)}"):
            column = self._stored(name)
        for part in (column.categories, column.mask):
            if part is not None and _is_group(part):
                msg = f"column {name!r} of {_location(self._elem)}: {_location(part)} is a group, not an array: the file is damaged"
                raise CorruptDataError(msg)
        for part in (column.values, column.categories, column.mask):
            if part is not None and not _is_group(part) and not hasattr(part, "shape"):
                msg = f"column {name!r} of {_location(self._elem)} is neither an array nor a group: the file is damaged"
                raise CorruptDataError(msg)
        for part in (column.values, column.mask):
            if part is not None and not _is_group(part) and part.shape[:1] != (self.n_rows,):
                msg = (
                    f"column {name!r} of {_location(self._elem)} must have one value per row, but has shape {part.shape} "
                    f"for {self.n_rows} rows: the file is damaged"
                )
                raise CorruptDataError(msg)
        for part in (column.values, column.categories, column.mask):
            if part is not None and not _is_group(part):
                check_chunk_shape(part, _location(part))
        if column.categories is not None and column.field is None:
            check_claim(column.categories, f"column {name!r} of {_location(self._elem)}")
        if name == self._index_key and column.field is None and not _is_group(column.values):
            check_claim(column.values, f"the index of {_location(self._elem)}")
        is_text = column.categories is None and not _is_group(column.values) and not _holds_numbers(column)
        if is_text and self._readable is not None and column.field is None:
            column = replace(column, values=self._readable(column.values))
        self._found[name] = column
        return column

    def _stored(self, name: str) -> _StoredColumn:
        if not _is_group(self._elem):
            return _StoredColumn(self._elem, name, categories=self._uns_categories(name))
        if name not in self._elem:
            msg = f"column {name!r} of {_location(self._elem)} is listed but not stored: the file is damaged"
            raise CorruptDataError(msg)
        elem = self._elem[name]
        if not _is_group(elem):
            if "categories" not in elem.attrs:
                return _StoredColumn(elem)
            # An object reference in HDF5, a path from the table in Zarr; both are keys of the table's group.
            categories = self._elem[elem.attrs["categories"]]
            return _StoredColumn(elem, categories=categories, ordered=bool(categories.attrs.get("ordered", False)))
        if "codes" in elem and "categories" in elem:
            ordered = bool(elem.attrs.get("ordered", False))
            return _StoredColumn(elem["codes"], categories=_unmasked(elem["categories"]), ordered=ordered)
        if "values" in elem:
            return _StoredColumn(elem["values"], mask=elem.get("mask"), na_is_nan=elem.attrs.get("na-value") == "NaN")
        return _StoredColumn(elem)

    def _uns_categories(self, name: str) -> Any:
        """Categories of a column of a compound array, if ``uns`` has some that its codes number.

        obs and var shared uns: the categories under a name may be those of the other table. Only all codes tell.
        """
        parent = _parent(self._elem)
        key = f"{name}_categories"
        if "uns" not in parent or key not in parent["uns"]:
            return None
        found = parent["uns"][key]
        return found if _all_number(_StoredColumn(self._elem, name), int(np.prod(found.shape))) else None

    def _read(self, name: str, rows: slice, *, may_share: bool = True) -> Any:
        """Read a column; `may_share`: with the very categories of other tables, whose name must not be set."""
        column = self._column(name)
        if column.categories is not None:
            categories = self._categories(column, name)
            codes = _read_raw(column, rows)
            self._check_codes(codes, categories, name)
            categories = categories if may_share else categories.view()
            return pd.Categorical.from_codes(codes, categories, ordered=column.ordered)
        if _is_group(column.values):
            # Not an encoding of this module: whatever it is, anndata knows it or says why not.
            with damage_named(_location(column.values)):
                return read_by_anndata(column.values)[rows]
        with self._naming(name):
            values = _read_decoded(column, rows)
        if column.mask is None:
            return values
        return _masked(values, _read_raw(_StoredColumn(column.mask), rows).astype(bool), na_is_nan=column.na_is_nan)

    def _categories(self, column: _StoredColumn, name: str) -> pd.Index[Any]:
        with self._naming(name):
            stored = _StoredColumn(column.categories)
            pair = _read_texts_of(stored)
            categories = (
                pd.Index(_decoded(_read_raw(stored)).reshape(-1))
                if pair is None
                else _one_of_alike(_indexes, pair, pd.Index)
            )
        if not categories.is_unique:
            msg = f"column {name!r} of {_location(self._elem)} has categories that are the same: the file is damaged"
            raise CorruptDataError(msg)
        return categories

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Say where text lies that cannot be decoded."""
        try:
            yield
        except UnicodeDecodeError as error:
            what = "the index" if name == self._index_key else f"column {name!r}"
            msg = (
                f"{what} of {_location(self._elem)} must be UTF-8 text, but holds {error.object[:50]!r}; "
                "write it again as text"
            )
            raise CorruptDataError(msg) from error

    def _check_codes(self, codes: np.ndarray, categories: pd.Index[Any], name: str) -> None:
        if _number(codes, len(categories)):
            return
        raise CorruptDataError(self._bad_codes(codes, len(categories), name))

    def _bad_codes(self, codes: np.ndarray, n_categories: int, name: str) -> str:
        return (
            f"column {name!r} of {_location(self._elem)} has codes from {codes.min()} to {codes.max()} "
            f"but {n_categories} categories: the file is damaged"
        )


def read_frame(elem: Any, columns: Iterable[str] | None = None, rows: slice = _ALL) -> pd.DataFrame:
    """Read ``obs`` or ``var`` into memory, in any encoding that anndata still reads.

    Parameters
    ----------
    elem
        ``obs`` or ``var``: an ``h5py`` or Zarr group, or a compound array of either kind.
    columns
        Which columns to read, in this order. None: all, in their stored order.
    rows
        Which rows to read, half open. The dtypes, with all categories, are those of the whole table.

    Returns
    -------
    DataFrame
        The same that :func:`anndata.io.read_h5ad` or :func:`anndata.io.read_zarr` would give; the row names are always
        text.

    Raises
    ------
    KeyError
        If a column does not exist.
    TypeError
        If ``elem`` is not a stored table.
    CorruptDataError
        If a column is listed but not stored, has not one value per row, or a code numbers no category.

    Examples
    --------
    >>> import h5py
    >>> from annbatch.storage import read_frame
    >>> with h5py.File("cells.h5ad") as file:  # doctest: +SKIP
    ...     obs = read_frame(file["obs"], columns=["cell_type"])
    """
    return FrameReader(elem).frame(columns, rows)


def _is_group(elem: Any) -> bool:
    return isinstance(elem, h5py.Group) or (not isinstance(elem, h5py.Dataset) and hasattr(elem, "group_keys"))


def _parent(elem: Any) -> Any:
    if isinstance(elem, h5py.Dataset):
        return elem.parent
    import zarr

    path = elem.path.rpartition("/")[0]
    return zarr.open_group(elem.store, path=path or None, mode="r")


def _location(elem: Any) -> str:
    if isinstance(elem, h5py.Group | h5py.Dataset):
        # Not by `elem.file`, which makes an object for the file each time; this is asked for with every read.
        return f"{os.fsdecode(h5py.h5f.get_name(elem.id))} :: {elem.name.strip('/')}"
    return location_of(elem) if hasattr(elem, "store_path") else repr(elem)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _unmasked(elem: Any) -> Any:
    """Categories are never missing: where they were written with a mask, it says nothing."""
    return elem["values"] if _is_group(elem) else elem


def _is_row_of_numbers(values: Any) -> bool:
    """Whether these are numbers of a one-dimensional array of a Zarr store."""
    return isinstance(values, zarr.Array) and values.ndim == 1 and np.dtype(values.dtype).kind in "biufc"


def _holds_numbers(column: _StoredColumn) -> bool:
    return _kind_of(column) in tuple("biuf")


def _may_be_text(column: _StoredColumn) -> bool:
    return _kind_of(column) in tuple("OSUT") and len(column.values.shape) == 1


def _kind_of(column: _StoredColumn) -> str:
    if _is_group(column.values):
        return ""
    dtype = column.values.dtype if column.field is None else column.values.dtype[column.field]
    kind: str = dtype.kind
    return kind


def _number(codes: np.ndarray, n_categories: int) -> bool:
    """Whether each code is -1 or numbers a category."""
    return codes.size == 0 or bool(codes.min() >= -1 and codes.max() < n_categories)


def _all_number(column: _StoredColumn, n_categories: int) -> bool:
    """Whether a whole column holds codes of so many categories."""
    if column.values.dtype[column.field].kind not in "iu":
        return False
    n_rows = column.values.shape[0]
    pieces = (slice(i, i + _ROWS_AT_ONCE) for i in range(0, n_rows, _ROWS_AT_ONCE))
    return all(_number(_read_raw(column, rows), n_categories) for rows in pieces)


def _read_raw(column: _StoredColumn, rows: slice | tuple[()] = ()) -> np.ndarray:
    """Read values without turning bytes into text; ``rows=()`` reads all of an array of any shape."""
    where = _location(column.values)
    try:
        with damage_named(where):
            return _read_unchecked(column, rows)
    except CorruptDataError as error:
        chunk = _damaged_chunk(column, rows)
        if chunk is None:
            raise
        raise CorruptDataError(str(error).replace(where, f"{where}, chunk {chunk}", 1)) from error


def _read_unchecked(column: _StoredColumn, rows: slice | tuple[()]) -> np.ndarray:
    values = column.values
    if column.field is None:
        if column.table is not None:
            start, stop, _ = (rows or _ALL).indices(values.shape[0])
            straight = read_straight(column.table, np.dtype(values.dtype), start, max(start, stop))
            if straight is not None:
                return straight
        if hasattr(values, "store_path"):
            check_folder(values)  # the engine, and what reads text, look at each file themselves
        if isinstance(values, h5py.Dataset) and len(values.shape) == 1:
            start, stop, _ = (rows or _ALL).indices(values.shape[0])
            if is_worth_pages(stop - start, values.dtype):
                read = own_pages(stop - start, values.dtype)
                column.readable.read_direct(read, np.s_[start:stop])
                return read
        return np.asarray(column.readable[rows])
    if isinstance(values, h5py.Dataset):
        return np.asarray(column.readable.fields(column.field)[rows])
    return np.asarray(column.readable[rows][column.field])


def _pieces(column: _StoredColumn, first: int = 0) -> Iterator[slice]:
    """Rows from `first` on, so many at a time; no chunk is cut, or it would be decoded for every piece of it."""
    n_rows, chunks = column.values.shape[0], getattr(column.values, "chunks", None)
    at_once = -(-_ROWS_AT_ONCE // chunks[0]) * chunks[0] if chunks and chunks[0] else _ROWS_AT_ONCE
    return (slice(start, min(start + at_once, n_rows)) for start in range(first, n_rows, at_once))


class _Codes:
    """Codes of the rows of a column, written some at a time; of the smallest type that fits those up to now."""

    def __init__(self, n_rows: int) -> None:
        self.values = own_pages(n_rows, np.int8)
        self.n_written = 0

    def write(self, codes: np.ndarray, values: list[Any], found: dict[Any, int]) -> np.ndarray:
        """Append rows: codes (-1: missing) that number `values`, which get their numbers among all found. Return the new codes."""
        numbers = [found.setdefault(value, len(found)) for value in values]
        dtype = code_dtype(len(found))
        if dtype != self.values.dtype:
            wider = own_pages(len(self.values), dtype)
            wider[: self.n_written] = self.values[: self.n_written]
            self.values = wider
        here: np.ndarray = self.values[self.n_written : self.n_written + len(codes)]
        np.take(np.array([*numbers, -1], dtype=dtype), codes, out=here, mode="wrap")  # of code -1 the last
        self.n_written += len(codes)
        return here


def _packed_text(column: _StoredColumn, first: int = 0) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray] | None]]:
    """Yield rows from `first` on, so many at a time, and what :func:`packed` makes of them."""
    for rows in _pieces(column, first):
        pair = None if column.texts is None else column.texts.read(rows)
        yield rows, packed(_read_raw(column, rows)) if pair is None else pair


def _write_text(column: _StoredColumn, writer: TextWriter, first: int) -> TextWriter | None:
    """Write the text of all rows from `first` on; None when there is something else among it."""
    for _, pair in _packed_text(column, first):
        if pair is None:
            return None
        writer.write(*pair)
    return writer


def _damaged_chunk(column: _StoredColumn, rows: slice | tuple[()]) -> int | None:
    """Number of the first chunk that cannot be read, where the array has chunks; looked for after a failure only."""
    chunks, shape = getattr(column.values, "chunks", None), column.values.shape
    if not chunks or len(shape) != 1:
        return None
    start, stop, _ = (rows if isinstance(rows, slice) else _ALL).indices(shape[0])
    numbers = range(start // chunks[0], -(-stop // chunks[0]))
    if len(numbers) == 1:
        return numbers[0]
    for chunk in numbers:
        try:
            _read_unchecked(column, slice(chunk * chunks[0], min((chunk + 1) * chunks[0], shape[0])))
        except Exception:  # noqa: BLE001 - whatever the library raises
            return chunk
    return None


def _read_decoded(column: _StoredColumn, rows: slice | tuple[()] = ()) -> np.ndarray:
    """Read values as :func:`_read_raw` does, but text as an object array of str."""
    pair = _read_texts_of(column, rows)
    return _decoded(_read_raw(column, rows)) if pair is None else _texts_of(*pair)


# Names and categories that are in memory, by their bytes: thousands of files have the same ones, which are made once then.
_Alike: TypeAlias = "WeakValueDictionary[tuple[bytes, bytes], T]"
_texts: _Alike[np.ndarray] = WeakValueDictionary()
_indexes: _Alike[pd.Index[Any]] = WeakValueDictionary()


def _one_of_alike(known: _Alike[T], pair: tuple[np.ndarray, np.ndarray], make: Callable[[np.ndarray], T]) -> T:
    """Return what is made of the same texts already, or make it of an object array of them that cannot be written to."""
    if len(pair[1]) > _MOST_ALIKE:
        return make(_texts_of(*pair))
    key = pair[0].tobytes(), pair[1].tobytes()
    found = known.get(key)
    if found is None:
        texts = _texts_of(*pair)
        texts.flags.writeable = False
        found = known[key] = make(texts)
    return found


def _texts_of(data: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return texts, whose UTF-8 bytes (uint8) lie below each other, as an object array of str."""
    texts = np.empty(len(lengths), dtype=object)
    decode_texts(data, starts_of(lengths)[:-1], lengths, texts)
    return texts


def _read_texts_of(column: _StoredColumn, rows: slice | tuple[()] = ()) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what :func:`_read_texts` does of rows; ``rows=()``: of all."""
    if column.texts is None:
        return None
    start, stop, _ = (rows or _ALL).indices(column.values.shape[0])
    return _read_texts(column, start, stop)


def _read_texts(column: _StoredColumn, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Read what :func:`packed` makes of rows; None when there are none, or their library has to read them."""
    if column.texts is None or stop <= start:
        return None
    first = start // column.texts.rows * column.texts.rows
    pair = column.texts.read(slice(first, stop))
    if pair is None:
        return None
    # Of whole chunks.
    data, lengths = pair
    begin, end = (int(lengths[: row - first].sum()) for row in (start, stop))
    return data[begin:end], lengths[start - first : stop - first]


def _decoded(values: np.ndarray) -> np.ndarray:
    """Text as an object array of str; everything else as it is."""
    match values.dtype.kind:
        case "S":
            return np.char.decode(values, "utf-8").astype(object)
        case "U" | "T":
            return values.astype(object)
        case "O":
            return _texts_of_objects(values)
        case _:
            return values


def _texts_of_objects(values: np.ndarray) -> np.ndarray:
    """Bytes as str, everything else as it is."""
    flat = values.reshape(-1).tolist()
    try:
        # All at once: several times as fast as one by one, and what HDF5 gives is mostly this.
        texts = b"\0".join(flat).decode().split("\0")
    except (TypeError, UnicodeDecodeError):
        texts = []
    if len(texts) != len(flat):  # nothing, not only bytes, a text that holds the separator, or one that is no UTF-8
        return np.asarray(_text_of_each(values), dtype=object)
    found = np.empty(values.shape, dtype=object)
    found.reshape(-1)[:] = texts
    return found


_text_of_each = np.frompyfunc(lambda value: value.decode() if isinstance(value, bytes) else value, 1, 1)


def _masked(values: np.ndarray, mask: np.ndarray, *, na_is_nan: bool) -> Any:
    match values.dtype.kind:
        case "b":
            return pd.arrays.BooleanArray(values, mask)
        case "i" | "u":
            return pd.arrays.IntegerArray(values, mask)
        case "f":
            return pd.arrays.FloatingArray(values, mask)
        case _ if na_is_nan:
            # What pandas 3 calls str: it makes this of an object array, and pandas 2 keeps it as it is.
            return np.where(mask, np.nan, values)
        case _:
            text = pd.array(values, dtype=pd.StringDtype())
            text[mask] = pd.NA
            return text


def _factorize_numbers(values: np.ndarray, mask: np.ndarray | None) -> Labels:
    values = values.astype(native(values.dtype), copy=False)  # pandas numbers no others
    if mask is None:
        codes, categories = pd.factorize(values, sort=True)
    else:
        present = ~mask.astype(bool, copy=False)
        codes = np.full(len(values), -1)
        codes[present], categories = pd.factorize(values[present], sort=True)
    return Labels(codes.astype(code_dtype(len(categories))), np.asarray(categories))


def _factorize_text(column: _StoredColumn) -> Labels:
    found: dict[str, int] = {}
    codes = _Codes(column.values.shape[0])
    for rows, pair in _packed_text(column):
        if pair is None:  # not only text
            here, distinct = pd.factorize(_read_raw(column, rows))
            written = codes.write(here, _decoded(np.asarray(distinct)).tolist(), found)
        else:
            written = codes.write(*numbered(*pair), found)
        if column.mask is not None:
            written[np.asarray(column.mask[rows], dtype=bool)] = -1
    if column.mask is not None:
        # What stands under the mask is no value, so it may be no category either.
        used = set(np.unique(codes.values).tolist())
        found = {value: number for value, number in found.items() if number in used}
    categories = sorted(found)
    rank = np.full(max(found.values(), default=-1) + 2, -1, dtype=code_dtype(len(found)))
    rank[[found[value] for value in categories]] = np.arange(len(categories))
    for start in range(0, len(codes.values), _ROWS_AT_ONCE):
        piece = codes.values[start : start + _ROWS_AT_ONCE]
        piece[:] = rank[piece]  # of code -1 the last
    return Labels(codes.values.astype(rank.dtype, copy=False), np.array(categories, dtype=object))
