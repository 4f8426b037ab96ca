"""From a load request to finished batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from annbatch._shared.running_sum import starts_of
from annbatch.storage.cpus import available_cpus
from annbatch.storage.dtypes import common_dtype, native, type_code
from annbatch.storage.engine import _rows
from annbatch.storage.engine._plan import ArrayCut, RowScaling
from annbatch.storage.sources import DenseSource, SparseSource, open_matrix

from .jobs import DenseJob, Job, row_table
from .run import run, run_dense
from .scale import Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import scipy.sparse as sp
    from numpy.typing import DTypeLike

    from annbatch.storage.chunks.arrays import StoredArray
    from annbatch.storage.far.fetch import Cancel
    from annbatch.storage.pool import BufferPool

__all__ = ["CSRBlock", "Part", "read_csr", "read_dense"]

# Rows that a thread must have to be worth starting.
_MIN_ROWS = 64
# Values, with their column numbers, that fit a core's second cache beside the chunk that they come from.
_STRETCH_VALUES = 1 << 15
# Zeroing this many bytes of a dense row is as much work as a value.
_BYTES_LIKE_A_VALUE = 32
# Values of whole dense rows that are read at a time where their totals are wanted, but not all of their columns.
_SLAB_VALUES = 1 << 22
_INT32_MAX = np.iinfo(np.int32).max


@dataclass(slots=True, eq=False)
class Part:
    """The rows of a request that come from one source.

    Attributes
    ----------
    source
        What :func:`open_matrix` returned.
    rows
        int64, row numbers in the source, in any order, repeats allowed.
    dest
        int64, as many: the position in the request that each row takes.
    columns
        int64, one entry per column of the source: the number of the column in the result, -1 to leave it out. None: the
        columns stay as they are.
    """

    source: SparseSource | DenseSource
    rows: np.ndarray
    dest: np.ndarray
    columns: np.ndarray | None = None


@dataclass(slots=True, eq=False)
class CSRBlock:
    """The three arrays of a CSR matrix; ``indices`` and ``indptr`` are int32 where that is wide enough, else int64."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    def to_scipy(self) -> sp.csr_matrix:
        """Return a ``scipy.sparse.csr_matrix`` over the same memory."""
        import scipy.sparse as sp

        return sp.csr_matrix((self.data, self.indices, self.indptr), shape=self.shape, copy=False)


def read_csr(
    parts: Sequence[Part],
    edges: np.ndarray,
    *,
    n_var: int,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
    pool: BufferPool | None = None,
    cancel: Cancel | None = None,
    scale: Scale | None = None,
    totals: np.ndarray | None = None,
) -> list[CSRBlock]:
    """Read rows of CSR matrices into CSR batches.

    Parameters
    ----------
    parts
        Where each row comes from. Together their ``dest`` name every position 0 <= position < ``edges[-1]`` once.
    edges
        int64, starts with 0, does not decrease: batch ``b`` gets the positions ``edges[b] <= position < edges[b + 1]``.
    n_var
        Number of columns of the result.
    dtype
        Dtype of the values; None: the stored one (the smallest common one of several sources).
    num_threads
        Threads to decode with; None: the CPUs this process may use.
    pool
        Where the big arrays come from; None: fresh memory.
    cancel
        Set from another thread, ends the waiting for a far store with ``Abandoned``.
    scale
        What is done to the values. They are then float32, or float64 when that is the ``dtype``. None: they stay.
    totals
        float32, C-contiguous, as long as there are positions: filled with the total of each row, over all its stored values
        (also those of columns that are left out), before scaling. Batch ``b`` has ``totals[edges[b] : edges[b + 1]]``.

    Returns
    -------
    One block per batch. A row's values keep their stored order, unless ``columns`` changes the order of the columns:
    then they are sorted by column.

    Raises
    ------
    CorruptDataError
        The store is damaged.
    ValueError
        A value cannot be held by ``dtype``, a ``dtype`` for scaled values is neither float32 nor float64, or the request contradicts itself.
    TypeError
        Complex values are to be scaled or added up, or an argument is of the wrong kind.
    IndexError
        A row number is out of range.
    """
    request = _Request(parts, edges, n_var, dtype, num_threads, pool, scale, totals, cancel, sparse=True)
    lengths = request.row_lengths()
    blocks = request.compacted(request.stage(lengths)) if request.drops_or_reorders else request.fill_csr(lengths)
    request.hand_out_totals()
    return blocks


