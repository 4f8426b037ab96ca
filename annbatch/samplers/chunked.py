"""Samplers that visit a range of rows chunk by chunk: in order, in random order, or with replacement."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._rle import draw_chunks, shuffle_segments
from annbatch._shared.args import as_bool, as_count, as_generator, as_range, resolve_range

from ._seekable import SeekableSampler, chunk_requests, cut_batches
from ._streams import pass_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

__all__ = ["RandomSampler", "SequentialSampler"]


class _RangeSampler(SeekableSampler):
    """Visits the rows of a range in aligned chunks; the last chunk of the range may be short."""

    def __init__(
        self,
        chunk_size: int,
        preload_nchunks: int,
        batch_size: int,
        *,
        num_samples: int | None = None,
        drop_last: bool = False,
        mask: slice | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(chunk_size, preload_nchunks, batch_size, drop_last=drop_last)
        self._num_samples = None if num_samples is None else as_count("num_samples", num_samples)
        self._mask = as_range(mask)
        self._rng = None if rng is None else as_generator(rng)

    @property
    def num_samples(self) -> int | None:
        """Rows per pass; None: as many as the range holds."""
        return self._num_samples

    def validate(self, n_obs: int) -> None:
        """Check that the range, and the number of samples from it, exist in data of `n_obs` rows.

        Raises
        ------
        ValueError
            When :attr:`mask` reaches beyond `n_obs`, or `num_samples` asks for more rows than the range holds.
        """
        start, stop = resolve_range(self._mask, as_count("n_obs", n_obs))
        if self._num_samples is not None and self._num_samples > stop - start:
            msg = f"num_samples must be <= the {stop - start} rows of the range, got {self._num_samples}"
            raise ValueError(msg)

    def _n_rows(self, n_obs: int) -> int:
        start, stop = resolve_range(self._mask, as_count("n_obs", n_obs))
        return stop - start if self._num_samples is None else self._num_samples

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "num_samples": self._num_samples}


class SequentialSampler(_RangeSampler):
    """Visits every row of a range once, in order.

    Parameters
    ----------
    chunk_size
        Neighbouring rows that are read as one piece.
    preload_nchunks
        Chunks per load request. ``chunk_size * preload_nchunks`` must be a multiple of `batch_size`.
    batch_size
        Rows per batch.
    num_samples
        Stop after this many rows. None: visit the whole range.
    drop_last
        Leave out a last batch of fewer than `batch_size` rows.
    mask
        Rows to visit, half open: ``slice(start, stop)``. None: all.
    rng
        Not used, since nothing is random here; taken so that samplers can be exchanged.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind.
    ValueError
        When a number is out of range, or chunks and batches do not fit each other.

    Examples
    --------
    >>> from annbatch import SequentialSampler
    >>> sampler = SequentialSampler(chunk_size=4, preload_nchunks=2, batch_size=4, mask=slice(10, 20))
    >>> for request in sampler.sample(100):
    ...     print(request["requests"], [split.tolist() for split in request["splits"]])
    [slice(10, 14, None), slice(14, 18, None)] [[0, 1, 2, 3], [4, 5, 6, 7]]
    [slice(18, 20, None)] [[0, 1]]

    Notes
    -----
    Under several torch DataLoader workers whole batches are dealt out in turn, which is the order in which DataLoader
    collects them: the batches arrive in order there too.
    """

    @property
    def shuffle(self) -> bool:
        """False."""
        return False

    def _requests(
        self, n_obs: int, entropy: tuple[int, ...], first_request: int, worker: Worker | None
    ) -> Iterator[LoadRequest]:
        if worker is None or worker.count == 1:
            return self._chunks_in_order(n_obs, first_request)
        return self._every_nth_batch(n_obs, first_request, worker)

    def _chunks_in_order(self, n_obs: int, first_request: int) -> Iterator[LoadRequest]:
        start, _ = resolve_range(self._mask, n_obs)
        stop = start + self._last_row(n_obs)
        window = self._chunk_size * self._preload_nchunks
        for first in range(start + first_request * window, stop, window):
            last = min(first + window, stop)
            starts = np.arange(first, last, self._chunk_size, dtype=np.int64)
            yield {
                "requests": chunk_requests(starts, self._chunk_size, last - first),
                "splits": cut_batches(np.arange(last - first), self._batch_size, drop_last=False),
            }

    def _every_nth_batch(self, n_obs: int, first_request: int, worker: Worker) -> Iterator[LoadRequest]:
        start, _ = resolve_range(self._mask, n_obs)
        n_rows = self._last_row(n_obs)
        batches = range(worker.id, -(-n_rows // self._batch_size), worker.count)
        per_request = self._chunk_size * self._preload_nchunks // self._batch_size
        for first in range(first_request * per_request, len(batches), per_request):
            edges = [
                (batch * self._batch_size, min((batch + 1) * self._batch_size, n_rows))
                for batch in batches[first : first + per_request]
            ]
            n_requested = sum(last - first for first, last in edges)
            yield {
                "requests": [slice(start + first, start + last) for first, last in edges],
                "splits": cut_batches(np.arange(n_requested), self._batch_size, drop_last=False),
            }

    def _last_row(self, n_obs: int) -> int:
        """Rows that are really yielded: what `drop_last` leaves out is at the end, so it need not be read."""
        n_rows = self._n_rows(n_obs)
        return n_rows - n_rows % self._batch_size if self._drop_last else n_rows


class RandomSampler(_RangeSampler):
    """Visits the rows of a range in random order, chunk by chunk.

    Without replacement, the range is cut into aligned chunks, which are read in random order, the short last one last; every
    row is visited once a pass. With replacement, chunks start anywhere in the range, each start with the same probability.
    The rows of the chunks that are loaded together are shuffled, then cut into batches.

    Parameters
    ----------
    chunk_size
        Neighbouring rows that are read as one piece. 1 gives a uniform shuffle of all rows; larger chunks read faster and
        rely on the store being shuffled.
    preload_nchunks
        Chunks per load request. ``chunk_size * preload_nchunks`` must be a multiple of `batch_size`.
    batch_size
        Rows per batch.
    replacement
        Draw chunks independently, so that rows may come again.
    num_samples
        Rows per pass, exactly. None: as many as the range holds. Without replacement at most that many, and fewer than all
        are whole random chunks, the last one cut at its end: with a large `chunk_size` take a multiple of it.
    drop_last
        Leave out a last batch of fewer than `batch_size` rows.
    mask
        Rows to visit, half open: ``slice(start, stop)``. None: all.
    rng
        Source of randomness: a pass takes one seed from it. None: a fresh seed. The same seed and arguments give the same
        requests on every platform. ``torch.manual_seed`` has no influence, except in DataLoader workers, where every epoch begins with torch's seed.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind.
    ValueError
        When a number is out of range, or chunks and batches do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import RandomSampler
    >>> sampler = RandomSampler(chunk_size=2, preload_nchunks=4, batch_size=4, rng=np.random.default_rng(0))
    >>> sampler.n_batches(10)
    3
    >>> rows = []
    >>> for request in sampler.sample(10):
    ...     loaded = np.concatenate([np.arange(part.start, part.stop) for part in request["requests"]])
    ...     rows.extend(loaded[split].tolist() for split in request["splits"])
    >>> [len(batch) for batch in rows], sorted(sum(rows, []))
    ([4, 4, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    Notes
    -----
    Order of chunks: Fisher-Yates shuffle, run only as far as the pass has come. Under several torch DataLoader workers the
    load requests of one common pass are dealt out in turn, so that the workers together visit every row once.
    """

    def __init__(
        self,
        chunk_size: int,
        preload_nchunks: int,
        batch_size: int,
        *,
        replacement: bool = False,
        num_samples: int | None = None,
        drop_last: bool = False,
        mask: slice | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            chunk_size,
            preload_nchunks,
            batch_size,
            num_samples=num_samples,
            drop_last=drop_last,
            mask=mask,
            rng=rng,
        )
        self._replacement = as_bool("replacement", replacement)
        if self._rng is None:
            self._rng = np.random.default_rng()

    @property
    def shuffle(self) -> bool:
        """True."""
        return True

    @property
    def replacement(self) -> bool:
        """Whether rows may come more than once a pass."""
        return self._replacement

    def validate(self, n_obs: int) -> None:
        """Check that the range, and the number of samples from it, exist in data of `n_obs` rows.

        Raises
        ------
        ValueError
            When :attr:`mask` reaches beyond `n_obs`, when `num_samples` asks for more rows than the range holds, or, with
            replacement, when the range holds no whole chunk.
        """
        if not self._replacement:
            super().validate(n_obs)
            return
        start, stop = resolve_range(self._mask, as_count("n_obs", n_obs))
        longest = min(self._chunk_size, self._n_rows(n_obs))
        if longest > stop - start:
            msg = (
                f"chunk_size must be <= the {stop - start} rows of the range to draw with replacement, "
                f"got {self._chunk_size}"
            )
            raise ValueError(msg)

    def _requests(
        self, n_obs: int, entropy: tuple[int, ...], first_request: int, worker: Worker | None
    ) -> Iterator[LoadRequest]:
        start, stop = resolve_range(self._mask, n_obs)
        n_rows = self._n_rows(n_obs)
        first, step = (first_request, 1) if worker is None else (worker.id + first_request * worker.count, worker.count)
        numbers = range(first, -(-n_rows // (self._chunk_size * self._preload_nchunks)), step)
        # Made here and not in the generator, so that `sample` fails at once when there is no memory for it.
        permutation = None
        if not self._replacement:
            stream = pass_stream(entropy, self._inner.rank_key)
            permutation = _Permutation((stop - start) // self._chunk_size, stream)
        return self._numbered_requests(numbers, range(start, stop), n_rows, entropy, permutation)

    def _numbered_requests(
        self, numbers: range, rows: range, n_rows: int, entropy: tuple[int, ...], permutation: _Permutation | None
    ) -> Iterator[LoadRequest]:
        window = self._chunk_size * self._preload_nchunks
        for number in numbers:
            stream = self._stream(entropy, number)
            n_requested = min(window, n_rows - number * window)
            if permutation is None:
                starts = self._starts_anywhere(stream, len(rows), n_requested)
            else:
                first_chunk = number * self._preload_nchunks
                starts = permutation[first_chunk : first_chunk - (-n_requested // self._chunk_size)] * self._chunk_size
            positions = np.empty(n_requested, dtype=np.int64)
            shuffle_segments(stream, n_requested, positions)
            splits = cut_batches(positions, self._batch_size, drop_last=self._drop_last)
            if splits:
                requests = chunk_requests(rows.start + starts, self._chunk_size, n_requested)
                yield {"requests": requests, "splits": splits}

    def _starts_anywhere(self, stream: np.random.PCG64, n_range: int, n_requested: int) -> np.ndarray:
        rng = np.random.Generator(stream)
        n_whole, rest = divmod(n_requested, self._chunk_size)
        starts = rng.integers(n_range - self._chunk_size + 1, size=n_whole) if n_whole else np.empty(0, dtype=np.int64)
        return np.append(starts, rng.integers(n_range - rest + 1)) if rest else starts

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "replacement": self._replacement}


class _Permutation:
    """A random permutation of `n_chunks` chunks, drawn as far as it is read; after them comes chunk `n_chunks`, the short one."""

    def __init__(self, n_chunks: int, stream: np.random.PCG64) -> None:
        self._n_chunks = n_chunks
        self._stream = stream
        self._n_drawn = 0
        dtype = np.dtype(np.uint32 if n_chunks < 2**32 else np.uint64)
        # Anonymous memory reads as zeros, which `draw_chunks` takes for the identity, and is made on first touch, a page at
        # a time. NumPy would ask for huge pages, of which the first few thousand draws touch every one.
        try:
            zeros = mmap.mmap(-1, max(n_chunks, 1) * dtype.itemsize)
        except (OSError, OverflowError, ValueError) as error:
            msg = f"a permutation of {n_chunks} chunks takes {n_chunks * dtype.itemsize} bytes; use a larger chunk_size"
            raise MemoryError(msg) from error
        self._displaced = np.frombuffer(zeros, dtype=dtype, count=n_chunks)

    def __getitem__(self, chunks: slice) -> np.ndarray:
        """Numbers (int64) of the chunks at these places, which must not be before those read last."""
        # Draws that nobody asked for are made too, since every draw depends on those before it: 10 to 20 ns each.
        while self._n_drawn < min(chunks.start, self._n_chunks):
            self._draw(min(chunks.start - self._n_drawn, 65_536))
        return self._draw(chunks.stop - chunks.start)

    def _draw(self, n: int) -> np.ndarray:
        drawn = np.full(n, self._n_chunks, dtype=np.int64)
        n_whole = min(n, self._n_chunks - self._n_drawn)
        draw_chunks(self._stream, self._displaced, self._n_drawn, drawn[:n_whole])
        self._n_drawn += n_whole
        return drawn
