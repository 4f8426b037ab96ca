"""What the samplers of this package have in common: requests cut from chunks, made by number."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from annbatch._rle import chunk_slices
from annbatch._shared.args import as_bool, as_count
from annbatch._shared.workers import Worker, current_worker

from ._base import Sampler, move_by_seeds
from ._state import check_not_beyond
from ._streams import PassStreams, pass_entropy, take_pass_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from annbatch.types import LoadRequest

    from ._state import Leg

__all__ = ["PassPart", "SeekableSampler", "Share", "chunk_requests", "cut_batches", "joined_requests"]


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What :class:`DistributedSampler` tells the sampler that it wraps.

    Attributes
    ----------
    rank, world_size
        Which part of a common pass this is.
    equal_batches
        Whether all ranks must have the same number of batches.
    n_rows
        Rows that are done at most, the others are left out; None: all.
    number
        Number of the pass.
    """

    rank: int = 0
    world_size: int = 1
    equal_batches: bool = True
    n_rows: int | None = None
    number: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PassPart:
    """Which requests of which pass are to be made.

    Attributes
    ----------
    entropy
        What all its randomness derives from.
    first_request
        Requests of this rank and worker that are done.
    worker
        The DataLoader worker that makes them, or None.
    legs
        What other numbers of ranks did of the pass before.
    """

    entropy: tuple[int, ...]
    first_request: int
    worker: Worker | None
    legs: tuple[Leg, ...] = ()

    def numbers(self, n_requests: int) -> range:
        """Numbers of these requests among all `n_requests` of this rank: workers take them in turn.

        ValueError when more are done than there are.
        """
        worker_id, n_workers = (0, 1) if self.worker is None else self.worker.place
        own = range(worker_id, n_requests, n_workers)
        check_not_beyond(self.first_request, len(own))
        return own[self.first_request :]


