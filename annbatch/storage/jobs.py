"""What is to be done with one stored array in a request: which items go where, and what happens to them on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import _rows
from ._dtypes import as_bytes, cast_exactly, lossy, type_code
from .errors import CorruptDataError

if TYPE_CHECKING:
    from .arrays import StoredArray

__all__ = ["Job"]


@dataclass(slots=True, eq=False)
class Job:
    """Pieces of one stored array and their destinations.

    Attributes
    ----------
    array
        Where the items come from.
    tasks, pieces
        As described in ``_rows.pyx``.
    chunk_size
        Items per chunk of the tasks.
    target
        Dtype at the destination.
    n_columns
        Not None: the items are column numbers, to be checked against this and renumbered by ``columns``.
    columns
        int64, new number of each old column, -1 to drop. For values (``n_columns`` is None) the columns of a dense
        row, for column numbers what they become. None: unchanged.
    """

    array: StoredArray
    tasks: np.ndarray
    pieces: np.ndarray
    chunk_size: int
    target: np.dtype
    n_columns: int | None = None
    columns: np.ndarray | None = None

    def place(self, task: np.ndarray, items: np.ndarray, offset: int) -> None:
        """Move the pieces of a task from items that were read, whose first one is number ``offset`` of the chunk."""
        pieces = self.pieces[task[1] : task[2]]
        if self.n_columns is not None:
            bad = _rows.place_indices(
                as_bytes(items),
                offset,
                pieces,
                type_code(items.dtype),
                self.target.itemsize == 8,
                self.n_columns,
                self.columns,
                items.dtype.itemsize,
            )
            if bad >= 0:
                raise self.bad_column(int(task[0]))
            return
        if self.columns is not None:
            _rows.place_columns(
                as_bytes(cast_exactly(items, self.target)), offset, pieces, self.target.itemsize, self.columns
            )
            return
        source, target = type_code(items.dtype), type_code(self.target)
        if min(source, target) < 0:
            items, source, target = cast_exactly(items, self.target), -1, -1
        if _rows.place_values(as_bytes(items), offset, pieces, source, target, items.dtype.itemsize) >= 0:
            raise self.lossy_cast()

    def bad_column(self, chunk: int) -> CorruptDataError:
        """Return the error about a column number that the matrix does not have."""
        return CorruptDataError(
            f"{self.array.location}, chunk {chunk}: a column number is outside 0 <= column < {self.n_columns}"
        )

    def lossy_cast(self) -> ValueError:
        """Return the error about a cast that changes values."""
        return ValueError(f"{self.array.location}: {lossy(self.array.dtype, self.target)}")
