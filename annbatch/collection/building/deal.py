"""The third step: read blocks of input rows, each once and in order, and write them sorted by destination."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .columns import Column, encode, encode_text_column
from .fields import Array, Field, Ragged, WholeRange, check_exact, size_of
from .inputs.held import close_inputs, held_input
from .output.write import INDEX, index_dtype
from .schema import SRC_PATH, MatrixType, Schema
from .spill import write_spill
from .tasks import bar_of, run_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .generation import Generation
    from .inputs.inputs import Input, InputSpec
    from .inputs.obs import ObsRows
    from .look import Survey
    from .schema_file import SchemaFile
    from .tasks import Work


@dataclass(frozen=True)
class DealTask:
    """Rows ``[start, stop)`` of input ``number``; ``places[i]`` is where row ``start + i`` goes.

    Attributes
    ----------
    name
        Of the block in its generation.
    src_path
        What ``obs["src_path"]`` is to say; None: what it says in the input.
    window_bytes
        So much of obs is read in one go.
    """

    number: int
    spec: InputSpec
    schema: SchemaFile
    generation: Generation
    name: str
    start: int
    stop: int
    places: Array
    compact: bool
    num_threads: int
    window_bytes: int
    src_path: str | None = None


def deal(task: DealTask) -> Path:
    """Write the block of a task, unless it is there already."""
    path = task.generation.blocks / task.name
    if path.exists():
        return path
    draft = task.generation.draft()
    schema = task.schema.read()
    order = np.argsort(task.places, kind="stable")
    fields: dict[str, Field] = {}
    ranges: dict[str, WholeRange] = {}
    with held_input((task.generation.path, task.number), task.spec, task.generation.drafts) as source:
        for name, matrix in schema.matrices.items():
            fields[name], ranges[name] = _read_matrix(source, schema, name, matrix, order + task.start, task)
        obs = source.obs_rows(task.start, task.stop, task.window_bytes).take(order)
    obs_fields = _encode_obs(obs, schema, task)
    with_missing = [name for name, value in obs_fields.items() if name.endswith("#mask") and np.asarray(value).any()]
    notes = {"missing": with_missing, "obs_row_bytes": sum(map(size_of, obs_fields.values())) // len(order)}
    places = np.ascontiguousarray(task.places[order], np.int64)
    try:
        write_spill(draft, places, fields | obs_fields, ranges, notes)
        task.generation.keep_block(draft, task.name)
    except BaseException:
        task.generation.drop(draft)  # a disk that is full should not stay so because of half a file
        raise
    return path


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
    check_exact(field.values[0] if isinstance(field, Ragged) else field, matrix.dtype, f"{name} of {task.spec.label}")
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


def _encode_obs(obs: ObsRows, schema: Schema, task: DealTask) -> dict[str, Field]:
    n_rows = len(obs)
    fields = encode_text_column(INDEX, Column("text"), obs.names)
    for name, column in schema.obs.items():
        if name == SRC_PATH and task.src_path is not None:
            labels = np.zeros(n_rows, np.int8), pd.Index([task.src_path])
            fields |= encode(f"obs/{name}", column, pd.Series(pd.Categorical.from_codes(*labels)), n_rows)
            continue
        if name in obs.texts:
            fields |= encode_text_column(f"obs/{name}", column, obs.texts[name])
            continue
        series = obs.frame.get(name)
        if series is not None and column.dtype:
            number_type = getattr(series.dtype, "numpy_dtype", series.dtype)
            if isinstance(number_type, np.dtype) and number_type.kind in "iu":
                what = f"obs[{name!r}] of {task.spec.label}"
                check_exact(series.dropna().to_numpy(number_type), np.dtype(column.dtype), what)
        fields |= encode(f"obs/{name}", column, series, n_rows)
    return fields


def deal_inputs(work: Work, specs: Sequence[InputSpec], survey: Survey, places: Array) -> list[Path]:
    """Read all inputs, whose rows go to ``places``. Returns the blocks."""
    tasks = []
    offset = 0
    for number, (spec, seen) in enumerate(zip(specs, survey.inputs, strict=True)):
        cuts = seen.block_edges(work.budget.block_bytes)
        tasks += [
            DealTask(
                number=number,
                spec=spec,
                schema=work.schema_file,
                generation=work.generation,
                name=f"{number}-{start}-{stop}",
                start=start,
                stop=stop,
                places=places[offset + start : offset + stop],
                compact=work.options.compact,
                num_threads=1,
                window_bytes=work.budget.block_bytes,
                src_path=spec.label,
            )
            for start, stop in pairwise(cuts.tolist())
        ]
        offset += int(cuts[-1])
    bar = bar_of("Reading inputs", offset, shown=work.options.progress)
    if work.executor is not None:
        run_all(work.executor, deal, tasks, bar)
    else:
        try:
            with ThreadPoolExecutor(work.budget.n_parallel, thread_name_prefix="annbatch-deal") as threads:
                run_all(threads, deal, tasks, bar)
        finally:
            close_inputs()
    return [work.generation.blocks / task.name for task in tasks]
