"""A sampler for perturbation data: treated rows, and control rows of the same context beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.args import as_count

from ._seekable import chunk_requests, joined_requests
from ._streams import Draw
from .class_based import ClassBasedSampler, as_categorical, shown_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annbatch.types import LoadRequest

    from ._runs import RowWindow, RunTable
    from ._streams import PassStreams

__all__ = ["MatchedSampler"]


class MatchedSampler(ClassBasedSampler):
    """Draws batches of treated rows of one class and one context, with control rows of the same context beside them.

    A class is drawn by weight for every ``lcm(chunk_size, batch_size)`` treated rows, then a context among those that hold the
    class, in proportion to how many chunks begin there; within both, every chunk of `chunk_size` neighbouring rows
    has the same chance. The control rows are chunks of control rows of that context, each with the same chance. Rows come
    with replacement. Of a batch ``X``, ``X[:batch_size]`` are treated and ``X[batch_size:]`` are controls, both in random order.
    A last batch of fewer treated rows begins its controls earlier: leave it out with `drop_last`, or choose a `num_samples` that
    `batch_size` divides.

    Parameters
    ----------
    chunk_size
        Neighbouring rows that are read as one piece. Every run of rows of one class and context that can be drawn, and every run of
        control rows of its context, must be at least this long.
    preload_nchunks
        Chunks of treated rows per load request; its control rows come on top.
    batch_size
        Treated rows per batch. Must divide ``chunk_size * preload_nchunks``.
    classes
        Treatment of every row of the data, without NA.
    controls
        The label, or a list of the labels, that mark control rows. They are never drawn as a class.
    contexts
        What treated and control rows must agree in (cell line, plate, donor): a pandas.Categorical without NA, one entry per
        row, or a list of them, which count together.
    num_samples
        Treated rows per pass, exactly.
    n_controls
        Control rows per batch. None: as many as treated rows, also in a short last batch. They have a stream of their own, so that
        changing their number changes no treated row.
    class_weights
        One weight per category of `classes`, in the order of ``classes.categories``; those of control labels are not looked at. A
        weight <= 0 excludes the class. None: all classes present have the same weight.
    mask
        Rows to draw from, half open: ``slice(start, stop)``. None: all.
    drop_last
        Leave out a last batch of fewer than `batch_size` treated rows.
    rng
        Source of randomness: a pass takes one seed from it. None: a fresh seed. The same seed and arguments give the same
        requests on every platform.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind; `classes` and `contexts` must be pandas.Categorical.
    ValueError
        When a number is out of range, a class or context is missing (NA), a control label is no category, a run is shorter
        than `chunk_size`, a context holds treated rows that can be drawn but no control rows (the message names them), or no class
        with a positive weight is left.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from annbatch import MatchedSampler
    >>> drug = pd.Categorical(np.tile(np.repeat(["DMSO", "A", "B"], 10), 2))
    >>> line = pd.Categorical(np.repeat(["K562", "A549"], 30))
    >>> sampler = MatchedSampler(
    ...     chunk_size=2,
    ...     preload_nchunks=8,
    ...     batch_size=4,
    ...     classes=drug,
    ...     controls="DMSO",
    ...     contexts=line,
    ...     num_samples=100,
    ...     rng=np.random.default_rng(0),
    ... )
    >>> request = next(sampler.sample(60))
    >>> rows = np.concatenate([np.arange(part.start, part.stop) for part in request["requests"]])
    >>> batch = rows[request["splits"][0]]
    >>> len(set(drug[batch[:4]])), set(drug[batch[4:]]), len(set(line[batch]))
    (1, {'DMSO'}, 1)
    """

    def __init__(
        self,
        chunk_size: int,
        preload_nchunks: int,
        batch_size: int,
        *,
        classes: pd.Categorical,
        controls: Any,
        contexts: pd.Categorical | Sequence[pd.Categorical],
        num_samples: int,
        n_controls: int | None = None,
        class_weights: np.ndarray | Sequence[float] | None = None,
        mask: slice | None = None,
        drop_last: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._n_controls = None if n_controls is None else as_count("n_controls", n_controls)
        classes = as_categorical("classes", classes)
        self._is_control = _control_codes(controls, classes.categories)
        self._context_codes, self._context_labels = _united(contexts, len(classes))
        super().__init__(
            chunk_size,
            preload_nchunks,
            batch_size,
            classes=classes,
            num_samples=num_samples,
            class_weights=class_weights,
            mask=mask,
            drop_last=drop_last,
            rng=rng,
        )

    @property
    def n_controls(self) -> int | None:
        """Control rows per batch; None: as many as treated rows."""
        return self._n_controls

    # -- cells: pairs of class and context. All control labels count as one class, the last one.

    def _row_codes(self) -> np.ndarray:
        # The smallest type that holds them: this is what is kept for every row.
        n_cells = self._n_codes
        dtype = np.min_scalar_type(-n_cells)
        to_class = np.where(self._is_control, len(self._is_control), np.arange(len(self._is_control)))
        cells: np.ndarray = to_class.astype(dtype)[self._classes.codes]
        cells *= dtype.type(self._n_contexts)
        cells += self._context_codes
        return cells

    @property
    def _n_contexts(self) -> int:
        return len(self._context_labels)

    @property
    def _n_codes(self) -> int:
        return (len(self._is_control) + 1) * self._n_contexts

    def _labels(self) -> Any:
        return [super()._labels(), self._is_control.tolist(), self._context_labels.tolist()]

    def _shown(self, codes: np.ndarray) -> str:
        cells = np.flatnonzero(codes)
        classes, contexts = np.divmod(cells, self._n_contexts)
        names = [
            f"{'controls' if c == len(self._is_control) else repr(self._classes.categories[c])} "
            f"in {self._context_labels[k]!r}"
            for c, k in zip(classes.tolist(), contexts.tolist(), strict=True)
        ]
        return shown_labels(names, quoted=False)

    def _by_class(self, per_cell: np.ndarray) -> np.ndarray:
        """Values of the cells as (classes, contexts), controls in the last row."""
        return per_cell.reshape(-1, self._n_contexts)

    def _code_weights(self, table: RunTable | RowWindow) -> np.ndarray:
        starts = self._by_class(table.class_starts).astype(np.float64)
        rows = self._by_class(table.class_rows)
        weights = np.append(np.where(self._is_control, 0, self.class_weights), 0.0)
        total = starts.sum(axis=1)
        # A cell whose runs are all too short has a weight as well, so that it is found and reported.
        shares = np.where(total[:, None] > 0, starts / np.maximum(total, 1)[:, None], 1.0)
        cells = np.maximum(weights, 0)[:, None] * np.where((starts == 0) & (rows > 0), np.finfo(float).tiny, shares)
        return np.where(rows > 0, cells, 0.0).ravel()

    def _check_runs(self, table: RunTable | RowWindow, drawable: np.ndarray, start: int, stop: int) -> None:
        cells, rows = self._by_class(drawable), self._by_class(table.class_rows)
        treated = cells[:-1].any(axis=0)
        lacking = treated & (rows[-1] == 0)
        if lacking.any():
            msg = (
                f"every context must hold control rows, but of those in rows [{start}, {stop}) these hold treated rows and none: "
                f"{shown_labels(self._context_labels[lacking])}; leave these contexts out (obs_filter= or subset of a Loader), or "
                "choose coarser ones"
            )
            raise ValueError(msg)
        cells = cells.copy()
        cells[-1] = treated
        super()._check_runs(table, cells.ravel(), start, stop)

    # -- requests

    @property
    def _group_chunks(self) -> int:
        return self._batch_size // math.gcd(self._chunk_size, self._batch_size)

    @property
    def _shuffled_rows(self) -> int:
        return self._batch_size

    def _request(self, streams: PassStreams, number: int, n_requested: int) -> LoadRequest:
        cells, starts = self._window.draw(streams, number, -(-n_requested // self._chunk_size), self._group_chunks)
        treated = streams.shuffled(Draw.POSITIONS, number, n_requested, self._batch_size)
        n_batches = -(-n_requested // self._batch_size)
        batches_per_cell = self._group_chunks * self._chunk_size // self._batch_size
        controls = np.repeat(cells % self._n_contexts, batches_per_cell)[:n_batches]
        controls += len(self._is_control) * self._n_contexts
        # With a number for each batch, so that one batch's controls do not depend on how many another one has.
        first_batch = number * (self._request_rows // self._batch_size)
        requests = [chunk_requests(starts, self._chunk_size, n_requested)]
        splits = []
        n_rows = n_requested
        for batch in range(n_batches):
            rows = treated[batch * self._batch_size : (batch + 1) * self._batch_size]
            n = self._n_controls or len(rows)
            n_chunks = -(-n // self._chunk_size)
            own_number = first_batch + batch
            starts = self._window.draw_chunks(
                streams, Draw.CONTROL_CHUNKS, own_number, controls[batch : batch + 1], n_chunks, n_chunks
            )
            requests.append(chunk_requests(starts, self._chunk_size, n))
            positions = streams.shuffled(Draw.CONTROL_POSITIONS, own_number, n, n)
            positions += positions.dtype.type(n_rows)
            splits.append(np.concatenate([rows, positions]))
            n_rows += n
        return {"requests": joined_requests(requests), "splits": splits}

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "n_controls": self._n_controls}


def _control_codes(controls: Any, categories: pd.Index) -> np.ndarray:
    """Which categories (bool) are controls."""
    labels = list(controls) if isinstance(controls, (list, tuple, set, frozenset, np.ndarray, pd.Index)) else [controls]
    codes = categories.get_indexer(pd.Index(labels, dtype=categories.dtype if labels else None))
    if not labels or (codes < 0).any():
        missing = [label for label, code in zip(labels, codes, strict=True) if code < 0]
        msg = (
            f"controls must be categories of classes, {shown_labels(categories)}, got "
            f"{shown_labels(missing) if labels else 'none'}"
        )
        raise ValueError(msg)
    is_control = np.zeros(len(categories), dtype=bool)
    is_control[codes] = True
    return is_control


def _united(contexts: Any, n_rows: int) -> tuple[np.ndarray, pd.Index]:
    """Codes and labels of contexts; of several that count together, of the combinations that occur."""
    several = isinstance(contexts, (list, tuple))
    given = [as_categorical("contexts", each) for each in (contexts if several else [contexts])]
    if not given:
        msg = "contexts must be a pandas.Categorical or a list of them, got an empty list"
        raise ValueError(msg)
    for each in given:
        if len(each) != n_rows:
            msg = f"contexts must have one entry per row: got {len(each)} contexts for {n_rows} classes"
            raise ValueError(msg)
    if len(given) == 1:
        return given[0].codes, given[0].categories
    united = np.zeros(n_rows, dtype=np.int64)
    labels: list[tuple[Any, ...]] = [()]
    for each in given:
        united *= len(each.categories)
        united += each.codes
        # Numbered anew after each, so that numbers of combinations that do not occur cannot grow out of bounds.
        found, codes = np.unique(united, return_inverse=True)
        labels = [
            (*labels[code // len(each.categories)], each.categories[code % len(each.categories)])
            for code in found.tolist()
        ]
        united = codes.reshape(-1).astype(np.int64)
    index = pd.Index(labels, tupleize_cols=False)
    return united.astype(np.min_scalar_type(-max(len(index), 1))), index
