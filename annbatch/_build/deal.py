"""The first task: read a block of input rows once, in order, and write it sorted by destination."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .columns import Column, encode
from .fields import Array, Field, Ragged, WholeRange
from .files import remove
from .schema import SRC_PATH, MatrixType, Schema, load_schema
from .spill import is_complete, write_spill
from .write import INDEX, index_dtype

if TYPE_CHECKING:
    from pathlib import Path

    from .inputs import Input, InputSpec


@dataclass(frozen=True)
class DealTask:
    """Rows ``[start, stop)`` of input ``number``; ``places[i]`` is where row ``start + i`` goes."""

    number: int
    spec: InputSpec
    schema_path: Path
    start: int
    stop: int
    places: Array
    path: Path
    compact: bool
    num_threads: int


def deal(task: DealTask) -> Path:
    """Write the block of a task, unless it is there already."""
    if not is_complete(task.path):
        schema = load_schema(task.schema_path)
        opened = _open(task)
        order = np.argsort(task.places, kind="stable")
        rows = order + task.start
        fields: dict[str, Field] = {}
        ranges: dict[str, WholeRange] = {}
        for name, matrix in schema.matrices.items():
            fields[name], ranges[name] = _read_matrix(opened, schema, name, matrix, rows, task)
        fields |= _encode_obs(opened, schema, rows, task.spec.label)
        with_missing = [name for name, value in fields.items() if name.endswith("#mask") and np.asarray(value).any()]
        places = np.ascontiguousarray(task.places[order], np.int64)
        try:
            write_spill(task.path, places, fields, ranges, {"missing": with_missing})
        except BaseException:
            remove(task.path)  # a disk that is full should not stay so because of half a file
            raise
    return task.path


def _read_matrix(
    opened: Input, schema: Schema, name: str, matrix: MatrixType, rows: Array, task: DealTask
) -> tuple[Field, WholeRange]:
    columns = None
    n_columns = matrix.row_shape[0] if matrix.row_shape else 0
    if not name.startswith("obsm/"):
        old, new = (opened.raw_var, schema.raw_var) if name == "raw/X" else (opened.var, schema.var)
        assert old is not None
        assert new is not None
        if not old.index.equals(new.index):
            columns = new.index.get_indexer(old.index).astype(np.int64)
    field = opened.matrices[name].read(rows, columns, n_columns, task.num_threads)
    if matrix.is_sparse and not isinstance(field, Ragged):
        csr = sp.csr_matrix(field)
        field = Ragged(csr.indptr.astype(np.int64), (csr.data, csr.indices))
    elif not matrix.is_sparse and isinstance(field, Ragged):
        data, indices = field.values
        field = sp.csr_matrix((data, indices, field.indptr), shape=(len(rows), n_columns)).toarray()
    if isinstance(field, Ragged):
        data, indices = _with_sorted_rows(field, n_columns)
        found = WholeRange.of(data) if task.compact else WholeRange(whole=False)
        stored = data.astype(found.smallest_type(data.dtype), copy=False)
        return Ragged(field.indptr, (stored, indices.astype(index_dtype(n_columns), copy=False))), found
    found = WholeRange.of(field) if task.compact else WholeRange(whole=False)
    return field.astype(found.smallest_type(field.dtype), copy=False), found


def _with_sorted_rows(field: Ragged, n_columns: int) -> tuple[Array, Array]:
    """Sorted rows compress better, and readers expect them."""
    data, indices = field.values
    csr = sp.csr_matrix((data, indices, field.indptr), shape=(len(field), n_columns), copy=False)
    if not csr.has_sorted_indices:
        csr.sort_indices()
    return csr.data, csr.indices


def _encode_obs(opened: Input, schema: Schema, rows: Array, label: str) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    obs = opened.obs.iloc[rows]
    index = pd.Series(obs.index.astype(str))
    fields |= encode(INDEX, Column("text"), index, len(rows))
    for name, column in schema.obs.items():
        series: pd.Series[Any] | None
        if name == SRC_PATH:
            assert column.categories is not None
            series = pd.Series(pd.Categorical.from_codes(np.zeros(len(rows), np.int8), pd.Index([label])))
        else:
            series = obs.get(name)
        fields |= encode(f"obs/{name}", column, series, len(rows))
    return fields


# Blocks of one input mostly follow each other in a worker: what was read of obs and row pointers serves them all.
_held: dict[int, tuple[Any, Input]] = {}


def _open(task: DealTask) -> Input:
    thread = threading.get_ident()
    key = task.schema_path, task.number
    held = _held.get(thread)
    if held is not None:
        if held[0] == key:
            return held[1]
        held[1].close()
    opened = task.spec.open()
    _held[thread] = key, opened
    return opened


def close_inputs() -> None:
    """Close the inputs that tasks of this process hold open; no task may be running."""
    while _held:
        _held.popitem()[1][1].close()
