"""obs of an input, described and read a block of rows at a time: all of it may be more than fits into memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from .spool import LONG_CHUNK_ROWS, SpooledText

if TYPE_CHECKING:
    from pathlib import Path

# Rows that are looked at to learn what a row takes in memory.
_SAMPLE_ROWS = 256

# Names of rows that tell an input from others: all of them, or so many in evenly spread stretches of a million and more.
_STRETCH_ROWS = 2**14
_MOST_STRETCHES = 64


class Obs(ABC):
    """The table of the rows of an input.

    Attributes
    ----------
    n_obs
        Number of rows.
    """

    n_obs: int

    @abstractmethod
    def rows(self, start: int, stop: int) -> pd.DataFrame:
        """Rows ``[start, stop)`` in memory; dtypes are those of the whole table, but categories may be fewer."""

    @abstractmethod
    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column as codes and categories: text would be one Python object a row."""

    @cached_property
    def head(self) -> pd.DataFrame:
        """As many rows as it takes to tell the types of the columns."""
        return self.rows(0, 0)

    @cached_property
    def sample(self) -> pd.DataFrame:
        """A few rows from the middle."""
        start = max(0, self.n_obs - _SAMPLE_ROWS) // 2
        return self.rows(start, min(start + _SAMPLE_ROWS, self.n_obs))

    @cached_property
    def row_bytes(self) -> int:
        """About what a row takes in memory."""
        return _row_bytes(self.sample)

    def names(self, start: int, stop: int) -> pd.Index[Any]:
        """Names of rows ``[start, stop)``."""
        return self.rows(start, stop).index

    @property
    def digest(self) -> int:
        """Signed 64-bit digest of the number of rows and their names, of a million and more rows of the names of some."""
        code = hashlib.blake2b(str(self.n_obs).encode(), digest_size=8)
        n_stretches = -(-self.n_obs // _STRETCH_ROWS)
        for number in range(min(n_stretches, _MOST_STRETCHES)):
            # The first and the last are among them.
            at = number if n_stretches <= _MOST_STRETCHES else number * (n_stretches - 1) // (_MOST_STRETCHES - 1)
            names = self.names(at * _STRETCH_ROWS, min((at + 1) * _STRETCH_ROWS, self.n_obs))
            code.update("".join(f"\0{name}" for name in names).encode(errors="surrogatepass"))
        return int.from_bytes(code.digest(), "little", signed=True)

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

    def rows(self, start: int, stop: int) -> pd.DataFrame:
        """Rows ``[start, stop)``, read from the file."""
        return self._reader.frame(rows=slice(start, stop))

    def names(self, start: int, stop: int) -> pd.Index[Any]:
        """Names of rows ``[start, stop)``, read from the file."""
        names: pd.Index[Any] = self._reader.index(slice(start, stop))
        return names

    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column, without a Python object a row."""
        codes, categories = self._reader.labels(name)
        return pd.Categorical.from_codes(codes, pd.Index(categories))


class FrameObs(Obs):
    """obs of an AnnData: a frame in memory, or what anndata's read_lazy makes of one in a file."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.n_obs = frame.shape[0]

    def rows(self, start: int, stop: int) -> pd.DataFrame:
        """Rows ``[start, stop)``, in memory."""
        return in_memory(self._frame.iloc[start:stop])

    def names(self, start: int, stop: int) -> pd.Index[Any]:
        """Names of rows ``[start, stop)``."""
        if isinstance(self._frame, pd.DataFrame):
            return self._frame.index[start:stop]
        return super().names(start, stop)

    def labels(self, name: str) -> pd.Categorical[Any]:
        """A whole column as codes and categories."""
        return pd.Categorical(in_memory(self._frame[[name]])[name])

    @cached_property
    def head(self) -> pd.DataFrame:
        """All rows of a frame in memory, none of a lazy one."""
        if isinstance(self._frame, pd.DataFrame):
            return in_memory(self._frame)  # what a column of Python objects holds, only all of them tell
        head = self.rows(0, 0)
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


def _row_bytes(sample: pd.DataFrame) -> int:
    """Mean size of a row, without the categories, which all rows share."""
    columns = [sample.iloc[:, i] for i in range(sample.shape[1])]
    plain = [column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else column for column in columns]
    total = sample.index.memory_usage(deep=True) + sum(c.memory_usage(index=False, deep=True) for c in plain)
    return int(total) // max(1, len(sample))
