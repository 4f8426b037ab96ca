"""The fourth step: each dataset fetches its rows from the blocks, puts them in place, and is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from annbatch._shared.collection_format import H5AD_SUFFIX
from annbatch.collection.manifest import write_manifest

from .fields import WholeRange
from .inputs.held import close_inputs
from .known import write_sources
from .output.sink import H5Sink, Layout, ZarrSink
from .output.write import write_dataset
from .rows import SpilledRows
from .spill import Spill, read_notes
from .tasks import bar_of, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from .fields import Array
    from .generation import Generation
    from .known import Source
    from .schema import Schema
    from .schema_file import SchemaFile
    from .tasks import Work


@dataclass(frozen=True)
class AssembleTask:
    """Output rows ``[start, stop)`` become the dataset ``name``.

    Attributes
    ----------
    sources
        Inputs to note; none where a dataset says nothing of them.
    dtypes
        What the values of matrices are stored in.
    text_with_missing
        Fields of text that need a mask.
    obs_row_bytes
        Mean size of a row of obs in a block.
    most_bytes
        Of rows that are in memory at a time.
    """

    blocks: tuple[Path, ...]
    schema: SchemaFile
    generation: Generation
    name: str
    dtypes: Mapping[str, np.dtype[Any]]
    text_with_missing: frozenset[str]
    start: int
    stop: int
    sources: tuple[Source, ...]
    layout: Layout
    obs_row_bytes: int
    most_bytes: int


def _nobody(_: int) -> None:
    """Is told, and does nothing."""


def assemble(task: AssembleTask, wrote: Callable[[int], object] = _nobody) -> Path:
    """Write the dataset of a task, unless it is there already; it gets its name when it is complete and on the disk.

    ``wrote`` is told the number of rows of each piece.
    """
    close_inputs()
    generation = task.generation
    path = generation.dataset(task.name)
    if path.exists():
        wrote(task.stop - task.start)
        return path
    draft = generation.draft()
    schema = task.schema.read()
    rows = SpilledRows([Spill(block) for block in task.blocks], task.start, task.stop)
    sink_type = H5Sink if path.suffix == H5AD_SUFFIX else ZarrSink

    def wrote_and_wanted(n_rows: int) -> None:
        wrote(n_rows)
        generation.check_open()

    try:
        draft.mkdir()
        with sink_type(draft / task.name, task.layout, task.obs_row_bytes) as sink:
            write_dataset(
                sink,
                rows,
                schema,
                dtypes=task.dtypes,
                text_with_missing=task.text_with_missing,
                obs_row_bytes=task.obs_row_bytes,
                most_bytes=task.most_bytes,
                wrote=wrote_and_wanted,
            )
            if task.sources:
                write_sources(sink, task.sources)
        if sink_type is ZarrSink:
            write_manifest(draft / task.name)
        generation.keep_dataset(draft, task.name, rows.n_obs)
    except BaseException:
        generation.drop(draft)  # a disk that is full should not stay so because of half a dataset
        raise
    return path


def assemble_datasets(
    work: Work, blocks: Sequence[Path], names: Sequence[str], edges: Array, sources: Sequence[Source]
) -> None:
    """Write all datasets: the one called ``names[i]`` has the rows ``[edges[i], edges[i + 1])``.

    ``sources``: the inputs, in the order of their names in the schema.
    """
    notes = [read_notes(path) for path in blocks]
    tasks = [
        AssembleTask(
            blocks=tuple(blocks),
            schema=work.schema_file,
            generation=work.generation,
            name=name,
            dtypes=_stored_dtypes(work.schema, notes),
            text_with_missing=text_with_missing(notes),
            start=start,
            stop=stop,
            sources=tuple(sources),
            layout=work.options.layout,
            obs_row_bytes=max(note["obs_row_bytes"] for note in notes),
            most_bytes=work.budget.piece_bytes(len(blocks)),
        )
        for name, (start, stop) in zip(names, pairwise(edges.tolist()), strict=True)
    ]
    del notes
    bar = bar_of("Writing datasets", int(edges[-1]), shown=work.options.progress)
    if work.executor is not None:
        run_all(work.executor, assemble, tasks, bar)
        return
    with bar:
        for task in tasks:
            assemble(task, bar.update)


def text_with_missing(notes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Fields of text that need a mask, by what blocks note."""
    return frozenset(name.removesuffix("#mask") for note in notes for name in note["missing"])


def _stored_dtypes(schema: Schema, notes: list[dict[str, Any]]) -> dict[str, np.dtype[Any]]:
    """Type of the stored values of each matrix: one for the whole call, decided by all its values."""
    return {
        name: WholeRange.union([note["ranges"][name] for note in notes]).smallest_type(matrix.dtype)
        for name, matrix in schema.matrices.items()
    }
