"""The rows of one dataset, fetched in output order from the blocks of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from annbatch._shared.running_sum import starts_of

from .fields import Array, Field, Ragged, place_ragged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .spill import Spill


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