class SeekableSampler(Sampler):
    """A sampler that reads chunks of rows and can start a pass at any load request.

    Every load request holds up to ``chunk_size * preload_nchunks`` rows, a multiple of `batch_size`, so batches never reach
    over the end of a request.
    """

    #: How :class:`DistributedSampler` shares a pass out: every rank gets a range of the rows, or every rank sees all rows
    #: and draws a part of the samples.
    shared_out_by: ClassVar[str] = "rows"

    worker_aware = True

    # Rows per pass, or None for all of a range; whether a row may come twice.
    _num_samples: int | None = None
    _replacement: bool = False

    _share = Share()

    def __init__(self, chunk_size: int, preload_nchunks: int, batch_size: int, *, drop_last: bool) -> None:
        self._chunk_size = as_count("chunk_size", chunk_size)
        self._preload_nchunks = as_count("preload_nchunks", preload_nchunks)
        self._batch_size = as_count("batch_size", batch_size)
        self._drop_last = as_bool("drop_last", drop_last)
        window = self._chunk_size * self._preload_nchunks
        if window < self._batch_size or window % self._batch_size != 0:
            msg = (
                "chunk_size * preload_nchunks must be a multiple of batch_size and at least batch_size, got "
                f"{self._chunk_size} * {self._preload_nchunks} = {window} and batch_size {self._batch_size}"
            )
            raise ValueError(msg)
        self._request_rows = window

    @classmethod
    def fitted(cls, *, chunk_size: int, preload_nchunks: int, batch_size: int, **arguments: Any) -> Self:
        """Make a sampler whose load requests are whole batches, whatever the numbers.

        A load request has ``chunk_size * preload_nchunks`` rows, less what makes it a multiple of `batch_size`, and at least one
        batch; so a chunk may be read by two of them, a part each.
        """
        rows = as_count("chunk_size", chunk_size) * as_count("preload_nchunks", preload_nchunks)
        batch_size = as_count("batch_size", batch_size)
        sampler = cls(chunk_size, batch_size, batch_size, **arguments)
        sampler._preload_nchunks = preload_nchunks
        sampler._request_rows = max(rows // batch_size, 1) * batch_size
        return sampler

    @property
    def batch_size(self) -> int:
        """Rows per batch."""
        return self._batch_size

    @property
    def chunk_size(self) -> int:
        """Neighbouring rows that are read as one piece."""
        return self._chunk_size

    @property
    def preload_nchunks(self) -> int:
        """Chunks per load request."""
        return self._preload_nchunks

    @property
    def drop_last(self) -> bool:
        """Whether a last batch of fewer than `batch_size` rows is left out."""
        return self._drop_last

    @abstractmethod
    def _n_rows(self, n_obs: int) -> int:
        """Rows that one pass over data of `n_obs` rows asks for, before `drop_last`."""

    @abstractmethod
    def _requests(self, n_obs: int, part: PassPart) -> Iterator[LoadRequest]:
        """Make the requests of a part of a pass; what is wrong with the part is said at once, not at the first request."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Who writes a `_sample` of their own decides what each worker yields.
        if "_sample" in cls.__dict__ and "worker_aware" not in cls.__dict__:
            cls.worker_aware = False

    @property
    def can_seek(self) -> bool:
        """Whether requests are made by number here; not in a subclass that brings its own ``_sample`` or ``sample``."""
        return type(self)._sample is SeekableSampler._sample and type(self).sample is Sampler.sample

    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass yields, over all DataLoader workers together.

        Parameters
        ----------
        n_obs
            Number of rows of the data.
        """
        n_rows = self._n_rows(n_obs)
        return n_rows // self._batch_size if self._drop_last else -(-n_rows // self._batch_size)

    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        return self._seek(n_obs, 0, current_worker())

    def _sample_from(
        self, n_obs: int, first_request: int, worker: Worker | None, legs: tuple[Leg, ...]
    ) -> Iterator[LoadRequest]:
        if type(self)._sample is SeekableSampler._sample:
            return self._seek(n_obs, first_request, worker)
        return super()._sample_from(n_obs, first_request, worker, legs)

    def _seek(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        entropy: tuple[int, ...] = ()
        if self.shuffle:
            entropy = pass_entropy(take_pass_seed(self._required_rng()), worker)
        return self._requests(n_obs, PassPart(entropy, first_request, worker))

    def _streams(self, part: PassPart) -> PassStreams:
        return PassStreams(part.entropy, self._inner.rank_key, len(part.legs))

    def _move_rng(self, number: int) -> None:
        if self.can_seek:
            move_by_seeds(self, number)
        else:
            super()._move_rng(number)

    def _config(self) -> dict[str, Any]:
        return {
            "type": type(self).__qualname__,
            "chunk_size": self._chunk_size,
            "preload_nchunks": self._preload_nchunks,
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
            "mask": [self.mask.start, self.mask.stop],
        }

    def __repr__(self) -> str:
        arguments = self._config()
        name, mask = arguments.pop("type"), arguments.pop("mask")
        if arguments.get("request_rows") == self._chunk_size * self._preload_nchunks:
            del arguments["request_rows"]
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{name}({shown}, mask=slice({mask[0]}, {mask[1]}))"


def chunk_requests(starts: np.ndarray, chunk_size: int, n_rows: int, *, skip: int = 0) -> list[slice] | np.ndarray:
    """Turn chunk starts into requests of `n_rows` rows in all.

    The first chunk lacks its first `skip` rows, the last one is cut short to fit. Chunks of a single row come as an array of
    row numbers: a slice object for every row would cost more than its reading.
    """
    return starts if chunk_size == 1 else chunk_slices(starts, chunk_size, skip, n_rows)


def joined_requests(parts: Sequence[list[slice] | np.ndarray]) -> list[slice] | np.ndarray:
    """Put requests of one kind together, in order."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(arrays) if arrays else [request for part in parts for request in part]


def cut_batches(positions: np.ndarray, batch_size: int, *, drop_last: bool) -> list[np.ndarray]:
    """Cut `positions` into batches; the last one may be short, or is left out when `drop_last`."""
    n_whole = len(positions) // batch_size
    whole = n_whole * batch_size
    splits = list(positions[:whole].reshape(n_whole, batch_size))
    if whole < len(positions) and not drop_last:
        splits.append(positions[whole:])
    return splits
