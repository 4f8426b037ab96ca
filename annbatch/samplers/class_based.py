"""Samplers that draw by class: batches of one class each, or batches that mix classes by weight."""

from __future__ import annotations

import copy
import math
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from annbatch._rle import draw_class_chunks, shuffle_segments
from annbatch._shared.args import as_count, as_generator, as_range, resolve_range

from ._runs import Runs, RunTable
from ._seekable import SeekableSampler, chunk_requests, cut_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

__all__ = ["ClassSampler", "WeightedClassSampler"]

# How many labels an error message spells out.
_N_SHOWN = 10
# Runs are kept when they take no more memory than one such part of the codes. Where classes are scattered they are as many
# as rows, and looking at the codes again is the better deal.
_KEPT_SHARE = 4


class _ClassWindow:
    """What can be drawn inside one range of rows: the run table, and the classes with their chances."""

    def __init__(self, sampler: _ClassBasedSampler, start: int, stop: int) -> None:
        categories = self._categories = sampler.classes.categories
        self.start, self.stop = start, stop
        runs = sampler._runs_within(start, stop)
        self.table = RunTable.build(runs, n_classes=len(categories), chunk_size=sampler.chunk_size)
        present = self.table.class_rows > 0
        drawable = present & (sampler.class_weights > 0)
        if not drawable.any():
            msg = (
                f"class_weights must be > 0 for at least one class that is present in rows [{start}, {stop}), but the "
                f"weights of all classes present ({_shown(categories[present])}) are <= 0"
            )
            raise ValueError(msg)
        short_runs = np.where(drawable, self.table.class_short_runs, 0)
        if short_runs.any():
            msg = (
                f"every run of a class must hold at least chunk_size={sampler.chunk_size} rows, but {short_runs.sum()} "
                f"runs in rows [{start}, {stop}) are shorter, of the classes {_shown(categories[short_runs > 0])}; use a "
                "smaller chunk_size, sort the rows by class (groupby), or exclude these classes with a weight of 0"
            )
            raise ValueError(msg)
        self.drawable = np.flatnonzero(drawable).astype(np.int64, copy=False)
        weights = sampler.class_weights[self.drawable]
        weights = weights / weights.max()
        self.cumulative_weights = np.cumsum(weights / weights.sum())
        # Rounding must not leave a gap that a uniform number below 1 can fall into.
        self.cumulative_weights[-1] = 1.0

    def draw(self, stream: np.random.PCG64, n_chunks: int, group_chunks: int) -> np.ndarray:
        """First rows (int64) of `n_chunks` chunks, one class per `group_chunks` of them."""
        starts = np.empty(n_chunks, dtype=np.int64)
        draw_class_chunks(
            stream,
            self.cumulative_weights,
            self.drawable,
            self.table.class_offset,
            self.table.run_start,
            self.table.cumulative_starts,
            group_chunks,
            starts,
        )
        return starts

    @cached_property
    def digest(self) -> int:
        """Checksum of labels and runs: tells data apart without looking at every row."""
        labels = repr(self._categories.tolist()).encode()
        return zlib.crc32(labels, zlib.crc32(self.table.run_start, zlib.crc32(self.table.class_offset)))


