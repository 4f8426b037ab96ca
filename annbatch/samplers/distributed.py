"""Shares the passes of a sampler out among the ranks of a distributed job."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from annbatch._shared.args import as_bool, as_count, as_range, resolve_range
from annbatch._shared.requests import requested_rows
from annbatch._shared.workers import current_worker

from ._base import Sampler
from ._seekable import SeekableSampler
from ._streams import rank_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

__all__ = ["DistributedSampler"]


class DistributedSampler(Sampler):
    """Gives every rank its share of a pass.

    A sampler that visits a range of rows gets one contiguous piece of that range per rank; the pieces do not overlap. A
    class-based sampler keeps the whole range on every rank, since a piece may not hold every class, and draws
    ``num_samples // world_size`` rows there. Ranks draw from independent streams, also when they start from the same seed.

    Parameters
    ----------
    sampler
        The sampler to share out. A deep copy is made: neither is changed by the other afterwards. Its mask is kept: ranks
        get pieces of the masked range. A sampler of your own gets its piece through its mask, and must keep to it.
    dist_info
        Where rank and world size come from: "torch" (torch.distributed, initialised), "jax" (jax.process_index), or a
        function that returns ``(rank, world_size)``.
    enforce_equal_batches
        Make every rank yield the same number of batches, as collective operations need. When the pieces differ so by a row
        that they hold a different number of batches, the longer ones leave out one row a pass: their last row in one pass,
        their first in the next (in DataLoader workers: in every other epoch on average), so that none is left out for good.

    Raises
    ------
    TypeError
        When `sampler` is no Sampler, or `dist_info` is of the wrong kind.
    ValueError
        When rank or world size is out of range, `num_samples` is smaller than the world size, or `sampler` is shared out
        already or holds a state that was loaded (load it into the DistributedSampler).
    RuntimeError
        When torch.distributed is not initialised.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import DistributedSampler, RandomSampler
    >>> inner = RandomSampler(chunk_size=8, preload_nchunks=4, batch_size=16, rng=np.random.default_rng(0))
    >>> sampler = DistributedSampler(inner, dist_info=lambda: (1, 4))
    >>> sampler.n_batches(400)
    7
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        dist_info: Literal["torch", "jax"] | Callable[[], tuple[int, int]],
        enforce_equal_batches: bool = True,
    ) -> None:
        if not isinstance(sampler, Sampler):
            msg = f"sampler must be an annbatch.abc.Sampler, got {type(sampler).__name__}"
            raise TypeError(msg)
        if isinstance(sampler, DistributedSampler):
            msg = "sampler must not be a DistributedSampler, which is shared out already; pass the sampler inside"
            raise ValueError(msg)
        if sampler._inner.resume is not None:
            msg = "sampler must not hold a state that was loaded; load the state of the DistributedSampler into that"
            raise ValueError(msg)
        self._enforce_equal_batches = as_bool("enforce_equal_batches", enforce_equal_batches)
        self._rank, self._world_size = _rank_and_world_size(dist_info)
        self._sampler = copy.deepcopy(sampler)
        self._sampler._inner.rank_key = rank_key(self._rank)
        # Of a sampler that is not ours the mask itself is moved to each pass's piece; this is the range that is shared.
        self._mask = sampler.mask
        self.worker_aware = sampler.worker_aware
        num_samples = getattr(sampler, "num_samples", None)
        if num_samples is not None and num_samples < self._world_size:
            msg = f"num_samples must be at least world_size={self._world_size}, got {num_samples}"
            raise ValueError(msg)

    @property
    def rank(self) -> int:
        """Number of this process, in [0, world_size)."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._world_size

    @property
    def batch_size(self) -> int | None:
        """Rows per batch, on each rank."""
        return self._sampler.batch_size

    @property
    def shuffle(self) -> bool:
        """Whether the wrapped sampler shuffles."""
        return self._sampler.shuffle

    @property
    def rng(self) -> np.random.Generator | None:
        """Source of randomness of the wrapped sampler."""
        return self._sampler.rng

    @rng.setter
    def rng(self, rng: np.random.Generator | None) -> None:
        self._sampler.rng = rng

    @property
    def mask(self) -> slice:
        """Rows that the ranks share, half open; see :attr:`annbatch.abc.Sampler.mask`."""
        return self._mask

    @mask.setter
    def mask(self, mask: slice | None) -> None:
        new = as_range(mask)
        if new != self._mask:
            self._refuse_while_open(new)
            # Class-based samplers check it against their classes.
            self._sampler.mask = new
            self._mask = new

    def validate(self, n_obs: int) -> None:
        """Check that the wrapped sampler fits data of `n_obs` rows, and that every rank gets some of them.

        Raises
        ------
        ValueError
            When it does not, or there are fewer rows than ranks.
        """
        self._share(n_obs).validate(n_obs)

    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass yields on this rank.

        Parameters
        ----------
        n_obs
            Number of rows of the data, over all ranks.
        """
        return self._share(n_obs).n_batches(n_obs)

    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        return self._sample_from(n_obs, 0, current_worker())

    def _sample_from(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        turn = self._inner.n_passes if worker is None else worker.epoch_seed
        if _is_ours(self._sampler):
            return self._share(n_obs, turn)._sample_from(n_obs, first_request, worker)
        self._sampler.mask = self._piece(n_obs, turn)
        return _skipped(self._sampler.sample(n_obs), first_request, self._sampler.mask, n_obs)

    def _share(self, n_obs: int, turn: int = 0) -> Sampler:
        """A copy of the wrapped sampler, restricted to what this rank does; it draws from the same generator."""
        share = _copy(self._sampler)
        if not _is_ours(share):
            share.mask = self._piece(n_obs, turn)
            return share
        num_samples = share._num_samples
        if share.shared_out_by == "rows":
            share.mask = self._piece(n_obs, turn)
            start, stop = resolve_range(self._mask, n_obs)
            if not (share.shuffle and (share._replacement or (num_samples or n_obs) < stop - start)):
                # Every row of the piece.
                num_samples = None
        share._num_samples = None if num_samples is None else self._part(num_samples)
        return share

    def _part(self, num_samples: int) -> int:
        each, left_over = divmod(num_samples, self._world_size)
        return each if self._enforce_equal_batches else each + (self._rank < left_over)

    def _piece(self, n_obs: int, turn: int) -> slice:
        """Rows of this rank. Which end is left out, where that must be, alternates with `turn`."""
        start, stop = self._shared_range(n_obs)
        each, left_over = divmod(stop - start, self._world_size)
        if each == 0:
            msg = f"the data must have at least one row per rank, got {stop - start} rows for world_size {self._world_size}"
            raise ValueError(msg)
        first = start + self._rank * each + min(self._rank, left_over)
        last = first + each
        if self._rank >= left_over:
            return slice(first, last)
        if not self._enforce_equal_batches or self._same_count(first, each, n_obs):
            return slice(first, last + 1)
        return slice(first + turn % 2, last + turn % 2)

    def _shared_range(self, n_obs: int) -> tuple[int, int]:
        start, stop = resolve_range(self._mask, n_obs)
        num_samples = getattr(self._sampler, "num_samples", None)
        if isinstance(self._sampler, SeekableSampler) and not self._sampler.shuffle and num_samples is not None:
            # In order, the samples are the first rows of the range.
            self._sampler.validate(n_obs)
            stop = start + num_samples
        return start, stop

    def _same_count(self, first: int, each: int, n_obs: int) -> bool:
        """Whether pieces of `each` and of `each + 1` rows give the same number of batches."""
        probe = _copy(self._sampler)
        if isinstance(probe, SeekableSampler):
            probe._num_samples = None
        counts = []
        for n_rows in (each, each + 1):
            probe.mask = slice(first, first + n_rows)
            counts.append(probe.n_batches(n_obs))
        return counts[0] == counts[1]

    def _config(self) -> dict[str, Any]:
        return {
            "type": type(self).__qualname__,
            "rank": self._rank,
            "world_size": self._world_size,
            "enforce_equal_batches": self._enforce_equal_batches,
            "sampler": {**self._sampler._config(), "mask": [self._mask.start, self._mask.stop]},
        }

    def _required_rng(self) -> np.random.Generator:
        return self._sampler._required_rng()

    def _restore_rng(self, rng: np.random.Generator) -> None:
        self._sampler._restore_rng(rng)

    def __repr__(self) -> str:
        return f"DistributedSampler({self._sampler!r}, rank={self._rank}, world_size={self._world_size})"


def _is_ours(sampler: Sampler) -> TypeGuard[SeekableSampler]:
    return isinstance(sampler, SeekableSampler) and sampler.can_seek


def _copy(sampler: Sampler) -> Sampler:
    """A copy whose mask can be moved without moving the original's, and that draws from the same generator."""
    if _is_ours(sampler):
        return copy.copy(sampler)
    # Whatever a sampler that is not ours holds and forwards to, only the generator may be shared.
    rng = sampler.rng
    return copy.deepcopy(sampler, {id(rng): rng})


def _skipped(requests: Iterator[LoadRequest], first_request: int, mask: slice, n_obs: int) -> Iterator[LoadRequest]:
    """Leave the first requests out, and check that the others keep to the mask."""
    try:
        for number, request in enumerate(requests):
            rows = requested_rows(request["requests"], n_obs)
            if len(rows) and (rows.min() < mask.start or rows.max() >= mask.stop):
                msg = (
                    f"a sampler that is shared out must keep to its mask, {mask}, but asked for rows {rows.min()} to "
                    f"{rows.max()}; look at self.mask in its _sample"
                )
                raise ValueError(msg)
            if number >= first_request:
                yield request
    finally:
        if hasattr(requests, "close"):
            requests.close()


def _rank_and_world_size(dist_info: Any) -> tuple[int, int]:
    if not (callable(dist_info) or isinstance(dist_info, str)):
        msg = f"dist_info must be 'torch', 'jax' or a function that returns (rank, world_size), got {dist_info!r}"
        raise TypeError(msg)
    if dist_info == "torch":
        import torch.distributed

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            msg = (
                "dist_info='torch' needs an initialised process group; call torch.distributed.init_process_group first"
            )
            raise RuntimeError(msg)
        info = torch.distributed.get_rank(), torch.distributed.get_world_size()
    elif dist_info == "jax":
        import jax

        info = jax.process_index(), jax.process_count()
    elif callable(dist_info):
        info = dist_info()
    else:
        msg = f"dist_info must be 'torch', 'jax' or a function that returns (rank, world_size), got {dist_info!r}"
        raise ValueError(msg)
    if not isinstance(info, (tuple, list)) or len(info) != 2:
        msg = f"dist_info must return (rank, world_size), got {info!r}"
        raise TypeError(msg)
    rank = as_count("rank", info[0], minimum=0)
    world_size = as_count("world_size", info[1])
    if rank >= world_size:
        msg = f"rank must be < world_size, got rank {rank} and world_size {world_size}"
        raise ValueError(msg)
    return rank, world_size
