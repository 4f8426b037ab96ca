"""Samplers that visit a range of rows chunk by chunk: in order, in random order, or with replacement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.args import as_bool, as_count, as_generator, as_range, resolve_range

from ._deal import Deal, without
from ._order import ChunksInOrder, ShuffledChunks
from ._seekable import PassPart, SeekableSampler, chunk_requests, cut_batches, joined_requests
from ._state import check_not_beyond
from ._streams import Draw, PassStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from annbatch.types import LoadRequest

    from ._deal import Interval
    from ._order import ChunkOrder

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

    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass yields, over all DataLoader workers together.

        Parameters
        ----------
        n_obs
            Number of rows of the data.
        """
        # Where rows are left out does not matter here.
        n_rows = self._deal(n_obs, PassPart((), 0, None), left_out_at=lambda _: 0).n_rows(self._share.rank)
        return -(-n_rows // self._batch_size)

    def _deal(self, n_obs: int, part: PassPart, left_out_at: Callable[[int], int] | None = None) -> Deal:
        """Say what this rank does of a pass."""
        share = self._share
        intervals: Sequence[Interval] | np.ndarray = [(0, self._n_rows(n_obs))]
        for number, (world_size, n_requests, n_batches) in enumerate([*part.legs, (share.world_size, 0, 0)]):

            def drawn(n: int, number: int = number) -> int:
                if not self.shuffle:
                    # In order, rows are left out at the end; ranks, which must leave some out, take turns with the other end.
                    return n - 1 if share.number % 2 == 0 else 0
                streams = PassStreams(part.entropy, self._inner.rank_key, number)
                return int(streams.integers(Draw.LEFT_OUT, 0, n, 1)[0])

            deal = Deal.of(
                intervals,
                request_rows=self._request_rows,
                batch_size=self._batch_size,
                world_size=world_size,
                drop_last=self._drop_last,
                equal_batches=share.equal_batches,
                n_rows_each=share.n_rows,
                left_out_at=left_out_at or drawn,
            )
            if number < len(part.legs):
                self._check_leg(deal, n_requests, n_batches)
                intervals = deal.rest(n_requests * self._request_rows)
                if n_batches:
                    intervals = without(intervals, self._places_done(deal, part, number))
        return deal

    def _check_leg(self, deal: Deal, n_requests: int, n_batches: int) -> None:
        """Raise ValueError when ranks are said to have done more than they had to."""
        n_all = -(-max(map(deal.n_rows, range(deal.world_size))) // self._request_rows)
        check_not_beyond(n_requests, n_all)
        most = self._request_rows // self._batch_size if n_requests < n_all else 0
        if n_batches > most:
            msg = f"state says that {n_batches} batches of a load request are done, but it has {most}; it was damaged or changed"
            raise ValueError(msg)

    def _places_done(self, deal: Deal, part: PassPart, leg: int) -> np.ndarray:
        """Places that the first batches of the ranks' load requests took, in the middle of which a leg ended."""
        _, n_requests, n_batches = part.legs[leg]
        streams = PassStreams(part.entropy, self._inner.rank_key, leg)
        done = [np.empty(0, dtype=np.int64)]
        for rank in range(deal.world_size):
            n_rows = deal.n_rows(rank)
            first = n_requests * self._request_rows
            last = min(first + self._request_rows, n_rows)
            if first < last:
                places = np.concatenate([np.arange(*interval) for interval in deal.places(rank, first, last)])
                positions = self._positions(streams, n_requests * deal.world_size + rank, len(places))
                done.append(places[positions[: n_batches * self._batch_size]])
        return np.concatenate(done)

    def _positions(self, streams: PassStreams, number: int, n_rows: int) -> np.ndarray:
        """Rows of load request `number`, in the order in which its batches take them."""
        return streams.shuffled(Draw.POSITIONS, number, n_rows, n_rows) if self.shuffle else np.arange(n_rows)

    def _rows_at(self, places: Sequence[Interval], start: int, order: ChunkOrder) -> list[slice] | np.ndarray:
        """Turn places of a pass over the range that begins at row `start` into requests."""
        size = self._chunk_size
        parts = []
        for first, last in places:
            starts = start + order.between(first // size, -(-last // size)) * size
            parts.append(chunk_requests(starts, size, last - first, skip=first % size))
        return joined_requests(parts)

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "request_rows": self._request_rows, "num_samples": self._num_samples}


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

    def _requests(self, n_obs: int, part: PassPart) -> Iterator[LoadRequest]:
        deal = self._deal(n_obs, part)
        if part.worker is None or part.worker.count == 1:
            numbers = part.numbers(-(-deal.n_rows(self._share.rank) // self._request_rows))
            return self._chunks_in_order(n_obs, numbers, deal)
        n_batches = -(-deal.n_rows(self._share.rank) // self._batch_size)
        batches = range(part.worker.id, n_batches, part.worker.count)
        per_request = self._request_rows // self._batch_size
        check_not_beyond(part.first_request, -(-len(batches) // per_request))
        return self._batches_in_order(n_obs, batches[part.first_request * per_request :], deal)

    def _chunks_in_order(self, n_obs: int, numbers: range, deal: Deal) -> Iterator[LoadRequest]:
        start, _ = resolve_range(self._mask, n_obs)
        rank, rows = self._share.rank, self._request_rows
        n_rows = deal.n_rows(rank)
        order = ChunksInOrder()
        for number in numbers:
            first, last = number * rows, min((number + 1) * rows, n_rows)
            yield {
                "requests": self._rows_at(deal.places(rank, first, last), start, order),
                "splits": cut_batches(np.arange(last - first), self._batch_size, drop_last=False),
            }

    def _batches_in_order(self, n_obs: int, batches: range, deal: Deal) -> Iterator[LoadRequest]:
        start, _ = resolve_range(self._mask, n_obs)
        rank = self._share.rank
        n_rows = deal.n_rows(rank)
        per_request = self._request_rows // self._batch_size
        for first in range(0, len(batches), per_request):
            places = [
                interval
                for batch in batches[first : first + per_request]
                for interval in deal.places(rank, batch * self._batch_size, min((batch + 1) * self._batch_size, n_rows))
            ]
            n_requested = sum(stop - begin for begin, stop in places)
            yield {
                "requests": [slice(start + begin, start + stop) for begin, stop in places],
                "splits": cut_batches(np.arange(n_requested), self._batch_size, drop_last=False),
            }


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
    The order of chunks is computed from the seed of the pass, not drawn up front: nothing is held, and a pass over any number of
    rows starts, and is resumed, at once. `drop_last` leaves out random rows. Under several torch DataLoader workers the load
    requests of one common pass are dealt out in turn, so that the workers together visit every row once.
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
            self._rng_given = False

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

    def _requests(self, n_obs: int, part: PassPart) -> Iterator[LoadRequest]:
        start, stop = resolve_range(self._mask, n_obs)
        order = None
        # Made here and not in the generator, so that `sample` fails at once when there are more chunks than can be.
        streams = self._streams(part)
        if not self._replacement:
            order = ShuffledChunks((stop - start) // self._chunk_size, streams)
        deal = self._deal(n_obs, part)
        numbers = part.numbers(-(-deal.n_rows(self._share.rank) // self._request_rows))
        return self._numbered_requests(range(start, stop), numbers, deal, streams, order)

    def _numbered_requests(
        self, rows: range, numbers: range, deal: Deal, streams: PassStreams, order: ShuffledChunks | None
    ) -> Iterator[LoadRequest]:
        rank, window = self._share.rank, self._request_rows
        n_rows = deal.n_rows(rank)
        for own_number in numbers:
            first, last = own_number * window, min((own_number + 1) * window, n_rows)
            number = own_number * deal.world_size + rank
            if order is None:
                starts = self._starts_anywhere(streams, number, len(rows), last - first)
                requests = chunk_requests(rows.start + starts, self._chunk_size, last - first)
            else:
                requests = self._rows_at(deal.places(rank, first, last), rows.start, order)
            positions = self._positions(streams, number, last - first)
            yield {"requests": requests, "splits": cut_batches(positions, self._batch_size, drop_last=False)}

    def _starts_anywhere(self, streams: PassStreams, number: int, n_range: int, n_requested: int) -> np.ndarray:
        """Rows (int64) at which chunks begin, each with the same chance; the last chunk may be a short one."""
        n_whole, rest = divmod(n_requested, self._chunk_size)
        starts = streams.integers(Draw.CHUNKS, number, max(n_range - self._chunk_size + 1, 1), n_whole)
        return np.append(starts, streams.integers(Draw.CLASSES, number, n_range - rest + 1, 1)) if rest else starts

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "replacement": self._replacement}