class _ClassBasedSampler(SeekableSampler):
    """Arguments, mask and requests of the samplers that draw by class."""

    shared_out_by: ClassVar[str] = "samples"
    worker_aware = False

    def __init__(
        self,
        chunk_size: int,
        preload_nchunks: int,
        batch_size: int,
        *,
        classes: pd.Categorical,
        num_samples: int,
        class_weights: np.ndarray | Sequence[float] | None = None,
        mask: slice | None = None,
        drop_last: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(chunk_size, preload_nchunks, batch_size, drop_last=drop_last)
        self._classes = _as_categorical(classes)
        # The caller's own memory, except when rows lie apart (a slice with a step, a column of a frame's block).
        self._codes = np.ascontiguousarray(self._classes.codes)
        self._class_weights = _as_weights(class_weights, n_classes=len(self._classes.categories))
        self._num_samples: int = as_count("num_samples", num_samples)
        self._rng = np.random.default_rng() if rng is None else as_generator(rng)
        self._mask = as_range(mask)
        self._runs: Runs | None = None
        self._window = _ClassWindow(self, *resolve_range(self._mask, len(self._classes)))

    @property
    def shuffle(self) -> bool:
        """True."""
        return True

    @property
    def classes(self) -> pd.Categorical:
        """Class of every row, as given."""
        return self._classes

    @property
    def class_weights(self) -> np.ndarray:
        """Weight of every category (float64, read-only), as given; all 1 when none were."""
        return self._class_weights

    @property
    def num_samples(self) -> int:
        """Rows per pass."""
        return self._num_samples

    @property
    def mask(self) -> slice:
        """Rows to draw from, half open: ``slice(start, stop)``.

        Setting it rebuilds the run table over these rows at once, so what is wrong with it shows at the assignment, and the
        sampler is left as it was. The weights are shared out anew, from the original ones, over the classes present. Setting
        the same rows again costs nothing, setting others within rows seen before only O(runs) where classes stand in long
        runs.

        Raises
        ------
        TypeError
            When set to something else than a slice of integers.
        ValueError
            When the rows do not exist, hold runs that are too short, or no class with a positive weight.
        RuntimeError
            When set to other rows while a pass is open.
        """
        return self._mask

    @mask.setter
    def mask(self, mask: slice | None) -> None:
        new = as_range(mask)
        start, stop = resolve_range(new, len(self._classes))
        if (start, stop) != (self._window.start, self._window.stop):
            self._refuse_while_open(new)
            self._window = _ClassWindow(self, start, stop)
        self._mask = new

    def validate(self, n_obs: int) -> None:
        """Check that `classes` describe data of `n_obs` rows.

        Raises
        ------
        ValueError
            When there is not one class per row.
        """
        if len(self._classes) != n_obs:
            msg = f"classes must have one entry per row: got {len(self._classes)} classes for n_obs={n_obs}"
            raise ValueError(msg)

    def _runs_within(self, start: int, stop: int) -> Runs:
        """Return the runs of these rows; those found before are kept where they are small beside the codes."""
        runs = None if self._runs is None else self._runs.within(start, stop)
        if runs is None:
            runs = Runs.find(self._codes, start, stop, guess=(stop - start) // self._chunk_size + 1)
            self._runs = runs if runs.nbytes <= self._codes.nbytes // _KEPT_SHARE else None
        return runs

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The classes may be gigabytes, and nothing here changes them, the weights or the window in place.
        twin = copy.copy(self)
        twin._rng = copy.deepcopy(self._rng, memo)
        return twin

    def _n_rows(self, n_obs: int) -> int:
        return self._num_samples

    @property
    def _group_chunks(self) -> int:
        """Neighbouring chunks that share one class draw."""
        raise NotImplementedError

    @property
    def _shuffled_rows(self) -> int:
        """Neighbouring rows that are shuffled among themselves."""
        raise NotImplementedError

    def _requests(
        self,
        n_obs: int,
        entropy: tuple[int, ...],
        first_request: int,
        worker: Worker | None,
    ) -> Iterator[LoadRequest]:
        window = self._chunk_size * self._preload_nchunks
        # What `drop_last` leaves out is at the end, so it need not be read.
        n_rows = self._num_samples - (self._num_samples % self._batch_size if self._drop_last else 0)
        for number in range(first_request, -(-n_rows // window)):
            stream = self._stream(entropy, number)
            n_requested = min(window, n_rows - number * window)
            starts = self._window.draw(stream, -(-n_requested // self._chunk_size), self._group_chunks)
            positions = np.empty(n_requested, dtype=np.int64)
            shuffle_segments(stream, self._shuffled_rows, positions)
            yield {
                "requests": chunk_requests(starts, self._chunk_size, n_requested),
                "splits": cut_batches(positions, self._batch_size, drop_last=False),
            }

    def _config(self) -> dict[str, Any]:
        window = self._window
        return {
            **super()._config(),
            "mask": [window.start, window.stop],
            "num_samples": self._num_samples,
            "n_obs": len(self._classes),
            "n_classes": len(self._classes.categories),
            "class_weights": zlib.crc32(self._class_weights),
            "classes": window.digest,
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(chunk_size={self._chunk_size}, preload_nchunks={self._preload_nchunks}, "
            f"batch_size={self._batch_size}, classes=<{len(self._classes)} rows, {len(self._classes.categories)} "
            f"categories>, num_samples={self._num_samples}, mask=slice({self._window.start}, {self._window.stop}), "
            f"drop_last={self._drop_last})"
        )


class ClassSampler(_ClassBasedSampler):
    """Draws batches of one class each, with replacement.

    A class is drawn by weight for every ``lcm(chunk_size, batch_size)`` rows, the shortest stretch over which chunk edges
    and batch edges meet again, so no batch mixes classes. Within the class, every chunk of `chunk_size` neighbouring rows
    that lies inside a run of the class has the same chance. The rows of each batch are shuffled.

    Parameters
    ----------
    chunk_size
        Neighbouring rows that are read as one piece. Every run of a class that can be drawn must be at least this long.
    preload_nchunks
        Chunks per load request. ``chunk_size * preload_nchunks`` must be a multiple of `batch_size`.
    batch_size
        Rows per batch.
    classes
        Class of every row of the data, without NA. The codes are not copied: do not change them afterwards.
    num_samples
        Rows per pass, exactly.
    class_weights
        One weight per category, in the order of ``classes.categories``; they need not add up to 1. A weight <= 0 excludes
        the class. None: all classes present have the same weight.
    mask
        Rows to draw from, half open: ``slice(start, stop)``. None: all.
    drop_last
        Leave out a last batch of fewer than `batch_size` rows.
    rng
        Source of randomness: a pass takes one seed from it. None: a fresh seed. The same seed and arguments give the same
        requests on every platform. ``torch.manual_seed`` has no influence, except in a DataLoader worker, where every
        epoch begins with torch's seed.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind; `classes` must be a pandas.Categorical, `class_weights` not a Series.
    ValueError
        When a number is out of range, a class is missing (NA), a run is shorter than `chunk_size` (the message names the
        classes), or no class with a positive weight is left.

    Examples
    --------
    Class "b" is rare, and drawn three times out of four:

    >>> import numpy as np, pandas as pd
    >>> from annbatch import ClassSampler
    >>> classes = pd.Categorical(np.repeat(["a", "b"], [90, 10]))
    >>> sampler = ClassSampler(
    ...     chunk_size=2,
    ...     preload_nchunks=8,
    ...     batch_size=4,
    ...     classes=classes,
    ...     num_samples=4000,
    ...     class_weights=[1, 3],
    ...     rng=np.random.default_rng(0),
    ... )
    >>> drawn = np.concatenate([np.r_[tuple(request["requests"])] for request in sampler.sample(100)])
    >>> len(drawn), bool(0.7 < (drawn >= 90).mean() < 0.8)
    (4000, True)
    """

    @property
    def _group_chunks(self) -> int:
        return self._batch_size // math.gcd(self._chunk_size, self._batch_size)

    @property
    def _shuffled_rows(self) -> int:
        return self._batch_size


class WeightedClassSampler(_ClassBasedSampler):
    """Draws batches that mix classes in proportion to their weights, with replacement.

    Takes the arguments of :class:`ClassSampler` and raises the same errors, but a class is drawn for every chunk, and the
    rows of a whole load request are shuffled together.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from annbatch import WeightedClassSampler
    >>> classes = pd.Categorical(np.repeat(["a", "b"], [90, 10]))
    >>> sampler = WeightedClassSampler(
    ...     chunk_size=2, preload_nchunks=8, batch_size=8, classes=classes, num_samples=100, class_weights=[1, 1]
    ... )
    >>> sampler.n_batches(100)
    13
    """

    @property
    def _group_chunks(self) -> int:
        return 1

    @property
    def _shuffled_rows(self) -> int:
        return self._chunk_size * self._preload_nchunks


def _as_categorical(classes: Any) -> pd.Categorical:
    if not isinstance(classes, pd.Categorical):
        advice = (
            "; use its .values"
            if isinstance(getattr(classes, "values", None), pd.Categorical)
            else ("; use pandas.Categorical(classes)")
        )
        msg = f"classes must be a pandas.Categorical, got {type(classes).__name__}{advice}"
        raise TypeError(msg)
    n_missing = int((classes.codes == -1).sum()) if len(classes) and classes.codes.min() < 0 else 0
    if n_missing:
        msg = f"classes must not be NA, got {n_missing} NA values; give them a category of their own (weight 0 excludes it)"
        raise ValueError(msg)
    return classes


def _as_weights(weights: Any, *, n_classes: int) -> np.ndarray:
    if weights is None:
        return np.ones(n_classes)
    if isinstance(weights, (pd.Series, pd.DataFrame, dict, np.ma.MaskedArray)):
        msg = (
            f"class_weights must be an array in the order of classes.categories, got {type(weights).__name__}, whose labels "
            "or mask would be ignored; use pandas.Series(class_weights).reindex(classes.categories).to_numpy()"
        )
        raise TypeError(msg)
    try:
        given = np.asarray(weights)
        values = np.array(weights, dtype=np.float64) if given.dtype.kind in "biufO" else None
    except (TypeError, ValueError, OverflowError):
        values = None
    if values is None:
        msg = f"class_weights must be an array of numbers, got {weights!r}"
        raise TypeError(msg)
    if values.shape != (n_classes,):
        msg = f"class_weights must have one weight per class: {n_classes} classes, got shape {values.shape}"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"class_weights must be finite, got {values[~np.isfinite(values)][0]} for class {np.argmin(np.isfinite(values))}"
        raise ValueError(msg)
    if not (values > 0).any():
        msg = "class_weights must be > 0 for at least one class, got none"
        raise ValueError(msg)
    values.flags.writeable = False
    return values


def _shown(labels: pd.Index) -> str:
    shown = ", ".join(repr(label) for label in labels[:_N_SHOWN].tolist())
    return shown if len(labels) <= _N_SHOWN else f"{shown} and {len(labels) - _N_SHOWN} more"
