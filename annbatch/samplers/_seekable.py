"""What the samplers of this package have in common: requests cut from chunks, made by number."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from annbatch._shared.args import as_bool, as_count
from annbatch._shared.workers import Worker, current_worker

from ._base import Sampler
from ._streams import pass_entropy, request_stream, take_pass_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from annbatch.types import LoadRequest

__all__ = ["SeekableSampler", "chunk_requests", "cut_batches"]


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
    def _requests(
        self, n_obs: int, entropy: tuple[int, ...], first_request: int, worker: Worker | None
    ) -> Iterator[LoadRequest]:
        """Make the requests of a pass, from this worker's request `first_request` on."""

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

    def _sample_from(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        if type(self)._sample is SeekableSampler._sample:
            return self._seek(n_obs, first_request, worker)
        return super()._sample_from(n_obs, first_request, worker)

    def _seek(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        entropy: tuple[int, ...] = ()
        if self.shuffle:
            entropy = pass_entropy(take_pass_seed(self._required_rng()), worker)
        return self._requests(n_obs, entropy, first_request, worker)

    def _stream(self, entropy: tuple[int, ...], request: int) -> np.random.PCG64:
        return request_stream(entropy, self._inner.rank_key, request)

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
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{name}({shown}, mask=slice({mask[0]}, {mask[1]}))"


def chunk_requests(starts: np.ndarray, chunk_size: int, n_rows: int) -> list[slice] | np.ndarray:
    """Turn chunk starts into requests of `n_rows` rows in all; the last chunk is cut short to fit.

    Chunks of a single row come as an array of row numbers: a slice object for every row would cost more than its reading.
    """
    if chunk_size == 1:
        return starts
    stops = starts + chunk_size
    stops[-1] -= len(starts) * chunk_size - n_rows
    return list(map(slice, starts.tolist(), stops.tolist()))


def cut_batches(positions: np.ndarray, batch_size: int, *, drop_last: bool) -> list[np.ndarray]:
    """Cut `positions` into batches; the last one may be short, or is left out when `drop_last`."""
    n_whole = len(positions) // batch_size
    whole = n_whole * batch_size
    splits = list(positions[:whole].reshape(n_whole, batch_size))
    if whole < len(positions) and not drop_last:
        splits.append(positions[whole:])
    return splits
