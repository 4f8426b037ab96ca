"""Shares the passes of a sampler out among the ranks of a distributed job."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from annbatch._checks import as_bool, as_count, as_range, resolve_range
from annbatch.abc import Sampler

from ._seekable import SeekableSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from annbatch._workers import Worker
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
        get pieces of the masked range.
    dist_info
        Where rank and world size come from: "torch" (torch.distributed, initialised), "jax" (jax.process_index), or a
        function that returns ``(rank, world_size)``.
    enforce_equal_batches
        Make every rank yield the same number of batches, as collective operations need. When the rows cannot be shared out
        so, up to ``world_size - 1`` of them are left out of a pass: at the end of the range in passes 0, 2, 4, ..., at its
        beginning in the others, so that two passes together visit every row.

    Raises
    ------
    TypeError
        When `sampler` is no Sampler, or `dist_info` is of the wrong kind.
    ValueError
        When rank or world size is out of range, or `num_samples` is smaller than the world size.
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
        self._enforce_equal_batches = as_bool("enforce_equal_batches", enforce_equal_batches)
        self._rank, self._world_size = _rank_and_world_size(dist_info)
        self._sampler = copy.deepcopy(sampler)
        self.worker_aware = sampler.worker_aware
        if isinstance(self._sampler, SeekableSampler):
            self._sampler._rank_key = (self._rank,)  # noqa: SLF001
            self._share_samples(self._sampler)

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
        return self._sampler.mask

    @mask.setter
    def mask(self, mask: slice | None) -> None:
        new = as_range(mask)
        if new != self.mask:
            self._refuse_while_open(new)
            self._sampler.mask = new

    def validate(self, n_obs: int) -> None:
        """Check that the wrapped sampler fits data of `n_obs` rows, and that every rank gets some of them.

        Raises
        ------
        ValueError
            When it does not, or there are fewer rows than ranks.
        """
        self._sampler.validate(n_obs)
        self._share(n_obs, self._n_passes).validate(n_obs)

    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass yields on this rank.

        Parameters
        ----------
        n_obs
            Number of rows of the data, over all ranks.
        """
        return self._share(n_obs, self._n_passes).n_batches(n_obs)

    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        return self._share(n_obs, self._n_passes).sample(n_obs)

    def _sample_from(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        return self._share(n_obs, self._n_passes)._sample_from(n_obs, first_request, worker)  # noqa: SLF001

    def _share(self, n_obs: int, number: int) -> Sampler:
        """The wrapped sampler, restricted to what this rank does in pass `number`.

        A shallow copy, so that it draws its seeds from the same generator, while a pass that is still open keeps its mask.
        """
        share = copy.copy(self._sampler)
        if isinstance(share, SeekableSampler) and share.shared_out_by == "samples":
            return share
        share.mask = self._rows_of(self._rank, n_obs, number)
        return share

    def _rows_of(self, rank: int, n_obs: int, number: int) -> slice:
        start, stop = resolve_range(self._sampler.mask, n_obs)
        each, left_over = divmod(stop - start, self._world_size)
        if each == 0:
            msg = f"the data must have at least one row per rank, got {stop - start} rows for world_size {self._world_size}"
            raise ValueError(msg)
        if left_over == 0 or not self._enforce_equal_batches or self._same_count(start, each, n_obs):
            first = start + rank * each + min(rank, left_over)
            return slice(first, first + each + (rank < left_over))
        if number % 2 == 1:
            start += left_over
        return slice(start + rank * each, start + (rank + 1) * each)

    def _same_count(self, start: int, each: int, n_obs: int) -> bool:
        """Whether ranges of `each` and of `each + 1` rows give the same number of batches."""
        probe = copy.copy(self._sampler)
        counts = []
        for n_rows in (each, each + 1):
            probe.mask = slice(start, start + n_rows)
            counts.append(probe.n_batches(n_obs))
        return counts[0] == counts[1]

    def _share_samples(self, sampler: SeekableSampler) -> None:
        """Replace `num_samples` by this rank's part of it."""
        num_samples = getattr(sampler, "num_samples", None)
        if num_samples is None:
            return
        each, left_over = divmod(num_samples, self._world_size)
        if each == 0:
            msg = f"num_samples must be at least world_size={self._world_size}, got {num_samples}"
            raise ValueError(msg)
        if not self._enforce_equal_batches:
            each += self._rank < left_over
        sampler._num_samples = each  # type: ignore[attr-defined] # noqa: SLF001

    def _config(self) -> dict[str, Any]:
        return {
            "type": type(self).__qualname__,
            "rank": self._rank,
            "world_size": self._world_size,
            "enforce_equal_batches": self._enforce_equal_batches,
            "sampler": self._sampler._config(),  # noqa: SLF001
        }

    def _rng_restored(self, rng: np.random.Generator | None) -> None:
        self._sampler._rng_restored(rng)  # noqa: SLF001

    def __repr__(self) -> str:
        return f"DistributedSampler({self._sampler!r}, rank={self._rank}, world_size={self._world_size})"


def _rank_and_world_size(dist_info: Any) -> tuple[int, int]:
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
        kind = ValueError if isinstance(dist_info, str) else TypeError
        raise kind(msg)
    if not isinstance(info, (tuple, list)) or len(info) != 2:
        msg = f"dist_info must return (rank, world_size), got {info!r}"
        raise TypeError(msg)
    rank = as_count("rank", info[0], minimum=0)
    world_size = as_count("world_size", info[1])
    if rank >= world_size:
        msg = f"rank must be < world_size, got rank {rank} and world_size {world_size}"
        raise ValueError(msg)
    return rank, world_size
