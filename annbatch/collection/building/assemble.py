"""The second task: fetch the rows of one dataset from the blocks, put them in place, and write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.collection.manifest import seal

from .deal import close_inputs
from .fields import Array, Field, Ragged, place_ragged, starts_of
from .files import remove, sync, sync_tree
from .output.sink import H5Sink, Layout, ZarrSink
from .output.write import write_dataset
from .schema import load_schema
from .spill import Spill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class AssembleTask:
    """Output rows ``[start, stop)`` become the dataset at ``path``.

    Attributes
    ----------
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
    schema_path: Path
    dtypes: Mapping[str, np.dtype[Any]]
    text_with_missing: frozenset[str]
    start: int
    stop: int
    path: Path
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
    if task.path.exists():
        wrote(task.stop - task.start)
    else:
        unfinished = task.path.with_name(f"unfinished-{task.path.name}")
        remove(unfinished)
        schema = load_schema(task.schema_path)
        rows = SpilledRows([Spill(path) for path in task.blocks], task.start, task.stop)
        sink_type = H5Sink if task.path.suffix == ".h5ad" else ZarrSink
        try:
            with sink_type(unfinished, task.layout, task.obs_row_bytes) as sink:
                write_dataset(sink, rows, schema, task, wrote)
            if sink_type is ZarrSink:
                seal(unfinished)
            sync_tree(unfinished)
        except BaseException:
            remove(unfinished)  # a disk that is full should not stay so because of half a dataset
            raise
        unfinished.rename(task.path)
        sync(task.path.parent)
    return task.path


class SpilledRows:
    """The output rows ``[start, stop)`` of a build, which lie in its blocks."""

    def __init__(self, spills: Sequence[Spill], start: int, stop: int) -> None:
        self.n_obs = stop - start
        self._start = start
        found = [(spill, *spill.find(start, stop)) for spill in spills]
        self._spans = [(spill, first, last) for spill, first, last in found if first < last]

    def total(self, name: str) -> int:
        """Number of values of a ragged field."""
        return sum(spill.total(name, first, last) for spill, first, last in self._spans)

    def parts(self, most_rows: int) -> Iterator[PartOfRows]:
        """The rows in order, ``most_rows`` at a time."""
        spills = [spill for spill, _, _ in self._spans]
        for start in range(0, self.n_obs, most_rows):
            stop = min(start + most_rows, self.n_obs)
            part = SpilledRows(spills, start + self._start, stop + self._start)
            yield PartOfRows(part._spans, start + self._start, stop - start)


class PartOfRows:
    """Rows whose places are in memory."""

    def __init__(self, spans: Sequence[tuple[Spill, int, int]], start: int, n_obs: int) -> None:
        self.n_obs = n_obs
        self._spans = [(spill, first, spill.places(first, last) - start) for spill, first, last in spans]

    def counts(self, name: str) -> Array:
        """Length (int64) of every row of a ragged field."""
        counts = np.zeros(self.n_obs, np.int64)
        for spill, first, places in self._spans:
            counts[places] = spill.counts(name, first, first + len(places))
        return counts

    def fetch(self, names: Sequence[str], start: int, stop: int, into: Mapping[str, Field]) -> dict[str, Field]:
        """Rows ``[start, stop)`` of the named fields, in order.

        A field in ``into`` is filled, with its dtypes, and returned.
        """
        out = dict(into)
        small = [name for name in names if name not in into]
        held: dict[str, list[tuple[Array, Field]]] = {name: [] for name in small}
        for spill, first, all_places in self._spans:
            a, b = (int(i) for i in np.searchsorted(all_places, [start, stop]))
            if a == b:
                continue
            places = all_places[a:b] - start
            for name, field in spill.fields(names, first + a, first + b).items():
                if name in into:
                    _place(field, places, out[name])
                else:
                    held[name].append((places, field))
        for name in small:
            out[name] = _joined(held[name], stop - start)
        return out


def _joined(sections: list[tuple[Array, Field]], n_rows: int) -> Field:
    """One field of sections whose dtypes are the same in all blocks."""
    like = sections[0][1]
    out: Field
    if isinstance(like, Ragged):
        counts = np.zeros(n_rows, np.int64)
        for places, field in sections:
            assert isinstance(field, Ragged)
            counts[places] = np.diff(field.indptr)
        indptr = starts_of(counts)
        out = Ragged(indptr, tuple(np.empty(int(indptr[-1]), values.dtype) for values in like.values))
    else:
        out = np.empty((n_rows, *like.shape[1:]), like.dtype)
    for places, field in sections:
        _place(field, places, out)
    return out


def _place(section: Field, places: Array, out: Field) -> None:
    if isinstance(out, Ragged):
        assert isinstance(section, Ragged)
        place_ragged(section, places, out)
    else:
        out[places] = section
