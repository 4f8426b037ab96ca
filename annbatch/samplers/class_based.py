"""Samplers that draw by class: batches of one class each, or batches that mix classes by weight."""

from __future__ import annotations

import copy
import math
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from annbatch._rle import draw_groups
from annbatch._shared.args import as_count, as_generator, as_range, resolve_range

from ._runs import RowIndex, RowWindow, Runs, RunTable, rows_are_scattered
from ._seekable import PassPart, SeekableSampler, chunk_requests, cut_batches
from ._streams import Draw, PassStreams
from ._unfit import UnfitSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from annbatch.types import LoadRequest

    from ._base import Sampler

__all__ = ["ClassBasedSampler", "ClassSampler", "WeightedClassSampler", "as_categorical", "shown_labels"]

# How many labels an error message spells out.
_N_SHOWN = 10
# Runs are kept when they take no more memory than one such part of the codes. Where classes are scattered they are as many
# as rows, and looking at the codes again is the better deal.
_KEPT_SHARE = 4


class _ClassWindow:
    """What can be drawn inside one range of rows: the runs or rows of each class, and the classes with their chances."""

    def __init__(self, sampler: ClassBasedSampler, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.table = sampler._table_within(start, stop)
        present = self.table.class_rows > 0
        weights = sampler._code_weights(self.table)
        drawable = present & (weights > 0)
        if not drawable.any():
            msg = (
                f"class_weights must be > 0 for at least one class that is present in rows [{start}, {stop}), but the "
                f"weights of all classes present ({sampler._shown(present)}) are <= 0"
            )
            raise ValueError(msg)
        sampler._check_runs(self.table, drawable, start, stop)
        self.drawable = np.flatnonzero(drawable).astype(np.int64, copy=False)
        weights = weights[self.drawable]
        weights = weights / weights.max()
        self.cumulative_weights = np.cumsum(weights / weights.sum())
        # Rounding must not leave a gap that a uniform number below 1 can fall into.
        self.cumulative_weights[-1] = 1.0
        self._codes = sampler._codes
        self._labels = sampler._labels()

    def draw(
        self, streams: PassStreams, number: int, n_chunks: int, group_chunks: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a code for every group of `group_chunks` chunks, and the first rows of `n_chunks` chunks (both int64)."""
        groups = np.empty(-(-n_chunks // group_chunks), dtype=np.int64)
        draw_groups(streams.key, number, streams.kind(Draw.CLASSES), self.cumulative_weights, self.drawable, groups)
        return groups, self.draw_chunks(streams, Draw.CHUNKS, number, groups, group_chunks, n_chunks)

    def draw_chunks(
        self, streams: PassStreams, draw: Draw, number: int, groups: np.ndarray, group_chunks: int, n_chunks: int
    ) -> np.ndarray:
        """Draw the first rows (int64) of chunks, `group_chunks` for each code in `groups`."""
        starts = np.empty(n_chunks, dtype=np.int64)
        self.table.draw(streams.key, number, streams.kind(draw), groups, group_chunks, starts)
        return starts

    @cached_property
    def digest(self) -> int:
        """Checksum of labels and codes: tells data apart."""
        return zlib.crc32(self._codes[self.start : self.stop], zlib.crc32(repr(self._labels).encode()))


class ClassBasedSampler(SeekableSampler):
    """Arguments, mask and requests of the samplers that draw by class."""

    shared_out_by: ClassVar[str] = "samples"

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
        self._classes = as_categorical("classes", classes)
        self._codes = self._row_codes()
        self._class_weights = _as_weights(class_weights, n_classes=len(self._classes.categories))
        self._num_samples: int = as_count("num_samples", num_samples)
        self._rng = np.random.default_rng() if rng is None else as_generator(rng)
        self._rng_given = rng is not None
        self._mask = as_range(mask)
        self._runs: Runs | None = None
        self._row_index: RowIndex | None = None
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
        runs, and with ``chunk_size=1`` next to nothing where they are scattered.

        Raises
        ------
        TypeError
            When set to something else than a slice of integers.
        ValueError
            When the rows do not exist, hold runs that are too short, or no class with a positive weight.
        ValueError, RuntimeError
            One error that is both, when set to other rows while a pass is open.
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
            msg = (
                f"classes must have one entry per row: got {len(self._classes)} classes for n_obs={n_obs}; take them of the very "
                "rows that are read, such as loader.obs([column])[column].values"
            )
            raise ValueError(msg)

    # -- what stands at a row; MatchedSampler has codes of its own

    def _row_codes(self) -> np.ndarray:
        # The caller's own memory, except when rows lie apart (a slice with a step, a column of a frame's block).
        return np.ascontiguousarray(self._classes.codes)

    @property
    def _n_codes(self) -> int:
        return len(self._classes.categories)

    def _labels(self) -> Any:
        """Everything that gives codes their meaning."""
        return self._classes.categories.tolist()

    def _code_weights(self, table: RunTable | RowWindow) -> np.ndarray:
        return self._class_weights

    def _shown(self, codes: np.ndarray) -> str:
        return shown_labels(self._classes.categories[codes])

    def _check_runs(self, table: RunTable | RowWindow, drawable: np.ndarray, start: int, stop: int) -> None:
        short_runs = np.where(drawable, table.class_short_runs, 0)
        if short_runs.any():
            msg = (
                f"every run of a class must hold at least chunk_size={self.chunk_size} rows, but {short_runs.sum()} "
                f"runs in rows [{start}, {stop}) are shorter, of the classes {self._shown(short_runs > 0)}; use a "
                "smaller chunk_size, sort the rows by class (groupby), or exclude these classes with a weight of 0"
            )
            raise ValueError(msg)

    def _table_within(self, start: int, stop: int) -> RunTable | RowWindow:
        """Return what can be drawn of these rows. What was found before is kept where it is of use for other rows."""
        if self._row_index is not None:
            window = self._row_index.within(start, stop)
            if window is not None:
                return window
        runs = None if self._runs is None else self._runs.within(start, stop)
        if runs is None:
            if self._chunk_size == 1 and rows_are_scattered(self._codes, start, stop):
                if self._row_index is not None:
                    # The mask moves about: all rows, so that it need not be done again.
                    start_all, stop_all = 0, len(self._codes)
                else:
                    start_all, stop_all = start, stop
                self._row_index = RowIndex.build(self._codes, start_all, stop_all, n_classes=self._n_codes)
                window = self._row_index.within(start, stop)
                assert window is not None
                return window
            runs = Runs.find(self._codes, start, stop, guess=(stop - start) // self._chunk_size + 1)
            self._runs = runs if runs.nbytes <= self._codes.nbytes // _KEPT_SHARE else None
        return RunTable.build(runs, n_classes=self._n_codes, chunk_size=self._chunk_size)

    def _unstarted_copy(self, number: int, *, same_rows: bool) -> Sampler:
        return super()._unstarted_copy(number, same_rows=True) if same_rows else UnfitSampler(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The classes may be gigabytes, and nothing here changes them, the weights or the window in place.
        twin = copy.copy(self)
        twin._rng = copy.deepcopy(self._rng, memo)
        return twin

    def _n_rows(self, n_obs: int) -> int:
        share = self._share
        each, left_over = divmod(self._num_samples, share.world_size)
        return each + (share.rank < left_over and not share.equal_batches)

    @property
    def _group_chunks(self) -> int:
        """Neighbouring chunks that share one class draw."""
        raise NotImplementedError

    @property
    def _shuffled_rows(self) -> int:
        """Neighbouring rows that are shuffled among themselves."""
        raise NotImplementedError

    def _requests(self, n_obs: int, part: PassPart) -> Iterator[LoadRequest]:
        streams = self._streams(part)
        window = self._request_rows
        n_rows = self._n_rows(n_obs)
        # What `drop_last` leaves out is at the end, so it need not be read.
        n_rows -= n_rows % self._batch_size if self._drop_last else 0
        numbers = part.numbers(-(-n_rows // window))
        return (self._request(streams, number, min(window, n_rows - number * window)) for number in numbers)

    def _request(self, streams: PassStreams, number: int, n_requested: int) -> LoadRequest:
        _, starts = self._window.draw(streams, number, -(-n_requested // self._chunk_size), self._group_chunks)
        positions = streams.shuffled(Draw.POSITIONS, number, n_requested, self._shuffled_rows)
        return {
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


class ClassSampler(ClassBasedSampler):
    """Draws batches of one class each, with replacement.

    A class is drawn by weight for every ``lcm(chunk_size, batch_size)`` rows, the fewest rows over which chunk edges
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


class WeightedClassSampler(ClassBasedSampler):
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


def as_categorical(name: str, values: Any) -> pd.Categorical:
    """Return `values`, which must be a Categorical without NA."""
    if not isinstance(values, pd.Categorical):
        advice = (
            "; use its .values"
            if isinstance(getattr(values, "values", None), pd.Categorical)
            else (f"; use pandas.Categorical({name})")
        )
        msg = f"{name} must be a pandas.Categorical, got {type(values).__name__}{advice}"
        raise TypeError(msg)
    n_missing = int((values.codes == -1).sum()) if len(values) and values.codes.min() < 0 else 0
    if n_missing:
        msg = f"{name} must not be NA, got {n_missing} NA values; give them a category of their own"
        raise ValueError(msg + (" (weight 0 excludes it)" if name == "classes" else ""))
    return values


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


def shown_labels(labels: Any, *, quoted: bool = True) -> str:
    """Spell labels out for a message, not more than fit one."""
    shown = ", ".join(repr(label) if quoted else label for label in list(labels[:_N_SHOWN]))
    return shown if len(labels) <= _N_SHOWN else f"{shown} and {len(labels) - _N_SHOWN} more"
