"""obs of an input, described and read a block of rows at a time: all of it may be more than fits into memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.running_sum import starts_of
from annbatch.collection.building.fields import Ragged, Text, check_text, encode_text, size_of

from .spool import LONG_CHUNK_ROWS, SpooledText

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from annbatch.collection.building.fields import Array

# Rows that are looked at to learn what a row takes in memory.
_SAMPLE_ROWS = 256

# Names of rows that tell an input from others: all of them, or so many in evenly spread stretches of a million and more.
_STRETCH_ROWS = 2**14
_MOST_STRETCHES = 64


@dataclass(frozen=True)
class ObsRows:
    """Rows of obs in memory.

    Attributes
    ----------
    names
        Of the rows.
    frame
        Columns as pandas has them.
    texts
        All other columns: text of a file, which needs no Python objects.
    """

    names: Text
    frame: pd.DataFrame
    texts: Mapping[str, Text]

    def __len__(self) -> int:
        return len(self.frame)

    def part(self, start: int, stop: int) -> ObsRows:
        """Rows ``[start, stop)``."""
        texts = {name: text.part(start, stop) for name, text in self.texts.items()}
        return ObsRows(self.names.part(start, stop), self.frame.iloc[start:stop], texts)

    def take(self, rows: Array) -> ObsRows:
        """Rows in the order given (int64)."""
        texts = {name: text.take(rows) for name, text in self.texts.items()}
        return ObsRows(self.names.take(rows), self.frame.take(rows), texts)

    @property
    def nbytes(self) -> int:
        """Memory, without the categories, which all rows share."""
        columns = [self.frame.iloc[:, i] for i in range(self.frame.shape[1])]
        plain = [column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else column for column in columns]
        texts = sum(size_of(text.letters) + text.missing.nbytes for text in (self.names, *self.texts.values()))
        return texts + sum(int(column.memory_usage(index=False, deep=True)) for column in plain)


class Obs(ABC):
    """The table of the rows of an input.

    Attributes
    ----------
    n_obs
        Number of rows.
    """

    n_obs: int

    @abstractmethod
    def rows(self, start: int, stop: int) -> ObsRows:
        """Rows ``[start, stop)`` in memory; dtypes are those of the whole table, but categories may be fewer."""

    @abstractmethod
    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column as codes and categories: text would be one Python object a row."""

    @property
    @abstractmethod
    def head(self) -> pd.DataFrame:
        """As many rows as it takes to tell the types of all columns."""

    @abstractmethod
    def names(self, start: int, stop: int) -> Text:
        """Names of rows ``[start, stop)``."""

    @cached_property
    def row_bytes(self) -> int:
        """About what a row takes in memory: of a few rows from the middle."""
        start = max(0, self.n_obs - _SAMPLE_ROWS) // 2
        sample = self.rows(start, min(start + _SAMPLE_ROWS, self.n_obs))
        return sample.nbytes // max(1, len(sample))

    @property
    def digest(self) -> int:
        """Signed 64-bit digest of the number of rows and their names, of a million and more rows of the names of some."""
        code = hashlib.blake2b(str(self.n_obs).encode(), digest_size=8)
        n_stretches = -(-self.n_obs // _STRETCH_ROWS)
        for number in range(min(n_stretches, _MOST_STRETCHES)):
            # The first and the last are among them.
            at = number if n_stretches <= _MOST_STRETCHES else number * (n_stretches - 1) // (_MOST_STRETCHES - 1)
            names = self.names(at * _STRETCH_ROWS, min((at + 1) * _STRETCH_ROWS, self.n_obs))
            code.update(_behind_zeros(names.letters))
        return int.from_bytes(code.digest(), "little", signed=True)

    def check_text(self, label: str, *, may_have_nul: bool) -> None:  # noqa: B027 - text of a file is looked at when it is read
        """Raise ValueError for text of the rows that the output cannot hold, where it is in memory."""

    @property
    def decoding_bytes(self) -> int:
        """Memory that grows with the table, although it is read in blocks of rows."""
        return 0

    def close(self) -> None:  # noqa: B027 - what is in memory needs none
        """Remove temporary files."""


class StoredObs(Obs):
    """obs of a file; ``scratch`` is a folder for temporary files."""

    def __init__(self, elem: Any, scratch: Path | None) -> None:
        from annbatch.storage.frames import FrameReader

        self._scratch = scratch
        self._spooled: list[SpooledText] = []
        self._reader = FrameReader(elem, self._readable)
        self.n_obs = self._reader.n_rows

    def _readable(self, text: Any) -> Any:
        """A stored array of text in a form in which a block of rows is read quickly."""
        import zarr

        if not isinstance(text, zarr.Array) or text.chunks[0] <= LONG_CHUNK_ROWS:
            return text
        self._spooled.append(SpooledText(text, self._scratch))
        return self._spooled[-1]

    @property
    def decoding_bytes(self) -> int:
        """Most that a column of text takes while a chunk of it is decoded."""
        return max((text.decoding_bytes for text in self._spooled), default=0)

    def close(self) -> None:
        """Remove the temporary files."""
        for text in self._spooled:
            text.close()

    @cached_property
    def head(self) -> pd.DataFrame:
        """No rows."""
        return self._reader.frame(rows=slice(0, 0))

    def rows(self, start: int, stop: int) -> ObsRows:
        """Rows ``[start, stop)``, read from the file."""
        rows = slice(start, stop)
        texts, columns = {}, {}
        for name in self._reader.columns:
            text = self._reader.texts(name, rows)
            if text is None:
                columns[name] = self._reader.column(name, rows)
            else:
                texts[name] = _as_text(*text)
        frame = pd.DataFrame(columns, index=pd.RangeIndex(stop - start), columns=list(columns) or None)
        return ObsRows(self.names(start, stop), frame, texts)

    def names(self, start: int, stop: int) -> Text:
        """Names of rows ``[start, stop)``, read from the file."""
        text = self._reader.texts(None, slice(start, stop))
        return _text_of_names(self._reader.index(slice(start, stop))) if text is None else _as_text(*text)

    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column, without a Python object a row."""
        codes, categories = self._reader.labels(name)
        return pd.Categorical.from_codes(codes, pd.Index(categories))


class FrameObs(Obs):
    """obs of an AnnData: a frame in memory, or what anndata's read_lazy makes of one in a file."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.n_obs = frame.shape[0]

    def rows(self, start: int, stop: int) -> ObsRows:
        """Rows ``[start, stop)``, in memory."""
        frame = self._piece(start, stop)
        return ObsRows(_text_of_names(frame.index), frame, {})

    def check_text(self, label: str, *, may_have_nul: bool) -> None:
        """See the base class."""
        if not isinstance(self._frame, pd.DataFrame):
            return
        columns = {f"obs[{name!r}] of {label}": self._frame[name] for name in self._frame}
        texts = {what: column.array for what, column in columns.items() if column.dtype.kind in "OUT"}
        for what, values in {f"names of obs of {label}": self._frame.index, **texts}.items():
            if not isinstance(values, pd.Categorical):
                for start in range(0, self.n_obs, _STRETCH_ROWS):
                    check_text(values[start : start + _STRETCH_ROWS], what, may_have_nul=may_have_nul)

    def names(self, start: int, stop: int) -> Text:
        """Names of rows ``[start, stop)``."""
        is_lazy = not isinstance(self._frame, pd.DataFrame)
        return _text_of_names(self._piece(start, stop).index if is_lazy else self._frame.index[start:stop])

    def _piece(self, start: int, stop: int) -> pd.DataFrame:
        return in_memory(self._frame.iloc[start:stop])

    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column as codes and categories."""
        return pd.Categorical(in_memory(self._frame[[name]])[name])

    @cached_property
    def head(self) -> pd.DataFrame:
        """All rows of a frame in memory, none of a lazy one."""
        if isinstance(self._frame, pd.DataFrame):
            return in_memory(self._frame)  # what a column of Python objects holds, only all of them tell
        head = self._piece(0, 0)
        # A piece of a lazy column has the categories of its rows only.
        for name in head.columns[[isinstance(dtype, pd.CategoricalDtype) for dtype in head.dtypes]]:
            head[name] = head[name].astype(self.labels(name).dtype)
        return head


def in_memory(frame: Any) -> pd.DataFrame:
    """Frames of read_lazy are only pointers to the file."""
    loaded: pd.DataFrame = frame.to_memory() if hasattr(frame, "to_memory") else frame
    if loaded.index.name == "_index":  # how a file says that the index has no name
        loaded = loaded.rename_axis(None)
    # The frame of a view would take the whole AnnData along wherever it is pickled.
    return pd.DataFrame(loaded)


def _as_text(data: Array, lengths: Array, missing: Array) -> Text:
    return Text(Ragged(starts_of(lengths), (data,)), missing)


def _text_of_names(names: pd.Index[Any]) -> Text:
    return encode_text(list(names if names.inferred_type == "string" else names.astype(str)))


def _behind_zeros(letters: Ragged) -> Array:
    """Bytes of all rows, a zero before each."""
    rows = np.repeat(np.arange(1, len(letters) + 1), np.diff(letters.indptr))
    behind = np.zeros(int(letters.indptr[-1]) + len(letters), np.uint8)
    behind[np.arange(len(rows)) + rows] = letters.values[0]
    return behind