def read_dense(
    parts: Sequence[Part],
    edges: np.ndarray,
    *,
    n_var: int | None = None,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
    pool: BufferPool | None = None,
    cancel: Cancel | None = None,
    scale: Scale | None = None,
    totals: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Read rows into dense batches.

    Parameters
    ----------
    parts, edges, dtype, num_threads, pool, cancel, scale, totals
        As in :func:`read_csr`. The sources are all dense or all sparse. Repeated columns of a sparse row add up, after
        each value was scaled.
    n_var
        Number of columns of the result; None: that of the first source. Dense arrays of three and more dimensions keep
        their trailing shape, and ``n_var`` and ``columns`` must be None for them.

    Returns
    -------
    One C-contiguous array per batch, of shape ``(n_rows, n_var)`` or ``(n_rows, *trailing shape)``.

    Raises
    ------
    CorruptDataError, ValueError, TypeError, IndexError
        As in :func:`read_csr`.
    """
    sparse = bool(parts) and parts[0].source.is_sparse
    request = _Request(parts, edges, n_var, dtype, num_threads, pool, scale, totals, cancel, sparse=sparse)
    if not sparse:
        batches = request.fill_dense()
    elif type_code(request.dtype) >= 0:
        batches = request.densified()
    else:
        batches = request.densified_by_numpy()
    request.hand_out_totals()
    return batches


@dataclass(slots=True, eq=False)
class _Staged:
    """All rows of a request as one CSR matrix; dropped columns are -1."""

    data: np.ndarray
    indices: np.ndarray
    start: np.ndarray


class _Request:
    """A checked load request."""

    def __init__(
        self,
        parts: Sequence[Part],
        edges: np.ndarray,
        n_var: int | None,
        dtype: DTypeLike | None,
        num_threads: int | None,
        pool: BufferPool | None,
        scale: Scale | None,
        totals: np.ndarray | None,
        cancel: Cancel | None = None,
        *,
        sparse: bool,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            msg = f"num_threads must be >= 1 or None, got {num_threads}"
            raise ValueError(msg)
        self.num_threads = num_threads or available_cpus()
        self.edges = _checked_edges(edges)
        self.n_out = int(self.edges[-1])
        self.parts = [_checked_part(part, sparse=sparse) for part in parts]
        self._check_positions()
        self.trailing = self._trailing(n_var)
        self.n_var = prod(self.trailing)
        for part in self.parts:
            _check_columns(part, self.n_var)
        self.dtype = native(np.dtype(dtype)) if dtype is not None else common_dtype(p.source.dtype for p in self.parts)
        self._empty = np.empty if pool is None else pool.empty
        self._cancel = cancel
        self._scaling: RowScaling | None = None
        self._totals = totals
        if scale or totals is not None:
            if scale and dtype is None:
                self.dtype = np.dtype(np.float32)
            self._check_scaled(bool(scale))
            self._scaling = RowScaling((scale and scale.target_sum) or 0.0, bool(scale and scale.log1p))
            # Of each position. Rows without values have no piece that would set it.
            self._row_totals = np.zeros(self.n_out)

    def hand_out_totals(self) -> None:
        """Write the totals where the caller wants them."""
        if self._totals is not None:
            with np.errstate(over="ignore"):  # infinite is what such a total is as float32
                self._totals[...] = self._row_totals

    # -- sparse

    @property
    def drops_or_reorders(self) -> bool:
        """Whether some columns map does more than to give new, still increasing numbers."""
        return any(part.columns is not None and not _increases(part.columns) for part in self.parts)

    def row_lengths(self) -> np.ndarray:
        """Return the stored values of each position, int64."""
        lengths = np.zeros(self.n_out, np.int64)
        for part in self.parts:
            _, lengths[part.dest] = _sparse(part).row_pointers.extents(part.rows)
        return lengths

    def fill_csr(self, lengths: np.ndarray) -> list[CSRBlock]:
        """Read straight into the batches."""
        blocks, value_address, index_address = self._new_blocks(lengths)
        # Every block has the index dtype of the widest one, so that one renumbering kernel serves the request.
        index_dtype = blocks[0].indices.dtype if blocks else np.dtype(np.int32)
        self._read_rows(value_address, index_address, index_dtype, self._scaling)
        return blocks

    def stage(self, lengths: np.ndarray) -> _Staged:
        """Read all rows one after the other into scratch memory."""
        start = starts_of(lengths)
        index_dtype = _index_dtype(self.n_var, 0)
        data, indices = self._empty(int(start[-1]), self.dtype), self._empty(int(start[-1]), index_dtype)
        self._read_rows(
            _address(data) + start[:-1] * self.dtype.itemsize,
            _address(indices) + start[:-1] * index_dtype.itemsize,
            index_dtype,
            None if self._scaling is None else RowScaling(),  # what is dropped counts, but need not be scaled
        )
        return _Staged(data, indices, start)

    def compacted(self, staged: _Staged) -> list[CSRBlock]:
        """Cut staged rows into batches, without the dropped columns."""
        kept = np.empty(self.n_out, np.int64)
        self._in_shares(lambda low, high: _rows.count_kept(staged.indices, staged.start, kept, low, high))
        blocks, value_address, index_address = self._new_blocks(kept, staged.indices.dtype)
        sort = any(p.columns is not None and not _increases(p.columns[p.columns >= 0]) for p in self.parts)
        scaled = self._scaling not in (None, RowScaling())
        self._in_shares(
            lambda low, high: _rows.compact(
                staged.indices,
                _address(staged.data),
                self.dtype.itemsize,
                staged.start,
                kept,
                index_address,
                value_address,
                sort=sort,
                n_columns=self.n_var,
                low=low,
                high=high,
                totals=self._row_totals if scaled else None,
                scaling=self._scaling,
                value_type=type_code(self.dtype),
            )
        )
        return blocks

    def _in_shares(self, work: Callable[[int, int], None]) -> None:
        """Call ``work(low, high)`` for shares that cover all rows, in several threads when there are many rows."""
        n_threads = min(self.num_threads, self.n_out // _MIN_ROWS)
        if n_threads <= 1:
            work(0, self.n_out)
            return
        # More shares than threads: the last ones even out what the first ones differed in.
        borders = np.linspace(0, self.n_out, 4 * n_threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(n_threads, thread_name_prefix="annbatch-rows") as threads:
            for future in [threads.submit(work, low, high) for low, high in pairwise(borders)]:
                future.result()

    def _new_blocks(
        self, lengths: np.ndarray, index_dtype: np.dtype | None = None
    ) -> tuple[list[CSRBlock], np.ndarray, np.ndarray]:
        """Return empty blocks for rows of these lengths, and where each row's values and column numbers go."""
        value_address, index_address = np.empty(self.n_out, np.int64), np.empty(self.n_out, np.int64)
        starts = [starts_of(lengths[low:high]) for low, high in pairwise(self.edges)]
        index_dtype = index_dtype or _index_dtype(self.n_var, max((int(start[-1]) for start in starts), default=0))
        blocks = []
        for start, (low, high) in zip(starts, pairwise(self.edges), strict=True):
            data, indices = self._empty(int(start[-1]), self.dtype), self._empty(int(start[-1]), index_dtype)
            value_address[low:high] = _address(data) + start[:-1] * self.dtype.itemsize
            index_address[low:high] = _address(indices) + start[:-1] * index_dtype.itemsize
            blocks.append(CSRBlock(data, indices, start.astype(index_dtype), (int(high - low), self.n_var)))
        return blocks, value_address, index_address

    def _read_rows(
        self,
        value_address: np.ndarray,
        index_address: np.ndarray,
        index_dtype: np.dtype,
        scaling: RowScaling | None,
    ) -> None:
        jobs = []
        added_up = []
        for part in self.parts:
            rows, dest = _ascending(part)
            source = _sparse(part)
            extents = source.row_pointers.extents(rows)
            table = None
            if scaling is not None:
                table = row_table(value_address[dest], extents[1])
                added_up.append((dest, table))
            value_plan, column_plan = (
                _rows.plan_ranges(rows, *extents, address[dest], target.itemsize, array.chunk_shape[0], by_row=by_row)
                for array, address, target, by_row in (
                    (source.data, value_address, self.dtype, table is not None),
                    (source.indices, index_address, index_dtype, False),
                )
            )
            value_chunk, column_chunk = source.data.chunk_shape[0], source.indices.chunk_shape[0]
            jobs += [
                Job(source.data, value_plan, value_chunk, self.dtype, rows=table, scaling=scaling),
                Job(source.indices, column_plan, column_chunk, index_dtype, source.shape[1], part.columns),
            ]
        run(jobs, self.num_threads, self._cancel)
        for dest, table in added_up:
            self._row_totals[dest] = table["total"]

    # -- dense

    def densified(self) -> list[np.ndarray]:
        """Write sparse rows into dense batches."""
        batches, address = self._new_dense()
        row_bytes = self.n_var * self.dtype.itemsize
        row_work = row_bytes // _BYTES_LIKE_A_VALUE
        index_dtype = _index_dtype(self.n_var, 0)
        work = int(self.row_lengths().sum()) + self.n_out * row_work
        # Small requests are cut finer: the last stretches even out what the first ones of each thread differed in.
        n_wanted = min(_STRETCH_VALUES, work // (4 * self.num_threads))
        jobs = []
        added_up = []
        for part in self._readable_parts():
            rows, dest = _ascending(part)
            source = _sparse(part)
            value_cut, column_cut = _cut(source.data, self.dtype), _cut(source.indices, index_dtype)
            extents = source.row_pointers.extents(rows)
            plan = _rows.plan_stretches(rows, *extents, n_wanted, row_work, value_cut, column_cut)
            values = Job(source.data, plan.values, value_cut.chunk_size, self.dtype)
            columns = Job(
                source.indices, plan.columns, column_cut.chunk_size, index_dtype, source.shape[1], part.columns
            )
            totals = None if self._scaling is None else np.zeros(len(rows))
            if totals is not None:
                added_up.append((dest, totals))
            jobs.append(DenseJob(values, columns, plan, address[dest], row_bytes, totals, self._scaling))
        run_dense(jobs, self.num_threads, self._cancel)
        for dest, totals in added_up:
            self._row_totals[dest] = totals
        return batches

    def _readable_parts(self) -> list[Part]:
        """Return all rows where the engine can read them: as they are, or read into memory through zarr-python and h5py."""
        readable: list[Part] = []
        others: list[Part] = []
        for part in self.parts:
            source = _sparse(part)
            direct = Job.engine_takes(source.data, self.dtype) and source.indices.is_direct
            (readable if direct else others).append(part)
        if not others:
            return readable
        # All in one call: stores that answer slowly are asked for many things at a time.
        edges = starts_of(np.array([len(part.rows) for part in others], np.int64))
        widths = [part.source.shape[1] for part in others]
        blocks = read_csr(
            [
                Part(part.source, part.rows, np.arange(low, high), np.arange(width))
                for part, width, (low, high) in zip(others, widths, pairwise(edges), strict=True)
            ],
            edges,
            n_var=max(widths),
            dtype=self.dtype,
            num_threads=self.num_threads,
            cancel=self._cancel,
        )
        for part, width, block in zip(others, widths, blocks, strict=True):
            in_memory = open_matrix(replace(block, shape=(len(part.rows), width)).to_scipy())
            readable.append(Part(in_memory, np.arange(len(part.rows)), part.dest, part.columns))
        return readable

    def densified_by_numpy(self) -> list[np.ndarray]:
        """Do the same for dtypes that the kernels do not compute with (float16, complex)."""
        batches, _ = self._new_dense()
        blocks = read_csr(
            self.parts,
            self.edges,
            n_var=self.n_var,
            dtype=self.dtype,
            num_threads=self.num_threads,
            cancel=self._cancel,
        )
        for batch, block in zip(batches, blocks, strict=True):
            batch.fill(0)
            rows = np.repeat(np.arange(len(batch)), np.diff(block.indptr))
            np.add.at(batch, (rows, block.indices), block.data)
        return batches

    def fill_dense(self) -> list[np.ndarray]:
        """Read dense rows straight into the batches."""
        batches, address = self._new_dense()
        if any(part.columns is not None for part in self.parts):
            for batch in batches:
                batch.fill(0)
        jobs = []
        added_up = []
        for part in self.parts:
            if self._scaling is not None and part.columns is not None:
                self._fill_scaled_columns(part, batches)
                continue
            array = _dense(part).array
            rows, dest = _ascending(part)
            table = None
            if self._scaling is not None:
                table = row_table(address[dest], np.full(len(rows), self.n_var))
                added_up.append((dest, table))
            chunk_rows, row_stride = array.chunk_shape[0], prod(array.chunk_shape[1:])
            plan = _rows.plan_rows(
                rows,
                address[dest],
                self.dtype.itemsize,
                chunk_rows,
                row_stride,
                array.row_spans(),
                mapped=part.columns is not None,
                by_row=table is not None,
            )
            chunk_size = chunk_rows * row_stride
            jobs.append(Job(array, plan, chunk_size, self.dtype, None, part.columns, table, self._scaling))
        run(jobs, self.num_threads, self._cancel)
        for dest, table in added_up:
            self._row_totals[dest] = table["total"]
        return batches

    def _fill_scaled_columns(self, part: Part, batches: list[np.ndarray]) -> None:
        """Read whole rows, for their totals, and copy the wanted columns; some rows at a time."""
        assert part.columns is not None
        assert self._scaling is not None
        n_rows = max(1, _SLAB_VALUES // max(1, part.source.shape[1]))
        scale = Scale(self._scaling.target_sum or None, self._scaling.log1p)
        kept = np.flatnonzero(part.columns >= 0)
        for low in range(0, len(part.rows), n_rows):
            rows, dest = part.rows[low : low + n_rows], part.dest[low : low + n_rows]
            totals = np.empty(len(rows), np.float32)
            (whole,) = read_dense(
                [Part(part.source, rows, np.arange(len(rows)))],
                np.array([0, len(rows)]),
                dtype=self.dtype,
                num_threads=self.num_threads,
                scale=scale,
                totals=totals,
            )
            self._row_totals[dest] = totals
            batch_of_row = np.searchsorted(self.edges, dest, side="right") - 1
            for batch in np.unique(batch_of_row):
                mine = batch_of_row == batch
                at = np.ix_(dest[mine] - self.edges[batch], part.columns[kept])
                batches[batch][at] = whole[np.ix_(np.flatnonzero(mine), kept)]

    def _new_dense(self) -> tuple[list[np.ndarray], np.ndarray]:
        address = np.empty(self.n_out, np.int64)
        row_bytes = self.n_var * self.dtype.itemsize
        batches = []
        for low, high in pairwise(self.edges):
            batch = self._empty((int(high - low), *self.trailing), self.dtype)
            address[low:high] = _address(batch) + np.arange(high - low) * row_bytes
            batches.append(batch)
        return batches, address

    # -- checks

    def _check_scaled(self, scaled: bool) -> None:  # noqa: FBT001
        """Raise when rows cannot be added up, or scaled."""
        for part in self.parts:
            if part.source.dtype.kind == "c":
                msg = f"{part.source.location} must hold real numbers to be added up or scaled, got {part.source.dtype}"
                raise TypeError(msg)
            if len(part.source.shape) != 2:
                msg = (
                    f"{part.source.location} must have two dimensions to be added up or scaled, got {part.source.shape}"
                )
                raise ValueError(msg)
        if scaled and self.dtype not in (np.float32, np.float64):
            msg = f"dtype must be float32 or float64 where values are scaled, got {self.dtype}"
            raise ValueError(msg)
        if type_code(self.dtype) < 0:
            msg = f"rows cannot be added up as {self.dtype}; choose dtype=float32 or float64"
            raise ValueError(msg)
        totals = self._totals
        if totals is not None and (totals.dtype != np.float32 or totals.shape != (self.n_out,)):
            msg = f"totals must be float32 of shape {(self.n_out,)}, got {totals.dtype} of shape {totals.shape}"
            raise ValueError(msg)

    def _check_positions(self) -> None:
        seen = np.zeros(self.n_out, np.int64)
        for part in self.parts:
            if len(part.dest) and not 0 <= part.dest.min() <= part.dest.max() < self.n_out:
                msg = f"dest must be within 0 <= dest < {self.n_out}, got {part.dest.min()} to {part.dest.max()}"
                raise IndexError(msg)
            seen += np.bincount(part.dest, minlength=self.n_out)
        if not (seen == 1).all():
            position = int(np.flatnonzero(seen != 1)[0])
            msg = f"each position must be in dest once, got position {position} {seen[position]} times"
            raise ValueError(msg)

    def _trailing(self, n_var: int | None) -> tuple[int, ...]:
        shapes = {part.source.shape[1:] for part in self.parts if part.columns is None}
        if n_var is not None:
            wanted: tuple[int, ...] = (int(n_var),)
            if n_var < 0:
                msg = f"n_var must be >= 0, got {n_var}"
                raise ValueError(msg)
        elif self.parts:
            wanted = self.parts[0].source.shape[1:]
            if self.parts[0].columns is not None:
                msg = "n_var must be given together with columns, got None"
                raise ValueError(msg)
        else:
            wanted = (0,)
        if shapes - {wanted}:
            msg = f"without columns every source must have rows of shape {wanted}, got {sorted(shapes - {wanted})[0]}"
            raise ValueError(msg)
        return wanted


def _checked_edges(edges: np.ndarray) -> np.ndarray:
    edges = np.ascontiguousarray(edges)
    if edges.ndim != 1 or edges.dtype.kind not in "iu" or not len(edges):
        msg = f"edges must be a one-dimensional array of integers with at least one entry, got {edges!r}"
        raise TypeError(msg)
    edges = edges.astype(np.int64, copy=False)
    if edges[0] != 0 or (np.diff(edges) < 0).any():
        msg = f"edges must start with 0 and not decrease, got {edges}"
        raise ValueError(msg)
    return edges


def _checked_part(part: Part, *, sparse: bool) -> Part:
    if part.source.is_sparse != sparse:
        msg = f"all sources must be {'sparse' if sparse else 'dense'}, got {part.source!r}"
        raise TypeError(msg)
    rows, dest = _int64(part.rows, "rows"), _int64(part.dest, "dest")
    if len(rows) != len(dest):
        msg = f"rows and dest must be of one length, got {len(rows)} and {len(dest)}"
        raise ValueError(msg)
    n_obs = part.source.shape[0]
    if len(rows) and not 0 <= rows.min() <= rows.max() < n_obs:
        msg = f"rows must be within 0 <= row < {n_obs} of {part.source.location}, got {rows.min()} to {rows.max()}"
        raise IndexError(msg)
    columns = None if part.columns is None else _int64(part.columns, "columns")
    return Part(part.source, rows, dest, columns)


def _sparse(part: Part) -> SparseSource:
    assert isinstance(part.source, SparseSource)
    return part.source


def _dense(part: Part) -> DenseSource:
    assert isinstance(part.source, DenseSource)
    return part.source


def _check_columns(part: Part, n_var: int) -> None:
    if part.columns is None:
        return
    shape = part.source.shape
    if len(shape) != 2 or len(part.columns) != shape[1]:
        msg = f"columns must have one entry per column of {part.source.location}, of shape {shape}, got {len(part.columns)}"
        raise ValueError(msg)
    if len(part.columns) and not -1 <= part.columns.min() <= part.columns.max() < n_var:
        msg = f"columns must be within -1 <= column < {n_var}, got {part.columns.min()} to {part.columns.max()}"
        raise IndexError(msg)


def _int64(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        msg = f"{name} must be a one-dimensional array of integers, got {values.dtype} of shape {values.shape}"
        raise TypeError(msg)
    return np.ascontiguousarray(values, np.int64)


def _cut(array: StoredArray, target: np.dtype) -> ArrayCut:
    """Return how an array that the engine reads may be cut."""
    table = array.table
    assert table is not None
    return ArrayCut(target.itemsize, table.chunk_shape[0], not table.codecs)


def _ascending(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and dest in the order of the rows."""
    order = _rows.ascending(part.rows, part.source.shape[0])
    return part.rows[order], part.dest[order]


def _increases(columns: np.ndarray) -> bool:
    return not len(columns) or (columns[0] >= 0 and bool((columns[1:] > columns[:-1]).all()))


def _index_dtype(n_var: int, n_values: int) -> np.dtype:
    return np.dtype(np.int32 if max(n_var, n_values) <= _INT32_MAX else np.int64)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
