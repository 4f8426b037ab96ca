"""Writing one dataset, row-aligned parts piece by piece, from rows that can be fetched in output order."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.collection_format import SOURCE_DTYPE
from annbatch._shared.running_sum import starts_of
from annbatch.collection.building.columns import Column, ColumnWriter
from annbatch.collection.building.fields import ROW_BYTES, Array, Field, Ragged
from annbatch.collection.building.plan import cut_by_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from annbatch.collection.building.rows import PartOfRows, SpilledRows
    from annbatch.collection.building.schema import MatrixType, Schema

    from .sink import Sink, Stream

INDEX = "obs/_index"
# Row pointers, places and sizes are in memory for so many rows at a time (about 60 bytes each).
_ROWS_AT_ONCE = 2**17
_PARTS = {"categorical": ["codes"], "number": ["values"], "nullable": ["values", "mask"], "text": ["text", "mask"]}


def index_dtype(n_columns: int) -> np.dtype[Any]:
    """The smallest type of column numbers that anndata, scipy and other readers of collections read."""
    return np.dtype("u2" if n_columns <= 2**16 else "i4" if n_columns < 2**31 else "i8")


def _index_dtypes(n_columns: int, n_values: int, *, narrow: bool) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Types of column numbers and row pointer: the smallest, or one that scipy changes matrices in place with."""
    if narrow and n_columns <= 2**16:
        return index_dtype(n_columns), np.dtype("i8")
    both = np.dtype("i4" if max(n_columns, n_values) < 2**31 else "i8")
    return both, both


def write_dataset(
    sink: Sink,
    rows: SpilledRows,
    schema: Schema,
    *,
    dtypes: Mapping[str, np.dtype[Any]],
    text_with_missing: frozenset[str],
    obs_row_bytes: int,
    most_bytes: int,
    wrote: Callable[[int], object],
) -> None:
    """Write everything.

    Parameters
    ----------
    dtypes
        What the values of matrices are stored in.
    text_with_missing
        Fields of text that need a mask.
    obs_row_bytes
        Mean size of a row of obs in a block.
    most_bytes
        Of rows that are in memory at a time; ``wrote`` is told how many rows they were.
    """
    _write_head(sink, schema)
    matrices = [_MatrixWriter(sink, name, matrix, dtypes[name], rows) for name, matrix in schema.matrices.items()]
    columns = _column_writers(sink, schema, text_with_missing, rows.n_obs)
    for part in rows.parts(_ROWS_AT_ONCE):
        row_bytes = np.full(part.n_obs, ROW_BYTES + obs_row_bytes, np.int64)
        for matrix in matrices:
            row_bytes += matrix.begin(part)
        for start, stop in pairwise(cut_by_bytes(row_bytes, most_bytes).tolist()):
            for matrix in matrices:
                matrix.append(part, start, stop)
            for column, names in columns:
                column.append(part.fetch(names, start, stop, {}))
            wrote(stop - start)
    for matrix in matrices:
        matrix.close()
    for column, _ in columns:
        column.close()


def _write_head(sink: Sink, schema: Schema) -> None:
    """Write what is not row-aligned, and the attributes of obs."""
    sink.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        sink.group(name, "dict")
    sink.element("var", schema.var)
    for name, value in schema.varm.items():
        sink.element(f"varm/{name}", value)
    if schema.raw_var is not None:
        sink.group("raw", "raw")
        sink.element("raw/var", schema.raw_var)
        sink.group("raw/varm", "dict")
    frame = {"_index": schema.index_key, "column-order": list(schema.obs)}
    sink.group("obs", "dataframe", "0.2.0", **frame)


class _MatrixWriter:
    """The streams of one matrix."""

    def __init__(self, sink: Sink, name: str, matrix: MatrixType, dtype: np.dtype[Any], rows: SpilledRows) -> None:
        self._name = name
        self._row_shape = matrix.row_shape
        self._dtypes = [dtype]
        self._pointers: Stream | None = None
        # Of the rows that were begun last, and values in all rows before them.
        self._indptr = np.zeros(1, np.int64)
        self._n_before = 0
        n_obs = rows.n_obs
        shape = (n_obs, *matrix.row_shape)
        source = {SOURCE_DTYPE: matrix.dtype.str} if matrix.dtype != dtype else {}
        if not matrix.is_sparse:
            attributes = {"encoding-type": "array", "encoding-version": "0.2.0", **source}
            self._streams: list[Stream] = [sink.matrix(name, dtype, shape, n_obs, attributes)]
            return
        total = rows.total(name)
        index_type, pointer_type = _index_dtypes(matrix.row_shape[0], total, narrow=sink.narrow_columns)
        self._dtypes.append(index_type)
        sink.group(name, "csr_matrix", shape=list(shape), **source)
        n_values = (total,)
        self._streams = [
            sink.matrix(f"{name}/{part}", dtype, n_values, n_obs, {})
            for part, dtype in zip(("data", "indices"), self._dtypes, strict=True)
        ]
        self._pointers = sink.column(f"{name}/indptr", pointer_type, n_obs + 1, {})
        self._pointers.append(self._indptr)

    def begin(self, part: PartOfRows) -> Array | int:
        """Look at the rows that come next. Returns the bytes of each as stored."""
        width = sum(dtype.itemsize for dtype in self._dtypes)
        if self._pointers is None:
            return width * prod(self._row_shape)
        counts = part.counts(self._name)
        self._indptr = starts_of(counts)
        self._pointers.append(self._indptr[1:] + self._n_before)
        self._n_before += int(self._indptr[-1])
        return width * counts

    def append(self, part: PartOfRows, start: int, stop: int) -> None:
        """Fetch and write rows ``[start, stop)`` of the part."""
        field = part.fetch([self._name], start, stop, {self._name: self._empty(start, stop)})[self._name]
        for stream, values in zip(self._streams, field.values if isinstance(field, Ragged) else [field], strict=True):
            stream.append(values)

    def close(self) -> None:
        """Write what is left."""
        for stream in [*self._streams, *([] if self._pointers is None else [self._pointers])]:
            stream.close()

    def _empty(self, start: int, stop: int) -> Field:
        if self._pointers is None:
            return np.empty((stop - start, *self._row_shape), self._dtypes[0])
        indptr = self._indptr[start : stop + 1] - self._indptr[start]
        return Ragged(indptr, tuple(np.empty(int(indptr[-1]), dtype) for dtype in self._dtypes))


def _column_writers(
    sink: Sink, schema: Schema, text_with_missing: frozenset[str], n_obs: int
) -> list[tuple[ColumnWriter, list[str]]]:
    columns = {INDEX: (f"obs/{schema.index_key}", Column("text"))}
    columns |= {f"obs/{name}": (f"obs/{name}", column) for name, column in schema.obs.items()}
    return [
        (
            ColumnWriter(sink, path, name, column, n_obs, has_missing=name in text_with_missing),
            [f"{name}#{part}" for part in _PARTS[column.kind]],
        )
        for name, (path, column) in columns.items()
    ]
