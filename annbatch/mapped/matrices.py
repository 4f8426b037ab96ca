"""One matrix key over many files: rows of all of them as one block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from annbatch.storage import Part, Scale, read_dense
from annbatch.storage.reading.median import median_total, totals_with_progress

from .samples import SampleColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annbatch.storage import BufferPool

__all__ = ["JoinedMatrix", "RowsOfFile"]


class RowsOfFile(NamedTuple):
    """Rows of a batch that lie in one file: their numbers there, and their positions in the batch."""

    file: int
    rows: np.ndarray
    positions: np.ndarray


class JoinedMatrix:
    """A matrix key over all files.

    Parameters
    ----------
    sources
        What to read from in each file, None for a file without the key.
    targets
        Per file, for each stored column its place in the block (-1: left out); None where columns stay as they are.
    n_joint
        Number of columns of the block where they do not stay as they are.
    dtype
        Convert to this. None: the smallest dtype that holds the values of all files, so that every batch has the same.
    normalize_total, log1p
        How values are scaled: to which total of a row (a number, or "median" of all rows), and whether the logarithm is taken.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        targets: Sequence[np.ndarray | None],
        n_joint: int | None,
        dtype: np.dtype[Any] | None,
        normalize_total: float | Literal["median"] | None = None,
        log1p: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        self._sources = sources
        self._targets = targets
        self._shapes = [
            None if source is None else source.shape[1:] if target is None else (n_joint,)
            for source, target in zip(sources, targets, strict=True)
        ]
        having = [source for source in sources if source is not None]
        if normalize_total == "median":
            normalize_total = median_total(totals_with_progress(having))
        self._scale = Scale(target_sum=normalize_total, log1p=log1p)
        stored = np.result_type(*(source.dtype for source in having))
        self._dtype = dtype if dtype is not None else np.dtype(np.float32) if self._scale else stored

    def read(
        self,
        groups: Sequence[RowsOfFile],
        n_rows: int,
        pool: BufferPool,
        num_threads: int,
        totals: np.ndarray | None = None,
    ) -> SampleColumn | None:
        """Read the rows of a batch.

        Parameters
        ----------
        groups
            The rows by file.
        n_rows
            How many there are.
        pool
            Where the block comes from.
        num_threads
            Threads to decode with.
        totals
            float32, one per row: filled with the totals before scaling, where a file has the key.

        Returns
        -------
        SampleColumn or None
            None when no file of the batch has the key.
        """
        by_shape: dict[Any, list[RowsOfFile]] = {}
        for group in groups:
            shape = self._shapes[group.file]
            if shape is not None:
                by_shape.setdefault(shape, []).append(group)
        blocks = [self._block(members, n_rows, pool, num_threads, totals) for members in by_shape.values()]
        if not blocks:
            return None
        block, positions = blocks[0]
        if positions is None:
            return SampleColumn(list(block), block)
        # Rows of different shape, or a file without the key: no single block can hold the batch.
        rows = np.concatenate([positions for _, positions in blocks if positions is not None])
        return SampleColumn([row for block, _ in blocks for row in block], None, rows)

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            if source is not None:
                source.close()

    def _block(
        self,
        groups: Sequence[RowsOfFile],
        n_rows: int,
        pool: BufferPool,
        num_threads: int,
        totals: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read groups that have rows of the same shape; return the block and the position in the batch of each row.

        The positions are None when the block holds all ``n_rows`` of the batch, in order.
        """
        positions = None
        if sum(len(group.rows) for group in groups) < n_rows:
            positions, groups = _numbered_afresh(groups)
            n_rows = len(positions)
        own_totals = None if totals is None else np.zeros(n_rows, dtype=np.float32)
        by_kind = [[g for g in groups if self._sources[g.file].is_sparse is sparse] for sparse in (True, False)]
        if not all(by_kind):
            block = self._read(groups, pool, num_threads, own_totals)
        else:
            # One request reads sparse or dense matrices; where files differ in that, each kind is read and put in its place.
            block = pool.empty((n_rows, *(self._shapes[groups[0].file] or ())), self._dtype)
            for members in by_kind:
                of_kind, members = _numbered_afresh(members)
                totals_of_kind = None if own_totals is None else np.zeros(len(of_kind), dtype=np.float32)
                block[of_kind] = self._read(members, pool, num_threads, totals_of_kind)
                if own_totals is not None:
                    own_totals[of_kind] = totals_of_kind
        if totals is not None:
            totals[slice(None) if positions is None else positions] = own_totals
        return block, positions

    def _read(
        self, groups: Sequence[RowsOfFile], pool: BufferPool, num_threads: int, totals: np.ndarray | None
    ) -> np.ndarray:
        parts = [Part(self._sources[g.file], g.rows, g.positions, self._targets[g.file]) for g in groups]
        shape = self._shapes[groups[0].file]
        n_var = shape[0] if shape is not None and len(shape) == 1 else None
        edges = np.array([0, sum(len(g.rows) for g in groups)], dtype=np.int64)
        (block,) = read_dense(
            parts,
            edges,
            n_var=n_var,
            dtype=self._dtype,
            num_threads=num_threads,
            pool=pool,
            scale=self._scale or None,
            totals=totals,
        )
        return block


def _numbered_afresh(groups: Sequence[RowsOfFile]) -> tuple[np.ndarray, list[RowsOfFile]]:
    """Return the sorted positions of all groups, and the groups with positions that count from 0 without gaps."""
    positions = np.sort(np.concatenate([group.positions for group in groups]))
    return positions, [group._replace(positions=np.searchsorted(positions, group.positions)) for group in groups]
