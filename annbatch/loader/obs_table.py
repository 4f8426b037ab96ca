"""Annotations of the rows of several datasets as one table.

Labels must mean the same in every batch, whichever dataset its rows come from. So the categories of a column are united
over all datasets, by the rule that all faces share (:mod:`annbatch._shared.labels`): sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.labels import encode_together
from annbatch._shared.obs_frames import concat_frames, stack_frames, unite_frames

from .annotations import labels_of
from .sealing import own_rows, sealed_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["ObsTable", "concat_obs"]


def concat_obs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames below each other, see :func:`annbatch._shared.obs_frames.concat_frames`; the caller may not change it."""
    return concat_frames(frames, sealed_dtype)


@dataclass(frozen=True)
class ObsTable:
    """The obs of all datasets, ready to have rows taken from.

    Kept as few frames of geometrically growing size, so that adding datasets one at a time does not copy the whole table
    each time. All of them have the same columns and dtypes.

    Attributes
    ----------
    frames
        Consecutive pieces of the table.
    lengths
        Rows of every dataset.
    """

    frames: tuple[pd.DataFrame, ...] = ()
    lengths: tuple[int, ...] = ()

    def added(self, obs: Sequence[pd.DataFrame]) -> ObsTable:
        """Return a table with the rows of more datasets at its end."""
        pieces = unite_frames([*self.frames, concat_obs(obs)], sealed_dtype)
        if any(_layout(piece) != _layout(pieces[0]) for piece in pieces):
            pieces = [stack_frames(pieces)]
        while len(pieces) > 1 and len(pieces[-2]) <= 2 * len(pieces[-1]):
            pieces[-2:] = [stack_frames(pieces[-2:])]
        return ObsTable(tuple(pieces), self.lengths + tuple(len(frame) for frame in obs))

    def take(self, rows: np.ndarray) -> pd.DataFrame:
        """Copy out `rows` (int64, any order)."""
        if len(self.frames) == 1:
            return own_rows(self.frames[0], rows)
        starts = np.cumsum([0, *(len(frame) for frame in self.frames)])
        piece_of_row = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(piece_of_row, kind="stable")
        pieces = [
            frame.take(rows[piece_of_row == number] - starts[number])
            for number, frame in enumerate(self.frames)
            if len(frame)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return stack_frames(pieces).take(back)

    @property
    def columns(self) -> list[Any]:
        """Names of the columns."""
        return list(dict.fromkeys(name for frame in self.frames for name in frame.columns))

    def only(self, columns: Sequence[str]) -> ObsTable:
        """Return a table of some columns, in this order."""
        return ObsTable(tuple(frame[list(columns)] for frame in self.frames), self.lengths)

    def labels(self, name: str, where: Sequence[str]) -> tuple[np.ndarray, pd.Index[Any]]:
        """Codes (-1: missing) of all rows of a column, and the labels that they number, sorted.

        Parameters
        ----------
        name
            The column.
        where
            Name of each dataset, for error texts.

        Raises
        ------
        TypeError
            When the column holds text here and numbers there.
        """
        columns = [labels_of(frame, name) for frame in self.frames]
        try:
            return encode_together(name, columns, [len(frame) for frame in self.frames], [""] * len(columns))
        except TypeError:
            # Once more, by datasets, so that the error can name them.
            columns = [labels_of(frame, name) for frame in self.only([name]).datasets()]
            return encode_together(name, columns, self.lengths, where)

    def datasets(self) -> list[pd.DataFrame]:
        """Cut the table into one frame per dataset."""
        table = stack_frames(self.frames)
        stops = np.cumsum(self.lengths)
        return [table.iloc[stop - length : stop] for stop, length in zip(stops, self.lengths, strict=True)]


def _layout(frame: pd.DataFrame) -> tuple[object, ...]:
    return (*frame.columns, *frame.dtypes, frame.index.dtype)
